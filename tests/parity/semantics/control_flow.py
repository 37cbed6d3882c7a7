"""Control flow: torch's higher-order operators, and Python's own over shapes."""

from __future__ import annotations

import torch
from torch import nn
from torch._higher_order_ops import associative_scan, scan, while_loop
from torch._higher_order_ops.map import map as map_rows

from parity.semantics.table import case, floats, given, integers


@case("control flow: cond on a tensor, both branches with operands", floats(3, 4))
class Cond(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: v.sin() * v, lambda v: v.cos(), (x,))


@case("control flow: cond, the false branch is taken", given(-1.0, -2.0, 0.5))
class CondFalse(nn.Module):
    def forward(self, x):
        return torch.cond((x.sum() > 0).view(1), lambda v: v * 2, lambda v: v.exp(), [x]) * x


@case("control flow: cond closes over parameters and values", floats(3, 4), floats(3, 4))
class CondClosure(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    def forward(self, x, y):
        scale = y.abs() + 1
        return torch.cond(x.max() > y.max(), lambda v: self.left(v) * scale, lambda v: self.right(v) - scale, (x,))


@case("control flow: cond under no_grad", floats(3, 4))
class CondNoGrad(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            fixed = torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (x,))
        return fixed * x


@case("control flow: cond under autocast", floats(3, 4))
class CondAutocast(nn.Module):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            chosen = torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (x,))
            return chosen, x @ x.T


@case("control flow: cond without operands", floats(3, 4))
class CondNoOperands(nn.Module):
    def forward(self, x):
        return torch.cond(x.mean() > 0, lambda: x * 2, lambda: x.tanh())


@case("control flow: cond in cond", floats(3, 4))
class CondNested(nn.Module):
    def forward(self, x):
        def inner(v):
            return torch.cond(v[0, 0] > 0, lambda u: u * 2, lambda u: u * 3, (v,))

        return torch.cond(x.sum() > 0, inner, lambda v: v.sin(), (x,))


@case("control flow: cond gives a tree of results", floats(3, 4))
class CondTree(nn.Module):
    def forward(self, x):
        return torch.cond(
            x.sum() > 0,
            lambda v: {"value": v * 2, "parts": (v[0].sin(), v.sum())},
            lambda v: {"value": v.sin(), "parts": (v[1].exp(), v.mean())},
            (x,),
        )


@case("control flow: cond gives integers too", floats(3, 4), gradients=False)
class CondIntegers(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda v: (v * 2, v.argmax(1)), lambda v: (v.sin(), v.argmin(1)), (x,))


@case("control flow: cond inside a loop and inside a submodule", floats(2, 4))
class CondLoop(nn.Module):
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return torch.cond(x.norm() > 2, self.linear, lambda v: v * 1.5, (x,))

    def __init__(self):
        super().__init__()
        self.steps = nn.ModuleList([self.Step() for _ in range(3)])

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


@case("control flow: cond on a Python value is decided by Python", floats(3, 4))
class CondStatic(nn.Module):
    def forward(self, x):
        return torch.cond(x.shape[1] > 3, lambda v: v.sin(), lambda v: v.cos(), (x,))


@case("control flow: while_loop", floats(3, 4), gradients=False)
class While(nn.Module):
    def forward(self, x):
        def body(count, value):
            return count + 1, value * 1.5

        return while_loop(lambda count, value: value.norm() < 20, body, (torch.zeros((), dtype=torch.int64), x))


@case("control flow: while_loop closes over a parameter", floats(3, 4), gradients=False)
class WhileClosure(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        steps = torch.tensor(0)
        _, x = while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, self.linear(v).tanh()), (steps, x))
        return x


@case("control flow: while_loop with a gradient", floats(3, 4))
class WhileGradient(nn.Module):
    def forward(self, x):
        return while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v.sin() * 2), (torch.tensor(0), x))[1]


@case("control flow: scan", floats(5, 3), floats(3))
class Scan(nn.Module):
    def forward(self, xs, start):
        def step(carry, x):
            carry = carry * 0.5 + x
            return carry, carry.sin()

        return scan(step, start, xs, dim=0)


# Against the same loop written out, 2.12's gradient is off by 0.25, 2.13's by 1e-7.
_SCAN_IN_REVERSE = "" if torch.__version__ >= "2.13" else "before torch 2.13, eager scan in reverse has wrong gradients"


@case("control flow: scan over trees, in reverse, with a parameter", floats(5, 3), floats(5, 3), skip=_SCAN_IN_REVERSE)
class ScanTrees(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.Linear(3, 3)

    def forward(self, xs, gates):
        def step(carry, inputs):
            h = torch.tanh(self.cell(carry["h"]) + inputs[0])
            return {"h": h * inputs[1].sigmoid(), "n": carry["n"] + 1}, (h.clone(), h.sum())

        start = {"h": torch.zeros(3), "n": torch.zeros(())}
        return scan(step, start, (xs, gates), dim=0, reverse=True)


@case("control flow: scan along dimension 1", floats(2, 4, 3))
class ScanDimension(nn.Module):
    def forward(self, xs):
        last, ys = scan(lambda c, x: (c + x, c * x), xs[:, 0] * 0, xs, dim=1)
        return last, ys


@case("control flow: associative_scan, pointwise", floats(5, 3))
class AssociativeScan(nn.Module):
    def forward(self, x):
        return associative_scan(lambda a, b: a * b, x, dim=0, combine_mode="generic")


@case("control flow: associative_scan of a linear recurrence", floats(2, 6, 3), floats(2, 6, 3))
class LinearRecurrence(nn.Module):
    def forward(self, a, b):
        def combine(left, right):
            return left[0] * right[0], left[1] * right[0] + right[1]

        return associative_scan(combine, (a.sigmoid(), b), dim=1, reverse=True, combine_mode="generic")[1]


@case("control flow: map over rows", floats(4, 3), floats(3))
class Map(nn.Module):
    def forward(self, x, v):
        return map_rows(lambda row, w: row.sin() * w, x, v)


@case("control flow: map over rows closes over a parameter", floats(4, 3))
class MapClosure(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return map_rows(lambda row: self.linear(row).relu(), x)


@case("control flow: loops over the batch and over a width", floats(3, 4))
class LoopsOverShapes(nn.Module):
    def forward(self, x):
        total = x.new_zeros(x.shape[1])
        for row in range(x.shape[0]):
            total = total + x[row] * (row + 1)
        columns = [x[:, j] * j for j in range(x.size(-1))]
        return total, torch.stack(columns, -1), [row.sum() for row in x]


@case("control flow: branches on shapes, ranks, dtypes and devices", floats(3, 4))
class BranchesOnShapes(nn.Module):
    def forward(self, x):
        y = x[:, :2] if x.shape[0] > 2 else x
        y = y.t() if x.dim() == 2 and x.dtype is torch.float32 else y
        y = y * 2 if x.device.type == "cpu" and not x.is_cuda else y
        return y.sum() if x.numel() % 2 else y / len(x)


@case("control flow: assertions and checks on shapes", floats(3, 4))
class Assertions(nn.Module):
    def forward(self, x):
        batch, width = x.shape
        assert width == 4, f"width {width}"
        assert batch <= 100
        torch._check(width % 2 == 0)
        torch._check(batch > 0, lambda: "an empty batch")
        if x.ndim != 2:
            raise ValueError("rank")
        return x.view(batch, 2, width // 2).sum(1)


@case("control flow: an assertion on values that holds", floats(3, 4))
class AssertsValues(nn.Module):
    def forward(self, x):
        y = x.abs()
        torch._assert(x.shape[0] == 3, "three rows")
        torch._assert_async((y >= 0).all())
        return y.sqrt()


@case("control flow: sizes as arithmetic", floats(6, 4))
class SizesAsArithmetic(nn.Module):
    def forward(self, x):
        half = x.shape[0] // 2
        scale = x.shape[0] ** -0.5
        positions = torch.arange(x.shape[0], dtype=x.dtype) / max(1, x.shape[0] - 1)
        return x[:half] * scale + positions[:half, None], x.shape[0], torch.tensor(x.shape[1]) * x.mean()


@case("control flow: a branch by where instead of Python", floats(3, 4), integers(2, 3))
class ByWhere(nn.Module):
    def forward(self, x, choice):
        experts = torch.stack([x.sin(), x.cos()])
        return torch.where(choice[:, None] > 0, x.exp(), x.log1p()).nan_to_num() + experts[choice, torch.arange(3)]


@case("control flow: try, generators, comprehension and early return", floats(3, 4))
class PlainPython(nn.Module):
    def pieces(self, x):
        for scale in (1, 2, 3):
            yield x * scale

    def forward(self, x):
        try:
            x.view(5, 5)
        except RuntimeError:
            x = x + 1
        total = sum(piece.sin() for piece in self.pieces(x))
        if isinstance(total, torch.Tensor):
            return total
        return x
