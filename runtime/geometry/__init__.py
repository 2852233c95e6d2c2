"""Sizes, coordinates, views and cameras: NumPy, and OpenCV where maps are made."""
