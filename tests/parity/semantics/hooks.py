"""Hooks: on modules, around their forward, and on tensors, in their backward."""

from __future__ import annotations

import copy

import torch
from torch import nn

from parity.case import Call
from parity.semantics.table import case, floats


class Rebuilt(nn.Module):
    """A module whose hooks a plain copy would lose or leave with the original.

    `copy.deepcopy` of it builds a new one, hooks included; a copy that is made with a memo is a plain one.
    """

    def __deepcopy__(self, memo):
        if not memo:
            made = type(self)()
            made.load_state_dict(self.state_dict())
            return made.train(self.training)
        memo[id(self)] = made = type(self).__new__(type(self))
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made


def two_layers():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


@case("hooks: a forward hook changes the output")
def _():
    net = two_layers()
    net[0].register_forward_hook(lambda module, args, out: out * 2 + args[0])
    return Call(net, (floats(3, 4)(),))


@case("hooks: a forward hook only looks")
def _():
    net = two_layers()
    seen = {}
    net[0].register_forward_hook(lambda module, args, out: seen.update(shape=out.shape))
    return Call(net, (floats(3, 4)(),))


@case("hooks: a forward hook writes the output in place")
def _():
    def halve(module, args, out):
        out[1:] *= 0.5

    net = two_layers()
    net[0].register_forward_hook(halve)
    return Call(net, (floats(3, 4)(),))


@case("hooks: a pre-hook changes the input")
def _():
    net = two_layers()
    net[2].register_forward_pre_hook(lambda module, args: (args[0].cos(),))
    net[0].register_forward_pre_hook(lambda module, args: args[0] * 3)
    return Call(net, (floats(3, 4)(),))


class WithKeywords(nn.Module):
    class Layer(nn.Module):
        def forward(self, x, scale=1.0, shift=None):
            return x * scale if shift is None else x * scale + shift

    def __init__(self):
        super().__init__()
        self.layer = self.Layer()

    def forward(self, x):
        return self.layer(x, scale=2.0, shift=x.sin())


@case("hooks: a pre-hook with keyword arguments")
def _():
    net = WithKeywords()
    net.layer.register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] + 1,), {**kwargs, "scale": 5.0}), with_kwargs=True
    )
    return Call(net, (floats(3, 4)(),))


@case("hooks: a forward hook with keyword arguments")
def _():
    net = WithKeywords()
    net.layer.register_forward_hook(
        lambda module, args, kwargs, out: out * kwargs["scale"] + kwargs["shift"], with_kwargs=True
    )
    return Call(net, (floats(3, 4)(),))


@case("hooks: several on one module, one of them prepended and one removed")
def _():
    net = two_layers()
    net[0].register_forward_hook(lambda module, args, out: out + 1)
    net[0].register_forward_hook(lambda module, args, out: out * 3, prepend=True)
    net[0].register_forward_hook(lambda module, args, out: out * 100).remove()
    return Call(net, (floats(3, 4)(),))


@case("hooks: on the root module")
def _():
    net = two_layers()
    net.register_forward_pre_hook(lambda module, args: (args[0].abs(),))
    net.register_forward_hook(lambda module, args, out: {"out": out, "square": out.square()})
    return Call(net, (floats(3, 4)(),))


@case("hooks: activations are collected by bound methods", floats(3, 4))
class Collected(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.features = two_layers(), []
        self.net[0].register_forward_hook(self.keep)
        self.net[1].register_forward_hook(self.keep)

    def keep(self, module, args, out):
        self.features.append(out)

    def forward(self, x):
        self.features.clear()
        out = self.net(x)
        return out, self.features[0] * self.features[1]


@case("hooks: activations are collected by closures", floats(3, 4))
class CollectedByClosures(Rebuilt):
    def __init__(self):
        super().__init__()
        self.net, self.features = two_layers(), {}
        for name in ("0", "1"):
            self.net.get_submodule(name).register_forward_hook(self._keep(name))

    def _keep(self, name):
        def hook(module, args, out):
            self.features[name] = out

        return hook

    def forward(self, x):
        out = self.net(x)
        return out, self.features["0"] * self.features["1"]


@case("hooks: a hook is put on inside forward and taken off again", floats(3, 4))
class Temporary(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = two_layers()

    def forward(self, x):
        plain = self.net(x)
        handle = self.net[1].register_forward_hook(lambda module, args, out: out * 2)
        doubled = self.net(x)
        handle.remove()
        return plain + doubled * self.net(x)


@case("hooks: a pre-hook computes a weight from parameters")
def _():
    layer = nn.Linear(4, 3)
    layer.log_scale = nn.Parameter(torch.randn(3, 1))
    layer.raw = nn.Parameter(layer.weight.detach().clone())
    del layer.weight

    def weight(module, args):
        module.weight = module.raw * module.log_scale.exp()

    layer.register_forward_pre_hook(weight)
    weight(layer, None)
    layer.weight = layer.weight.detach()
    return Call(layer, (floats(3, 4)(),))


@case("hooks: a tensor hook scales the gradient", floats(3, 4))
class Scales(nn.Module):
    def forward(self, x):
        y = x.sin()
        y.register_hook(lambda grad: grad * 0.1)
        return y * x


@case("hooks: a tensor hook clamps the gradient", floats(3, 4))
class Clamps(nn.Module):
    def forward(self, x):
        y = x * 2
        if y.requires_grad:
            y.register_hook(lambda grad: grad.clamp(-0.2, 0.2))
        return y * y


@case("hooks: a tensor hook that only looks", floats(3, 4))
class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        y = x * 2
        y.register_hook(lambda grad: self.seen.append(grad.shape))
        return y.exp()


@case("hooks: a tensor hook that is removed", floats(3, 4))
class Removed(nn.Module):
    def forward(self, x):
        y = x * 2
        handle = y.register_hook(lambda grad: grad * 100)
        handle.remove()
        return y.exp()


@case("hooks: a tensor hook registered after the tensor was used", floats(3, 4))
class After(nn.Module):
    def forward(self, x):
        y = x * 2
        z = y.sin() + y.cos()
        y.register_hook(lambda grad: grad * 3 + 1)
        return z


@case("hooks: several tensor hooks on one tensor, in order", floats(3, 4))
class Several(nn.Module):
    def forward(self, x):
        y = x * 2
        y.register_hook(lambda grad: grad + 1)
        y.register_hook(lambda grad: None)
        y.register_hook(lambda grad: grad * 5)
        return y.exp() * y


@case("hooks: a tensor hook, then the tensor is written in place", floats(3, 4))
class HookThenWrite(nn.Module):
    def forward(self, x):
        y = x * 2
        y.register_hook(lambda grad: grad * 3)  # stays with the value before the write
        y.mul_(x)
        return y.sin()


@case("hooks: a tensor hook after an in-place write", floats(3, 4))
class WriteThenHook(nn.Module):
    def forward(self, x):
        y = x * 2
        y[0] = 1.0
        y.register_hook(lambda grad: grad * 3 + 1)
        return y * x


@case("hooks: a tensor hook on a view", floats(3, 4))
class OnView(nn.Module):
    def forward(self, x):
        y = x * 2
        row = y[0]
        row.register_hook(lambda grad: grad + 1)
        return y * row


@case("hooks: a tensor hook that reads another tensor", floats(3, 4), refuses="none of its arguments")
class Closure(nn.Module):
    def forward(self, x):
        y, gate = x * 2, x.detach().sigmoid()
        y.register_hook(lambda grad: grad * gate / grad.norm())
        return y.sin()


@case("hooks: a tensor hook on an input", floats(3, 4))
class OnInput(nn.Module):
    def forward(self, x):
        x.register_hook(lambda grad: grad * 2 + 1)
        return x.sin()


@case("hooks: a tensor hook on the output", floats(3, 4))
class OnOutput(nn.Module):
    def forward(self, x):
        y = x.sin()
        y.register_hook(lambda grad: grad.neg())
        return y


@case("hooks: a tensor hook on a parameter, put on in forward", floats(3, 4))
class OnParameterInForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x):
        handle = self.weight.register_hook(lambda grad: grad * 2)
        out = x * self.weight
        handle.remove()
        self.weight.expand_as(x).register_hook(lambda grad: grad * 100)  # of another tensor, which nobody uses
        return out


@case("hooks: a tensor hook on a parameter, put on at construction", floats(3, 4))
class OnParameter(Rebuilt):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.linear.weight.register_hook(lambda grad: grad * 0.5)

    def forward(self, x):
        return self.linear(x)


@case("hooks: a gradient mask on a parameter, put on at construction", floats(3, 4))
class GradientMask(Rebuilt):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mask", (torch.arange(12).view(3, 4) % 2).float())
        self.linear.weight.register_hook(lambda grad: grad * self.mask)

    def forward(self, x):
        return self.linear(x) + self.linear.weight.sum()


@case("hooks: a tensor hook in a loop over time steps", floats(4, 3))
class InLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(3, 3)

    def forward(self, x):
        h = x.new_zeros(1, 3)
        for row in x.split(1):
            h = self.cell(row, h)
            h.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
        return h


@case("hooks: retain_grad and a hook that runs after accumulation change nothing", floats(3, 4))
class Retained(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x):
        y = x * self.weight
        y.retain_grad()
        return y.sin()
