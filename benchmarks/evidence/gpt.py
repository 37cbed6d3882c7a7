"""A language model over bytes, small enough that a step takes a few milliseconds, and the text it learns."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

CONTEXT = 64

Windows = tuple[jax.Array, jax.Array]
"""Bytes [windows, context], and the byte that comes after each."""


class Text(NamedTuple):
    """A file in three contiguous parts, 80 %, 10 % and 10 % of its bytes, and what is known of it."""

    train: Windows
    validation: Windows
    test: Windows
    alphabet: int
    bytes: int
    sha256: str


def topics() -> Text:
    """CPython's `pydoc_data/topics.py`; its byte values are numbered in order, as only so many occur."""
    from pydoc_data import topics as module

    assert module.__file__
    raw = Path(module.__file__).read_bytes()
    values, numbered = np.unique(np.frombuffer(raw, np.uint8), return_inverse=True)
    first, second = int(0.8 * len(raw)), int(0.9 * len(raw))
    parts = (_windows(part) for part in np.split(numbered.astype(np.int32), [first, second]))
    return Text(*parts, len(values), len(raw), hashlib.sha256(raw).hexdigest())


def _windows(text: np.ndarray) -> Windows:
    """One after the other; what is left over at the end is left out."""
    count = (len(text) - 1) // CONTEXT
    inputs, targets = text[: count * CONTEXT], text[1 : count * CONTEXT + 1]
    return jnp.asarray(inputs.reshape(count, CONTEXT)), jnp.asarray(targets.reshape(count, CONTEXT))


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shaped like `x`, [batch, positions, width]."""
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.mix(x).chunk(3, -1))
        return self.out(scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then a feed-forward of one hidden layer, each on its normalised input and beside it."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shaped like `x`."""
        x = x + self.attention(self.norm1(x))
        return x + self.feed(self.norm2(x))


class GPT(nn.Module):
    """Logits of the next byte, [batch, positions, alphabet]."""

    def __init__(self, alphabet: int, *, hidden: int, depth: int = 1, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(alphabet, width), nn.Parameter(torch.zeros(CONTEXT, width))
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.normal_(self.place, std=0.1)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, alphabet)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Logits of what comes after each position."""
        x = self.embed(numbers) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
