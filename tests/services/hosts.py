"""A host of somebody else's, one of whose layers is like one of `esper grow`'s own host."""

from torch import nn


def other():
    """Reads the same flat digits by a layer of the same shape, and goes on in its own way."""
    return nn.Sequential(nn.Linear(64, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 10))
