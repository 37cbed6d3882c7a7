"""Convolutions of any number of spatial dimensions; `channel_axis` is 1 as in torch, or -1 for channels last."""

from __future__ import annotations

from esper.jax_backend.platform.bias import add_bias
from esper.jax_backend.platform.convolution import Spec, convolve, input_gradient
from esper.jax_backend.platform.precision import widen
from esper.jax_backend.registry import lowers


@lowers("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default")
def conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, channel_axis=1):
    """conv2d(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] dilation=1, SymInt groups=1) -> Tensor"""  # noqa: E501
    pads = [(p, p) for p in _spread(padding, weight.ndim - 2)]
    return _conv(input, weight, bias, stride, pads, dilation, groups, channel_axis)


@lowers("aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding")
def conv_padding(input, weight, bias=None, stride=1, padding="valid", dilation=1, groups=1, *, channel_axis=1):
    """conv2d.padding(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, str padding="valid", SymInt[2] dilation=1, SymInt groups=1) -> Tensor"""  # noqa: E501
    rank = weight.ndim - 2
    # "same" puts the odd one at the end.
    reach = [d * (k - 1) for d, k in zip(_spread(dilation, rank), weight.shape[2:], strict=True)]
    total = reach if padding == "same" else [0] * rank
    pads = [(t // 2, t - t // 2) for t in total]
    return _conv(input, weight, bias, stride, pads, dilation, groups, channel_axis)


@lowers("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def conv_transpose(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, channel_axis=1
):
    """conv_transpose2d.input(Tensor input, Tensor weight, Tensor? bias=None, SymInt[2] stride=1, SymInt[2] padding=0, SymInt[2] output_padding=0, SymInt groups=1, SymInt[2] dilation=1) -> Tensor"""  # noqa: E501
    rank, last = weight.ndim - 2, channel_axis != 1
    x = input if input.ndim == weight.ndim else input[None]
    settings = (_spread(value, rank) for value in (stride, padding, output_padding, dilation))
    sizes = list(zip(_space(x, last), weight.shape[2:], *settings, strict=True))
    # It is the gradient of the convolution that takes its output, of size `space`, to its input.
    space = tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 + extra for n, k, s, p, extra, d in sizes)
    pads = tuple((p, p - extra) for _, _, _, p, extra, _ in sizes)
    spec = Spec(space, weight.shape[2:], _spread(stride, rank), pads, _spread(dilation, rank), groups, last)
    return _finished(input_gradient(widen(x), widen(weight), spec), input, weight, bias, last)


@lowers("aten.convolution.default")
def convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups, *, channel_axis=1):
    """convolution(Tensor input, Tensor weight, Tensor? bias, SymInt[] stride, SymInt[] padding, SymInt[] dilation, bool transposed, SymInt[] output_padding, SymInt groups) -> Tensor"""  # noqa: E501
    if transposed:
        settings = (stride, padding, output_padding, groups, dilation)
        return conv_transpose(input, weight, bias, *settings, channel_axis=channel_axis)
    return conv(input, weight, bias, stride, padding, dilation, groups, channel_axis=channel_axis)


def _conv(input, weight, bias, stride, pads, dilation, groups, channel_axis):
    rank, last = weight.ndim - 2, channel_axis != 1
    x = input if input.ndim == weight.ndim else input[None]
    spec = Spec(
        _space(x, last), weight.shape[2:], _spread(stride, rank), tuple(pads), _spread(dilation, rank), groups, last
    )
    return _finished(convolve(widen(x), widen(weight), spec), input, weight, bias, last)


def _finished(out, input, weight, bias, last):
    """With the bias, in the dtype and with the dimensions of the input."""
    if bias is not None:
        out = add_bias(out, bias, out.ndim - 1 if last else 1)
    out = out.astype(input.dtype)
    return out if input.ndim == weight.ndim else out[0]


def _space(x, last):
    return x.shape[1:-1] if last else x.shape[2:]


def _spread(value, rank):
    """A number, or a sequence of one, for every spatial dimension."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * rank if len(value) == 1 else value
