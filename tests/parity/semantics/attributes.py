"""Tensors that are neither parameters nor inputs: attributes, globals, closures, fresh ones, numpy's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from parity.case import Call
from parity.judge import Function
from parity.semantics.table import case, floats, integers

GLOBAL = torch.linspace(-1, 1, 3)
GLOBAL_MASK = torch.tensor([True, False, True])
TABLES = {"rows": [torch.ones(3) * 2, torch.arange(3.0)], "scale": 0.5}


@case("attributes: a plain tensor", floats(2, 3))
class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.offset = torch.randn(3)

    def forward(self, x):
        return x * self.offset


@case("attributes: a list, a tuple and a dict of tensors, nested", floats(2, 3))
class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows = [torch.randn(3), (torch.randn(3), torch.randn(3))]
        self.named = {"a": torch.randn(3), 1: {"deep": torch.randn(3)}}

    def forward(self, x):
        x = x * self.rows[0] + self.rows[1][1]
        return {key: x - value for key, value in (("a", self.named["a"]), ("deep", self.named[1]["deep"]))}


@case("attributes: one tensor in two attributes", floats(2, 3))
class TwoAttributes(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.randn(3)
        self.second = [self.first, self.first[:2]]

    def forward(self, x):
        return x * self.first + self.second[0] + self.second[1].sum()


@case("attributes: a plain tensor that requires a gradient, and one that is detached", floats(2, 3))
class Tracked(nn.Module):
    def __init__(self):
        super().__init__()
        self.tracked = torch.randn(3, requires_grad=True)
        self.constant = torch.randn(3)

    def forward(self, x):
        return (x * self.tracked + self.constant).sin()


@case("attributes: a tensor of the class", floats(2, 3))
class OfClass(nn.Module):
    window = torch.hann_window(3, periodic=False) + 0.1
    table: ClassVar = {"mean": torch.tensor([0.485, 0.456, 0.406])}

    def forward(self, x):
        return (x - self.table["mean"]) / self.window


@case("attributes: a parameter's own plain view", floats(2, 3))
class OwnView(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.rows = self.weight.detach()[:2]

    def forward(self, x):
        return x @ self.weight.T, x @ self.rows.T


@dataclass
class Settings:
    """Settings with tensors in them."""

    scale: torch.Tensor
    exponent: int = 2


@case("attributes: a dataclass that holds a tensor", floats(2, 3))
class Configured(nn.Module):
    def __init__(self):
        super().__init__()
        self.settings = Settings(torch.randn(3), 3)

    def forward(self, x):
        return (x * self.settings.scale) ** self.settings.exponent


@case("attributes: tensors of the file and of a dict of the file", floats(2, 3))
class FromGlobals(nn.Module):
    def forward(self, x):
        y = torch.where(GLOBAL_MASK, x * GLOBAL, x.cos())
        for row in TABLES["rows"]:
            y = y + row * TABLES["scale"]
        return y


@case("attributes: tensors in a closure and in a default argument")
def _closure():
    held = torch.randn(3)

    def forward(x, other=GLOBAL):
        return x * held + other

    return Call(Function(forward), (floats(2, 3)(),))


@case("attributes: a parameter in a closure")
def _closed_parameter():
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, Gated(lambda x: x @ layer.weight))
    return Call(net, (floats(2, 3)(),), gradients=False)


class Gated(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.gate = gate

    def forward(self, x):
        return x * self.gate(x).sigmoid()


@case("attributes: a property and a cached tensor made on the first call", floats(2, 3))
class Lazily(nn.Module):
    def __init__(self):
        super().__init__()
        self._cache = None

    @property
    def table(self):
        if self._cache is None:
            self._cache = torch.arange(3) * 0.25
        return self._cache

    def forward(self, x):
        return x * self.table + self.table


@case("attributes: numbers, strings and tuples", floats(2, 3))
class Numbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.eps, self.axes, self.kind = 1e-5, (0, -1), "mean"
        self.size, self.dtype = torch.Size([3, 2]), torch.float32

    def forward(self, x):
        y = getattr(x, self.kind)(self.axes, keepdim=True) + self.eps
        return (x / y).reshape(self.size).to(self.dtype)


@case("attributes: numpy arrays and scalars", floats(2, 3))
class Numpy(nn.Module):
    def __init__(self):
        super().__init__()
        self.row = np.array([1.5, -2.0, 0.25], dtype=np.float32)
        self.scale = np.float64(0.5)
        self.repeats = np.int64(2)

    def forward(self, x):
        y = x * torch.from_numpy(self.row) + torch.as_tensor(self.row[::-1].copy())
        return y * float(self.scale) + self.repeats, y * self.scale


@case("attributes: numpy computed in forward from shapes", floats(2, 3))
class NumpyTable(nn.Module):
    def forward(self, x):
        size = x.shape[-1]
        angles = np.arange(size)[None] / np.power(10000, 2 * (np.arange(2)[:, None] // 2) / size)
        return x + torch.tensor(np.sin(angles), dtype=x.dtype)


@case("attributes: buffers persistent and not, and one that is None", floats(2, 3))
class Buffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.randn(3))
        self.register_buffer("fleeting", torch.randn(3), persistent=False)
        self.register_buffer("absent", None)
        self.register_parameter("bias", None)

    def forward(self, x):
        y = x * self.kept + self.fleeting
        return y if self.absent is None and self.bias is None else y * 2


@case("attributes: a non-persistent buffer that forward moves", floats(2, 3), train=True)
class Fleeting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.tensor(0), persistent=False)

    def forward(self, x):
        self.steps += 1
        return x * self.steps


@case("attributes: arange, of ints, floats, a step and a dtype", floats(2, 3))
class Aranges(nn.Module):
    def forward(self, x):
        n = x.shape[1]
        y = x + torch.arange(n) + torch.arange(0, 1.5, 0.5) + torch.arange(n, 0, -1, dtype=torch.float16)
        return y, torch.arange(n), torch.arange(1.0, 3.0), torch.arange(5, dtype=torch.int32), torch.arange(0)


@case("attributes: zeros, ones, full and empty dimensions, with their dtypes", floats(2, 3))
class Filled(nn.Module):
    def forward(self, x):
        y = x + torch.zeros(3) + torch.ones(2, 1) + torch.full((3,), 2)
        fulls = torch.full((2,), 1.5), torch.full((2,), True), torch.full((2,), 3, dtype=torch.uint8)
        return y, fulls, torch.zeros(0, 3), torch.zeros(2, 3, 0).sum(2), torch.ones((), dtype=torch.bool)


@case("attributes: zeros_like, new_full and their kin take dtype from the argument", floats(2, 3), integers(5, 2))
class Likes(nn.Module):
    def forward(self, x, n):
        y = torch.zeros_like(x) + x.new_full((3,), 7) * x + x.new_tensor([1, 2, 3]) + x.new_zeros(2, 1)
        return y, torch.ones_like(n), torch.full_like(n, 2), n.new_ones(2), torch.zeros_like(x, dtype=torch.int16)


@case("attributes: linspace, logspace, eye, tri and a grid", floats(3, 3))
class Shapes(nn.Module):
    def forward(self, x):
        y = x @ torch.eye(3) + torch.eye(3, 3) * torch.linspace(0, 1, 3) + torch.logspace(-1, 1, 3)
        rows, columns = torch.meshgrid(torch.arange(3), torch.arange(2, 5), indexing="ij")
        return y * rows + columns, torch.tril_indices(3, 3), torch.ones(3, 3).tril(-1), torch.linspace(0, 1, 1)


@case("attributes: torch.tensor of literals and their dtypes", floats(2, 3))
class Literals(nn.Module):
    def forward(self, x):
        y = x * torch.tensor([1, 2, 3]) + torch.tensor([[0.5], [1.5]]) + torch.tensor(2)
        y = torch.where(torch.tensor([True, False, True]), y, torch.tensor(math.pi))
        others = torch.tensor(3), torch.tensor([1, 2]), torch.tensor(2.5), torch.tensor(True), torch.tensor([])
        return y, others, torch.tensor([1.5, 2.5], dtype=torch.bfloat16), torch.tensor([1 + 2j])


@case("attributes: infinities and the dtype's limits", floats(2, 3))
class Limits(nn.Module):
    def forward(self, x):
        mask = torch.full((3, 3), float("-inf")).triu(1)[:2]
        low = torch.finfo(x.dtype).min
        scores = (x + mask).softmax(-1)
        return scores, torch.where(x > 0, x, low), x.clamp(max=torch.finfo(x.dtype).eps), torch.iinfo(torch.int32).max


@case("attributes: a tensor is appended to a list attribute in forward", floats(2, 3))
class Appended(nn.Module):
    def forward(self, x):
        seen = []
        for scale in (1, 2):
            seen.append(x * scale)
        return torch.stack(seen), torch.cat(seen, -1)


@case("attributes: window functions and a positional table by outer product", floats(2, 4))
class Positions(nn.Module):
    def forward(self, x):
        frequencies = 1.0 / (100 ** (torch.arange(0, 4, 2, dtype=torch.int64).float() / 4))
        angles = torch.outer(torch.arange(x.shape[0]).type_as(frequencies), frequencies)
        return x * torch.cat((angles.cos(), angles.sin()), -1) + torch.hamming_window(4)
