"""Activations between convolutions lie channels last, and nobody can tell from the results."""

from copy import deepcopy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiling import DEFAULTS
from torch import nn
from torch.nn import functional

import esper
from esper.lifecycle import SeedLifecycleState as S


class Net(nn.Module):
    """Two convolutions around what is to be tested."""

    def __init__(self, middle, channels=6, back=6):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(back, 4, 3, padding=1)
        self.middle = middle

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function, self.parts = function, nn.ModuleDict(parts)

    def forward(self, x):
        return self.function(x, **self.parts)


MIDDLES = {
    "batch norm": nn.BatchNorm2d(6),
    "instance norm": nn.InstanceNorm2d(6, affine=True),
    "group norm": nn.GroupNorm(3, 6),
    "relu": nn.ReLU(),
    "max pool": nn.MaxPool2d(2),
    "average pool": nn.AvgPool2d(3, 2, padding=1),
    "adaptive pool": nn.AdaptiveAvgPool2d((3, 2)),
    "adaptive max pool": nn.AdaptiveMaxPool2d((3, 2)),
    "upsample": nn.Upsample(scale_factor=2),
    "residual": Of(lambda x, conv: functional.relu(x + conv(x)), conv=nn.Conv2d(6, 6, 1)),
    "transposed": nn.ConvTranspose2d(6, 6, 3, stride=2, output_padding=1),
    "squeeze and excite": Of(
        lambda x, down, up: x * up(down(x.mean((2, 3), keepdim=True)).relu()).sigmoid(),
        down=nn.Conv2d(6, 2, 1),
        up=nn.Conv2d(2, 6, 1),
    ),
    "scale of fewer dimensions": Of(lambda x: x * torch.linspace(1, 2, 6)[:, None, None]),
    "scale of the last dimension": Of(lambda x: x * torch.linspace(1, 2, x.shape[-1])),
    "a number": Of(lambda x: (2 - x).clamp(-1, 1) / 3),
    "two that differ": Of(lambda x: x * (x + 0).permute(0, 1, 3, 2)[..., :8]),
    "layer norm by permuting": Of(
        lambda x, norm: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(6)
    ),
    "norm over channels": Of(lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1).sqrt()),
    "channels cut and joined": Of(lambda x: torch.cat([part * k for k, part in enumerate(x.chunk(3, dim=1))], 1)),
    "channels split": Of(lambda x: torch.cat(x.split([1, 5], dim=1)[::-1], dim=-3)),
    "space cut": Of(lambda x: torch.cat([x[..., 1:], x[:, :, :, :1]], -1) + x[:, :, -1:]),
    "joined along the batch": Of(lambda x: torch.cat([x, -x])),
    "where": Of(lambda x: torch.where(x > 0, x, x.exp() - 1)),
    "maximum over space": Of(lambda x: x - x.amax((2, 3), keepdim=True)),
    "mean over space, not kept": Of(lambda x: x - x.mean((-1, -2))[..., None, None]),
    "mean over rows, not kept": Of(lambda x: x - x.mean(2)[:, :, None]),
    "mean over all": Of(lambda x: x - x.mean()),
    "transposed in space": Of(lambda x: x.transpose(2, 3)),
    "seen as rows": Of(lambda x: x.flatten(2).softmax(-1).view_as(x)),
    "converted": Of(lambda x: x.to(torch.float64).to(torch.float32)),
    "per channel": nn.PReLU(6),
    "dropout of nothing": nn.Dropout2d(0.0),
    "pixel shuffle": Of(lambda x, wide: functional.pixel_shuffle(wide(x), 2), wide=nn.Conv2d(6, 24, 1)),
    "padded": nn.ReflectionPad2d(1),
}


def compared(module, x, train=True):
    """The wrapped module's outputs, gradients and buffers beside eager torch's."""
    module.train(train)
    model = esper.wrap(module)

    def loss(params, x):
        y, moved = model.replace(params=params).apply(x, train=train)
        return jnp.sum(jnp.sin(y)), (y, moved)

    (grads, by_x), (y, moved) = jax.grad(loss, argnums=(0, 1), has_aux=True)(model.params, jnp.asarray(x.numpy()))
    x.requires_grad_()
    wanted = module(x)
    wanted.sin().sum().backward()
    close(y, wanted)
    close(by_x, x.grad)
    for name, parameter in module.named_parameters():
        close(grads["host"][name], parameter.grad)
    for name, buffer in module.named_buffers():
        close(moved.buffers[name], buffer)


def close(found, wanted):
    np.testing.assert_allclose(np.asarray(found), wanted.detach().numpy(), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", MIDDLES)
def test_between_two_convolutions(name):
    torch.manual_seed(0)
    compared(Net(deepcopy(MIDDLES[name])), torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("name", ["batch norm", "instance norm"])
def test_norms_with_fixed_statistics(name):
    torch.manual_seed(0)
    compared(Net(deepcopy(MIDDLES[name])), torch.randn(2, 3, 8, 8), train=False)


@pytest.mark.parametrize("rank", [1, 3])
def test_of_other_ranks(rank):
    torch.manual_seed(0)
    conv, norm, pool = (getattr(nn, f"{kind}{rank}d") for kind in ("Conv", "BatchNorm", "MaxPool"))
    layers = conv(3, 4, 3), norm(4), nn.ReLU(), pool(2), conv(4, 2, 1)
    compared(nn.Sequential(*layers), torch.randn(2, 3, *[8] * rank))


def test_one_example_without_a_batch():
    torch.manual_seed(0)
    compared(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1)), torch.randn(3, 8, 8))


def test_pooling_in_two_dimensions_of_what_a_convolution_in_one_makes():
    """Torch takes (batch, channels, length) for one image of (channels, height, width)."""
    torch.manual_seed(0)
    compared(nn.Sequential(nn.Conv1d(3, 4, 3), nn.MaxPool2d(2)), torch.randn(2, 3, 8))


def moves(function, *args):
    """The transpositions of arrays of four dimensions, which no other operator hides."""
    return [
        e
        for e in jax.make_jaxpr(function)(*args).eqns
        if e.primitive.name == "transpose" and e.invars[0].aval.ndim == 4
    ]


@pytest.mark.parametrize(
    "name",
    [
        *("batch norm", "relu", "max pool", "average pool", "adaptive pool", "residual", "squeeze and excite"),
        *("a number", "norm over channels", "channels cut and joined", "channels split", "where"),
    ],
)
def test_only_what_comes_in_and_what_goes_out_is_moved(name):
    model = esper.wrap(Net(deepcopy(MIDDLES[name])).eval())
    x = jnp.ones((2, 3, 8, 8))
    shapes = [e.invars[0].aval.shape for e in moves(model, x) if e.invars[0].aval.shape[0] == 2]
    assert len(shapes) == 2, shapes


@pytest.mark.parametrize(("layer", "blueprint"), [("0", "conv"), ("2", "conv"), ("2", "squeeze_excite"), ("4", "mlp")])
def test_a_kernel_leaves_the_order_of_what_follows(layer, blueprint):
    """Batch statistics are summed in one order with it and without it: the host learns the same, bit for bit."""
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
    model = esper.wrap(nn.Sequential(*convs, nn.Conv2d(8, 4, 3)).train(), target_layers=["0", "2", "4"])
    x = jnp.asarray(torch.randn(4, 3, 9, 9).numpy())
    model(x)
    grown, _ = esper.germinate(model, None, layer=layer, seed=0, blueprint=blueprint, key=jax.random.key(0))
    assert grown.layers[layer].seeds.lifecycle[0] == S.TRAINING

    def gradients(model):
        def loss(params):
            return jnp.sum(jnp.sin(model.replace(params=params).apply(x, train=True)[0]))

        step = jax.jit(jax.grad(loss)).lower(model.params)
        return step.compile(DEFAULTS)(model.params)["host"]

    alone, beside = gradients(model), gradients(grown)
    for name, grad in alone.items():
        np.testing.assert_array_equal(grad, beside[name], err_msg=name)
