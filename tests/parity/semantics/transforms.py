"""Function transforms inside forward: `torch.func`, `torch.vmap`, `torch.autograd.grad`, `functional_call`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import (
    functional_call,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from parity.semantics.table import case, floats, given


@case("transforms: vmap", floats(5, 3), floats(5, 3))
class Vmap(nn.Module):
    def forward(self, x, y):
        return vmap(torch.dot)(x, y) * torch.vmap(lambda a: a.sin().sum())(x)


@case("transforms: vmap with in_dims and out_dims, nested", floats(4, 3), floats(5, 3))
class VmapDims(nn.Module):
    def forward(self, x, y):
        outer = vmap(vmap(lambda a, b: (a * b).sum(), in_dims=(None, 0)), in_dims=(0, None), out_dims=1)
        return outer(x, y), vmap(lambda c, s: c * s, in_dims=(1, None), out_dims=1)(x, y[0, 0])


@case("transforms: vmap over a module with parameters", floats(5, 3))
class VmapModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh())

    def forward(self, x):
        return vmap(self.net)(x)


@case("transforms: vmap in chunks", floats(6, 3))
class VmapChunks(nn.Module):
    def forward(self, x):
        return vmap(lambda row: row.softmax(0) * row, chunk_size=2)(x)


@case("transforms: grad", floats(3))
class Grad(nn.Module):
    def forward(self, x):
        return grad(lambda v: (v.sin() * v).sum())(x) * x


@case("transforms: grad of grad, with auxiliary output and value", floats(3), given(0.7))
class GradOfGrad(nn.Module):
    def forward(self, x, s):
        second = grad(grad(lambda v: v.sin() * v))(s[0])
        first, (value, extra) = grad_and_value(lambda v: (v.pow(3).sum(), v * 2), has_aux=True)(x)
        return second, first, value, extra


@case("transforms: vjp and jvp", floats(3), floats(3))
class VjpJvp(nn.Module):
    def forward(self, x, v):
        out, back = vjp(lambda a: a.sin() * a.sum(), x)
        value, tangent = jvp(lambda a: a.exp() * 2, (x,), (v,))
        return out, back(v)[0], value * tangent


@case("transforms: jacrev, jacfwd and hessian", floats(3))
class Jacobians(nn.Module):
    def forward(self, x):
        def function(v):
            return v.sin() * v.roll(1)

        return jacrev(function)(x), jacfwd(function)(x), hessian(lambda v: function(v).sum())(x)


@case("transforms: a jacobian for each sample, as in a normalising flow", floats(4, 3))
class LogDeterminant(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        jacobian = vmap(jacrev(lambda row: row + 0.1 * self.net(row)))(x)
        return torch.linalg.slogdet(jacobian)[1]


@case("transforms: functional_call with other parameters", floats(3, 4))
class FunctionalCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        fast = {name: value * 0.5 + 0.1 for name, value in self.net.named_parameters()}
        return functional_call(self.net, fast, (x,)) + functional_call(self.net, {"0.bias": torch.zeros(4)}, (x,))


@case(
    "transforms: an inner step of gradient descent by func.grad",
    floats(3, 4),
    floats(3, 2),
)
class InnerStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, x, target):
        params = dict(self.net.named_parameters())

        def loss(given):
            return (functional_call(self.net, given, (x,)) - target).square().mean()

        found = grad(loss)(params)
        return functional_call(self.net, {name: params[name] - 0.1 * found[name] for name in params}, (x,))


@case("transforms: an ensemble by stacked parameters", floats(3, 4))
class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])

    def forward(self, x):
        stacked = {
            name: torch.stack([dict(net.named_parameters())[name] for net in self.nets]) for name in ("weight", "bias")
        }
        return vmap(lambda params: functional_call(self.nets[0], params, (x,)))(stacked)


@case("transforms: stack_module_state in forward", floats(3, 4), gradients=False)
class StackedState(nn.Module):
    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList([nn.Linear(4, 2) for _ in range(3)])

    def forward(self, x):
        params, buffers = stack_module_state(list(self.nets))
        return vmap(lambda p, b: functional_call(self.nets[0], (p, b), (x,)))(params, buffers)


@case("transforms: autograd.grad with create_graph", floats(3, 4))
class CreateGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 5), nn.Softplus(), nn.Linear(5, 1))

    def forward(self, x):
        positions = x * 1.0
        energy = self.energy(positions)
        (force,) = torch.autograd.grad(energy.sum(), positions, create_graph=True)
        return energy, -force


@case("transforms: autograd.grad without create_graph counts as a constant", floats(3, 4))
class NoCreateGraph(nn.Module):
    def forward(self, x):
        y = x.sin()
        (found,) = torch.autograd.grad((y * x).sum(), y, retain_graph=True)
        return found * x + y


@case("transforms: autograd.grad with requires_grad_ on a detached input", floats(3, 4))
class OfDetached(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        with torch.enable_grad():
            start = x.detach().requires_grad_(True)
            (found,) = torch.autograd.grad(self.net(start).sum(), start, create_graph=True)
        return x + found


@case(
    "transforms: autograd.grad with respect to parameters and with grad_outputs",
    floats(3, 4),
)
class OfParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, x):
        out = self.net(x).sigmoid()
        found = torch.autograd.grad(out, list(self.net.parameters()), grad_outputs=out * 2, create_graph=True)
        return out, sum(g.square().sum() for g in found)


@case("transforms: autograd.grad, allow_unused", floats(3, 4), floats(3, 4))
class AllowUnused(nn.Module):
    def forward(self, x, z):
        y, w = x * 2, z * 3
        found = torch.autograd.grad(y.exp().sum(), (y, w), create_graph=True, allow_unused=True)
        return found[0] * (0 if found[1] is not None else 1), w


@case("transforms: second derivatives by autograd.grad twice", floats(5, 1))
class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x):
        t = x.clone()
        u = self.net(t)
        (du,) = torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)
        (ddu,) = torch.autograd.grad(du, t, torch.ones_like(du), create_graph=True)
        return ddu + u


@case("transforms: autograd.functional's jacobian and hvp", floats(3), floats(3))
class Functional(nn.Module):
    def forward(self, x, v):
        jacobian = torch.autograd.functional.jacobian(lambda a: a.sin() * a.sum(), x, create_graph=True)
        _, product = torch.autograd.functional.hvp(lambda a: a.pow(3).sum(), x, v, create_graph=True)
        return jacobian, product


@case("transforms: a gradient penalty on interpolated inputs", floats(3, 4), floats(3, 4))
class GradientPenalty(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, real, fake):
        mixed = (0.3 * real + 0.7 * fake.detach()).requires_grad_(True)
        score = self.critic(mixed)
        (found,) = torch.autograd.grad(score, mixed, torch.ones_like(score), create_graph=True, retain_graph=True)
        return ((found.norm(2, dim=1) - 1) ** 2).mean()


@case("transforms: gradients of each sample with respect to the parameters", floats(4, 3), floats(4, 2))
class PerSample(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x, target):
        params = dict(self.net.named_parameters())

        def loss(given, row, wanted):
            return (functional_call(self.net, given, (row,)) - wanted).square().sum()

        found = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, target)
        return {name: value.square().sum(0) for name, value in found.items()}


@case("transforms: a hessian for each sample, by columns", floats(4, 3))
class PerSampleHessian(nn.Module):
    def forward(self, x):
        return vmap(hessian(lambda row: (row.sin() * row.prod()).sum()))(x), vmap(jacfwd(torch.sin), in_dims=1)(x)


@case("transforms: a residual of a differential equation", floats(6, 1), floats(6, 1))
class Burgers(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, t):
        x.requires_grad_(True)
        t.requires_grad_(True)
        u = self.net(torch.cat([x, t], 1))
        ones = torch.ones_like(u)
        u_x, u_t = torch.autograd.grad(u, [x, t], ones, create_graph=True)
        u_xx = torch.autograd.grad(u_x, x, grad_outputs=ones, create_graph=True, retain_graph=True)[0]
        return u_t + u * u_x - 0.01 * u_xx


@case("transforms: forces and virial of an energy, and its dictionary form", floats(5, 3))
class Forces(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, positions):
        strain = torch.zeros(3, 3, requires_grad=True)
        moved = positions + positions @ (strain + strain.T) * 0.5
        pairs = (moved.unsqueeze(0) - moved.unsqueeze(1)).square().sum(-1)
        energy = (self.scale * torch.exp(-pairs)).sum() * 0.5
        found = torch.autograd.grad([energy], {"at": positions, "strain": strain}, create_graph=True)
        return energy, -found["at"], found["strain"]


@case("transforms: batched cotangents of autograd.grad", floats(3))
class BatchedCotangents(nn.Module):
    def forward(self, x):
        y = x.sin() * x.sum()
        return torch.autograd.grad(y, x, torch.eye(3), create_graph=True, is_grads_batched=True)[0]


@case("transforms: a derivative past a write in place and a view", floats(3, 4))
class PastAWrite(nn.Module):
    def forward(self, x):
        y = x * 1
        z = torch.zeros(3, 4)
        z[:, 1:] = y[:, 1:].exp()
        z.mul_(y)
        return torch.autograd.grad(z.sum(), y, create_graph=True)[0]


@case("transforms: a derivative in a branch", floats(3))
class InABranch(nn.Module):
    def forward(self, x):
        def by_gradient(v):
            return grad(lambda a: a.pow(3).sum())(v)

        return torch.cond(x.sum() > 0, by_gradient, lambda v: v * 2, (x,))


@case("transforms: a derivative by a complex tensor", floats(3, dtype=torch.complex64))
class ByComplex(nn.Module):
    def forward(self, z):
        y = z * 1
        return torch.autograd.grad((y * y.conj()).real.sum() + (y**3).imag.sum(), y, create_graph=True)[0]


@case("transforms: a derivative through dropout", floats(3, 4), train=True, refuses="which would draw anew")
class ThroughDropout(nn.Module):
    def forward(self, x):
        y = x * 1
        return torch.autograd.grad(F.dropout(y.sin()).sum(), y, create_graph=True)[0]
