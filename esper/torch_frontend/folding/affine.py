"""Layers of torch that are affine in what they read, as arrays in float64, and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from esper.torch_frontend.grown import Grown

_HARMLESS = {
    *(
        "__init__",
        "__module__",
        "__doc__",
        "__qualname__",
        "__annotations__",
        "__firstlineno__",
        "__static_attributes__",
    ),
    *("__dict__", "__weakref__", "__constants__", "__parameters__", "__orig_bases__", "extra_repr"),
}
"""What a class of the user's may have without doing anything else than torch's."""

Norm = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Affine:
    """`weight` on what a layer reads, plus `bias`, in float64.

    Attributes:
        weight: [outputs, inputs / groups, *taps]; of an embedding [outputs, entries]; of a norm, whose weights meet
            what it has normalised one by one, [outputs, *other axes].
        bias: [outputs], of a norm shaped like its weight; zeros where the layer has none.
        groups: As a convolution's.
    """

    weight: Tensor
    bias: Tensor
    groups: int = 1

    def then(self, map: Pointwise) -> Affine:
        """This, with a map over its outputs behind it."""
        if map.diagonal:
            return replace(
                self,
                weight=self.weight * _rows(map.matrix, self.weight),
                bias=self.bias * _rows(map.matrix, self.bias) + _rows(map.shift, self.bias),
            )
        weight = torch.tensordot(map.matrix, self.dense().weight, 1)
        return Affine(weight, map.matrix @ self.bias + map.shift)

    def after(self, map: Pointwise) -> Affine:
        """This, with a map over what it reads before it; a shift must reach every tap."""
        held = self if map.diagonal else self.dense()
        columns = _columns(map.shift, held)
        bias = held.bias + (held.weight * columns).flatten(1).sum(1)
        if map.diagonal:
            return replace(held, weight=held.weight * _columns(map.matrix, held), bias=bias)
        weight = torch.tensordot(held.weight.movedim(1, -1), map.matrix, 1).movedim(-1, 1)
        return Affine(weight, bias)

    def times(self, factor: float) -> Affine:
        """Each output times a number."""
        return replace(self, weight=self.weight * factor, bias=self.bias * factor)

    def plus(self, other: Affine) -> Affine:
        """The sum of what both give."""
        if self.groups == other.groups:
            return replace(self, weight=self.weight + other.weight, bias=self.bias + other.bias)
        one, two = self.dense(), other.dense()
        return Affine(one.weight + two.weight, one.bias + two.bias)

    def dense(self) -> Affine:
        """The same in one group."""
        if self.groups == 1:
            return self
        outputs, inputs, *taps = self.weight.shape
        weight = self.weight.new_zeros(outputs, inputs * self.groups, *taps)
        for part, rows in enumerate(self.weight.chunk(self.groups)):
            own = slice(part * len(rows), (part + 1) * len(rows))
            weight[own, part * inputs : (part + 1) * inputs] = rows
        return Affine(weight, self.bias)


@dataclass(frozen=True)
class Pointwise:
    """A map over features, the same at every position, in float64.

    Attributes:
        matrix: [outputs, inputs]; [features] where each is only scaled.
        shift: [outputs].
        positions: How many axes of positions follow the features.
    """

    matrix: Tensor
    shift: Tensor
    positions: int

    @property
    def diagonal(self) -> bool:
        """Whether each feature is only scaled and shifted."""
        return self.matrix.dim() == 1

    def then(self, other: Pointwise) -> Pointwise:
        """This, with another behind it."""
        if other.diagonal:
            matrix, shift = self.matrix * _rows(other.matrix, self.matrix), self.shift * other.matrix + other.shift
        else:
            matrix = other.matrix * self.matrix if self.diagonal else other.matrix @ self.matrix
            shift = other.matrix @ self.shift + other.shift
        return replace(self, matrix=matrix, shift=shift)

    def weighed(self, weight: float, other: Pointwise, others: float) -> Pointwise:
        """`weight` times this plus `others` times another."""
        one, two = (self.matrix, other.matrix) if self.diagonal == other.diagonal else (self._full(), other._full())
        return replace(self, matrix=weight * one + others * two, shift=weight * self.shift + others * other.shift)

    def _full(self) -> Tensor:
        return torch.diag(self.matrix) if self.diagonal else self.matrix


def read(layer: nn.Module) -> Affine | None:
    """The layer as arrays; None if it is none of these, or not with torch's own forward and parameters."""
    if not is_plain(layer):
        return None
    match layer:
        case nn.Embedding():
            if layer.max_norm is not None:  # the forward writes into the weight
                return None
            return Affine(layer.weight.detach().double().T, torch.zeros(layer.embedding_dim, dtype=torch.float64))
        case nn.Linear():
            return Affine(layer.weight.detach().double(), _bias(layer, layer.out_features))
        case _ConvNd():
            weight = layer.weight.detach().double()
            weight = _turned(weight, layer.groups) if isinstance(layer, _ConvTransposeNd) else weight
            return Affine(weight, _bias(layer, layer.out_channels), layer.groups)
        case _NormBase() | nn.GroupNorm() | nn.LayerNorm() | nn.RMSNorm():
            return _read_norm(layer)
    return None


def write(layer: Any, affine: Affine) -> None:
    """Gives the layer these arrays, in the dtype that it has; new parameters take the place of the old ones."""
    match layer:
        case nn.Embedding():
            _put(layer, "weight", (affine.weight + affine.bias[:, None]).T)
        case nn.Linear():
            _put(layer, "weight", affine.weight)
            _put_bias(layer, affine.bias)
            layer.out_features, layer.in_features = affine.weight.shape
        case _ConvNd():
            turned = isinstance(layer, _ConvTransposeNd)
            _put(layer, "weight", _turned(affine.weight, affine.groups) if turned else affine.weight)
            _put_bias(layer, affine.bias)
            layer.out_channels, layer.groups = len(affine.weight), affine.groups
            layer.in_channels = affine.weight.shape[1] * affine.groups
        case _:
            _write_norm(layer, affine)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer does what its class in torch does, with parameters of its own and nothing around it."""
    classes = type(layer).__mro__
    base = next((n for n, cls in enumerate(classes) if cls.__module__.startswith("torch.nn.modules")), None)
    return (
        base is not None
        and not isinstance(layer, Grown)  # whose class bears the module name of the host's
        and not {name for cls in classes[:base] for name in vars(cls)} - _HARMLESS
        and not {"forward", "__call__"} & set(vars(layer))
        and not hasattr(layer, "parametrizations")
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        and all(name in layer._parameters for name in ("weight", "bias") if hasattr(layer, name))
    )


def _read_norm(layer: Any) -> Affine | None:
    """A norm, ones for the weight that it does not have."""
    shape = tuple(layer.normalized_shape) if hasattr(layer, "normalized_shape") else (_channels(layer),)
    weight = torch.ones(shape) if layer.weight is None else layer.weight.detach()
    bias = getattr(layer, "bias", None)
    bias = torch.zeros(shape) if bias is None else bias.detach()
    return Affine(weight.double().movedim(-1, 0), bias.double().movedim(-1, 0))


def _write_norm(layer: Any, affine: Affine) -> None:
    weight, bias = affine.weight.movedim(0, -1), affine.bias.movedim(0, -1)
    _put(layer, "weight", weight)
    if hasattr(layer, "bias"):
        _put(layer, "bias", bias)
    flag = "elementwise_affine" if hasattr(layer, "elementwise_affine") else "affine"
    setattr(layer, flag, True)


def takes_shift(layer: nn.Module) -> bool:
    """Whether the layer can add something to what it gives."""
    return not isinstance(layer, nn.RMSNorm)


def _channels(layer: Any) -> int:
    return layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features


def _turned(weight: Tensor, groups: int) -> Tensor:
    """[inputs, outputs / groups, *taps] to [outputs, inputs / groups, *taps], and the other way round."""
    parts = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return parts.flatten(0, 1)


def _bias(layer: Any, outputs: int) -> Tensor:
    return torch.zeros(outputs, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double()


def _put_bias(layer: Any, values: Tensor) -> None:
    if layer.bias is not None or bool(values.any()):
        _put(layer, "bias", values)


def _put(layer: Any, name: str, values: Tensor) -> None:
    """A parameter of these values that is otherwise what the layer's was, or what its neighbours are."""
    old = getattr(layer, name)
    like = old if old is not None else next(iter(layer.parameters(recurse=False)), None)
    dtype = torch.float32 if like is None else like.dtype
    trained = True if like is None else like.requires_grad
    setattr(layer, name, nn.Parameter(values.to(dtype).contiguous(), requires_grad=trained))


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """One value for each row of `like`."""
    return values.reshape(-1, *(1,) * (like.dim() - 1))


def _columns(values: Tensor, affine: Affine) -> Tensor:
    """One value for each input of a weight [outputs, inputs / groups, *taps]."""
    each = values.reshape(affine.groups, -1).repeat_interleave(len(affine.weight) // affine.groups, 0)
    return each.reshape(*each.shape, *(1,) * (affine.weight.dim() - 2))
