"""Channels last: how activations lie in memory between the convolutions of a network.

Torch counts dimensions as (batch, channels, *space). Convolutions, norms and pooling are faster where channels lie
next to each other, so what a convolution makes is held as `ChannelsLast`, and stays so as long as what reads it can do
with that order: rules that take `channel_axis`, functions of single elements, and those that merely name dimensions.
Any other rule is given the array in torch's order. No result depends on it but in the last bits of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from esper.jax_backend.registry import Lowering

# fmt: off
_POINTWISE = frozenset(f"aten.{name}" for name in (
    "abs.default", "add.Scalar", "add.Tensor", "addcmul.default", "alias.default", "celu.default", "clamp.default",
    "clamp.Tensor", "clamp_max.default", "clamp_min.default", "clone.default", "cos.default", "detach.default",
    "div.Scalar", "div.Tensor", "elu.default", "eq.Scalar", "eq.Tensor", "erf.default", "exp.default", "ge.Scalar",
    "gelu.default", "gt.Scalar", "hardsigmoid.default", "hardswish.default", "hardtanh.default", "le.Scalar",
    "leaky_relu.default", "log.default", "log_sigmoid.default", "logical_not.default", "lt.Scalar", "maximum.default",
    "minimum.default", "mish.default", "mul.Scalar", "mul.Tensor", "ne.Scalar", "ne.Tensor", "neg.default",
    "pow.Tensor_Scalar", "reciprocal.default", "relu.default", "relu6.default", "rsqrt.default", "rsub.Scalar",
    "selu.default", "sigmoid.default", "sign.default", "silu.default", "sin.default", "softplus.default",
    "sqrt.default", "square.default", "sub.Scalar", "sub.Tensor", "tanh.default", "where.self", "_to_copy.default",
))
# fmt: on
# With the place of `keepdim` among the arguments after the dimensions.
_REDUCES = {
    **dict.fromkeys(("aten.amax.default", "aten.amin.default", "aten.mean.dim", "aten.sum.dim_IntList"), 0),
    **dict.fromkeys(("aten.var.dim", "aten.std.dim", "aten.var_mean.dim"), 1),
    **dict.fromkeys(("aten.var.correction", "aten.std.correction", "aten.var_mean.correction"), 1),
}
# With the place of `dim` among the arguments after the first.
_CUTS = {"aten.chunk.default": 1, "aten.slice.Tensor": 0, "aten.split.Tensor": 1, "aten.split_with_sizes.default": 1}


@struct.dataclass
class ChannelsLast:
    """An activation in the order (batch, *space, channels).

    Attributes:
        array: At least three dimensions.
    """

    array: jax.Array

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.array.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes as torch counts dimensions."""
        batch, *space, channels = self.array.shape
        return batch, channels, *space

    @property
    def dtype(self) -> np.dtype:
        """As of any array."""
        return self.array.dtype


Value = jax.Array | ChannelsLast
Held = Callable[[jax.Array], Value]


def in_torch_order(value: Any) -> Any:
    """The value, or those in a tuple, as torch counts dimensions."""
    if isinstance(value, tuple):
        return tuple(map(in_torch_order, value))
    return jnp.moveaxis(value.array, -1, 1) if isinstance(value, ChannelsLast) else value


def like(value: Value, array: jax.Array) -> Value:
    """An array in torch's order, held in the order of `value`."""
    return ChannelsLast(jnp.moveaxis(array, 1, -1)) if isinstance(value, ChannelsLast) else array


def lying(value: Value) -> tuple[jax.Array, Held]:
    """The array as it lies in memory, and what makes a value of one that lies like it."""
    return (value.array, ChannelsLast) if isinstance(value, ChannelsLast) else (value, lambda array: array)


class _Call(NamedTuple):
    """An operator and what it is given, some of it channels last, with so many dimensions."""

    op: str
    found: Lowering
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    ndim: int = 0


def run(op: str, found: Lowering, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the rule of `op` makes of its arguments, of which some may be `ChannelsLast`; so may results."""
    call = _Call(op, found, args, kwargs)
    if _begins(call):
        return _by_channel_axis(call._replace(ndim=args[0].ndim))
    held = [value.ndim for value in _leaves(args) if isinstance(value, ChannelsLast)]
    for way in _WAYS if held else ():
        made = way(call._replace(ndim=held[0]))
        if made is not NotImplemented:
            return made
    return found.rule(*in_torch_order(args), **kwargs)


def _begins(call: _Call) -> bool:
    """Whether it is a convolution of a batch: from here on it pays."""
    is_convolution = call.op.startswith("aten.conv") and call.found.takes_channel_axis
    return is_convolution and call.args[0].ndim == call.args[1].ndim


def _by_channel_axis(call: _Call) -> Any:
    first, *rest = call.args
    given = first.array if isinstance(first, ChannelsLast) else jnp.moveaxis(first, 1, -1)
    made = call.found.rule(given, *in_torch_order(tuple(rest)), channel_axis=-1, **call.kwargs)
    return _held(made, call.ndim)


def _following(call: _Call) -> Any:
    """Norms, and pooling of inputs with a batch dimension."""
    space = [rank for rank in (1, 2, 3) if f"pool{rank}d" in call.op]
    fits = call.found.takes_channel_axis and isinstance(call.args[0], ChannelsLast)
    return _by_channel_axis(call) if fits and (not space or space[0] + 2 == call.ndim) else NotImplemented


def _pointwise(call: _Call) -> Any:
    if call.op not in _POINTWISE or any(getattr(arg, "ndim", 0) > call.ndim for arg in call.args):
        return NotImplemented
    return _held(call.found.rule(*(_aligned(arg, call.ndim) for arg in call.args), **call.kwargs), call.ndim)


def _permuted(call: _Call) -> Any:
    if call.op not in ("aten.permute.default", "aten.transpose.int"):
        return NotImplemented
    order, dims = list(range(call.ndim)), call.args[1:]
    if call.op == "aten.permute.default":
        order = [axis % call.ndim for axis in dims[0]]
    else:
        one, other = (axis % call.ndim for axis in dims)
        order[one], order[other] = other, one
    return jnp.transpose(call.args[0].array, [_place(axis, call.ndim) for axis in order])


def _reduced(call: _Call) -> Any:
    """Over all of space, or with every dimension kept."""
    if call.op not in _REDUCES or len(call.args) < 2 or not call.args[1]:
        return NotImplemented
    x, dims, *rest = call.args
    axes = sorted(axis % call.ndim for axis in dims)
    kept = call.kwargs.get("keepdim", False) or any(rest[_REDUCES[call.op] :][:1])
    if not kept and axes != list(range(2, call.ndim)):
        return NotImplemented
    return _held(call.found.rule(x.array, tuple(_place(a, call.ndim) for a in axes), *rest, **call.kwargs), call.ndim)


def _cut(call: _Call) -> Any:
    if call.op not in _CUTS:
        return NotImplemented
    x, *rest = call.args
    place = _CUTS[call.op]
    given = rest[place] if len(rest) > place else call.kwargs.get("dim", 0)
    rest[place : place + 1] = [_place(given % call.ndim, call.ndim)]
    kwargs = {name: value for name, value in call.kwargs.items() if name != "dim"}
    return _held(call.found.rule(x.array, *rest, **kwargs), call.ndim)


def _joined(call: _Call) -> Any:
    if call.op != "aten.cat.default" or any(value.ndim != call.ndim for value in call.args[0]):
        return NotImplemented
    tensors, axis = call.args[0], call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)
    return _held(
        call.found.rule(tuple(_aligned(t, call.ndim) for t in tensors), _place(axis % call.ndim, call.ndim)), call.ndim
    )


def _grafted(call: _Call) -> Any:
    """What follows a layer sums in the same order whatever grows there, so the order of its output stays."""
    fits = call.found.grafts and isinstance(call.args[0], ChannelsLast)
    return call.found.rule(*call.args, **call.kwargs) if fits else NotImplemented


_WAYS: Sequence[Callable[[_Call], Any]] = (_following, _pointwise, _permuted, _reduced, _cut, _joined, _grafted)
"""What can be done with channels-last values as they are; NotImplemented where an operator is none of these."""


def _aligned(value: Any, ndim: int) -> Any:
    """The array of an argument that is to meet channels-last ones of `ndim` dimensions."""
    if isinstance(value, ChannelsLast):
        return value.array if value.ndim == ndim else _aligned(in_torch_order(value), ndim)
    if not getattr(value, "ndim", 0):
        return value
    return jnp.moveaxis(value.reshape(*[1] * (ndim - value.ndim), *value.shape), 1, -1)


def _held(made: Any, ndim: int) -> Any:
    if isinstance(made, tuple | list):
        return [_held(value, ndim) for value in made]
    return ChannelsLast(made) if getattr(made, "ndim", 0) == ndim else made


def _leaves(value: Any) -> list[Any]:
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, tuple) else [value]


def _place(axis: int, ndim: int) -> int:
    """Where one of torch's dimensions lies when channels are last."""
    return {0: 0, 1: ndim - 1}.get(axis, axis - 1)
