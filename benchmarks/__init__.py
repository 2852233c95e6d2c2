"""Everything that prints a figure: quality, speed, memory, pictures."""
