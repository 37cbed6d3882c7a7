"""Statistics of layers over a data set: those of all of it at once, in one pass that keeps nothing of its size."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hosts_and_data import (
    KEY,
    Branching,
    Checkpointed,
    Convolved,
    Tokens,
    active,
    cut,
    data,
    dropped_squares,
    made,
    relu_mlp,
    squares,
    tanh_mlp,
)
from torch import nn

import esper
from esper.growth.initialisers import initialiser
from esper.growth.moments import Tap
from esper.growth.statistics import _gathered, layer_statistics
from esper.train.compiles import counting_compiles


def by_autograd(module, layers, batches):
    """The moments of each layer from all data at once, by torch, in float64."""
    seen = {name: [] for name in layers}

    def keep(name):
        def hook(layer, given, output):
            output.retain_grad()
            seen[name].append((layer, given[0].detach(), output))

        return hook

    handles = [module.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    inputs, targets = (torch.from_numpy(array.reshape(-1, *array.shape[2:])).double() for array in batches)
    module = module.double()
    (((module(inputs) - targets) ** 2).sum(-1) / 2).mean().backward()
    for handle in handles:
        handle.remove()
    module.float()
    return {name: summed([rows(*call, len(inputs)) for call in calls]) for name, calls in seen.items()}


def rows(layer, given, output, examples):
    """Rows of [x; 1] and of g, by torch's unfold for a convolution."""
    gradient = output.grad * examples
    if isinstance(layer, nn.Conv2d):
        padding = layer.padding if isinstance(layer.padding, tuple) else (1, 1)
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = nn.functional.pad(given, (padding[1], padding[1], padding[0], padding[0]), mode=mode)
        given = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, stride=layer.stride).movedim(1, -1)
        gradient = gradient.flatten(2).movedim(1, -1)
    x, g = given.flatten(0, -2).numpy(), gradient.flatten(0, -2).numpy()
    return np.column_stack([x, np.ones(len(x))]), g


def summed(calls):
    x, g = (np.concatenate(parts) for parts in zip(*calls, strict=True))
    return {"second": x.T @ x, "cross": x.T @ g, "gradient": g.T @ g}, len(x)


HOSTS = {
    "mlp": (tanh_mlp, ("0", "2", "4"), (5,)),
    "tokens, a layer called twice": (Tokens, ("mix", "head"), (4, 5)),
    "convolution": (partial(Convolved, kernel_size=3), ("conv",), (2, 6, 6)),
    "strided": (partial(Convolved, kernel_size=(3, 2), stride=2, padding=1), ("conv", "head"), (2, 6, 6)),
    "dilated": (partial(Convolved, kernel_size=3, dilation=2), ("conv",), (2, 6, 6)),
    "same": (partial(Convolved, kernel_size=3, padding="same"), ("conv",), (2, 6, 6)),
    "circular": (partial(Convolved, kernel_size=3, padding=1, padding_mode="circular"), ("conv",), (2, 6, 6)),
    "reflect": (partial(Convolved, kernel_size=3, padding=1, padding_mode="reflect"), ("conv",), (2, 6, 6)),
    "replicate": (partial(Convolved, kernel_size=3, padding=1, padding_mode="replicate"), ("conv",), (2, 6, 6)),
    "checkpoint": (Checkpointed, ("inner", "head"), (5,)),
    "branch": (Branching, ("inner",), (5,)),
}


@pytest.mark.parametrize("name", HOSTS)
def test_statistics_are_those_of_all_data_at_once(name):
    build, layers, shape = HOSTS[name]
    module, batches = made(build), data(*shape)
    wanted = by_autograd(module, layers, batches)
    model = esper.wrap(module, target_layers=list(layers))
    for count in (1, 4, 8):
        found = layer_statistics(squares, model, cut(batches, count), layers=layers)
        for layer, (moments, length) in wanted.items():
            assert (found[layer].rows, found[layer].examples) == (length, 24)
            for moment, value in moments.items():
                close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5 * np.abs(value).max())
                close(getattr(found[layer], moment), value, err_msg=f"{layer} {moment} in {count} batches")


def test_statistics_see_live_kernels_and_leave_the_model_alone():
    model, batches = esper.wrap(made(relu_mlp), seeds_per_layer=1), data(5)
    grown, _ = esper.germinate(model, None, layer="0", blueprint="mlp", key=KEY, init=initialiser("pairs"))
    off = layer_statistics(squares, model, batches, layers=["2"])["2"]
    training = layer_statistics(squares, grown, batches, layers=["2"])["2"]
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, grown.params["kernels"])
    live = active(grown.replace(params={**grown.params, "kernels": shifted}), "0")
    on = layer_statistics(squares, live, batches, layers=["2"])["2"]
    assert np.array_equal(off.second, training.second) and not np.allclose(off.second, on.second)
    assert model.taps == grown.taps == live.taps == {}


def test_with_a_key_each_batch_draws_anew():
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))
    model = esper.wrap(made(lambda: module))
    same = jax.tree.map(lambda array: np.stack([array[0]] * 3), data(5))

    def second(key, batches):
        return layer_statistics(dropped_squares, model, batches, layers=["1"], key=key)["1"].second

    three = second(KEY, same)
    assert np.array_equal(three, second(KEY, same))
    assert not np.allclose(three, second(jax.random.key(6), same))
    alone = second(KEY, jax.tree.map(lambda array: array[:1], same))
    assert not np.allclose(three, 3 * alone)


def test_one_compile_and_nothing_of_the_data_s_size_is_carried():
    model, batches = esper.wrap(made(relu_mlp)), data(5, batches=23, examples=29)
    with counting_compiles() as counter:
        layer_statistics(squares, model, batches, layers=["0", "2"])
        assert [name for name in counter.take().programs if "gathered" in name] == ["jit(_gathered)"]
        layer_statistics(squares, model, batches, layers=["0", "2"])
        assert len(counter.take()) == 0
    taps = {site.name: Tap.on(site, 29) for site in model.structure.sites}
    program = jax.make_jaxpr(_gathered, static_argnums=0)(squares, model.replace(taps=taps), batches, None)
    (call,) = program.jaxpr.eqns
    scans = [eqn for eqn in call.params["jaxpr"].eqns if eqn.primitive.name == "scan"]
    assert len(scans) == 1
    carried = [value.aval.shape for value in scans[0].outvars]
    assert len(carried) == len(jax.tree.leaves({name: tap.moments for name, tap in taps.items()}))
    assert all(size in (6, 13, 12, 3) for shape in carried for size in shape)


def test_bfloat16_models_are_summed_in_float32():
    module, batches = made(relu_mlp).bfloat16(), data(5, batches=16)
    model = esper.wrap(module)

    def inputs(dtype):
        return jax.tree.map(lambda array: jnp.asarray(array, jnp.bfloat16).astype(dtype), batches)

    found = layer_statistics(squares, model, inputs(jnp.bfloat16), layers=["0"])["0"]
    x = np.asarray(inputs(jnp.float32)[0], np.float64).reshape(-1, 5)
    np.testing.assert_allclose(found.second[:-1, :-1], x.T @ x, rtol=1e-6)
    assert found.second[-1, -1] == found.rows == 96
