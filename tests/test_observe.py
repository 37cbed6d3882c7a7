"""From a model to what a policy sees: what was asked for is measured, and nothing else."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch import manual_seed, nn

import esper
from esper.growth.plans import plans
from esper.growth.policy import Asks, Plan
from esper.lifecycle import SeedLifecycleState as S
from esper.train.observe import growing, measured, observed, with_health, with_measurements

KEY = jax.random.key(0)
X, Y = jax.random.normal(KEY, (4, 8, 6)), jnp.ones((4, 8, 3))


def squared(model, batch):
    return jnp.mean((model(batch[0]) - batch[1]) ** 2)


@cache
def model():
    manual_seed(0)
    made = esper.wrap(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), seeds_per_layer=2)
    for layer, seed, state in (("0", 0, S.TRAINING), ("0", 1, S.FOSSILIZED), ("2", 1, S.CULLED)):
        made, _ = esper.germinate(
            made, None, layer=layer, seed=seed, blueprint="low_rank", key=KEY, options={"rank": 2}
        )
        row = made.structure.row(layer)
        made = made.replace(seeds=made.seeds.set(row, seed, lifecycle=int(state), age=9, last_update=4))
    return made


def test_which_kernels_are_on_their_way():
    assert growing(model()) == (("0", 0),)
    assert growing(model(), fossilised=True) == (("0", 0), ("0", 1))


def views(found=None, **how):
    planned = plans(model(), {"*": ["mlp", "low_rank"]}, 2)
    return {layer.name: layer for layer in observed(model(), np.asarray([1.0, 2.0]), planned, found, **how)}


def test_what_a_policy_sees_of_seeds_and_layers():
    seen = views()
    first, second = seen["0"], seen["2"]
    assert (first.kind, first.pull, second.pull) == ("Linear", 1.0, 2.0)
    assert [plan.blueprint for plan in first.plans] == ["mlp", "low_rank"] and first.plan is first.plans[0]
    assert [(seed.state, seed.blueprint, seed.since) for seed in first.seeds] == [
        (S.TRAINING, "low_rank", 5),
        (S.FOSSILIZED, "low_rank", 5),
    ]
    assert [(seed.state, seed.parameters) for seed in second.seeds] == [(S.DORMANT, 0), (S.CULLED, 2 * (5 + 3))]
    assert first.growing == first.seeds[:1] and second.growing == ()


def test_what_is_arriving_is_shown_with_what_it_will_cost():
    (seed, _) = views(arriving={("2", 0): Plan("mlp", (), 7, 8, 9)})["2"].seeds
    assert (seed.state, seed.blueprint, seed.parameters, seed.flops, seed.bytes) == (S.LOADING, "mlp", 7, 8, 9)


@pytest.mark.parametrize(
    "asks",
    [
        Asks(),
        Asks(gains=(("0", 0),)),
        Asks(credits=(("0", 0), ("0", 1))),
        Asks(scores=("2",)),
    ],
    ids=["nothing", "gains", "credits", "scores"],
)
def test_what_is_asked_for_is_measured_and_nothing_else(asks):
    found = measured(squared, model(), (X, Y), asks, rank=2)
    assert (tuple(found.gains), tuple(found.credits), tuple(found.scores)) == (asks.gains, asks.credits, asks.scores)
    for layer in with_measurements(tuple(views().values()), found):
        assert layer.score == found.scores.get(layer.name)
        for seed in layer.seeds:
            assert seed.gain == found.gains.get(seed.place) and seed.credit == found.credits.get(seed.place)
    figures = found.figures()
    assert len(figures) == 2 * len(asks.gains) + 2 * len(asks.credits) + len(asks.scores)
    assert all(isinstance(value, float) for value in figures.values())
    healthy = np.asarray(with_health(model(), found.gains).seeds.health)
    assert np.isfinite(healthy).sum() == len(asks.gains)
