"""Windows read in blocks of one stride, against autodiff of reading them by index; where channels may lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity_checks import check
from torch.nn import functional as F

from esper.jax_backend.platform.pooling import Windows, max_along, pick, total, total_along, winners
from esper.jax_backend.registry import lowering

SIZE = 9
WINDOWS = {  # size, stride, padding, dilation, count
    "equal": Windows(3, 3, 0, 1, 3),
    "cropped": Windows(2, 2, 0, 1, 4),
    "overlap": Windows(3, 2, 1, 1, 5),
    "dense": Windows(3, 1, 1, 1, 9),
    "gaps": Windows(2, 4, 0, 1, 2),
    "points": Windows(1, 2, 0, 1, 5),
    "dilated": Windows(3, 2, 1, 2, 4),
    "dilated by the stride": Windows(2, 2, 1, 2, 5),
    "beyond the end": Windows(2, 2, 0, 1, 5),
    "whole": Windows(9, 9, 0, 1, 1),
}


def windowed(x, axis, w, fill):
    """Each window's elements along a last dimension of their own."""
    x = jnp.moveaxis(jnp.asarray(x), axis, -1)
    beyond = w.count * w.stride + w.size * w.dilation
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(w.padding, beyond)], constant_values=fill)
    places = np.arange(w.count)[:, None] * w.stride + np.arange(w.size) * w.dilation
    return jnp.moveaxis(padded[..., places], -2, axis)


def plain_max(x, axis, w):
    parts = windowed(x, axis, w, -jnp.inf)
    winner = jnp.argmax(parts, -1, keepdims=True)
    return jnp.take_along_axis(parts, winner, -1)[..., 0]


def plain_total(x, axis, w):
    return windowed(x, axis, w, 0).sum(-1)


def agree(found, wanted, tolerance=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, wanted)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("w", WINDOWS.values(), ids=WINDOWS)
def test_derivatives(w, axis):
    rng = np.random.default_rng(0)
    shape = [2, 4, 4]
    shape[axis] = SIZE

    def all_of(of, x, move):
        def run(x):
            return of(x, axis, w)

        def loss(x):
            return jnp.sum(jnp.sin(run(x)))

        out, moved = jax.jvp(run, (x,), (move,))
        return (
            out,
            moved,
            jax.grad(loss)(x),
            jax.jvp(jax.grad(loss), (x,), (move,))[1],
            jax.vmap(jax.grad(loss))(x[None]),
        )

    # Few values, so that many are equal.
    ties, move = np.round(rng.normal(size=shape)), rng.normal(size=shape)
    with jax.enable_x64(True):
        for fast, plain in ((max_along, plain_max), (total_along, plain_total)):
            found, wanted = (jax.jit(all_of, static_argnums=0)(of, ties, move) for of in (fast, plain))
            agree(found, wanted)


def test_winners_of_many():
    x = jnp.arange(600.0)[None]
    w = Windows(300, 300, 0, 1, 2)
    assert winners(x, 1, w).tolist() == [[299, 299]]
    assert pick(x, winners(x, 1, w), 1, w).tolist() == [[299, 599]]
    assert winners(x, 1, Windows(2, 2, 0, 1, 300)).dtype == jnp.uint8


def test_total():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 30, 20, 8)).astype("float32"))

    def run(of):
        return jax.jit(lambda x: (of(x), jax.grad(lambda x: jnp.sum(jnp.sin(of(x))))(x)))(x)

    agree(run(lambda x: total(x, (1, 2))), run(lambda x: x.sum((1, 2), keepdims=True)), 1e-4)


POOLS = {
    "max": ("aten.max_pool{}d.default", (3, 2, 1)),
    "max of equal": ("aten.max_pool{}d.default", (2,)),
    "max, dilated": ("aten.max_pool{}d.default", (2, 1, 0, 2)),
    "with indices": ("aten.max_pool{}d_with_indices.default", (3, 2, 1)),
    "avg": ("aten.avg_pool{}d.default", (3, 2, 1)),
    "avg of equal": ("aten.avg_pool{}d.default", (2,)),
    "avg without padding": ("aten.avg_pool{}d.default", (3, 2, 1, True, False)),
}
SPACE = {1: (9,), 2: (7, 8), 3: (4, 5, 6)}


def same_wherever_channels_lie(rule, rank, args):
    x = np.random.default_rng(0).normal(size=(2, 3, *SPACE[rank])).astype("float32")

    def out(x, channel_axis):
        if channel_axis == 1:
            return jax.tree.leaves(rule(x, *args))
        made = rule(jnp.moveaxis(x, 1, -1), *args, channel_axis=-1)
        return [jnp.moveaxis(value, -1, 1) for value in jax.tree.leaves(made)]

    def run(x, channel_axis):
        return out(x, channel_axis), jax.grad(lambda x: jnp.sum(jnp.sin(out(x, channel_axis)[0])))(x)

    found, wanted = (jax.jit(run, static_argnums=1)(x, axis) for axis in (-1, 1))
    agree(found, wanted, 1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(("op", "args"), POOLS.values(), ids=POOLS)
def test_channels_last(op, args, rank):
    same_wherever_channels_lie(lowering(op.format(rank)).rule, rank, args)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", ["avg", "max"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_adaptive_channels_last(rank, kind, size):
    rule = lowering(f"aten.adaptive_{kind}_pool{rank}d.default").rule
    same_wherever_channels_lie(rule, rank, ([size] * rank,))


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("args", [(3, 2, 1), (2,), (2, 2), (3, 1, 1)], ids=str)
def test_as_in_residual_networks(args):
    for x in (image(2, 8, 16, 16), image(2, 8, 15, 17), torch.round(image(2, 8, 16, 16))):
        check(lambda x: F.max_pool2d(x, *args), x)
        check(lambda x: F.avg_pool2d(x, *args), x)


def test_over_all_of_space():
    check(lambda x: F.adaptive_avg_pool2d(x, 1), image(4, 8, 17, 17))
    check(lambda x: F.adaptive_avg_pool2d(x, (1, 2)), image(4, 8, 6, 8))
