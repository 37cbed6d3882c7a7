"""Floor 5: optimisers of PyTorch's as optax transformations, half-way through a run, and back."""

from esper.optim.exchange import from_torch, into_torch

__all__ = ["from_torch", "into_torch"]
