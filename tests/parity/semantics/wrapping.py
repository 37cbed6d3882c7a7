"""Modules around modules: copied, wrapped, patched, called by other names."""

from __future__ import annotations

import copy
import functools
import types

import torch
from torch import nn

from parity.case import Call
from parity.semantics.table import case, floats, integers


@case("wrapping: deep copies of one layer, and a shallow copy", floats(2, 3))
class Copies(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.Linear(3, 3)
        self.layers = nn.ModuleList([copy.deepcopy(layer) for _ in range(2)])
        self.same_weights = copy.copy(self.layers[0])

    def forward(self, x):
        return self.same_weights(self.layers[1](self.layers[0](x)).sigmoid())


def _doubled(self, x):
    return type(self).forward(self, x) * 2


@case("wrapping: a forward assigned to the instance")
def _assigned():
    layer = nn.Linear(3, 2)
    layer.forward = types.MethodType(_doubled, layer)
    return Call(nn.Sequential(layer, nn.ReLU()), (floats(2, 3)(),))


class Optioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, *, scale=1.0, squash=False):
        y = self.layer(x) * scale
        return y.tanh() if squash else y


@case("wrapping: a forward that is a functools.partial of itself")
def _partial():
    module = Optioned()
    module.forward = functools.partial(module.forward, scale=3.0, squash=True)
    return Call(nn.Sequential(module), (floats(2, 3)(),))


@case("wrapping: the root's own forward assigned to the instance")
def _assigned_root():
    layer = nn.Linear(3, 2)
    layer.forward = types.MethodType(_doubled, layer)
    return Call(layer, (floats(2, 3)(),))


@case("wrapping: a class whose forward is patched by a decorator", floats(2, 3))
class Decorated(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def _log(function):
        @functools.wraps(function)
        def wrapped(self, *args, **kwargs):
            return function(self, *args, **kwargs) + 1

        return wrapped

    @_log
    def forward(self, x):
        return self.layer(x)


@case("wrapping: a wrapper that passes attributes and calls through", floats(2, 3))
class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.wrapped = Optioned()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("wrapped"), name)

    def forward(self, *args, **kwargs):
        return self.wrapped(*args, squash=True, **kwargs) + self.layer.bias


@case("wrapping: DataParallel around a module")
def _data_parallel():
    return Call(nn.DataParallel(nn.Linear(3, 2)), (floats(2, 3)(),))


@case("wrapping: AveragedModel of torch.optim.swa_utils")
def _averaged():
    net = nn.Linear(3, 2)
    averaged = torch.optim.swa_utils.AveragedModel(net)
    averaged.update_parameters(net)
    return Call(averaged, (floats(2, 3)(),))


@case("wrapping: other methods of a submodule than forward", integers(5, 2))
class Methods(nn.Module):
    def __init__(self):
        super().__init__()
        self.coder = Coder()

    def forward(self, tokens):
        return self.coder.decode(self.coder.encode(tokens))


class Coder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def encode(self, tokens):
        return self.table(tokens)

    def decode(self, x):
        return x @ self.table.weight.T


@case("wrapping: functional_call with changed weights", floats(2, 3))
class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        moved = {name: p - 0.1 * p.sin() for name, p in self.layer.named_parameters()}
        return torch.func.functional_call(self.layer, moved, (x,))


@case("wrapping: forward over named_parameters", floats(2, 3))
class Penalty(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        penalty = sum(p.square().sum() for name, p in self.net.named_parameters() if name.endswith("weight"))
        return self.net(x), penalty
