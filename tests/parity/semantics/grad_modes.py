"""What takes part in the gradient: grad modes, `detach`, `.data`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from parity.semantics.table import case, floats


@case("grad modes: .data of an intermediate result", floats(3, 4))
class Data(nn.Module):
    def forward(self, x):
        return x.sin().data * x


@case("grad modes: .data of a parameter", floats(3, 4))
class ParameterData(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        return F.linear(x, self.weight) + F.linear(x, self.weight.data.abs())


@case("grad modes: .data of an input and of a view", floats(3, 4))
class InputData(nn.Module):
    def forward(self, x):
        return x * x.data.t()[0, 0] + x[1].data * x[0]


@case("grad modes: detach of an intermediate result", floats(3, 4))
class Detach(nn.Module):
    def forward(self, x):
        y = x.sin()
        return y.detach() * x + y


@case("grad modes: detach_ cuts an intermediate result", floats(3, 4))
class DetachInPlace(nn.Module):
    def forward(self, x):
        y = x.sin()
        z = y * 3
        y.detach_()
        return y * x + z


@case("grad modes: a state detached at every other step", floats(4, 3))
class Truncated(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(3, 3)

    def forward(self, x):
        h = x.new_zeros(1, 3)
        for step, row in enumerate(x.split(1)):
            h = self.cell(row, h if step % 2 else h.detach())
        return h


@case("grad modes: no_grad as a context", floats(3, 4))
class NoGrad(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            scale = x.abs().mean() + 1
            shift = x * 2
        return x / scale + shift


@case("grad modes: no_grad under autocast, and autocast under no_grad", floats(4, 4))
class UnderAutocast(nn.Module):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                fixed = x @ x.T
            seen = x @ fixed
        with torch.no_grad():
            scale = x.sin()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                also = scale @ x
            scale = scale + also
        return seen, scale * x


@case("grad modes: what passes through no_grad untouched keeps its gradient", floats(3, 4))
class PassesNoGrad(nn.Module):
    def forward(self, x):
        y = x.sin()
        with torch.no_grad():
            kept, cut = y, y.view_as(y)
        return kept * 2 + cut * 3


@case("grad modes: no_grad decorates a method and a function", floats(3, 4))
class NoGradDecorator(nn.Module):
    @torch.no_grad()
    def scale(self, x):
        return x.norm() + 1

    @staticmethod
    @torch.no_grad
    def shift(x):
        return x.mean(0), {"last": x[-1]}

    def forward(self, x):
        mean, rest = self.shift(x)
        return (x - mean) / self.scale(x) + rest["last"]


@case("grad modes: no_grad decorates a submodule's forward", floats(3, 4))
class NoGradSubmodule(nn.Module):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        @torch.no_grad()
        def forward(self, x):
            return self.linear(x).relu()

    def __init__(self):
        super().__init__()
        self.frozen, self.head = self.Frozen(), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.frozen(x) + x)


@case("grad modes: a no_grad teacher and a student share their weights", floats(3, 4), train=True)
class Teacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh())

    def forward(self, x):
        student = self.net(x)
        with torch.no_grad():
            teacher = self.net(x.flip(0))
        return F.mse_loss(student, teacher)


@case("grad modes: nested no_grad", floats(3, 4))
class Nested(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            a = x * 2
            with torch.no_grad():
                b = a.sin()
            c = a + b
        return a * x + b * x + c + x


@case("grad modes: enable_grad inside no_grad", floats(3, 4))
class EnableInside(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            a = x * 2
            with torch.enable_grad():
                b = x.sin() * a
            c = b * 3
        return a + b + c * x


@case("grad modes: a function decorated with enable_grad is called under no_grad", floats(3, 4))
class EnableDecorator(nn.Module):
    @torch.enable_grad()
    def graded(self, x):
        return x.exp()

    @torch.no_grad()
    def forward(self, x):
        return x.cos() + self.graded(x), self.graded(x)


@case("grad modes: set_grad_enabled as a context with a flag", floats(3, 4), train=True)
class SetContext(nn.Module):
    def __init__(self, frozen=True):
        super().__init__()
        self.linear, self.frozen = nn.Linear(4, 4), frozen

    def forward(self, x):
        with torch.set_grad_enabled(self.training and not self.frozen):
            h = self.linear(x)
        with torch.set_grad_enabled(self.training):
            return h * self.linear(h)


@case("grad modes: set_grad_enabled as a call", floats(3, 4))
class SetCall(nn.Module):
    def forward(self, x):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        y = x * 2
        torch.set_grad_enabled(before)
        return y * x


@case("grad modes: a branch on is_grad_enabled", floats(3, 4))
class IsGradEnabled(nn.Module):
    def forward(self, x):
        y = x * 2 if torch.is_grad_enabled() else x * 3
        with torch.no_grad():
            return y * (x * 5 if torch.is_grad_enabled() else x * 7)


@case("grad modes: a branch on requires_grad, of what depends on a parameter", floats(3, 4, grad=False))
class RequiresGrad(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x):
        y = x * self.weight if self.weight.requires_grad else x
        y = y * self.frozen if not self.frozen.requires_grad else y
        return y * 2 if y.requires_grad and not y.detach().requires_grad and not y.is_leaf else y


@case("grad modes: a branch on requires_grad, of what depends on an input only", floats(3, 4))
class InputRequiresGrad(nn.Module):
    def forward(self, x):
        y = x * 2
        return y * x if y.requires_grad else y


@case("grad modes: inference_mode inside forward", floats(3, 4))
class Inference(nn.Module):
    def forward(self, x):
        with torch.inference_mode():
            mean = x.mean(0)
            top = x.argmax(1)
        return (x + mean) * mean.clone() + top.clone()[:, None] * x


@case("grad modes: inference_mode decorates a submodule's forward", floats(3, 4))
class InferenceSubmodule(nn.Module):
    class Statistics(nn.Module):
        @torch.inference_mode()
        def forward(self, x):
            return x.std(0), x.amax()

    def __init__(self):
        super().__init__()
        self.statistics = self.Statistics()

    def forward(self, x):
        deviation, top = self.statistics(x)
        return x.sin() + deviation + top
