"""What the exporter writes and the runtime reads."""
