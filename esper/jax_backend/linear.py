"""A linear function with a transpose of its own, which keeps nothing for it but what it is given.

`lax.cond` hands all that its backward needs out of its forward, as arrays that the branch not taken fills with
zeros. A branch that is seldom taken is better computed again where its derivative is wanted: not taken, it is then
free in both directions. `jax.custom_vjp` would do that and not differentiate forwards, and
`jax.custom_derivatives.linear_call` does not batch: hence a primitive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Linear = Callable[[Any, Any], Any]
"""A function of (what it depends on in any way, what it is linear in)."""

_linear = Primitive("linear_with_transpose")
_linear.multiple_results = True


def linear(forward: Linear, transpose: Linear, given: Any, of: Any) -> Any:
    """`forward(given, of)`, through which cotangents flow back by `transpose`.

    A derivative in `given`, as of second order, is that of `forward` itself.

    Args:
        forward: Linear in its second argument; like `transpose`, it closes over no tracers.
        transpose: From `given` and cotangents like what `forward` returns to cotangents like `of`.
        given: A pytree of arrays.
        of: A pytree of floating arrays.
    """
    leaves, tree = jax.tree.flatten((given, of))
    shape = jax.tree.structure(jax.eval_shape(forward, given, of))
    return jax.tree.unflatten(shape, _linear.bind(*leaves, forward=forward, transpose=transpose, tree=tree, out=shape))


def _run(*leaves: Any, forward: Linear, tree: Any, **_: Any) -> list[Any]:
    return jax.tree.leaves(forward(*jax.tree.unflatten(tree, leaves)))


def _abstract(*avals: Any, **params: Any) -> list[Any]:
    made = jax.eval_shape(lambda *leaves: _run(*leaves, **params), *avals)
    return [ShapedArray(leaf.shape, leaf.dtype) for leaf in made]


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Any, Any]:
    given = params["tree"].children()[0].num_leaves
    full = [ad.instantiate_zeros(tangent) for tangent in tangents]
    if all(type(tangent) is ad.Zero for tangent in tangents[:given]):
        return _linear.bind(*primals, **params), _linear.bind(*primals[:given], *full[given:], **params)
    return jax.jvp(lambda *leaves: _run(*leaves, **params), tuple(primals), tuple(full))


def _transposed(cotangents: Sequence[Any], *leaves: Any, transpose: Linear, tree: Any, out: Any, **_: Any) -> list[Any]:
    given, _ = jax.tree.unflatten(tree, leaves)
    back = transpose(given, jax.tree.unflatten(out, [ad.instantiate_zeros(each) for each in cotangents]))
    flat = [None] * len(jax.tree.leaves(given)) + jax.tree.leaves(back)
    return [each if ad.is_undefined_primal(leaf) else None for each, leaf in zip(flat, leaves, strict=True)]


def _batched(
    leaves: Sequence[Any], axes: Sequence[Any], *, forward: Linear, transpose: Linear, tree: Any, **params: Any
) -> tuple[list[Any], list[int]]:
    """The transpose stays what it is under `vmap`, for each place of the mapped axis."""
    given_tree = tree.children()[0]
    count = given_tree.num_leaves
    size = next(leaf.shape[axis] for leaf, axis in zip(leaves, axes, strict=True) if axis is not None)
    of = [
        jnp.broadcast_to(leaf, (size, *leaf.shape)) if axis is None else jnp.moveaxis(leaf, axis, 0)
        for leaf, axis in zip(leaves[count:], axes[count:], strict=True)
    ]

    def mapped(function: Linear) -> Linear:
        each = jax.vmap(
            lambda given, of: function(jax.tree.unflatten(given_tree, given), of), in_axes=(list(axes[:count]), 0)
        )
        return lambda given, of: each(jax.tree.leaves(given), of)

    made = _linear.bind(*leaves[:count], *of, forward=mapped(forward), transpose=mapped(transpose), tree=tree, **params)
    return made, [0] * len(made)


_linear.def_impl(_run)
_linear.def_abstract_eval(_abstract)
ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transposed
batching.primitive_batchers[_linear] = _batched
mlir.register_lowering(_linear, mlir.lower_fun(_run, multiple_results=True))
