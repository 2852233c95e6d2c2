"""The CPU's own decoder: one C++ source, its compiler, and the library that comes of it."""
