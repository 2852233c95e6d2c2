"""CUDA sources, compiled on the machine they run on."""
