"""Hosts, blueprints and data that statistics and initialisers are tested on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from esper.lifecycle import SeedLifecycleState as State
from esper.torch_frontend.blueprints import blueprint
from esper.torch_frontend.blueprints.registry import zero_output

KEY = jax.random.key(5)
EXACT = ("zero_output", "pairs", "gradmax")
FITTED = ("tiny", "least_squares")


@blueprint("relu_units", kinds=("Linear",))
def relu_units(site, width=8, act=nn.ReLU, bias=True):
    first, last = nn.Linear(site["in_features"], width, bias=bias), nn.Linear(width, site["out_features"])
    return nn.Sequential(first, act(), zero_output(last))


@blueprint("tanh_units", kinds=("Linear",))
def tanh_units(site, width=8):
    return relu_units(site, width, nn.Tanh)


@blueprint("square_units", kinds=("Linear",))
def square_units(site, width=8):
    return relu_units(site, width, Square)


@blueprint("softmax_units", kinds=("Linear",))
def softmax_units(site, width=8):
    return relu_units(site, width, partial(nn.Softmax, -1))


@blueprint("three_layers", kinds=("Linear",))
def three_layers(site, width=8):
    return nn.Sequential(
        nn.Linear(site["in_features"], width), relu_units({**dict(site.attributes), "in_features": width})
    )


@blueprint("after", kinds=("Linear",), placement="sequential")
def after(site, width=8):
    return relu_units({**dict(site.attributes), "in_features": site["out_features"]}, width)


class Square(nn.Module):
    def forward(self, x):
        return x * x


class Tokens(nn.Module):
    """A layer on [batch, length, features], called twice."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.mix(torch.tanh(self.mix(x))))).mean(1)


class Convolved(nn.Module):
    def __init__(self, **geometry):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, **geometry), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        def inside(x):
            return torch.tanh(self.inner(x))

        # Torch's own backward would call the layer, and the hooks of the reference, a second time.
        return self.head(checkpoint(inside, x, use_reentrant=False) if torch.compiler.is_exporting() else inside(x))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        if torch.compiler.is_exporting():
            return self.head(
                torch.cond(
                    x.sum() < 1e9, lambda x: self.inner(x).tanh(), lambda x: x.mean() + x[:, :1] * torch.ones(6), (x,)
                )
            )
        return self.head(self.inner(x).tanh())


class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        def step(i, x):
            return i + 1, self.inner(x).tanh()

        return self.head(torch.while_loop(lambda i, x: i < 2, step, (torch.tensor(0), x))[1])


class Partly(nn.Module):
    """Layers that a loss on the output does not reach."""

    def __init__(self):
        super().__init__()
        self.cut, self.head, self.token = nn.Linear(5, 5), nn.Linear(5, 3), nn.Embedding(3, 5)

    def forward(self, x):
        return self.head(x + self.cut(x).detach() + self.token.weight[0])


def tanh_mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))


def relu_mlp():
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))


def made(build, key=0):
    torch.manual_seed(key)
    return build()


def squares(model, batch):
    inputs, targets = batch
    return jnp.mean(jnp.sum((model(inputs) - targets) ** 2, -1)) / 2


def dropped_squares(model, batch, key):
    inputs, targets = batch
    return jnp.mean(jnp.sum((model.apply(inputs, train=True, key=key)[0] - targets) ** 2, -1)) / 2


def data(*shape, batches=4, examples=6, outputs=3, seed=1):
    draw = np.random.default_rng(seed)
    inputs = 0.5 + draw.normal(size=(batches, examples, *shape))
    return inputs.astype(np.float32), draw.normal(size=(batches, examples, outputs)).astype(np.float32)


def cut(batches, count):
    return jax.tree.map(lambda array: array.reshape(count, -1, *array.shape[2:]), batches)


def whole(batches):
    """All data as one batch."""
    return jax.tree.map(lambda array: array[0], cut(batches, 1))


def active(model, layer, alpha=1.0):
    row = model.structure.row(layer)
    return model.replace(seeds=model.seeds.set(row, 0, lifecycle=int(State.ACTIVE), alpha=alpha))
