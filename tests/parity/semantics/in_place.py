"""In-place writes into intermediate results, by operators, modules and plain Python."""

from __future__ import annotations

import torch
from torch import nn

from parity.semantics.table import case, floats, given, integers


@case("in place: zero_, fill_ and add_ with alpha and broadcast", floats(3, 4))
class ZeroFillAdd(nn.Module):
    def forward(self, x):
        y = x.sin()
        y[0].zero_()
        y[1].fill_(x[0, 0])
        y.add_(x[:, :1], alpha=0.5).sub_(1)
        return y * x


@case("in place: activations in place, chained", floats(3, 4))
class Chained(nn.Module):
    def forward(self, x):
        y = x * 2
        return y.add_(1).clamp_(0, 2).sin_().mul_(x)


@case("in place: modules with inplace=True", floats(3, 4))
class InplaceModules(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = nn.Sequential(nn.Hardtanh(-1, 1, inplace=True), nn.Dropout(0.5, inplace=True), nn.ReLU(inplace=True))

    def forward(self, x):
        y = self.linear(x)
        z = self.act(y)
        return y + z  # y was overwritten


@case("in place: a functional relu in place before a residual sum", floats(3, 4))
class InplaceResidual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        h = x + 1
        y = nn.functional.relu(h, inplace=True)
        return h + self.linear(y)  # h was overwritten


@case("in place: an argument is cloned and multiplied in place by a submodule", floats(3, 4))
class WritesArgument(nn.Module):
    class Doubled(nn.Module):
        def forward(self, x):
            x *= 2
            return x.sum()

    def __init__(self):
        super().__init__()
        self.inner = self.Doubled()

    def forward(self, x):
        y = x.clone()
        return self.inner(y) * y


@case("in place: rows are filled one by one in a loop", floats(5, 3))
class FilledInLoop(nn.Module):
    def forward(self, x):
        y = torch.zeros_like(x)
        y[0] = x[0]
        for step in range(1, x.shape[0]):
            y[step] = y[step - 1].clone() * 0.5 + x[step]
        return y


@case("in place: augmented assignment to list and dict entries", floats(3, 4))
class InContainers(nn.Module):
    def forward(self, x):
        state = {"h": x * 2, "parts": [x.sin(), x.cos()]}
        alias = state["h"]
        state["h"] += 1
        state["parts"][0] *= 3
        return alias, state


@case("in place: shapes changed in place", floats(2, 1, 4))
class ShapesInPlace(nn.Module):
    def forward(self, x):
        y = x.sin()
        y.squeeze_(1).t_().unsqueeze_(0).transpose_(0, 2)
        return y + x


@case("in place: real and imaginary parts are written", floats(3, 2))
class RealImag(nn.Module):
    def forward(self, x):
        z = torch.complex(x * 2, x.sin())
        z.real.mul_(3)
        z.imag[1:] = x[:2]
        torch.view_as_real(z)[0, 0, 1] = 4.0
        return z * z


@case("in place: an integer tensor takes floats", floats(3, 4), integers(9, 4))
class IntegersTakeFloats(nn.Module):
    def forward(self, x, whole):
        y = whole.clone()
        y[1:3] = torch.tensor([1.7, -1.7])
        y //= 2
        return y, x * y


@case("in place: bits seen through another dtype", given(1.0, -2.0, 0.5))
class OtherDtype(nn.Module):
    def forward(self, x):
        y = x.detach().clone()
        y.view(torch.int32)[1] &= 0x7FFFFFFF
        return y * x


@case("in place: clamp_, where and lerp_ through a reshape that is a view", floats(2, 6))
class ThroughReshape(nn.Module):
    def forward(self, x):
        y = x * 2
        y.reshape(3, 4)[1].clamp_(-0.5, 0.5)
        y.unflatten(1, (2, 3))[:, 0].lerp_(x[:, :3], 0.25)
        return torch.where(y > 0, y, x)


@case("in place: a reshape that copies is written", floats(2, 3))
class ReshapeCopies(nn.Module):
    def forward(self, x):
        y = x * 2
        y.t().reshape(6).zero_()
        return y * x


@case("in place: swapped through a temporary", floats(4, 3))
class Swapped(nn.Module):
    def forward(self, x):
        y = x * 2
        kept = y[0].clone()
        y[0] = y[3]
        y[3] = kept
        y[[1, 2]] = y[[2, 1]]
        return y * x


@case("in place: a view is returned and its base written after", floats(3, 4))
class ReturnedView(nn.Module):
    def forward(self, x):
        y = x.sin()
        outputs = [y[0], y.t(), y]
        y[0, :2] = 9.0
        return outputs


@case("in place: a mask kept as a boolean is written", floats(3, 4))
class BooleanWritten(nn.Module):
    def forward(self, x):
        mask = torch.ones(3, 4, dtype=torch.bool)
        mask[1:].logical_and_(x[1:] > 0)
        mask[0] &= x[0] > 0.5
        return x.masked_fill(~mask, 0.0), mask


@case("in place: put_, index_reduce_ and scatter_reduce_", floats(3, 4), integers(3, 2, 4))
class PutReduce(nn.Module):
    def forward(self, x, index):
        y = x * 2
        y.put_(torch.tensor([0, 5]), x[0, :2] * 3)
        y[:, 1:].scatter_reduce_(0, index[:, 1:], x[:2, 1:], reduce="sum")
        return y, x.sin().index_reduce_(0, torch.tensor([2, 0]), x[:2], "mean")


@case("in place: sort, cumsum_ and flip after a write", floats(3, 4))
class CumsumInPlace(nn.Module):
    def forward(self, x):
        y = x * 2
        y[:, 1:].cumsum_(1)
        return y.flip(1).sort(1).values


@case("in place: resize_ of a scratch tensor", floats(3, 4))
class Scratch(nn.Module):
    def forward(self, x):
        scratch = torch.empty(0).resize_(3, 4).zero_()
        scratch += x.detach()
        return scratch * x
