"""Every formulation of convolution against XLA's own operator and eager torch, and its derivatives."""

from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import esper.jax_backend.lowerings  # noqa: F401
from esper.jax_backend.flops import flops
from esper.jax_backend.platform.convolution import (
    Spec,
    canonical,
    choice,
    chunks,
    convolve,
    input_gradient,
    weight_gradient,
    winograd,
)
from esper.jax_backend.registry import lowering

GEOMETRIES = {
    "plain": {},
    "stride": {"stride": 2},
    "padding": {"pads": (1, 1)},
    "uneven-padding": {"pads": (0, 2), "stride": 2},
    "cropping": {"pads": (1, -1), "stride": 2},
    "dilation": {"dilation": 2, "kernel": 2},
    "everything": {"stride": 2, "pads": (2, 1), "dilation": 2, "kernel": 2},
    "pointwise": {"kernel": 1},
    "pointwise-stride": {"kernel": 1, "stride": 2},
    "blocks": {"kernel": 2, "stride": 2},
    "gaps": {"kernel": 2, "stride": 3},
    "larger-than-map": {"kernel": 5, "pads": (4, 4)},
}
CHANNELS = {
    "dense": (3, 5, 1),
    "one": (1, 2, 1),
    "groups": (4, 6, 2),
    "depthwise": (4, 4, 4),
    "multiplied": (3, 6, 3),
    "many-groups": (68, 34, 34),
}


def problem(space, channels, *, stride=1, pads=(0, 0), dilation=1, kernel=3, last=False, batch=2):
    inputs, outputs, groups = channels
    rank = len(space)
    spec = Spec(space, (kernel,) * rank, (stride,) * rank, (pads,) * rank, (dilation,) * rank, groups, last)
    keys = iter(jax.random.split(jax.random.key(0), 3))
    shapes = (
        spec.shape(batch, inputs, space),
        (outputs, inputs // groups, *spec.kernel),
        spec.shape(batch, outputs, spec.results),
    )
    return spec, *(jax.random.normal(next(keys), shape) for shape in shapes)


def close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(b).max(initial=0))))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("space", [(7, 8), (10, 11), (9,), (4, 5, 6)], ids=str)
def test_the_primitives_are_the_canonical_convolution(space, geometry, channels):
    last = len(space) != 1
    spec, x, w, ct = problem(space, CHANNELS[channels], last=last, **GEOMETRIES[geometry])

    @jax.jit
    def both(x, w, ct):
        out, back = jax.vjp(partial(canonical.convolve, spec=spec), x, w)
        own = (convolve(x, w, spec), input_gradient(ct, w, spec), weight_gradient(x, ct, spec))
        gradients = (partial(canonical.input_gradient, spec=spec)(ct, w), canonical.weight_gradient(x, ct, spec=spec))
        return own, gradients, (out, *back(ct))

    own, gradients, wanted = both(x, w, ct)
    close(own, wanted)
    close(gradients, wanted[1:])


BASES = {
    "plain": ((7, 8), "dense", {"pads": (1, 1)}),
    "everything": ((7, 8), "groups", {"stride": 2, "pads": (2, 1), "dilation": 2, "kernel": 2}),
    "depthwise": ((7, 8), "multiplied", {"stride": 2}),
    "blocks": ((6,), "dense", {"kernel": 2, "stride": 2}),
    "larger-than-map": ((2, 2), "dense", {"pads": (1, 1)}),
}


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(("space", "channels", "geometry"), BASES.values(), ids=BASES)
def test_second_order_and_forward_mode(space, channels, geometry, last):
    spec, x, w, ct = problem(space, CHANNELS[channels], last=last, **geometry)

    @partial(jax.jit, static_argnums=0)
    def derivatives(conv, x, w, ct):
        def loss(x, w):
            return jnp.sum(jnp.sin(conv(x, w, spec=spec)) * ct)

        gradients = jax.grad(loss, argnums=(0, 1))
        return jax.jvp(gradients, (x, w), (x + 1, w - 1)), jax.vjp(gradients, x, w)[1]((x - 1, w + 1))

    close(derivatives(convolve, x, w, ct), derivatives(canonical.convolve, x, w, ct))


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(("space", "channels", "geometry"), BASES.values(), ids=BASES)
def test_vmap_over_either_or_both(space, channels, geometry, last):
    spec, x, w, ct = problem(space, CHANNELS[channels], last=last, **geometry)
    mapped = [jnp.stack([a, jnp.cos(a), a - 1], axis=1) for a in (x, w, ct)]
    for axes in ((1, None), (None, 1), (1, 1)):
        for function, first, second in ((convolve, 0, 1), (input_gradient, 2, 1), (weight_gradient, 0, 2)):
            pair = [(mapped if axis else (x, w, ct))[i] for i, axis in zip((first, second), axes, strict=True)]
            own = jax.jit(jax.vmap(partial(function, spec=spec), axes))(*pair)
            one = [[a[:, i] if axis else a for a, axis in zip(pair, axes, strict=True)] for i in range(3)]
            close(own, jnp.stack([function(*each, spec) for each in one]))


@pytest.mark.parametrize(("space", "channels", "geometry"), BASES.values(), ids=BASES)
def test_operations_are_those_of_the_canonical_form(space, channels, geometry):
    spec, x, w, ct = problem(space, CHANNELS[channels], **geometry)

    def of(conv):
        return [
            flops(partial(conv, spec=spec), x, w),
            flops(lambda *a: jax.vjp(partial(conv, spec=spec), *a)[1](ct), x, w),
        ]

    assert of(convolve) == of(canonical.convolve)


@pytest.mark.parametrize(("space", "channels", "geometry"), BASES.values(), ids=BASES)
def test_under_a_symbolic_batch(space, channels, geometry):
    spec, x, w, _ = problem(space, CHANNELS[channels], last=True, **geometry)
    sizes = jax.export.symbolic_shape(f"b, {', '.join(map(str, x.shape[1:]))}")

    def run(x, w):
        out, back = jax.vjp(partial(convolve, spec=spec), x, w)
        return out, back(out)

    exported = jax.export.export(jax.jit(run))(jax.ShapeDtypeStruct(sizes, x.dtype), w)
    close(exported.call(x, w), jax.jit(run)(x, w))


def test_under_a_symbolic_size():
    spec, x, w, _ = problem((12,), (3, 4, 1), last=True)
    sizes = jax.export.symbolic_shape("b, n, 3", constraints=["n >= 3"])

    def run(x, w):
        here = spec._replace(space=x.shape[1:-1])
        out, back = jax.vjp(partial(convolve, spec=here), x, w)
        return out, back(out)

    exported = jax.export.export(jax.jit(run))(jax.ShapeDtypeStruct(sizes, x.dtype), w)
    close(exported.call(x, w), jax.jit(run)(x, w))


TILED = [
    ((8, 8), (1, 1)),
    ((7, 9), (1, 1)),
    ((6, 5), (0, 0)),
    ((5, 5), (2, 0)),
    ((6, 8), (1, -1)),
    ((4, 4), (3, 3)),
]


@pytest.mark.parametrize(("space", "pads"), TILED, ids=str)
def test_tiles_give_the_canonical_convolution(space, pads):
    """In float64, where only a wrong formula would show."""
    with jax.enable_x64(True):
        spec, x, w, ct = problem(space, (5, 6, 1), pads=pads, last=True, batch=3)
        for name, *args in (("convolve", x, w), ("input_gradient", ct, w), ("weight_gradient", x, ct)):
            found, wanted = (getattr(how, name)(*args, spec=spec) for how in (winograd, canonical))
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


def test_tiles_of_many_images_are_taken_in_parts(monkeypatch):
    spec, x, w, _ = problem((8, 8), (5, 6, 1), pads=(1, 1), last=True, batch=6)
    monkeypatch.setattr(winograd, "_AT_ONCE", 2 * 16 * 16 * 11)
    text = jax.jit(partial(winograd.convolve, spec=spec)).lower(x, w).as_text()
    assert "tensor<3x2x8x8x5xf32>" in text
    close(winograd.convolve(x, w, spec=spec), canonical.convolve(x, w, spec=spec))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf], ids=str)
@pytest.mark.parametrize("place", [(5, 5), (4, 5), (0, 6), (11, 10)], ids=str)
def test_what_is_not_finite_goes_where_it_goes_in_torch(place, value):
    spec, x, w, _ = problem((12, 11), (4, 5, 1), pads=(1, 1), last=True, batch=2)
    x = x.at[0, *place].set(value)
    found = winograd.convolve(x, w, spec=spec)
    wanted = torch.nn.functional.conv2d(
        *(torch.from_numpy(np.array(each)) for each in (x.transpose(0, 3, 1, 2), w)), padding=1
    )
    np.testing.assert_array_equal(np.isfinite(found), torch.isfinite(wanted).movedim(1, -1).numpy())


def test_tiles_lose_no_more_than_sums_in_another_order():
    """A layer for which they are chosen, against float64."""
    spec, x, w, ct = problem((32, 32), (32, 32, 1), pads=(1, 1), last=True, batch=16)
    group = choice.Group(16, 32, 32, x.dtype)
    chosen = [getattr(choice, name)(spec, group) for name in ("convolve", "input_gradient", "weight_gradient")]
    assert {how.__module__ for how in chosen} == {winograd.__name__}
    x64, w64, ct64 = (torch.from_numpy(np.asarray(each, np.float64)) for each in (x, w, ct))
    order = [each.movedim(-1, 1) for each in (x64, ct64)]
    exact = torch.ops.aten.convolution_backward(
        order[1], order[0], w64, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
    )
    forward = torch.nn.functional.conv2d(order[0], w64, padding=1)
    for found, wanted in (
        (convolve(x, w, spec), forward.movedim(1, -1)),
        (input_gradient(ct, w, spec), exact[0].movedim(1, -1)),
        (weight_gradient(x, ct, spec), exact[1]),
    ):
        assert np.abs(found - wanted.numpy()).max() <= 2e-6 * float(wanted.abs().max())


def test_large_maps_are_taken_in_parts(monkeypatch):
    monkeypatch.setattr(chunks, "_PATCHES", 400)
    for batch, stride, groups in ((2, 1, 1), (4, 2, 1), (2, 2, 2)):
        spec, x, _, ct = problem((18, 16), (4, 4, groups), last=True, batch=batch, stride=stride, pads=(1, 1))
        own = jax.jit(partial(chunks.weight_gradient, spec=spec))(x, ct)
        close(own, canonical.weight_gradient(x, ct, spec=spec))
    assert chunks.parts(spec, 2, 4) == (1, 1)
    monkeypatch.undo()
    assert chunks.parts(spec, 2, 4) == (2, 9)


@pytest.mark.parametrize("batch", [0, 1])
def test_no_and_one_image(batch):
    spec, x, w, ct = problem((6, 6), (3, 4, 1), batch=batch, last=True, pads=(1, 1))
    out, back = jax.vjp(partial(convolve, spec=spec), x, w)
    wanted, canonically = jax.vjp(partial(canonical.convolve, spec=spec), x, w)
    close((out, *back(ct)), (wanted, *canonically(ct)))


CASES = {
    "conv1d": ("aten.conv1d.default", (2, 3, 9), (4, 3, 3), {"stride": [2], "padding": [1]}),
    "conv2d": ("aten.conv2d.default", (2, 4, 7, 8), (6, 2, 3, 3), {"stride": [2, 1], "groups": 2}),
    "conv2d, unbatched": ("aten.conv2d.default", (4, 7, 8), (6, 4, 3, 3), {"padding": [1]}),
    "conv2d, same": ("aten.conv2d.padding", (2, 3, 5, 6), (4, 3, 2, 2), {"padding": "same", "dilation": [2]}),
    "conv_transpose2d": (
        "aten.conv_transpose2d.input",
        (2, 4, 4, 5),
        (4, 3, 3, 3),
        {"stride": [2], "padding": [1], "output_padding": [1], "groups": 2},
    ),
    "conv_transpose3d": ("aten.conv_transpose3d.input", (2, 2, 3, 3, 3), (2, 3, 2, 2, 2), {"stride": [2]}),
}


@pytest.mark.parametrize(("op", "shape", "kernel", "settings"), CASES.values(), ids=CASES)
def test_rules_take_either_order(op, shape, kernel, settings):
    torch.manual_seed(0)
    x, w = torch.randn(shape), torch.randn(kernel)
    name, overload = op.removeprefix("aten.").split(".")
    transposed = "transpose" in name
    bias = torch.randn(kernel[1] * settings.get("groups", 1) if transposed else kernel[0])
    wanted = getattr(getattr(torch.ops.aten, name), overload)(x, w, bias, **settings).numpy()
    rule, batched = lowering(op).rule, len(shape) == len(kernel)
    arrays = [jnp.asarray(t.numpy()) for t in (x, w, bias)]
    close(rule(*arrays, **settings), wanted)
    turned = rule(jnp.moveaxis(arrays[0], int(batched), -1), *arrays[1:], **settings, channel_axis=-1)
    close(jnp.moveaxis(turned, -1, int(batched)), wanted)
