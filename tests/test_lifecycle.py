"""A seed's way through its states: ramps either way, kernels that fail, retries, budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compiled
from torch import manual_seed, nn

import esper
from esper.configs import TamiyoSettings
from esper.errors import SeedError
from esper.growth import schedule
from esper.growth.isolation import isolated_loss
from esper.growth.policy import LayerView, Observation, Plan, SeedView, Transition
from esper.growth.recovery import recovered
from esper.growth.tamiyo import Tamiyo
from esper.jax_backend.finite import finite_cotangent
from esper.lifecycle import SeedLifecycleState as State

KEY = jax.random.key(4)
X = jnp.cos(jnp.arange(12.0)).reshape(4, 3)


def model_with_kernel(*states, alpha=1.0, change=lambda name, array: array + 0.1):
    manual_seed(0)
    host = esper.wrap(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), seeds_per_layer=2)
    grown, _ = esper.germinate(host, None, layer="0", seed=1, blueprint="mlp", key=KEY)
    kernel = {name: change(name, array) for name, array in grown.params["kernels"]["0"][1].items()}
    grown = grown.replace(params={**grown.params, "kernels": {"0": {1: kernel}}})
    for state in states:
        grown = esper.transition(grown, layer="0", seed=1, to=state)
    if State.GRAFTING in states and State.FOSSILIZED not in states:
        grown = esper.set_alpha(grown, layer="0", seed=1, alpha=alpha)
    return host, grown


# ---- ramps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", schedule.SCHEDULES)
@pytest.mark.parametrize(("states", "start", "target", "end"), [
    ((State.GRAFTING,), 0.0, None, 1.0),
    ((State.GRAFTING,), 0.0, 0.25, 0.25),
    ((State.GRAFTING, State.ACTIVE, State.GRAFTING), 1.0, None, 0.0),
    ((State.GRAFTING, State.ACTIVE, State.GRAFTING), 1.0, 0.5, 0.5),
])  # fmt: skip
def test_a_ramp_leads_from_where_alpha_was_to_its_target_and_holds(name, states, start, target, end):
    _, grown = model_with_kernel(*states[:-1])
    grown = esper.transition(grown, layer="0", seed=1, to=State.GRAFTING, target=target)
    step = jax.jit(lambda seeds: schedule.ramped(seeds.grown_older(), 8, schedule.schedule(name)))
    seeds, alphas = grown.seeds, []
    for _ in range(10):
        seeds = step(seeds)
        alphas.append(float(seeds.alpha[0, 1]))
    whole = [start, *alphas]
    assert whole == sorted(whole, reverse=end < start)
    assert alphas[7:] == [end] * 3
    assert (len(set(alphas)) == 1) == (name == "instant")
    assert step._cache_size() == 1
    assert np.all(np.asarray(seeds.alpha)[[0, 1], [0, 0]] == 0)


def test_a_target_belongs_to_grafting():
    _, grown = model_with_kernel()
    for to, target in ((State.GRAFTING, 1.5), (State.CULLED, 0.5)):
        with pytest.raises(SeedError, match="a target is for GRAFTING, in"):
            esper.transition(grown, layer="0", seed=1, to=to, target=target)


# ---- kernels that fail ----------------------------------------------------------------------------------

FAILURES = {
    "weights of NaN": lambda name, array: jnp.full_like(array, jnp.nan),
    "an infinite weight": lambda name, array: array.at[(0,) * array.ndim].set(jnp.inf),
    "an output that overflows": lambda name, array: array + (3e38 if name == "2.weight" else 3.0),
    "a gradient that overflows": lambda name, array: array * 0 + {"0.weight": 1e30, "2.weight": 1e10}.get(name, 0.0),
}


def objective(params, model):
    def loss(whole):
        out, moved = whole.apply(X, train=True)
        return jnp.sum(out**2), moved

    return isolated_loss(loss, model.replace(params=params))


@compiled
def stepped(model):
    (value, moved), grads = jax.value_and_grad(objective, has_aux=True)(model.params, model)
    healed, kept = recovered(moved, grads)
    return value, model(X), grads["host"], healed.seeds, kept


def bit_equal(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("states", [(), (State.GRAFTING,), (State.GRAFTING, State.ACTIVE)])
def test_a_kernel_that_fails_is_set_aside_within_the_step_and_the_host_is_as_without_it(name, states):
    host, grown = model_with_kernel(*states, change=FAILURES[name])
    value, out, grads, seeds, kept = stepped(grown)
    alone = stepped(host)
    assert seeds.lifecycle[0, 1] == State.ERROR_RECOVERY and seeds.alpha[0, 1] == 0 and seeds.error_count[0, 1] == 1
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(kept["kernels"]))
    if name == "a gradient that overflows" and states:
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))  # its output was fine and counted
    else:
        assert bit_equal((value, out, grads), alone[:3])
    assert bit_equal(kept["host"], grads)


def test_a_sound_kernel_is_left_alone():
    _, grown = model_with_kernel(State.GRAFTING)
    _, _, grads, seeds, kept = stepped(grown)
    assert seeds.lifecycle[0, 1] == State.GRAFTING and seeds.error_count[0, 1] == 0 and seeds.alpha[0, 1] == 1
    assert any(np.any(leaf) for leaf in jax.tree.leaves(kept["kernels"])) and bit_equal(kept["host"], grads)


def test_a_fossilised_kernel_is_part_of_the_network_and_fails_as_a_layer_would():
    states = (State.GRAFTING, State.ACTIVE, State.FOSSILIZED)
    _, grown = model_with_kernel(State.GRAFTING, State.ACTIVE)
    grown = esper.transition(grown, layer="0", seed=1, to=State.FOSSILIZED)
    kernel = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), grown.params["kernels"])
    value, out, _, seeds, _ = stepped(grown.replace(params={**grown.params, "kernels": kernel}))
    assert np.isnan(value) and np.all(np.isnan(out)) and seeds.lifecycle[0, 1] == states[-1]


def test_a_failing_kernel_spares_the_others_of_its_layer():
    _, grown = model_with_kernel(State.GRAFTING)
    both, _ = esper.germinate(grown, None, layer="0", seed=0, blueprint="low_rank", key=KEY)
    both = esper.set_alpha(esper.transition(both, layer="0", seed=0, to=State.GRAFTING), layer="0", seed=0, alpha=1.0)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), both.params["kernels"]["0"][0])
    kernels = {"0": {0: broken, 1: both.params["kernels"]["0"][1]}}
    both = both.replace(params={**both.params, "kernels": kernels})
    _, out, _, seeds, kept = stepped(both)
    assert list(seeds.lifecycle[0]) == [State.ERROR_RECOVERY, State.GRAFTING]
    np.testing.assert_allclose(out, grown(X), rtol=1e-6)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(kept["kernels"]["0"][1]))


def test_calls_with_kernels_differentiate_in_either_mode_and_batch():
    _, grown = model_with_kernel(State.GRAFTING)

    def energy(x):
        return jnp.sum(grown(x) ** 2)

    by_rows = jax.vmap(jax.grad(lambda row: energy(row[None])))(X)
    np.testing.assert_allclose(by_rows, jax.grad(energy)(X), rtol=1e-5, atol=1e-6)
    forwards = jax.jvp(energy, (X,), (jnp.ones_like(X),))[1]
    np.testing.assert_allclose(forwards, jnp.sum(jax.grad(energy)(X)), rtol=1e-5)
    row = X[0]
    np.testing.assert_allclose(
        jax.hessian(lambda v: energy(v[None]))(row), jax.jacrev(jax.grad(lambda v: energy(v[None])))(row), rtol=1e-4
    )


def test_what_flows_back_is_whole_or_nothing():
    def back(x):
        return jnp.sum(jnp.sqrt(finite_cotangent(x)))

    rows = jnp.asarray([[0.0, 4.0], [1.0, 4.0]])
    assert jax.grad(back)(rows[0]).tolist() == [0.0, 0.0]
    assert jax.vmap(jax.grad(back))(rows).tolist() == [[0.0, 0.0], [0.5, 0.25]]
    assert jax.vmap(jax.vmap(jax.grad(back)))(rows[None]).tolist() == [[[0.0, 0.0], [0.5, 0.25]]]


# ---- what Tamiyo does about it --------------------------------------------------------------------------


def seen(seeds, plan=None, losses=(1.0,)):
    return Observation(100, 1000, 10, losses, (LayerView("0", "Linear", 1.0, tuple(seeds), (plan,) if plan else ()),))


@pytest.mark.parametrize(("errors", "to"), [(1, State.TRAINING), (2, State.TRAINING), (3, State.CULLED)])
def test_a_kernel_is_given_as_many_retries_as_the_settings_say(errors, to):
    policy = Tamiyo(TamiyoSettings(max_retries=2))
    failed = SeedView("0", 0, State.ERROR_RECOVERY, since=1, parameters=3, errors=errors)
    (action,), _ = policy(seen([failed]), policy.start())
    assert isinstance(action, Transition) and action.to is to and f"{errors} times" in action.reason


@pytest.mark.parametrize("budget", ["parameters", "flops", "bytes"])
def test_a_budget_stops_growth(budget):
    plan = Plan("mlp", (), parameters=60, flops=60, bytes=60)
    held = SeedView("0", 0, State.FOSSILIZED, parameters=50, flops=50, bytes=50)
    free = SeedView("0", 1, State.DORMANT)
    for limit, grows in ((110, True), (109, False)):
        policy = Tamiyo(TamiyoSettings(patience=1, **{f"max_{budget}": limit}))
        memory = policy.start()
        for losses in ((1.0,), (1.0, 1.0)):
            actions, memory = policy(seen([held, free], plan, losses), memory)
        assert (type(actions[-1]).__name__ == "Germinate") == grows
        assert grows or "no kernel fits into the 59" in actions[-1].reason
