"""Programs that XLA cannot run as torch does: what the refusal of each must name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Refusal:
    """A program to refuse.

    Attributes:
        name: What it does.
        build: Makes the module.
        inputs: Makes the arguments.
        names: What the message must hold: a submodule's path or "refusals.py:41".
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    names: tuple[str, ...]


class Deep(nn.Module):
    """Holds `inner` at "encoder.warp"."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"warp": inner})

    def forward(self, x):
        return self.encoder["warp"](x)


REFUSALS: list[Refusal] = []


def floats() -> tuple[torch.Tensor, ...]:
    return (torch.randn(3, 4),)


def refused(name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """The refusal of this module names the line that ends in "# here"."""

    def register(cls: type[nn.Module]) -> type[nn.Module]:
        lines, start = inspect.getsourcelines(cls)
        offset = next(offset for offset, line in enumerate(lines) if line.rstrip().endswith("# here"))
        place = f"{Path(__file__).name}:{start + offset}"
        REFUSALS.append(Refusal(name, lambda: Deep(cls()), floats, (place,)))
        return cls

    return register


def refused_by_name(name: str, build: Callable[[], nn.Module]) -> None:
    """The refusal names the submodule."""
    REFUSALS.append(Refusal(name, lambda: Deep(build()), floats, ("encoder.warp",)))


@refused("a branch on a value")
class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # here
            return x * 2
        return x


@refused("a branch on a value in an expression")
class BranchInExpression(nn.Module):
    def forward(self, x):
        return x * 2 if (x > 0).any() and x.shape[0] > 1 else x  # here


@refused("a loop until a value")
class LoopUntil(nn.Module):
    def forward(self, x):
        while x.norm() > 0.5:  # here
            x = x * 0.5
        return x


@refused("item in a branch")
class ItemInABranch(nn.Module):
    def forward(self, x):
        largest = x.abs().max().item()
        return x / largest if largest > 1 else x  # here


@refused("item as the number of steps")
class ItemAsAnIndex(nn.Module):
    def forward(self, x):
        first = x[0, 0].abs().mul(2).int().item()
        return [x + step for step in range(first)]  # here


@refused("int of a tensor as a size")
class IntAsASize(nn.Module):
    def forward(self, x):
        count = int(x.argmax()) % 3 + 1  # here
        return torch.zeros(count, 2) + x.sum()


@refused("tolist in a loop with a branch")
class TolistInALoop(nn.Module):
    def forward(self, x):
        total = 0
        for value in x.argmax(1).tolist():
            if value > 1:  # here
                total = total + x[:, value]
        return total + x.sum()


@refused("a dictionary looked up by a value")
class DictionaryByValue(nn.Module):
    def forward(self, x):
        return {0: x, 1: x * 2}[int(x[0, 0] > 0)]  # here


@refused("a boolean mask is read")
class MaskRead(nn.Module):
    def forward(self, x):
        return x[x > 0]  # here


@refused("a boolean mask of rows is read")
class MaskReadOfRows(nn.Module):
    def forward(self, x):
        kept = x[x[:, 0] > -1]  # here
        return kept.cumsum(0)


@refused("masked_select")
class MaskedSelect(nn.Module):
    def forward(self, x):
        return torch.masked_select(x, x.ge(0))  # here


@refused("nonzero")
class Nonzero(nn.Module):
    def forward(self, x):
        return x.relu().nonzero()  # here


@refused("where of one argument")
class WhereOfOne(nn.Module):
    def forward(self, x):
        rows, _ = torch.where(x > 0)  # here
        return x[rows]


@refused("unique")
class Unique(nn.Module):
    def forward(self, x):
        return torch.unique(x.round())  # here


@refused("unique_consecutive")
class UniqueConsecutive(nn.Module):
    def forward(self, x):
        return torch.unique_consecutive(x.round(), return_counts=True)  # here


@refused("repeat_interleave by values")
class Repeated(nn.Module):
    def forward(self, x):
        return x.repeat_interleave(x.argmax(1), dim=0)  # here


@refused("numpy in forward")
class ByNumpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(np.sort(x.detach().numpy())) + x  # here


@refused("a numpy function on a tensor")
class ByNumpyFunction(nn.Module):
    def forward(self, x):
        return x * float(np.asarray(x.detach()).mean())  # here


@refused("a conversion to sparse")
class ToSparse(nn.Module):
    def forward(self, x):
        sparse = x.relu().to_sparse()  # here
        return torch.sparse.mm(sparse, x.t())


@refused("a sparse tensor made in forward")
class SparseMade(nn.Module):
    def forward(self, x):
        index = torch.tensor([[0, 1], [1, 2]])
        eye = torch.sparse_coo_tensor(index, torch.ones(2), (3, 3))  # here
        return torch.sparse.mm(eye, x)


@refused("a nested tensor made in forward")
class Nested(nn.Module):
    def forward(self, x):
        ragged = torch.nested.nested_tensor([x[0], x[1, :2]])  # here
        return torch.nested.to_padded_tensor(ragged.sin(), 0.0)


@refused("quantisation in forward")
class Quantised(nn.Module):
    def forward(self, x):
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()  # here


@refused("complex32 in forward")
class HalfComplex(nn.Module):
    def forward(self, x):
        return x.to(torch.complex32).real.float()  # here


def full_backward_hook():
    layer = nn.Linear(4, 4)
    layer.register_full_backward_hook(lambda module, into, out: (into[0] * 2,))
    return layer


def full_backward_pre_hook():
    layer = nn.Linear(4, 4)
    layer.register_full_backward_pre_hook(lambda module, out: (out[0] * 2,))
    return layer


class Constant(nn.Module):
    """Multiplies by a tensor that it holds as a buffer or a parameter."""

    def __init__(self, tensor: torch.Tensor, parameter: bool = False) -> None:
        super().__init__()
        if parameter:
            self.matrix = nn.Parameter(tensor)
        else:
            self.register_buffer("matrix", tensor)

    def forward(self, x):
        matrix = self.matrix.dequantize() if self.matrix.is_quantized else self.matrix
        return (matrix @ x.t()).t()


class HalfComplexBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phase", torch.ones(4, dtype=torch.complex32))

    def forward(self, x):
        return x * self.phase.real.float()


refused_by_name("a full backward hook", full_backward_hook)
refused_by_name("a full backward pre-hook", full_backward_pre_hook)
refused_by_name("a sparse buffer", lambda: Constant(torch.eye(4).to_sparse()))
refused_by_name("a sparse CSR buffer", lambda: Constant(torch.eye(4).to_sparse_csr()))
refused_by_name("a sparse parameter", lambda: Constant(torch.eye(4).to_sparse(), parameter=True))
refused_by_name("a quantised buffer", lambda: Constant(torch.quantize_per_tensor(torch.eye(4), 0.1, 0, torch.qint8)))
refused_by_name("a complex32 buffer", HalfComplexBuffer)
