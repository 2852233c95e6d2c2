"""Bundles: what the exporter writes and the runtime reads."""
