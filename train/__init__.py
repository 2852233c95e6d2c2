"""PyTorch side: models, data, training, evaluation protocol and checkpoints."""
