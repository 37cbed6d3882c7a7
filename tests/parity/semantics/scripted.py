"""Scripts and traces: what C++ holds of them, how they are shared, what they may not do."""

from __future__ import annotations

import io

import torch
from torch import nn

from parity.case import Call
from parity.judge import Function
from parity.semantics.parametrized import Fresh
from parity.semantics.table import case, floats


def net() -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))


@case("scripted: a script as the root, in train")
def _scripted_root():
    made = Fresh(lambda: torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.0))))
    return [Call(made, (floats(size, 3)(),), train=train) for size in (4, 2) for train in (True, False)]


@case("scripted: a script that is called before, so that it is optimised")
def _scripted_warm():
    def make():
        script = torch.jit.script(net())
        for _ in range(3):
            script(torch.randn(2, 3, requires_grad=True)).sum().backward()
        script.zero_grad()
        return nn.Sequential(nn.Linear(3, 3), script)

    return Call(Fresh(make), (floats(2, 3)(),))


class Holding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.table, self.count = nn.Linear(3, 3), torch.arange(3.0) + 0.5, 2
        self.register_buffer("total", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.total = self.total * 0.5 + x.detach().sum(0)
        return self.layer(x) * self.table * self.count + self.total


@case("scripted: a script that counts, holds a tensor and assigns a buffer")
def _scripted_holding():
    return Call(Fresh(lambda: nn.Sequential(torch.jit.script(Holding()))), (floats(2, 3)(),), train=True)


class Tying(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.script = torch.jit.script(nn.Sequential(self.layer, nn.Tanh()))

    def forward(self, x):
        own = dict(self.script.named_parameters())
        return self.layer(x) + self.script(x) * 2 + own["0.weight"].sum()


@case("scripted: a script that shares its parameters with a plain module")
def _scripted_tied():
    return Call(Fresh(Tying), (floats(2, 3)(),))


@case("scripted: a script that holds a frozen parameter, and an older kind of script")
def _scripted_frozen():
    def make():
        script = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
        script[0].weight.requires_grad_(False)
        return nn.Sequential(script, OldScript())

    return Call(Fresh(make), (floats(2, 3)(),))


class OldScript(torch.jit.ScriptModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    @torch.jit.script_method
    def forward(self, x):
        return self.layer(x).tanh()


@case("scripted: a script frozen by torch.jit.freeze, and a traced one with constants")
def _scripted_constants():
    def make():
        frozen = torch.jit.freeze(torch.jit.script(net().eval()))
        traced = torch.jit.trace(Function(lambda x: x * torch.arange(3.0) + 1), torch.randn(2, 3))
        return nn.Sequential(nn.Linear(3, 3), frozen, traced)

    return Call(Fresh(make), (floats(2, 3)(),), own_modes=True)


@case("scripted: a script saved and loaded")
def _scripted_loaded():
    def make():
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))), file)
        file.seek(0)
        return nn.Sequential(torch.jit.load(file), nn.Tanh())

    return Call(Fresh(make), (floats(4, 3)(),), train=True)


class Ungraded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x.sin()
        return y * x


@case("scripted: a script with no_grad in it", refuses="uses no_grad in its forward")
def _scripted_no_grad():
    return Call(Fresh(lambda: nn.Sequential(torch.jit.script(Ungraded()))), (floats(2, 3)(),))


class Assigning(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.zeros(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x.sum(0)
        return x + self.last


@case("scripted: a script that assigns a tensor attribute", refuses="make them buffers")
def _scripted_assigning():
    return Call(Fresh(lambda: nn.Sequential(torch.jit.script(Assigning()))), (floats(2, 3)(),))


@case("scripted: a script under autocast")
def _scripted_autocast():
    return Call(Fresh(ScriptUnderAutocast), (floats(2, 3)(),))


class ScriptUnderAutocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.script = torch.jit.script(net())

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.script(x).float()
