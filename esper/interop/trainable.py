"""Which arrays of a tree with models in it are to be trained."""

from __future__ import annotations

from typing import Any

import jax

from esper.interop.trees import is_inexact
from esper.jax_backend.model import MorphableModel


def trainable(tree: Any) -> Any:
    """True for what is to be trained in a tree that holds wrapped models, False for the rest; the tree's own structure.

    Of a model those are its parameters: its buffers (batch statistics, and torch's frozen parameters), seeds and
    constants are floats too, and an optimiser that is given them moves them, by weight decay at least. Of the rest, all
    arrays of floats. It is the filter that `equinox.partition` takes, and the mask of `optax.masked`.

    Example:
        >>> import esper, jax, torch
        >>> from esper.interop import trainable
        >>> model = esper.wrap(torch.nn.BatchNorm1d(2))
        >>> sorted(name for name, kept in trainable({"norm": model})["norm"].buffers.items() if kept)
        []
    """

    def marked(node: Any) -> Any:
        if not isinstance(node, MorphableModel):
            return is_inexact(node)
        return jax.tree.map(lambda _: False, node).replace(params=jax.tree.map(is_inexact, node.params))

    return jax.tree.map(marked, tree, is_leaf=lambda node: isinstance(node, MorphableModel))
