"""What a policy decides is done, and what it decides on: plans, schedules, isolation, credit."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compiled
from torch import manual_seed, nn

import esper
from esper.errors import ArgumentError, IllegalTransitionError, UnknownBlueprintError
from esper.growth import schedule
from esper.growth.credit import credit, gain
from esper.growth.isolation import isolated_loss
from esper.growth.plans import blueprint_for, blueprints_for, plans
from esper.growth.policy import (
    Cull,
    Germinate,
    Hold,
    Plan,
    SetAlpha,
    Transition,
    act,
)
from esper.lifecycle import SeedLifecycleState as S

KEY = jax.random.key(0)
PLAN = Plan("mlp", (("width", 4),), 30)


# ---- acting ---------------------------------------------------------------------------------------------


@cache
def model():
    manual_seed(0)
    host = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 3))
    return esper.wrap(host, [nn.Linear, nn.LayerNorm])


@cache
def grown():
    """The model with a kernel, in TRAINING, that does something."""
    made, _ = act(model(), None, Germinate("0", 1, "mlp", (("width", 4),), "why"), key=KEY)
    kernels = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), made.params)
    return made.replace(params={**made.params, "kernels": kernels["kernels"]})


def test_acting_is_what_the_verbs_do():
    assert grown().layers["0"].seeds.lifecycle[1] == S.TRAINING
    grafted, _ = act(grown(), None, Transition("0", 1, S.GRAFTING, "why"), key=KEY)
    half, _ = act(grafted, None, SetAlpha("0", 1, 0.5, "why"), key=KEY)
    assert half.layers["0"].seeds.alpha[1] == 0.5
    assert act(half, None, Hold("why"), key=KEY)[0] is half
    gone, _ = act(half, None, Cull("0", 1, "why"), key=KEY)
    assert gone.structure.kernels == ()
    with pytest.raises(IllegalTransitionError):
        act(grown(), None, Transition("0", 1, S.FOSSILIZED, "why"), key=KEY)


def test_plans():
    assert plans(model(), None, 4) == {
        "0": (Plan("mlp", (("width", 4),), 6 * 4 + 4 + 4 * 5 + 5, 117, 4 * 53),),
        "3": (Plan("mlp", (("width", 4),), 5 * 4 + 4 + 4 * 3 + 3, 91, 4 * 39),),
    }
    wanted = Plan("low_rank", (("rank", 2),), 6 * 2 + 2 * 5, 2 * (6 * 2 + 2 * 5), 4 * (6 * 2 + 2 * 5), "lerp")
    assert plans(model(), {"Linear": "low_rank"}, 2, "lerp")["0"] == (wanted,)
    with pytest.raises(UnknownBlueprintError, match="no blueprint 'nothing'"):
        plans(model(), {"0": "nothing"}, 2)
    with pytest.raises(UnknownBlueprintError, match="is for"):
        plans(model(), {"Linear": "conv"}, 2)


def test_several_blueprints_for_a_layer():
    mixed = esper.wrap(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(2, 3), nn.Linear(3, 3)))
    found = plans(mixed, {"*": ["conv1d", "conv", "conv1d", "mlp"], "3": "scale_shift"}, 2)
    assert {name: [plan.blueprint for plan in held] for name, held in found.items()} == {
        "0": ["conv", "mlp"],
        "2": ["conv1d", "mlp"],
        "3": ["scale_shift"],
    }
    assert plans(model(), {"Linear": []}, 2) == {}
    with pytest.raises(UnknownBlueprintError, match="no blueprint 'nothing'"):
        plans(model(), {"Linear": ["mlp", "nothing"]}, 2)
    with pytest.raises(UnknownBlueprintError, match="is for"):
        plans(model(), {"Linear": ["mlp", "conv"]}, 2)


def test_a_name_goes_before_a_glob_before_a_kind():
    site = model().structure.sites[0]
    assert blueprint_for(site, {"Linear": "x"}) == "x"
    assert blueprint_for(site, {"Linear": "x", "*": "y"}) == "y"
    assert blueprint_for(site, {"*": "y", "0": "z"}) == "z"
    assert blueprints_for(site, {"*": ["y", "x", "y"]}) == ("y", "x")
    assert blueprint_for(site, None) == "mlp" and blueprint_for(site, {"0": []}) is None


# ---- schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", schedule.SCHEDULES)
def test_schedules_rise_from_0_to_1_and_stay(name):
    rise = schedule.schedule(name)
    found = np.asarray(rise(jnp.linspace(-0.5, 1.5, 41)))
    assert np.all(np.diff(found) >= 0)
    assert float(rise(jnp.float32(0))) == 0.0 and float(rise(jnp.float32(1))) == 1.0 and found[-1] == 1.0
    assert float(rise(jnp.float32(0.5))) == pytest.approx(1.0 if name == "instant" else 0.5)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ArgumentError, match="linear, cosine"):
        schedule.schedule("steep")


def test_only_grafting_seeds_are_ramped():
    seeds = grown().seeds.set(0, 1, lifecycle=int(S.GRAFTING), age=7, last_update=2)
    seeds = seeds.set(1, 0, lifecycle=int(S.ACTIVE), alpha=0.3, age=7)
    ramped = jax.jit(schedule.ramped, static_argnums=(1, 2))(seeds, 10, schedule.linear)
    assert float(ramped.alpha[0, 1]) == 0.5 and float(ramped.alpha[1, 0]) == pytest.approx(0.3)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), ramped) == jax.tree.map(lambda a: (a.shape, a.dtype), seeds)


# ---- isolation and credit -------------------------------------------------------------------------------

X, Y = jax.random.normal(jax.random.key(1), (4, 8, 6)), jnp.arange(32).reshape(4, 8) % 3


def loss_of(model, batch):
    logits = model(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


def with_aux(model):
    return loss_of(model, (X[0], Y[0])), "aux"


# Bit-equality is a promise about programs as users run them: compiled with XLA's default optimisation.
@compiled
def isolated(params, model):
    return jax.value_and_grad(lambda p: isolated_loss(with_aux, model.replace(params=p))[0])(params)


def bit_equal(left, right):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


@pytest.mark.parametrize("spoil", [1.0, math.nan], ids=["kernel", "NaN kernel"])
def test_the_host_trains_as_if_there_were_no_seed(spoil):
    plain_loss, plain = isolated(model().params, model())
    kernels = jax.tree.map(lambda leaf: leaf * spoil, grown().params["kernels"])
    params = {**grown().params, "kernels": kernels}
    loss, grads = isolated(params, grown())
    assert bit_equal(loss, plain_loss) and bit_equal(grads["host"], plain["host"])


def test_the_kernel_trains_on_the_real_loss():
    _, grads = isolated(grown().params, grown())
    wanted = jax.grad(lambda p: with_aux(grown().replace(params=p).shadow())[0])(grown().params)
    on = esper.transition(grown(), layer="0", seed=1, to=S.GRAFTING)
    on = esper.set_alpha(on, layer="0", seed=1, alpha=1.0)
    real = jax.grad(lambda p: with_aux(on.replace(params=p))[0])(on.params)
    for other in (wanted, real):
        for a, b in zip(jax.tree.leaves(grads["kernels"]), jax.tree.leaves(other["kernels"]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads["kernels"]))


def test_without_kernels_the_shadow_is_no_part_of_the_program():
    text = str(jax.make_jaxpr(lambda m: isolated_loss(with_aux, m)[0])(model()))
    assert text.count("cond[") == 0
    assert str(jax.make_jaxpr(lambda m: isolated_loss(with_aux, m)[0])(grown())).count("cond[") > 0
    assert isolated_loss(with_aux, model())[1] == "aux"


def test_a_seed_that_no_longer_trains_has_no_shadow():
    on = esper.transition(grown(), layer="0", seed=1, to=S.GRAFTING)
    _, grads = isolated(on.params, on)  # alpha is 0: not live
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(grads["kernels"]))


@pytest.mark.parametrize("state", [S.TRAINING, S.GRAFTING, S.ACTIVE])
@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_credit_is_what_computing_it_directly_gives(state, alpha):
    model = grown().replace(seeds=grown().seeds.set(0, 1, lifecycle=int(state), alpha=0.2))
    found = credit(loss_of, model, (X, Y), layer="0", seed=1, alpha=alpha)

    def losses(state, alpha):
        arm = model.replace(seeds=model.seeds.set(0, 1, lifecycle=int(state), alpha=alpha))
        return np.asarray([loss_of(arm, batch) for batch in zip(X, Y, strict=True)], np.float64)

    wanted = gain(losses(S.CULLED, 0.0), losses(S.ACTIVE, alpha))
    assert found.batches == 4
    np.testing.assert_allclose(
        [found.mean, found.stderr, found.without, found.having],
        [wanted.mean, wanted.stderr, wanted.without, wanted.having],
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_gain_is_a_mean_and_its_standard_error():
    found = gain(np.array([1.0, 2.0, 4.0]), np.array([0.5, 1.0, 2.5]))
    assert (found.mean, found.stderr) == (1.0, pytest.approx(0.5 / math.sqrt(3)))
    assert math.isnan(gain(np.array([1.0]), np.array([0.5])).stderr)
