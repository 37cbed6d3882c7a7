"""Norms in closed form against autodiff of the plain formula, and where channels may lie."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity_checks import check
from torch import nn

from esper.jax_backend.platform.bias import add_bias, scale, sums
from esper.jax_backend.platform.normalization import Form, normalize
from esper.jax_backend.registry import lowering
from esper.parity import compare, tolerance

SUMMED = [
    ((5, 3), (0,)),
    ((5, 3), (1,)),
    ((5, 3), (0, 1)),
    ((2, 3, 4), (1,)),
    ((4, 3, 8, 5), (1, 3)),
    ((4, 3, 8, 5), (0, 3)),
    ((4, 3, 8, 5), (0, 1)),
    ((4, 3, 8, 5), (2, 3)),
    ((0, 3), (0,)),
    ((0, 3), (1,)),
    ((3, 0, 2), (1,)),
    # Large enough to be folded.
    ((8192, 3), (0,)),
    ((121, 91), (0,)),
    ((7, 3000), (1,)),
    ((2, 640, 16, 2), (1, 3)),
    ((64, 6, 60), (0, 2)),
]


@pytest.mark.parametrize(("shape", "over"), SUMMED)
def test_sums(shape, over):
    x = np.random.default_rng(0).normal(size=shape)
    with jax.enable_x64(True):
        found = jax.jit(sums, static_argnums=1)(x, over)
    np.testing.assert_allclose(found, x.sum(over, keepdims=True), rtol=1e-12, atol=1e-12)


FORMS = {
    "batch": ((4, 3, 5), Form((0, 2), (1,), 1e-5)),
    "batch, channels last": ((20, 3), Form((0,), (1,), 1e-5)),
    "folded": ((1024, 9), Form((0,), (1,), 1e-5)),
    "group": ((2, 3, 2, 5), Form((2, 3), (1, 2), 1e-5)),
    "group, channels last": ((2, 5, 3, 2), Form((1, 3), (2, 3), 1e-5)),
    "row": ((4, 6), Form((1,), (1,), 1e-5)),
    "row by squares": ((4, 6), Form((1,), (1,), 1e-5, centred=False)),
}


def plain(x, weight, bias, form):
    """The formula as one writes it down, in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(form.over, keepdims=True) * form.centred
    variance = ((wide - mean) ** 2).mean(form.over, keepdims=True)
    out = (wide - mean) / jnp.sqrt(variance + form.eps)
    shape = [size if axis in form.affine else 1 for axis, size in enumerate(x.shape)]
    out = out if weight is None else out * weight.reshape(shape)
    out = out if bias is None else out + bias.reshape(shape)
    return out.astype(x.dtype), mean, variance


def given(shape, form, affine=True, seed=0):
    """x, weight and bias."""
    rng = np.random.default_rng(seed)
    size = [shape[axis] for axis in form.affine]
    x = 1 + 2 * rng.normal(size=shape)
    return x, *((rng.normal(size=size), rng.normal(size=size)) if affine else (None, None))


def agree(found, wanted, rtol=1e-9, atol=1e-9):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, wanted)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize(("shape", "form"), FORMS.values(), ids=FORMS)
def test_first_and_second_derivatives(shape, form, affine):
    with jax.enable_x64(True):
        args, moves = given(shape, form, affine), given(shape, form, affine, seed=1)

        def all_of(norm):
            def run(args, moves):
                def of(*args):
                    return norm(*args, form)

                out, moved = jax.jvp(of, args, moves)
                # Cotangents that depend on the results, for all of them: also the statistics are differentiable.
                back = jax.vjp(of, *args)[1](jax.tree.map(jnp.cos, out))
                return out, moved, back

            def second(args, moves):
                return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(run(args, moves)[1:]))

            return jax.jit(lambda: (run(args, moves), jax.grad(second)(args, moves)))()

        agree(all_of(normalize), all_of(plain), 1e-8, 1e-8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("shape", "form"), FORMS.values(), ids=FORMS)
def test_dtypes(shape, form, dtype):
    args = tuple(jnp.asarray(each, dtype) for each in given(shape, form))

    def run(norm):
        out, back = jax.jit(lambda *args: jax.vjp(lambda *a: norm(*a, form)[0], *args))(*args)
        return out, back(jnp.cos(out))

    found, wanted = run(normalize), run(plain)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [jnp.dtype(dtype)] * 4
    found, wanted = jax.tree.map(lambda leaf: leaf.astype("float32"), (found, wanted))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert compare(a, b).scaled <= tolerance(dtype, gradient=True)


def test_mapped():
    shape, form = FORMS["batch"]
    x, weight, bias = (jnp.asarray(each, "float32") for each in given(shape, form))
    many = jnp.stack([x, 2 * x, x + 1])

    def loss(norm):
        return jax.jit(
            jax.vmap(jax.grad(lambda x, w, b: jnp.sum(jnp.sin(norm(x, w, b, form)[0])), (0, 1)), (0, None, None))
        )

    agree(loss(normalize)(many, weight, bias), loss(plain)(many, weight, bias), 1e-5, 1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_scale_and_bias(axis):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(3, 4, 5))
        vector = rng.normal(size=x.shape[axis])
        shaped = (1,) * axis + (-1,) + (1,) * (2 - axis)

        def run(of):
            def loss(x, vector):
                return jnp.sum(jnp.sin(of(x, vector)))

            first = jax.grad(loss, (0, 1))
            return jax.jit(lambda: (first(x, vector), jax.jvp(first, (x, vector), (x, vector))[1]))()

        agree(run(lambda x, v: scale(x, v, axis)), run(lambda x, v: x * v.reshape(shaped)))
        agree(run(lambda x, v: add_bias(x, v, axis)), run(lambda x, v: x + v.reshape(shaped)))


C, GROUPS = 6, 3
VECTORS = tuple(np.random.default_rng(3).uniform(0.5, 1.5, size=(4, C)).astype("float32"))
BY_CHANNEL = {
    "aten.batch_norm.default": (*VECTORS, True, 0.1, 1e-5),
    "aten.instance_norm.default": (*VECTORS, True, 0.1, 1e-5),
    "aten.group_norm.default": (GROUPS, *VECTORS[:2]),
    "aten._native_batch_norm_legit_functional.default": (*VECTORS, True, 0.1, 1e-5),
    "aten._native_batch_norm_legit.no_stats": (*VECTORS[:2], True, 0.1, 1e-5),
    "aten._native_batch_norm_legit_no_training.default": (*VECTORS, 0.1, 1e-5),
}


@pytest.mark.parametrize("space", [(5,), (4, 5), (2, 3, 2)], ids=["1d", "2d", "3d"])
@pytest.mark.parametrize("op", [*BY_CHANNEL, "aten.native_group_norm.default"])
def test_channels_last(op, space):
    x = np.random.default_rng(0).normal(size=(2, C, *space)).astype("float32")
    args = BY_CHANNEL.get(op, (*VECTORS[:2], 2, C, math.prod(space), GROUPS, 1e-5))
    rule = lowering(op).rule

    def moved(value):
        return jnp.moveaxis(value, -1, 1) if value.ndim == x.ndim else value

    def run(x, channel_axis):
        def out(x):
            given = x if channel_axis == 1 else jnp.moveaxis(x, 1, -1)
            made = jax.tree.leaves(rule(given, *args, channel_axis=channel_axis))
            return made if channel_axis == 1 else [moved(value) for value in made]

        return out(x), jax.grad(lambda x: sum(jnp.sum(jnp.sin(each)) for each in out(x)))(x)

    found, wanted = (jax.jit(run, static_argnums=1)(x, axis) for axis in (-1, 1))
    agree(found, wanted, 1e-5, 1e-5)


LARGE = [
    (nn.BatchNorm2d(8), (4, 8, 18, 18)),
    (nn.GroupNorm(2, 8), (2, 8, 32, 32)),
    (nn.LayerNorm(96), (128, 96)),
    (nn.RMSNorm(96), (128, 96)),
    (nn.Conv2d(3, 8, 3), (2, 3, 32, 32)),
]


@pytest.mark.parametrize(("module", "shape"), LARGE, ids=lambda value: type(value).__name__)
def test_large_enough_to_be_folded(module, shape):
    check(module, 3 + torch.randn(*shape, generator=torch.Generator().manual_seed(0)), train=True)
