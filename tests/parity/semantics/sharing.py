"""Modules and weights with more than one role: shared, tied, reused, frozen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from parity.case import Call
from parity.semantics.table import case, floats, integers


@case("sharing: one module under two names", floats(2, 3))
class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x):
        return self.second(self.first(x).tanh())


@case("sharing: one BatchNorm called twice moves its buffers twice", floats(4, 3), train=True)
class NormTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.norm(x).exp() * x)


@case("sharing: one module called on two inputs and on their sum", floats(2, 3), floats(2, 3))
class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))

    def forward(self, x, y):
        return F.cosine_similarity(self.tower(x), self.tower(y)), self.tower(x + y)


@case("sharing: Embedding tied to the output Linear", integers(7, 2, 3))
class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens).tanh())


@case("sharing: a decoder with its encoder's weight transposed", floats(2, 5))
class TiedTranspose(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(5, 3)
        self.bias = nn.Parameter(torch.randn(5))

    def forward(self, x):
        return F.linear(self.encoder(x).relu(), self.encoder.weight.t(), self.bias)


@case("sharing: a parameter that shares memory with another's transpose", floats(2, 3))
class TiedMemory(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.mirrored = nn.Parameter(self.weight.detach().t())

    def forward(self, x):
        return x @ self.weight @ self.mirrored


@case("sharing: one bias for three layers", floats(2, 3))
class TiedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        for layer in self.layers[1:]:
            layer.bias = self.layers[0].bias

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).sin()
        return x


@case("sharing: one buffer under two names, updated through one", floats(2, 3), train=True)
class TiedBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(3))
        self.register_buffer("alias", self.total)

    def forward(self, x):
        self.total.add_(x.detach().sum(0))
        return x * self.alias


@case("sharing: ParameterList, also a slice and a growing index", floats(2, 3))
class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(3, 3) for _ in range(4)])

    def forward(self, x):
        for place, weight in enumerate(self.weights[1:]):
            x = x @ weight + self.weights[place][0]
        return x, len(self.weights)


@case("sharing: ParameterDict by key, values and items", floats(2, 3))
class Keyed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights = nn.ParameterDict({"a": torch.randn(3), "b": torch.randn(3)})
        self.weights["late"] = nn.Parameter(torch.randn(3))

    def forward(self, x):
        x = x * self.weights["a"] + sum(self.weights.values())
        return {key: x - weight for key, weight in self.weights.items()}


@case("sharing: a ParameterList that holds plain values and tensors without a gradient", floats(2, 3))
class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.things = nn.ParameterList([nn.Parameter(torch.randn(3)), frozen, 2.5])

    def forward(self, x):
        return x * self.things[0] + self.things[1] * self.things[2]


@case("sharing: ModuleList indexed by a number and from the end", floats(2, 3))
class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Identity(), nn.Linear(3, 3)])

    def forward(self, x):
        return self.layers[-1](self.layers[1](self.layers[0](x)).relu()) + self.layers[0](x)


@case("sharing: ModuleDict chosen by a string argument")
def _chosen():
    return [Call(Chooser(), (floats(2, 3)(), name)) for name in ("wide", "narrow")]


class Chooser(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleDict({"wide": nn.Linear(3, 5), "narrow": nn.Linear(3, 1)})

    def forward(self, x, name):
        return self.heads[name](x)


@case("sharing: slices of a Sequential, with taps in between", floats(2, 3))
class Sliced(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x):
        middle = self.net[:2](x)
        return middle, self.net[2:](middle), self.net[-1](self.net[0](x))


@case("sharing: Sequential built by append, extend, insert and +")
def _built():
    net = nn.Sequential(nn.Linear(3, 4)).append(nn.ReLU()).extend(nn.Sequential(nn.Linear(4, 2)))
    net.insert(1, nn.LayerNorm(4))
    return Call(net + nn.Sequential(nn.Softmax(-1)), (floats(2, 3)(),))


@case("sharing: one module repeated within a Sequential")
def _repeated():
    block = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    return Call(nn.Sequential(block, nn.LayerNorm(3), block, block), (floats(2, 3)(),))


@case("sharing: a module that calls itself", floats(2, 3))
class Recursive(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x, depth=3):
        return x if depth == 0 else self(self.layer(x).tanh(), depth - 1) + x


@case("sharing: a tree of modules", floats(2, 3))
class Tree(nn.Module):
    def __init__(self, depth=2):
        super().__init__()
        self.leaf = nn.Linear(3, 3)
        self.left = Tree(depth - 1) if depth else None
        self.right = Tree(depth - 1) if depth else None

    def forward(self, x):
        x = self.leaf(x).tanh()
        return x if self.left is None else self.left(x) * self.right(-x)


@case("sharing: a submodule that knows its parent", floats(2, 3))
class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.child = Child(self)

    def forward(self, x):
        return self.child(x)


class Child(nn.Module):
    def __init__(self, parent):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.known = (parent,)  # in a tuple, so that it is no submodule

    def forward(self, x):
        return self.layer(x) * self.known[0].scale


@case("sharing: a frozen backbone under a trained head", floats(2, 3), train=True)
class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.backbone(x).relu())


@case("sharing: a frozen bias, everything else trained")
def _frozen_bias():
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    net[0].bias.requires_grad = False
    return Call(net, (floats(2, 3)(),))


@case("sharing: a parameter that forward never uses", floats(2, 3))
class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(5, 7)

    def forward(self, x):
        return self.used(x)
