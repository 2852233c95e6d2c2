"""Programs that use what ``diinn-run`` gives."""
