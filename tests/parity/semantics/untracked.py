"""Writes and values that autograd does not see: under `no_grad`, through aliases, straight-through estimators."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from parity.semantics.table import case, floats


@case("untracked: an in-place product under no_grad keeps the history", floats(3, 4))
class NoGradInPlace(nn.Module):
    def forward(self, x):
        y = x.sin()
        with torch.no_grad():
            y.mul_(2)
        return y * y


@case("untracked: a slice is written under no_grad", floats(3, 4))
class NoGradSlice(nn.Module):
    def forward(self, x):
        y = x.sin()
        with torch.no_grad():
            y[1:, ::2] = 5.0
            y[0] += x[1]
        return y * x


@case("untracked: clamp_ under no_grad between two uses", floats(3, 4))
class NoGradClamp(nn.Module):
    def forward(self, x):
        y = x * 3
        before = y + 1
        with torch.no_grad():
            y.clamp_(-1, 1)
        return before, y * y


@case("untracked: masked_fill_ and copy_ under no_grad", floats(3, 4))
class NoGradMasked(nn.Module):
    def forward(self, x):
        y, z = x * 3, x.cos()
        with torch.no_grad():
            y.masked_fill_(x > 0, 0.5)
            z.copy_(x.floor())
        return y * z


@case("untracked: a fresh tensor is filled under no_grad", floats(3, 4))
class NoGradFresh(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            mask = torch.zeros_like(x)
            mask[x > 0] = 1
            mask[0].fill_(2)
        return mask * x


@case("untracked: a detached alias is written", floats(3, 4))
class DetachedAlias(nn.Module):
    def forward(self, x):
        y = x.sin()
        y.detach().mul_(3)
        return y * y


@case("untracked: a row of a detached alias is written", floats(3, 4))
class DetachedRow(nn.Module):
    def forward(self, x):
        y = x * 2
        alias = y.detach()
        alias[1] = 7.0
        return y * x, alias


@case("untracked: the base is written and a detached alias sees it", floats(3, 4))
class AliasSees(nn.Module):
    def forward(self, x):
        y = x * 2
        alias = y.detach()
        y.add_(x.sin())
        return alias * x + y


@case("untracked: .data is clamped in place", floats(3, 4))
class DataClamped(nn.Module):
    def forward(self, x):
        y = x * 3
        y.data.clamp_(-1, 1)
        return y * y


@case("untracked: .data is assigned", floats(3, 4), refuses="is assigned at")
class DataAssigned(nn.Module):
    def forward(self, x):
        y = x * 3
        y.data = y.data.round()
        return y * x


@case("untracked: a parameter's .data is clamped before use", floats(3, 4))
class ParameterClamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        self.weight.data.clamp_(-0.5, 0.5)
        return F.linear(x, self.weight)


@case("untracked: a parameter's rows are renormalised before use", floats(2, 4), refuses="is assigned at")
class MaxNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        self.linear.weight.data = torch.renorm(self.linear.weight.data, p=2, dim=0, maxnorm=0.5)
        return self.linear(x)


@case("untracked: a parameter is scaled under no_grad before use", floats(2, 4))
class ParameterScaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        with torch.no_grad():
            self.weight.div_(self.weight.norm(dim=1, keepdim=True))
        return F.linear(x, self.weight)


@case("untracked: a view made under no_grad", floats(3, 4))
class NoGradView(nn.Module):
    def forward(self, x):
        y = x.sin()
        with torch.no_grad():
            row, flat = y[0], y.view(-1)
        return row * x[1], flat[:4] * x


@case("untracked: a view made under no_grad, its base written after", floats(3, 4))
class NoGradViewBase(nn.Module):
    def forward(self, x):
        y = x * 2
        with torch.no_grad():
            row = y[0].detach()
        y.mul_(x)
        return row * x[1] + y


@case("untracked: straight through by detach", floats(3, 4))
class StraightThrough(nn.Module):
    def forward(self, x):
        return x + (x.round() - x).detach()


@case("untracked: straight through by .data", floats(3, 4))
class StraightThroughData(nn.Module):
    def forward(self, x):
        hard = x.sign()
        return (hard.data - x.data) + x


@case("untracked: straight through by a write to .data", floats(3, 4))
class StraightThroughWrite(nn.Module):
    def forward(self, x):
        y = x.clamp(-1, 1)
        y.data.sign_()
        return y * x.detach()


@case("untracked: quantised weights, computed under no_grad", floats(2, 4))
class QuantisedWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        weight = self.linear.weight
        with torch.no_grad():
            scale = weight.abs().amax(1, keepdim=True) / 7
            levels = (weight / scale).round().clamp_(-8, 7) * scale
        return F.linear(x, weight + (levels - weight).detach(), self.linear.bias)


@case("untracked: one-hot straight through a softmax", floats(3, 4))
class HardSoftmax(nn.Module):
    def forward(self, x):
        soft = x.softmax(-1)
        index = soft.max(-1, keepdim=True)[1]
        hard = torch.zeros_like(x).scatter_(-1, index, 1.0)
        return hard - soft.detach() + soft


@case("untracked: a vector-quantised code book with its two losses", floats(5, 3))
class CodeBook(nn.Module):
    def __init__(self):
        super().__init__()
        self.codes = nn.Embedding(4, 3)

    def forward(self, x):
        with torch.no_grad():
            chosen = torch.cdist(x, self.codes.weight).argmin(1)
        q = self.codes(chosen)
        loss = F.mse_loss(q, x.detach()) + 0.25 * F.mse_loss(q.detach(), x)
        return x + (q - x).detach(), loss


@case("untracked: power iteration under no_grad on buffers", floats(3, 4), train=True)
class PowerIteration(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.register_buffer("u", F.normalize(torch.randn(5), dim=0))

    def forward(self, x):
        with torch.no_grad():
            v = F.normalize(self.weight.t() @ self.u, dim=0)
            self.u.copy_(F.normalize(self.weight @ v, dim=0))
        return F.linear(x, self.weight / torch.dot(self.u.clone(), self.weight @ v))


@case("untracked: requires_grad_ of a detached copy", floats(3, 4))
class Restarted(nn.Module):
    def forward(self, x):
        y = x.detach().clone().requires_grad_()
        return (y * 2).sin() * x


@case("untracked: a gradient is scaled by a detached split", floats(3, 4))
class ScaledGradient(nn.Module):
    def forward(self, x):
        y = x.sin()
        return y * 0.1 + y.detach() * 0.9
