"""CUDA: the device, its memory, kernels and their compiler."""
