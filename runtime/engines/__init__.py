"""TensorRT engines: which are wanted, how they are built, where they are kept, whether they are right."""
