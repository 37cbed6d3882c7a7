"""Submodules that are not plain: compiled, scripted, traced, lazy, in modes of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from parity.case import Call
from parity.semantics.parametrized import Fresh
from parity.semantics.table import case, floats


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))


@case("submodules: torch.compile'd, as the root")
def _compiled_root():
    return Call(torch.compile(_net(), backend="eager"), (floats(2, 3)(),))


@case("submodules: torch.compile'd, inside")
def _compiled_inside():
    return Call(nn.Sequential(torch.compile(_net(), backend="eager"), nn.Tanh()), (floats(2, 3)(),))


@case("submodules: compiled in place by module.compile()")
def _compiled_in_place():
    net = _net()
    net.compile(backend="eager")
    return Call(nn.Sequential(net, nn.Tanh()), (floats(2, 3)(),))


@torch.compile(backend="eager")
def _compiled_function(x):
    return x.sin() * 2


@case("submodules: a torch.compile'd function", floats(2, 3))
class UsesCompiled(nn.Module):
    def forward(self, x):
        return _compiled_function(x) + x


@case("submodules: torch.jit.script'ed")
def _scripted():
    return Call(Fresh(lambda: nn.Sequential(nn.Linear(3, 3), torch.jit.script(_net()))), (floats(2, 3)(),))


@case("submodules: torch.jit.trace'd")
def _traced():
    def make():
        return nn.Sequential(nn.Linear(3, 3), torch.jit.trace(_net(), torch.randn(2, 3)))

    return Call(Fresh(make), (floats(2, 3)(),))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.times = 3

    def forward(self, x: torch.Tensor, flip: bool = False) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        for _ in range(self.times):
            x = x.relu() + 0.1
        if flip:
            x = -x
        return x


@case("submodules: scripted, with a loop and an if on an option")
def _scripted_branching():
    return Call(Fresh(lambda: nn.Sequential(torch.jit.script(Branching()))), (floats(2, 3)(),))


@torch.jit.script
def _scripted_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


@case("submodules: a torch.jit.script'ed function", floats(2, 3))
class UsesScripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return _scripted_gelu(self.layer(x))


@case("submodules: a scripted BatchNorm in train")
def _scripted_norm():
    net = Fresh(lambda: nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.BatchNorm1d(3))))
    return Call(net, (floats(4, 3)(),), train=True)


@case("submodules: torch.fx.symbolic_trace'd")
def _symbolic():
    return Call(nn.Sequential(torch.fx.symbolic_trace(_net()), nn.Tanh()), (floats(2, 3)(),))


@case("submodules: torch.export'ed and opened again")
def _exported():
    exported = torch.export.export(_net(), (torch.randn(2, 3),))
    return Call(nn.Sequential(exported.module(), nn.Tanh()), (floats(2, 3)(),), own_modes=True)


@case("submodules: BatchNorm in eval within a model in train")
def _frozen_norm():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3)).train()
    net[1].eval()
    net[1].running_mean.normal_()
    return Call(net, (floats(4, 3)(),), train=True, own_modes=True)


@case("submodules: dropout in eval within a model in train")
def _frozen_dropout():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    net[1].eval()
    return Call(net, (floats(4, 3)(),), train=True, own_modes=True)


@case("submodules: one part in train within a model in eval")
def _live_norm():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    net[0].train()
    return Call(net, (floats(4, 3)(),), train=False, own_modes=True)


@case("submodules: a train() that keeps the backbone in eval", floats(4, 3), train=True)
class KeepsEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, x):
        return self.head(self.backbone(x).exp())


@case("submodules: forward reads self.training")
def _reads_training():
    return [Call(ReadsTraining(), (floats(2, 3)(),), train=train) for train in (True, False)]


class ReadsTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.extra = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x):
        return (self.main(x), self.extra(x)) if self.training else self.main(x)


@case("submodules: forward calls eval() on a part", floats(4, 3), train=True)
class Toggles(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        live = self.norm.train()(x)
        return live + self.norm.eval()(x * 2)


@case("submodules: lazy modules after their first call")
def _lazy():
    net = nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    net(torch.randn(2, 2, 5, 5))
    return Call(net, (floats(2, 2, 5, 5)(),))


@case("submodules: Identity, Flatten, Unflatten and an empty Sequential")
def _shapes():
    net = nn.Sequential(nn.Identity(3, unused=True), nn.Flatten(), nn.Sequential(), nn.Unflatten(1, (2, 3)))
    return Call(net, (floats(2, 6)(),))


@case("submodules: a submodule that is None or absent", floats(2, 3))
class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = None
        self.register_module("act", None)

    def forward(self, x):
        x = self.layer(x)
        for extra in (self.norm, self.act, getattr(self, "missing", None)):
            x = x if extra is None else extra(x)
        return x


@case("submodules: a submodule made in forward", floats(2, 3))
class MadeInForward(nn.Module):
    def forward(self, x):
        pool = nn.AdaptiveAvgPool1d(2)
        return nn.Softmax(-1)(pool(x)), nn.MSELoss()(x, x.detach() * 2), F.gelu(x)


@case("submodules: fake quantisation, per tensor and per channel", floats(2, 3))
class FakeQuantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.register_buffer("scale", torch.linspace(0.004, 0.02, 4))
        self.register_buffer("zero", torch.tensor([0, 1, -2, 3], dtype=torch.int32))

    def forward(self, x):
        weight = torch.fake_quantize_per_channel_affine(self.layer.weight, self.scale, self.zero, 0, -16, 15)
        by_tensors = torch.fake_quantize_per_tensor_affine(x, self.scale[3], self.zero[0], -128, 127)
        x = torch.fake_quantize_per_tensor_affine(x, 0.1, 3, 0, 15)
        return F.linear(x, weight, self.layer.bias), by_tensors


@case("submodules: a SyncBatchNorm in eval and a converted one")
def _sync_norm():
    net = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    return Call(net, (floats(4, 3)(),))
