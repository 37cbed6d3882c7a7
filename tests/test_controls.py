"""Growth as written down, and at random: the controls that Tamiyo is compared with."""

import dataclasses

import pytest

from esper.configs import TamiyoSettings
from esper.errors import ArgumentError, UnknownLayerError
from esper.growth.controls import Planting, Random, Scheduled
from esper.growth.credit import Gain
from esper.growth.policy import Asks, Cull, Germinate, Hold, LayerView, Observation, Plan, SeedView, Transition
from esper.lifecycle import LEGAL
from esper.lifecycle import SeedLifecycleState as S

PLANS = (Plan("mlp", (("width", 4),), 30), Plan("low_rank", (("rank", 2),), 10))
BAD = Gain(-0.5, 0.01, 1.0, 1.5, 16)
STEPS, EVERY = 400, 10


def settings(**changes):
    return TamiyoSettings(**{**dict(train_steps=20, blend_steps=10, hold_steps=10, max_kernels=9), **changes})


def life(policy, *, gain=BAD, fail=None, layers="ab", seeds=2, steps=STEPS):
    """Every action with its step, and the seeds at the end; each kernel is worth `gain`."""
    table = {(layer, seed): SeedView(layer, seed, S.DORMANT) for layer in layers for seed in range(seeds)}
    memory, story = policy.start(), []
    for step in range(0, steps + EVERY, EVERY):
        table = {
            place: dataclasses.replace(
                seed,
                since=seed.since + EVERY,
                gain=gain,
                state=S.ERROR_RECOVERY if fail == step and seed.state is S.TRAINING else seed.state,
                errors=seed.errors + (fail == step),
            )
            for place, seed in table.items()
        }
        views = tuple(
            LayerView(name, "Linear", 1.0, tuple(table[name, seed] for seed in range(seeds)), PLANS) for name in layers
        )
        observation = Observation(step, steps, EVERY, (1.0,), views)
        actions, after = policy(observation, memory)
        assert (actions, after) == policy(observation, memory)
        memory = after
        for action in actions:
            story.append((step, action))
            apply(table, action)
    return story, table


def apply(table, action):
    assert action.reason
    match action:
        case Germinate(layer, seed, blueprint):
            assert table[layer, seed].state is S.DORMANT
            table[layer, seed] = SeedView(layer, seed, S.TRAINING, parameters=30, blueprint=blueprint)
        case Transition(layer, seed, to):
            assert to in LEGAL[table[layer, seed].state] and (to is not S.DORMANT or not table[layer, seed].parameters)
            table[layer, seed] = dataclasses.replace(table[layer, seed], state=to, since=0)
        case Cull(layer, seed):
            assert table[layer, seed].state is S.CULLED
            table[layer, seed] = dataclasses.replace(table[layer, seed], parameters=0)


def germinated(story):
    return [(step, action) for step, action in story if isinstance(action, Germinate)]


def test_what_is_written_down_happens_then_and_is_kept_whatever_it_does():
    plantings = (Planting(35, "b", "mlp", (("width", 4),), 1, "lerp"), Planting(100, "a", "low_rank"))
    policy = Scheduled(settings(), plantings)
    story, table = life(policy)
    first, second = (action for _, action in germinated(story))
    assert [step for step, _ in germinated(story)] == [40, 100]
    assert first == Germinate("b", 1, "mlp", (("width", 4),), "written down for step 35", "lerp")
    assert (second.layer, second.seed, second.blueprint, second.blend) == ("a", 0, "low_rank", "add")
    moves = [(step, action.to) for step, action in story if action.layer == "b" and isinstance(action, Transition)]
    assert moves == [(60, S.GRAFTING), (70, S.ACTIVE), (80, S.FOSSILIZED)]
    assert table["a", 0].state is S.FOSSILIZED
    assert policy.asks(Observation(0, STEPS, EVERY, (1.0,), ()), policy.start()) == Asks()


def test_a_written_down_kernel_that_fails_is_retried_then_culled_and_its_seed_can_be_planted_again():
    for forgiven, end in ((1, S.FOSSILIZED), (0, S.CULLED)):
        _, table = life(Scheduled(settings(max_retries=forgiven), (Planting(0, "a", "mlp"),)), fail=10)
        assert table["a", 0].state is end
    again = Scheduled(settings(max_retries=0), (Planting(0, "a", "mlp"), Planting(100, "a", "low_rank")))
    story, table = life(again, fail=10)
    assert [type(action) for step, action in story if step == 100] == [Cull, Transition, Germinate]
    assert (table["a", 0].state, table["a", 0].blueprint) == (S.FOSSILIZED, "low_rank")


@pytest.mark.parametrize("later", [0, 50])
def test_what_is_due_in_a_seed_that_is_not_free_is_left_out(later):
    story, _ = life(Scheduled(settings(), (Planting(0, "a", "mlp"), Planting(later, "a", "low_rank"))))
    assert len(germinated(story)) == 1
    assert [(step, "left out" in action.reason) for step, action in story if isinstance(action, Hold)] == [
        (later, True)
    ]


@pytest.mark.parametrize(
    ("planting", "error", "match"),
    [
        (Planting(0, "c", "mlp"), UnknownLayerError, "c"),
        (Planting(0, "a", "mlp", seed=2), ArgumentError, "2 seeds"),
    ],
)
def test_what_is_written_down_for_no_place_is_refused(planting, error, match):
    with pytest.raises(error, match=match):
        life(Scheduled(settings(), (planting,)))


def test_random_growth_is_the_same_for_the_same_key_and_another_for_another():
    stories = [life(Random(settings(grafts=4), 3, key=key))[0] for key in (0, 0, *range(1, 6))]
    assert stories[0] == stories[1]
    assert len({tuple((step, a.layer, a.blueprint) for step, a in germinated(story)) for story in stories}) > 3


def test_random_growth_is_anywhere_any_time_by_anything_and_all_of_it_ends_in_time():
    places, steps = set(), []
    for key in range(40):
        story, table = life(Random(settings(grafts=4, start_step=50), 2, key=key))
        assert len(germinated(story)) == 2
        assert [seed.state for seed in table.values()].count(S.FOSSILIZED) == 2
        places |= {(action.layer, action.blueprint) for _, action in germinated(story)}
        steps += [step for step, _ in germinated(story)]
    assert places == {(layer, plan.blueprint) for layer in "ab" for plan in PLANS}
    # Uniform from 50 to 360: 80 draws average within 4 standard errors of the middle.
    assert min(steps) >= 50 and abs(sum(steps) / len(steps) - 205) < 4 * 90 / 80**0.5 + EVERY


def test_random_growth_may_be_judged():
    good = Gain(0.5, 0.01, 1.0, 0.5, 16)
    for gain, end in ((BAD, S.CULLED), (good, S.FOSSILIZED)):
        _, table = life(Random(settings(), 1, gated=True), gain=gain)
        assert [seed.state for seed in table.values() if seed.state is not S.DORMANT] == [end]
    policy = Random(settings(), 1, gated=True)
    trained = LayerView("a", "Linear", 1.0, (SeedView("a", 0, S.TRAINING, 20),), PLANS)
    observation = Observation(100, STEPS, EVERY, (1.0,), (trained,))
    assert policy.asks(observation, policy.start()) == Asks(gains=(("a", 0),))
    assert dataclasses.replace(policy, gated=False).asks(observation, policy.start()) == Asks()


@pytest.mark.parametrize(("limits", "most"), [(dict(max_kernels=2), 2), (dict(max_parameters=65), 2), (dict(), 4)])
def test_random_growth_keeps_to_the_budgets_and_waits_its_turn(limits, most):
    story, table = life(Random(settings(**limits), 4, key=3), steps=2000)
    assert len(germinated(story)) == most
    held = [seed for seed in table.values() if seed.parameters]
    assert len(held) == most


def test_random_growth_begins_and_stops_when_the_settings_say():
    policy = Random(settings(grafts=2, start_step=100, stop_fraction=0.5), 2)
    for key in range(5):
        steps = [step for step, _ in germinated(life(dataclasses.replace(policy, key=key))[0])]
        assert len(steps) == 2 and all(100 <= step <= 200 for step in steps)


def test_a_run_too_short_for_a_kernel_has_no_random_growth():
    assert life(Random(settings(), 3), steps=30)[0] == []
