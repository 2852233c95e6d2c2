"""TensorRT engines: their shapes, how they are built, cached and opened, and whether they are right."""
