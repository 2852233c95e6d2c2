"""Training runs as YAML, as data."""
