"""Convolutions, channels second as in torch, of any number of spatial dimensions."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from esper.jax_backend.platform.bias import add_bias
from esper.jax_backend.platform.precision import PRECISION, contract, widen
from esper.jax_backend.registry import lowers


@lowers("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    """conv2d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1) -> Tensor"""  # noqa: E501
    pads = [(p, p) for p in _spread(padding, weight.ndim - 2)]
    return _batched(_conv, input, weight, bias, stride, pads, dilation, groups)


@lowers("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def conv_padding(input, weight, bias=None, stride=1, padding="valid", dilation=1, groups=1):
    """conv2d.padding(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, str padding="valid", SymInt[2] dilation=1, SymInt groups=1) -> Tensor"""  # noqa: E501
    rank = weight.ndim - 2
    # "same" puts the odd one at the end.
    reach = [d * (k - 1) for d, k in zip(_spread(dilation, rank), weight.shape[2:], strict=True)]
    total = reach if padding == "same" else [0] * rank
    return _batched(_conv, input, weight, bias, stride, [(t // 2, t - t // 2) for t in total], dilation, groups)


@lowers("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    """conv_transpose2d.input(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] output_padding=0, SymInt groups=1, SymInt[2] dilation=1) -> Tensor"""  # noqa: E501
    rank = weight.ndim - 2
    spread = (_spread(value, rank) for value in (dilation, padding, output_padding))
    sizes = zip(weight.shape[2:], *spread, strict=True)
    pads = [(d * (k - 1) - p, d * (k - 1) - p + extra) for k, d, p, extra in sizes]
    return _batched(_conv_transpose, input, weight, bias, stride, pads, dilation, groups)


@lowers("aten.convolution.default")
def convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    """convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor"""  # noqa: E501
    if transposed:
        return conv_transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(input, weight, bias, stride, padding, dilation, groups)


def _batched(rule, input, weight, bias, stride, pads, dilation, groups):
    rank = weight.ndim - 2
    x = input if input.ndim == weight.ndim else input[None]
    out = rule(widen(x), widen(weight), _spread(stride, rank), pads, _spread(dilation, rank), groups)
    if bias is not None:
        out = add_bias(out, bias, 1)
    out = out.astype(input.dtype)
    return out if input.ndim == weight.ndim else out[0]


def _conv(x, weight, stride, pads, dilation, groups):
    if groups == 1 and all(k == 1 for k in weight.shape[2:]) and not any(map(any, pads)):
        return _pointwise(x, weight, stride)
    return lax.conv_general_dilated(
        x, weight, stride, pads, rhs_dilation=dilation, feature_group_count=groups, precision=PRECISION
    )


def _conv_transpose(x, weight, stride, pads, dilation, groups):
    """The convolution whose gradient is a convolution with `weight`, (in, out / groups, *kernel)."""
    rank = weight.ndim - 2
    inputs, outputs, *kernel = weight.shape
    weight = weight.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
    weight = jnp.flip(weight.reshape(groups * outputs, inputs // groups, *kernel), range(2, rank + 2))
    return lax.conv_general_dilated(
        x,
        weight,
        (1,) * rank,
        pads,
        lhs_dilation=stride,
        rhs_dilation=dilation,
        feature_group_count=groups,
        precision=PRECISION,
    )


def _pointwise(x, weight, stride):
    """A convolution of size one without padding: a product over the channels."""
    x = x[:, :, *(slice(None, None, s) for s in stride)] if any(s != 1 for s in stride) else x
    return jnp.moveaxis(contract(weight.reshape(weight.shape[:2]), x, ((1,), (1,))), 0, 1)


def _spread(value, rank):
    """A number, or a sequence of one, for every spatial dimension."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * rank if len(value) == 1 else value
