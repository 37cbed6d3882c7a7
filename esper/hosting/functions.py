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
from esper.jax_backend.interchange import is_foreign, on_memory_of, wide
from esper.program import Static, Tree, flatten, unflatten

if TYPE_CHECKING:
    from esper.torch_frontend.hosted import Module, Tensor


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

    def current(self, tensors: Mapping[str, Tensor]) -> Any:
        """There is no model to be had.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError("this module runs a function, and no model of esper's")

    def ready(
        self, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], modes: Any
    ) -> Ready:
        """A call."""
        from esper.torch_frontend.arrays import borrow, lend
        from esper.torch_frontend.hosted import entropy

        leaves, tree = flatten((args, dict(kwargs)))
        given = [leaf for leaf in leaves if is_foreign(leaf)]
        held = [tensors[name] for name in self._names]
        plain = tuple(None if is_foreign(leaf) else Static(leaf) for leaf in leaves)
        key = jax.random.key(entropy()) if "key" in self._takes else None
        seen: list[Any] = []

        def finished(arrays: list[jax.Array], containers: Containers) -> list[Tensor]:
            seen.append(containers.tree)
            return [borrow(array) for array in arrays]

        return Ready(
            programs=self._found((tree, plain, modes[""] and "train" in self._takes)),
            arrays=[on_memory_of(lend(tensor, "a tensor", wide())) for tensor in (*held, *given)],
            tensors=[*held, *given],
            guarded=[True] * (len(held) + len(given)),
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

    def _body(self, tree: Tree, plain: Sequence[Static | None], train: bool) -> Body:
        def run(arrays: list[jax.Array], key: jax.Array | None) -> tuple[list[jax.Array], Any]:
            params = jax.tree.unflatten(self._tree, arrays[: len(self._names)])
            given = iter(arrays[len(self._names) :])
            leaves = [next(given) if leaf is None else leaf.value for leaf in plain]
            args, kwargs = unflatten(tree, leaves)
            extra = {name: value for name, value in (("key", key), ("train", train)) if name in self._takes}
            outputs, containers = jax.tree.flatten(self._function(params, *args, **kwargs, **extra))
            return [jnp.asarray(output) for output in outputs], Containers(containers)

        return run


def parts_of(params: Any, trained: Callable[[str], bool] | None) -> Module:
    """Modules that hold a tree's arrays under its paths: as parameters what is trained, the rest as buffers."""
    from esper.torch_frontend.arrays import to_torch
    from esper.torch_frontend.hosted import holding

    tensors = {name: to_torch(array) for name, array in zip(_names(params), jax.tree.leaves(params), strict=True)}
    if trained is None:
        has_collections = isinstance(params, Mapping) and "params" in params  # variables of flax.linen
        trained = (lambda name: name.startswith("params.")) if has_collections else (lambda name: True)
    return holding(tensors, trained)


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
