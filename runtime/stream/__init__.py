"""Several cameras live: newest frames, one batch, many views, bounded age."""
