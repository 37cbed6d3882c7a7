"""Policies decide on what they are shown and nothing else; schedules; isolation; credit."""

import dataclasses
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from torch import manual_seed, nn

import esper
from esper.configs import TamiyoSettings
from esper.errors import ArgumentError, IllegalTransitionError, UnknownBlueprintError
from esper.growth import schedule
from esper.growth.credit import Gain, credit, gain
from esper.growth.isolation import isolated_loss
from esper.growth.plans import blueprint_for, plans
from esper.growth.policy import (
    Cull,
    Germinate,
    Hold,
    LayerView,
    Observation,
    Plan,
    SeedView,
    SetAlpha,
    Transition,
    act,
)
from esper.growth.tamiyo import Tamiyo
from esper.lifecycle import LEGAL
from esper.lifecycle import SeedLifecycleState as S

KEY = jax.random.key(0)
PLAN = Plan("mlp", (("width", 4),), 30)
GOOD, BAD = Gain(0.2, 0.01, 1.0, 0.8, 16), Gain(0.01, 0.02, 1.0, 0.99, 16)


def settings(**changes):
    kept = dict(patience=2, min_delta=0.01, train_steps=20, blend_steps=10, hold_steps=10, embargo_steps=30)
    return TamiyoSettings(**{**kept, **changes})


def seen(*seeds, losses=(1.0,), step=100, total=10_000, pulls=(1.0, 2.0), plan=PLAN):
    """Two layers, `a` and `b`, of one seed each; those given replace the dormant ones."""
    held = {seed.layer: seed for seed in seeds}
    layers = tuple(
        LayerView(name, "Linear", pull, (held.get(name, SeedView(name, 0, S.DORMANT)),), (plan,) if plan else ())
        for name, pull in zip("ab", pulls, strict=True)
    )
    return Observation(step, total, 10, losses, layers)


def at_plateau(policy, observation):
    """What the policy does once it has seen the same loss often enough."""
    memory = policy.start()
    for _ in range(policy.settings.patience + 1):
        actions, memory = policy(observation, memory)
    return actions, memory


# ---- Tamiyo ---------------------------------------------------------------------------------------------


def test_it_germinates_at_a_plateau_only_and_says_why():
    policy = Tamiyo(settings())
    memory = policy.start()
    for loss in (1.0, 0.9, 0.8, 0.795):
        actions, memory = policy(seen(losses=(loss,)), memory)
        assert actions == ()
    (action,), memory = policy(seen(losses=(0.795,)), memory)
    assert isinstance(action, Germinate)
    assert (action.layer, action.seed, action.blueprint, action.options) == ("b", 0, "mlp", (("width", 4),))
    assert "0.8000" in action.reason and "2 evaluations" in action.reason and "2.000" in action.reason
    assert memory.stale == 0


@pytest.mark.parametrize(
    ("state", "since", "gain", "to"),
    [
        (S.TRAINING, 10, GOOD, None),
        (S.TRAINING, 20, GOOD, S.GRAFTING),
        (S.TRAINING, 20, BAD, S.CULLED),
        (S.TRAINING, 20, Gain(math.nan, math.nan, 1.0, math.nan, 16), S.CULLED),
        (S.TRAINING, 20, Gain(0.2, math.nan, 1.0, 0.8, 1), S.CULLED),
        (S.GRAFTING, 5, BAD, None),
        (S.GRAFTING, 10, BAD, S.ACTIVE),
        (S.ACTIVE, 5, BAD, None),
        (S.ACTIVE, 10, GOOD, S.FOSSILIZED),
        (S.ACTIVE, 10, BAD, S.CULLED),
        (S.ERROR_RECOVERY, 0, None, S.TRAINING),
    ],
)
def test_verdicts(state, since, gain, to):
    policy = Tamiyo(settings())
    actions, _ = policy(seen(SeedView("a", 0, state, since, 1.0, 30, gain)), policy.start())
    assert [action.to for action in actions] == ([] if to is None else [to])
    if to in (S.GRAFTING, S.FOSSILIZED):
        assert "+0.2000 ± 0.0100" in actions[0].reason and "1.0000 without" in actions[0].reason


def test_min_gain_is_a_floor():
    seed = SeedView("a", 0, S.TRAINING, 20, 0.0, 30, GOOD)
    for least, to in ((0.1, S.GRAFTING), (0.19, S.CULLED)):
        policy = Tamiyo(settings(min_gain=least))
        assert policy(seen(seed), policy.start())[0][0].to is to


def test_without_a_measurement_there_is_no_verdict():
    policy = Tamiyo(settings())
    (action,), _ = policy(seen(SeedView("a", 0, S.TRAINING, 20, 0.0, 30, None)), policy.start())
    assert isinstance(action, Hold)


@pytest.mark.parametrize(
    ("changes", "observation", "reason"),
    [
        (dict(max_kernels=0), seen(), "0 kernels allowed"),
        (dict(max_kernels=1), seen(SeedView("a", 0, S.FOSSILIZED, 9, 1.0, 30)), "1 kernels allowed"),
        (dict(max_parameters=50), seen(SeedView("a", 0, S.FOSSILIZED, 9, 1.0, 30)), "20 parameters left"),
        (dict(), seen(total=120), "takes 40 steps"),
        (dict(), seen(plan=None), "no layer has a free seed"),
    ],
)
def test_what_stands_in_the_way_is_said_once(changes, observation, reason):
    policy = Tamiyo(settings(**changes))
    (action,), memory = at_plateau(policy, observation)
    assert isinstance(action, Hold) and reason in action.reason
    assert policy(observation, memory)[0] == ()


def test_a_culled_seed_rests_and_its_arrays_go_with_the_next_germination():
    policy = Tamiyo(settings())
    culled = SeedView("b", 0, S.CULLED, 20, 0.0, 30)
    (verdict,), memory = policy(seen(SeedView("b", 0, S.TRAINING, 20, 0.0, 30, BAD)), policy.start())
    assert verdict.to is S.CULLED
    for step in (110, 120):
        actions, memory = policy(seen(culled, step=step), memory)
    assert [type(action) for action in actions] == [Cull, Germinate] and actions[1].layer == "a"
    rested = seen(culled, SeedView("a", 0, S.FOSSILIZED, 9, 1.0, 30), step=200)
    _, memory = policy(rested, memory)
    actions, _ = policy(rested, memory)
    assert [type(action) for action in actions] == [Cull, Transition, Germinate]
    assert actions[1].to is S.DORMANT and actions[2].layer == "b"


def test_policy_none_does_nothing():
    policy = Tamiyo(settings(policy="none"))
    assert at_plateau(policy, seen())[0] == ()


@pytest.mark.parametrize("number", range(8))
def test_every_action_is_legal_and_the_budgets_hold(number):
    """A random life: losses and gains are drawn, actions are applied to a table of states."""
    draw = np.random.default_rng(number)
    policy = Tamiyo(settings(max_kernels=3, max_parameters=100, patience=1, embargo_steps=20))
    memory, losses = policy.start(), []
    table = {(layer, seed): SeedView(layer, seed, S.DORMANT) for layer in "abc" for seed in range(2)}
    for step in range(0, 2000, 10):
        losses.append(float(draw.uniform(0, 1)))
        table = {
            place: dataclasses.replace(
                seed, since=seed.since + 10, gain=Gain(float(draw.normal(0.1, 0.1)), 0.05, 1.0, 0.9, 16)
            )
            for place, seed in table.items()
        }
        layers = tuple(
            LayerView(n, "Linear", float(draw.uniform()), (table[n, 0], table[n, 1]), (PLAN,)) for n in "abc"
        )
        observation = Observation(step, 2000, 10, tuple(losses), layers)
        actions, after = policy(observation, memory)
        assert (actions, after) == policy(observation, memory)
        memory = after
        for action in actions:
            _apply(table, action)
        held = [seed for seed in table.values() if seed.parameters and seed.state is not S.CULLED]
        growing = [seed for seed in held if seed.state is not S.FOSSILIZED]
        assert len(growing) <= 1 and len(held) <= 3 and sum(seed.parameters for seed in held) <= 100
    assert any(seed.state is S.FOSSILIZED for seed in table.values())


def _apply(table, action):
    if isinstance(action, Hold):
        return
    assert action.reason
    place = action.layer, action.seed
    match action:
        case Germinate():
            assert table[place].state is S.DORMANT
            table[place] = SeedView(*place, S.TRAINING, 0, 0.0, PLAN.parameters)
        case Cull():
            assert table[place].state is S.CULLED
            table[place] = dataclasses.replace(table[place], parameters=0)
        case Transition(to=to):
            assert to in LEGAL[table[place].state]
            assert to is not S.DORMANT or not table[place].parameters
            table[place] = dataclasses.replace(table[place], state=to, since=0)


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


def test_a_name_goes_before_a_glob_before_a_kind():
    site = model().structure.sites[0]
    assert blueprint_for(site, {"Linear": "x"}) == "x"
    assert blueprint_for(site, {"Linear": "x", "*": "y"}) == "y"
    assert blueprint_for(site, {"*": "y", "0": "z"}) == "z"


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
@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
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
