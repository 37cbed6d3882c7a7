"""Racing isolation: TRAINING seeds train alone, side by side in one pass, and none knows of another."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from compiling import compiled
from models import CNN
from torch import nn

import esper
from esper.errors import ArgumentError
from esper.growth.isolation import isolated_loss
from esper.lifecycle import SeedLifecycleState as S
from esper.train.compiles import counting_compiles

KEY = jax.random.key(7)
PLACES = {
    "mlp": [("0", 0, "low_rank"), ("0", 1, "mlp"), ("2", 0, "low_rank"), ("4", 1, "mlp")],
    "cnn": [("body.4", 0, "conv"), ("head", 1, "low_rank")],
}
RACE = 3


@cache
def host(name):
    torch.manual_seed(0)
    if name == "cnn":
        return esper.wrap(CNN(channels=2), seeds_per_layer=2), jax.random.normal(KEY, (4, 3, 8, 8))
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 3))
    return esper.wrap(net, seeds_per_layer=2), jax.random.normal(KEY, (5, 6))


@cache
def racing(name):
    """A model with kernels TRAINING in all of its places, each of them with an effect."""
    model, x = host(name)
    for place, (layer, seed, blueprint) in enumerate(PLACES[name]):
        key = jax.random.fold_in(KEY, place)
        model, _ = esper.germinate(model, None, layer=layer, seed=seed, blueprint=blueprint, key=key)
    awake = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), kernels(model))
    return model.replace(params={**model.params, "kernels": awake}), x


def kernels(model):
    return model.params["kernels"]


def put(model, changed):
    """The model with kernels changed: {(layer, seed): what to do with each of its arrays}."""
    trees = {
        layer: {seed: jax.tree.map(changed.get((layer, seed), lambda a: a), tree) for seed, tree in held.items()}
        for layer, held in kernels(model).items()
    }
    return model.replace(params={**model.params, "kernels": trees})


def set_state(model, place, **fields):
    layer, seed = place[:2]
    return model.replace(seeds=model.seeds.set(model.structure.row(layer), seed, **fields))


def loss(x, model):
    out, moved = model.apply(x, train=True, key=KEY)
    return jnp.mean((out - 1.0) ** 2), moved


# Bit-equality is a promise about programs as users run them: compiled with XLA's default optimisation.
@compiled
def raced(model, x):
    def objective(params):
        return isolated_loss(partial(loss, x), model.replace(params=params), race=RACE)[0]

    return jax.value_and_grad(objective)(model.params)


@jax.jit
def alone(model, x):
    """Gradients of the kernels on the model's own loss."""
    return jax.grad(lambda params: loss(x, model.replace(params=params))[0])(model.params)["kernels"]


def bit_equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def still(tree):
    return all(not np.any(leaf) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", PLACES)
def test_each_seed_trains_as_if_it_were_the_only_one(name):
    model, x = racing(name)
    _, grads = raced(model, x)
    for layer, seed, _ in PLACES[name][:RACE]:
        on = set_state(model, (layer, seed), lifecycle=int(S.GRAFTING), alpha=1.0)
        found, wanted = grads["kernels"][layer][seed], alone(on, x)[layer][seed]
        assert not still(wanted)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PLACES)
def test_the_host_and_the_loss_are_bit_equal_to_those_without_seeds(name):
    plain, grown = raced(*host(name)), raced(*racing(name))
    assert bit_equal(grown[0], plain[0]) and bit_equal(grown[1]["host"], plain[1]["host"])


@pytest.mark.parametrize("spoil", [math.nan, math.inf, 1e30], ids=["NaN", "inf", "overflow of the loss"])
@pytest.mark.parametrize(("name", "place"), [("mlp", 0), ("mlp", 2), ("cnn", 0)])
def test_a_racer_that_fails_leaves_no_trace_in_another_or_in_the_host(name, place, spoil):
    model, x = racing(name)
    layer, seed, _ = PLACES[name][place]
    value, grads = raced(model, x)
    failing, failed = raced(put(model, {(layer, seed): lambda a: jnp.full_like(a, spoil)}), x)
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(failed["kernels"][layer][seed]))
    assert bit_equal(failing, value) and bit_equal(failed["host"], grads["host"])
    for other, which, _ in PLACES[name]:
        if (other, which) != (layer, seed):
            assert bit_equal(failed["kernels"][other][which], grads["kernels"][other][which]), (other, which)


def test_those_beyond_wait_and_who_races_is_data():
    model, x = racing("mlp")
    _, grads = raced(model, x)
    moved = esper.transition(model, layer="0", seed=0, to=S.CULLED)
    with counting_compiles() as counter:
        _, after = raced(moved, x)
        assert not len(counter.take())
    for found, waits in ((grads, ("4", 1)), (after, ("0", 0))):
        for layer, seed, _ in PLACES["mlp"]:
            assert still(found["kernels"][layer][seed]) == ((layer, seed) == waits)


def test_a_kernel_that_is_part_of_the_network_learns_from_its_own_loss_alone():
    model, x = racing("mlp")
    model = set_state(model, ("0", 1), lifecycle=int(S.ACTIVE), alpha=0.5)
    found, wanted = raced(model, x)[1]["kernels"]["0"][1], alone(model, x)["0"][1]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_nothing_runs_for_seeds_that_do_not_train():
    model, x = racing("mlp")
    quiet = model.replace(seeds=model.seeds.replace(lifecycle=jnp.full_like(model.seeds.lifecycle, int(S.CULLED))))
    assert still(raced(quiet, x)[1]["kernels"])

    def forwards(model, race):
        def counted(whole):
            jax.debug.callback(lambda: calls.append(1))
            return loss(x, whole)

        calls = []
        jax.block_until_ready(jax.jit(lambda m: isolated_loss(counted, m, race=race)[0])(model))
        jax.effects_barrier()
        return len(calls)

    assert forwards(quiet, 4) == 1 and forwards(model, 4) > 1
    bare = str(jax.make_jaxpr(lambda m: loss(x, m)[0])(host("mlp")[0]))
    assert str(jax.make_jaxpr(lambda m: isolated_loss(partial(loss, x), m, race=4)[0])(host("mlp")[0])) == bare


def test_a_race_of_none_is_an_error():
    with pytest.raises(ArgumentError, match="at least 1, not 0"):
        isolated_loss(partial(loss, host("mlp")[1]), racing("mlp")[0], race=0)
