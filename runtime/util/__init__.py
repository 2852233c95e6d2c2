"""What several folders of the runtime share."""
