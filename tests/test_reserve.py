"""Kernels in reserve cost nothing that can be seen, germinate without a compile, and go when they are told to."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from compiling import compiled
from torch import nn

import esper
from esper.errors import ArgumentError, SeedError, TargetError, UnknownBlueprintError
from esper.growth.isolation import isolated_loss
from esper.growth.optimizer import per_kernel
from esper.growth.recovery import recovered
from esper.growth.reserve import asleep
from esper.growth.verbs import conceive, enter
from esper.lifecycle import SeedLifecycleState as S
from esper.train.compiles import counting_compiles

KEY = jax.random.key(5)
X = jax.random.normal(KEY, (3, 4))
ADAM = optax.adamw(0.01)
OPTIMIZERS = {"per_kernel": (per_kernel(ADAM), None), "plain": (ADAM, ADAM)}


@cache
def host():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    return esper.wrap(net, seeds_per_layer=2, example_inputs=torch.zeros(3, 4))


def in_reserve(opt_state=None, tx=None, **options):
    given = {"layer": "0", "blueprint": "low_rank", "options": {"rank": 2}, **options}
    return esper.reserve(host(), opt_state, tx=tx, **given)


def germinated(model, opt_state=None, tx=None, **options):
    given = {"layer": "0", "blueprint": "low_rank", "options": {"rank": 2}, "key": KEY, **options}
    return esper.germinate(model, opt_state, tx=tx, **given)


def bit_equal(left, right):
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def loss(model):
    out, moved = model.apply(X, train=True)
    return jnp.mean((out - 1.0) ** 2), moved


def stepping(tx, sleeps=False):
    @jax.jit
    def training_step(model, opt_state):
        def objective(params):
            return isolated_loss(loss, model.replace(params=params))

        (_, moved), grads = jax.value_and_grad(objective, has_aux=True)(model.params)
        moved, grads = recovered(moved, grads)
        extra = {"asleep": asleep(model)} if sleeps else {}
        updates, opt_state = tx.update(grads, opt_state, moved.params, **extra)
        return moved.replace(params=optax.apply_updates(moved.params, updates)), opt_state

    return training_step


# Bit-equality is a promise about programs as users run them: compiled with XLA's default optimisation.
@compiled
def forward_and_gradients(model):
    (_, moved), grads = jax.value_and_grad(
        lambda host: loss(model.replace(params={**model.params, "host": host})), has_aux=True
    )(model.params["host"])
    return model(X), grads, moved.seeds


def test_a_kernel_in_reserve_changes_no_bit_and_does_not_age():
    model, _ = in_reserve()
    spoilt = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), model.params["kernels"])
    for reserved in (model, model.replace(params={**model.params, "kernels": spoilt})):
        assert bit_equal(forward_and_gradients(reserved), forward_and_gradients(host()))
    assert bit_equal(model.seeds, host().seeds)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_germination_of_what_is_in_reserve_is_data_only_and_the_same(kind):
    tx, known = OPTIMIZERS[kind]
    model, opt_state = in_reserve(tx.init(host().params), known)
    plain, plain_state = germinated(host(), tx.init(host().params), known)
    training_step = stepping(tx)
    _, stepped = training_step(model, opt_state)
    with counting_compiles() as counter:
        grown, grown_state = germinated(model, opt_state, known)
        assert grown.structure is model.structure
        assert bit_equal(grown, plain) and bit_equal(grown_state, plain_state)
        trained, trained_state = training_step(grown, grown_state)
        for state in (S.CULLED, S.DORMANT):
            trained = esper.transition(trained, layer="0", to=state)
            trained, trained_state = training_step(trained, trained_state)
        again, again_state = germinated(trained, trained_state, known)
        again, _ = training_step(again, again_state)
        assert not [name for name in counter.take().programs if "training_step" in name]
    assert training_step._cache_size() == 1
    assert jax.tree.structure(stepped) == jax.tree.structure(grown_state)
    assert again.seeds.lifecycle[0, 0] == S.TRAINING and again.seeds.age[0, 0] == 1
    if kind == "per_kernel":
        assert int(again_state.kernels["0"][0].steps) == 0
        assert bit_equal(
            again_state.kernels["0"][0].inner[0].mu, jax.tree.map(jnp.zeros_like, again.params["kernels"]["0"][0])
        )


@pytest.mark.parametrize("other", [{"options": {"rank": 1}}, {"blueprint": "mlp", "options": {}}, {"blend": "gate"}])
def test_another_recipe_takes_the_place_of_the_one_in_reserve(other):
    tx = OPTIMIZERS["per_kernel"][0]
    model, opt_state = in_reserve(tx.init(host().params))
    grown = germinated(model, opt_state, **other)
    assert bit_equal(grown, germinated(host(), tx.init(host().params), **other))


def test_a_kernel_that_was_conceived_before_there_was_a_reserve_enters_it_as_data():
    early = conceive(host(), layer="0", blueprint="low_rank", options={"rank": 2}, key=KEY)
    model, _ = in_reserve()
    grown, _ = enter(model, None, early)
    assert grown.structure is model.structure and bit_equal(grown, germinated(host())[0])


def test_a_kernel_asleep_keeps_every_bit_and_one_awake_trains_as_ever():
    tx = per_kernel(ADAM)
    model, opt_state = in_reserve(tx.init(host().params), seed=1)
    model, opt_state = germinated(model, opt_state)
    minus = jax.tree.map(lambda leaf: leaf.at[0, 0].set(-0.0), model.params["kernels"]["0"][1])
    kernels = {"0": {0: model.params["kernels"]["0"][0], 1: minus}}
    params = {**model.params, "kernels": kernels}
    grads = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def update(model, opt_state, sleeps):
        updates, after = tx.update(grads, opt_state, params, asleep=sleeps)
        return optax.apply_updates(params, updates), after

    slept, slept_state = update(model, opt_state, asleep(model))
    awake = jax.tree.map(jnp.zeros_like, asleep(model))
    up, up_state = update(model, opt_state, awake)
    assert {seed: bool(value) for seed, value in asleep(model)["0"].items()} == {0: False, 1: True}
    assert bit_equal(slept["kernels"]["0"][1], minus)
    assert bit_equal(slept_state.kernels["0"][1], opt_state.kernels["0"][1])
    assert not bit_equal(up["kernels"]["0"][1], minus)
    assert bit_equal(slept["kernels"]["0"][0], up["kernels"]["0"][0]) and bit_equal(slept["host"], up["host"])
    assert bit_equal(slept_state.kernels["0"][0], up_state.kernels["0"][0])


@pytest.mark.parametrize("state", [s for s in S if s is not S.DORMANT])
def test_who_sleeps_and_what_compact_removes(state):
    tx = per_kernel(ADAM)
    model, opt_state = germinated(host(), tx.init(host().params))
    model = model.replace(seeds=model.seeds.set(0, 0, lifecycle=int(state), alpha=0.5))
    assert bool(asleep(model)["0"][0]) == (state in (S.CULLED, S.LOADING))
    emptied, state_after = esper.compact(model, opt_state)
    if state is S.CULLED:
        assert bit_equal(state_after, tx.init(host().params)) and emptied.structure == host().structure
        assert bit_equal(emptied.params, host().params) and emptied.seeds.kernel_id[0, 0] == 0
    else:
        assert emptied is model and state_after is opt_state


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_compact_leaves_what_lives_and_its_moments(kind):
    tx, known = OPTIMIZERS[kind]
    model, opt_state = germinated(host(), tx.init(host().params), known)
    model, opt_state = stepping(tx)(model, opt_state)
    model = model.replace(seeds=model.seeds.set(0, 0, lifecycle=int(S.ACTIVE), alpha=0.5))
    more, more_state = esper.reserve(model, opt_state, layer="0", seed=1, blueprint="mlp", tx=known)
    more, more_state = esper.reserve(more, more_state, layer="2", seed=0, blueprint="mlp", tx=known)
    emptied, emptied_state = esper.compact(more, more_state, tx=known)
    assert len(more.structure.kernels) == 3 and not bit_equal(more_state, opt_state)
    assert bit_equal(emptied, model) and bit_equal(emptied_state, opt_state)
    assert bit_equal(forward_and_gradients(more)[:2], forward_and_gradients(emptied)[:2])


def test_what_is_in_reserve_is_said_and_is_no_part_of_the_module():
    model, _ = in_reserve()
    grown, _ = germinated(model, layer="2")
    stats = grown.stats()
    assert (stats["kernels"], stats["reserved"]) == (1, 1)
    assert (stats["kernel_parameters"], stats["reserved_parameters"]) == (2 * 4 + 2 * 2, 2 * 4 + 4 * 2)
    assert "'0[0]': 'low_rank (reserved)'" in repr(grown) and "'2[0]': 'low_rank'" in repr(grown)
    assert "{0: 'low_rank (reserved)'}" in repr(grown.layers["0"])
    assert list(esper.unwrap(model).state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        ({"0": "mlp"}, [("0", 0, "mlp")]),
        (
            {"*": ["mlp", ("low_rank", {"rank": 3})]},
            [(n, s, b) for n in "02" for s, b in enumerate(("mlp", "low_rank"))],
        ),
        ({"Linear": ("mlp", {"width": 2}), "2": "low_rank"}, [("0", 0, "mlp"), ("2", 0, "mlp"), ("2", 1, "low_rank")]),
    ],
    ids=["name", "glob", "kind and name"],
)
def test_wrap_reserves(wanted, held):
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model = esper.wrap(net, seeds_per_layer=2, reserve=wanted)
    assert [(k.layer, k.seed, k.blueprint) for k in model.structure.kernels] == held
    assert not np.any(model.seeds.lifecycle)
    np.testing.assert_allclose(model(X), net(torch.from_numpy(np.array(X))).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_reserve_from_before_the_first_call_serves_after_it():
    """The layer's shapes are known by then; the kernel is what was put in reserve."""
    model = esper.wrap(nn.Sequential(nn.Linear(4, 4)), seeds_per_layer=1, reserve={"0": "mlp"})
    model(X)
    assert germinated(model, blueprint="mlp", options={})[0].structure is model.structure


@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        (["mlp"], ArgumentError, "maps layers to recipes"),
        ({"0": 3}, ArgumentError, "name, options"),
        ({"conv*": "mlp"}, TargetError, "nothing matches 'conv\\*'.*'0' \\(Linear\\)"),
        ({"0": ["mlp"] * 3}, SeedError, "has 2 seeds.*raise seeds_per_layer"),
        ({"0": "no_such"}, UnknownBlueprintError, "no_such"),
    ],
)
def test_what_wrap_cannot_reserve_is_said(wanted, error, says):
    with pytest.raises(error, match=says):
        esper.wrap(nn.Sequential(nn.Linear(4, 4)), seeds_per_layer=2, reserve=wanted)


def test_only_a_dormant_seed_takes_one():
    with pytest.raises(SeedError, match="is TRAINING, and only a DORMANT seed"):
        esper.reserve(germinated(host())[0], None, layer="0", blueprint="mlp")


def test_a_trained_kernel_enters_what_is_in_reserve_as_data():
    tx = OPTIMIZERS["per_kernel"][0]
    _, _, artifact = esper.unload_kernel(germinated(host())[0], None, layer="0")
    model, opt_state = in_reserve(tx.init(host().params))
    worn = jax.tree.map(jnp.ones_like, opt_state)
    loaded, state = esper.load_kernel(model, worn, layer="0", artifact=artifact)
    assert loaded.structure is model.structure and loaded.seeds.lifecycle[0, 0] == S.GRAFTING
    assert int(state.kernels["0"][0].steps) == 0 and bit_equal(state.host, worn.host)
