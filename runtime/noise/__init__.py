"""How noisy and how compressed frames are: given to a model with a dial, or estimated."""
