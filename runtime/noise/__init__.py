"""How noisy and how compressed frames are: told to a model with a dial, or estimated."""
