"""What runs a function of JAX's for a module of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import struct

from esper.errors import ArgumentError, SignatureError
from esper.hosting.ready import Body, Programs, Ready
from esper.jax_backend.interchange import on_memory_of, wide
from esper.program import Tree, flatten, unflatten

if TYPE_CHECKING:
    import torch
    from torch import nn


class Containers(struct.PyTreeNode):
    """The structure of a function's outputs, as a result of its compiled program."""

    tree: Any = struct.field(pytree_node=False)


class FunctionRunner:
    """A function of parameters and inputs, and its compiled programs.

    Args:
        function: The function.
        params: Its parameters, whose structure counts and whose values do not.
    """

    def __init__(self, function: Callable[..., Any], params: Any) -> None:
        self._function = function
        self._tree = jax.tree.structure(params)
        self._names = _names(params)
        self._takes = {name for name in ("key", "train") if _takes(function, name)}
        self._programs: dict[Any, Programs] = {}

    def copy(self) -> FunctionRunner:
        """The same: it holds no values."""
        return self

    def current(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        """There is no model to be had.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError("this module runs a function, and no model of esper's")

    def ready(
        self, tensors: Mapping[str, torch.Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], train: bool
    ) -> tuple[list[torch.Tensor], Ready]:
        """A call: the tensors that it reads, and what runs it."""
        import torch

        from esper.torch_frontend.arrays import borrow, lend

        leaves, tree = flatten((args, dict(kwargs)))
        given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        held = [tensors[name] for name in self._names]
        plain = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
        places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
        call = (tree, plain, places, train and "train" in self._takes)
        key = jax.random.key(int(torch.randint(1 << 31, ()))) if "key" in self._takes else None
        seen: list[Any] = []

        def finished(arrays: list[jax.Array], containers: Containers) -> list[torch.Tensor]:
            seen.append(containers.tree)
            return [borrow(array) for array in arrays]

        return [*held, *given], Ready(
            programs=self._found(call),
            arrays=[on_memory_of(lend(tensor, "a tensor", wide())) for tensor in (*held, *given)],
            rest=key,
            finished=finished,
            assembled=lambda outputs: jax.tree.unflatten(seen[-1], outputs),
        )

    def _found(self, call: tuple[Any, ...]) -> Programs:
        try:
            known = self._programs.get(call)
        except TypeError as error:
            raise SignatureError(f"what is no tensor among the inputs must be hashable: {error}") from error
        if known is None:
            known = self._programs[call] = Programs(self._body(*call))
        return known

    def _body(self, tree: Tree, plain: Sequence[Any], places: Sequence[int], train: bool) -> Body:
        def run(arrays: list[jax.Array], key: jax.Array | None) -> tuple[list[jax.Array], Any]:
            params = jax.tree.unflatten(self._tree, arrays[: len(self._names)])
            leaves, given = list(plain), iter(arrays[len(self._names) :])
            for place in places:
                leaves[place] = next(given)
            args, kwargs = unflatten(tree, leaves)
            extra = {name: value for name, value in (("key", key), ("train", train)) if name in self._takes}
            outputs, containers = jax.tree.flatten(self._function(params, *args, **kwargs, **extra))
            return [jnp.asarray(output) for output in outputs], Containers(containers)

        return run


def parts_of(params: Any) -> nn.Module:
    """Modules that hold a tree's arrays under its paths: floats as parameters, the rest as buffers."""
    from esper.torch_frontend.arrays import to_torch
    from esper.torch_frontend.hosted import holding

    return holding({name: to_torch(array) for name, array in zip(_names(params), jax.tree.leaves(params), strict=True)})


def _names(params: Any) -> list[str]:
    """The path of each leaf, as torch writes names."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    names = [".".join(jax.tree_util.keystr((key,), simple=True).replace(".", "_") for key in path) for path in paths]
    names = [name or "value" for name in names]
    if len(set(names)) < len(names):
        raise ArgumentError(f"two parameters have one name in torch: {sorted(n for n in names if names.count(n) > 1)}")
    return names


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether the function has an argument of that name."""
    try:
        found = signature(function).parameters.get(name)
    except ValueError:
        return False
    return found is not None and found.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
