"""The governor: what it takes for a failure, whom it blames, and how a snapshot is gone back to."""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import pytest
from torch import manual_seed, nn

import esper
from esper.errors import ArgumentError
from esper.lifecycle import SeedLifecycleState as S
from esper.train.compiles import counting_compiles
from esper.train.governor import GiveUp, Governor, Reading, Rollback, Sound, Watch, finite, rolled_back, spread

NAN, INF = math.nan, math.inf


def judged(readings, governor=None):
    """The verdict on each reading, and the memory at the end."""
    governor = governor or Governor()
    memory, verdicts = governor.start(), []
    for reading in readings:
        verdict, memory = governor.judge(reading, memory)
        verdicts.append(verdict)
    return verdicts, memory


def held_out(*losses):
    return [Reading(50 * place, None, loss) for place, loss in enumerate(losses)]


def trained(*losses):
    return [Reading(50 * place, loss, 1.0) for place, loss in enumerate(losses)]


def spreads(*pairs):
    return [Reading(50 * place, None, loss, spread=width) for place, (loss, width) in enumerate(pairs)]


LAST = {
    "falling": (held_out(2.3, 1.5, 0.9, 0.5), Sound),
    "noise": (held_out(1.0, 1.2, 0.9, 1.3, 0.8), Sound),
    "a jump to thrice the median": (held_out(1.0, 1.0, 1.0, 3.1), Rollback),
    "just below thrice": (held_out(1.0, 1.0, 1.0, 2.9), Watch),
    "half way": (held_out(1.0, 1.0, 1.0, 2.1), Watch),
    "overfitting, eightfold but slowly": (held_out(1.0, *(0.1 * 1.15**k for k in range(16))), Sound),
    "training, as slowly": (trained(1.0, *(0.1 * 1.15**k for k in range(9))), Rollback),
    "ten times a loss near 0": (held_out(2.3, *[0.001] * 9, 0.01), Sound),
    "far from a loss near 0": (held_out(2.3, *[0.001] * 9, 1.0), Rollback),
    "a loss of exactly 0": (held_out(2.3, *[0.0] * 9, 0.1), Sound),
    "noise around 0": (held_out(0.02, -0.01, 0.02, -0.02, 0.01, 0.03), Sound),
    "a jump out of noise around 0": (held_out(0.02, -0.01, 0.02, -0.02, 0.01, 0.6), Rollback),
    "a negative loss that falls": (held_out(-1.0, -5.0, -20.0), Sound),
    "a negative loss that halves": (held_out(-20.0, -20.0, -10.0), Sound),
    "a negative loss that is lost": (held_out(-20.0, -20.0, -20.0, 25.0), Rollback),
    "NaN at once": (held_out(NAN), Rollback),
    "infinite": (held_out(1.0, INF), Rollback),
    "minus infinite": (held_out(1.0, -INF), Rollback),
    "NaN in training": (trained(1.0, NAN), Rollback),
    "NaN in the model": ([Reading(0, None, 1.0, finite=False)], Rollback),
    "collapse": (spreads((2.3, 1.0), (1.5, 3.0), (2.4, 0.1)), Rollback),
    "alike, but better than at first": (spreads((2.3, 1.0), (1.5, 3.0), (2.2, 0.1)), Sound),
    "worse, but not alike": (spreads((2.3, 1.0), (1.5, 3.0), (2.4, 0.2)), Sound),
    "alike from the start": (spreads((2.3, 0.001), (2.3, 0.001)), Sound),
    "spread unknown": (spreads((2.3, NAN), (2.3, NAN), (2.3, 0.5), (2.3, NAN)), Sound),
}


@pytest.mark.parametrize("name", LAST)
def test_the_last_reading_is(name):
    readings, kind = LAST[name]
    *before, last = judged(readings)[0]
    assert isinstance(last, kind), last
    assert not any(isinstance(verdict, Rollback | GiveUp) for verdict in before)
    assert bool(last.reason) is not isinstance(last, Sound)


def test_a_reason_has_the_figures():
    last = judged(held_out(1.0, 1.0, 4.5))[0][-1]
    assert last.reason == "held-out loss 4.5 is above 3 (median of the last ones: 1)"


def test_collapse_can_be_switched_off():
    readings, _ = LAST["collapse"]
    assert isinstance(judged(readings, Governor(collapse=0))[0][-1], Sound)


def test_what_failed_is_no_standard_for_what_follows():
    verdicts, memory = judged(held_out(1.0, 1.0, 9.0, 1.0, 9.0))
    assert [type(verdict) for verdict in verdicts] == [Sound, Sound, Rollback, Sound, Rollback]
    assert memory.held_out == (1.0, 1.0, 1.0)


def test_retries_run_out():
    verdicts, _ = judged(held_out(1.0, NAN, 1.0, NAN, NAN), Governor(retries=2))
    assert [type(verdict) for verdict in verdicts] == [Sound, Rollback, Sound, Rollback, GiveUp]
    assert [verdict.retry for verdict in verdicts if isinstance(verdict, Rollback)] == [1, 2]
    assert verdicts[-1].reason.endswith("2 retries are used up")


def test_patience_forgives():
    verdicts, memory = judged(held_out(1.0, NAN, 1.0, 1.0, NAN, 1.0, 1.0, 1.0), Governor(retries=1, patience=2))
    assert [verdict.retry for verdict in verdicts if isinstance(verdict, Rollback)] == [1, 1]
    assert memory.retry == 0
    _, memory = judged(held_out(1.0, NAN, 1.0, 2.1, 1.0), Governor(patience=3))
    assert memory.retry == 1 and memory.survived == 2  # a suspicious reading counts neither way


CULPRITS = {
    "nothing grew": ((), ()),
    "germinated at the last sound reading": ((("0", 0, S.TRAINING, 50),), (("0", 0),)),
    "trains on": ((("0", 0, S.TRAINING, 100),), ()),
    "turned ACTIVE at it": ((("0", 1, S.ACTIVE, 50),), (("0", 1),)),
    "ACTIVE before": ((("0", 1, S.ACTIVE, 51),), ()),
    "a ramp changes all the time": ((("2", 0, S.GRAFTING, 400),), (("2", 0),)),
    "permanent": ((("2", 0, S.FOSSILIZED, 10),), ()),
    "set aside": ((("2", 0, S.ERROR_RECOVERY, 10), ("2", 1, S.CULLED, 10)), ()),
    "two of three": (
        (("0", 0, S.TRAINING, 20), ("0", 1, S.ACTIVE, 90), ("2", 0, S.GRAFTING, 20)),
        (("0", 0), ("2", 0)),
    ),
}


@pytest.mark.parametrize("name", CULPRITS)
def test_culprits(name):
    seeds, blamed = CULPRITS[name]
    verdicts, _ = judged([Reading(100, 1.0, 1.0), Reading(150, NAN, NAN, seeds=seeds)])
    assert verdicts[-1].culprits == blamed


def test_a_failure_that_recurs_blames_all_that_grow():
    seeds = (("0", 0, S.TRAINING, 400), ("0", 1, S.ACTIVE, 400), ("2", 0, S.FOSSILIZED, 1))
    bad = Reading(150, NAN, NAN, seeds=seeds)
    verdicts, _ = judged([Reading(100, 1.0, 1.0), bad, bad])
    assert [verdict.culprits for verdict in verdicts[1:]] == [(), (("0", 0), ("0", 1))]


def test_judging_moves_nothing():
    memory = Governor().start()
    Governor().judge(Reading(0, None, 1.0), memory)
    assert memory == Governor().start()
    with pytest.raises(dataclasses.FrozenInstanceError):
        memory.retry = 1


@pytest.mark.parametrize(
    ("field", "value"), [("spike", 1.0), ("spike", NAN), ("collapse", 1.5), ("retries", -1), ("patience", 0)]
)
def test_settings_out_of_range(field, value):
    with pytest.raises(ArgumentError, match=f"{field} is .* not"):
        Governor(**{field: value})


@cache
def grown():
    manual_seed(0)
    model = esper.wrap(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), target_layers=[nn.Linear])
    return esper.germinate(model, None, layer="0", blueprint="low_rank", key=jax.random.key(0))[0]


def spoilt(model, where, value=NAN):
    """The model with this value in one place."""

    def fill(tree):
        return {name: jnp.full_like(leaf, value) for name, leaf in tree.items()}

    if where == "buffers":
        name = next(name for name, leaf in model.buffers.items() if leaf.dtype == jnp.float32)
        return model.replace(buffers={**model.buffers, name: jnp.full_like(model.buffers[name], value)})
    if where == "host":
        return model.replace(params={**model.params, "host": fill(model.params["host"])})
    return model.replace(params={**model.params, "kernels": {"0": {0: fill(model.params["kernels"]["0"][0])}}})


def in_state(state, alpha=1.0):
    return grown().replace(seeds=grown().seeds.set(0, 0, lifecycle=int(state), alpha=alpha))


FINITE = {
    "as it is": (lambda: grown(), True),
    "NaN in the host": (lambda: spoilt(grown(), "host"), False),
    "infinite host": (lambda: spoilt(grown(), "host", INF), False),
    "NaN in a buffer": (lambda: spoilt(grown(), "buffers"), False),
    "a mask of infinities": (lambda: spoilt(grown(), "buffers", -INF), True),
    "TRAINING": (lambda: spoilt(in_state(S.TRAINING, 0.0), "kernels"), False),
    "GRAFTING, not there yet": (lambda: spoilt(in_state(S.GRAFTING, 0.0), "kernels"), False),
    "ACTIVE": (lambda: spoilt(in_state(S.ACTIVE), "kernels"), False),
    "FOSSILIZED": (lambda: spoilt(in_state(S.FOSSILIZED), "kernels"), False),
    "CULLED": (lambda: spoilt(in_state(S.CULLED, 0.0), "kernels"), True),
    "ERROR_RECOVERY": (lambda: spoilt(in_state(S.ERROR_RECOVERY, 0.0), "kernels"), True),
}


@pytest.mark.parametrize("name", FINITE)
def test_finite(name):
    made, wanted = FINITE[name]
    found = jax.jit(finite)(made())
    assert found.dtype == jnp.bool_ and bool(found) is wanted


def test_spread():
    same, unlike = jnp.ones((8, 3)), jnp.tile(jnp.asarray([[1.0], [-1.0]]), (4, 3))
    assert float(spread(same)) == 0 and float(spread(unlike)) == 1
    assert float(spread({"logits": unlike, "hidden": jnp.ones((8, 1))})) == 0.75
    assert math.isnan(float(spread(jnp.arange(4)))) and math.isnan(float(spread(jnp.float32(1))))


@pytest.mark.parametrize("state", [S.TRAINING, S.GRAFTING, S.ACTIVE, S.ERROR_RECOVERY])
def test_going_back_culls_the_culprits(state):
    found = rolled_back(in_state(state), [("0", 0), ("2", 0)])
    assert found.seeds.lifecycle[0, 0] == S.CULLED and found.seeds.alpha[0, 0] == 0
    assert found.structure == grown().structure and found.seeds.lifecycle[1, 0] == S.DORMANT


@pytest.mark.parametrize("state", [S.FOSSILIZED, S.CULLED])
def test_going_back_leaves_what_may_not_be_culled(state):
    model = in_state(state)
    assert rolled_back(model, [("0", 0)]) is model


def test_going_back_compiles_nothing():
    rolled_back(in_state(S.ACTIVE), [("0", 0)])  # small operations are met for the first time
    model = in_state(S.GRAFTING)
    with counting_compiles() as counter:
        rolled_back(model, [("0", 0)])
        assert len(counter.take()) == 0
