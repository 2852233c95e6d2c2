"""Checkpoints to bundles."""
