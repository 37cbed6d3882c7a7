"""Shapley values of kernels: the axioms that define them, exact and drawn."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch import manual_seed, nn

import esper
from esper.errors import ArgumentError
from esper.growth.credit import credit
from esper.growth.shapley import coalition_losses, shapley
from esper.lifecycle import SeedLifecycleState as S
from esper.train.compiles import counting_compiles

KEY = jax.random.key(0)
BATCHES = jnp.arange(5.0)
PLACES = [("0", 0), ("0", 1), ("2", 0), ("2", 1), ("4", 0), ("4", 1)]


@cache
def model():
    """Six kernels, in several states; the losses below read the seeds only."""
    manual_seed(0)
    host = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    made = esper.wrap(host, [nn.Linear], seeds_per_layer=2)
    states = (S.ACTIVE, S.TRAINING, S.GRAFTING, S.FOSSILIZED, S.ACTIVE, S.ACTIVE)
    for (layer, seed), state in zip(PLACES, states, strict=True):
        made, _ = esper.germinate(made, None, layer=layer, seed=seed, blueprint="low_rank", key=KEY)
        row = made.structure.row(layer)
        made = made.replace(seeds=made.seeds.set(row, seed, lifecycle=int(state), alpha=0.5))
    return made


def on(model):
    """Which kernels take part: 1 or 0 each, in the order of PLACES."""
    return jnp.where(model.seeds.live(), model.seeds.alpha, 0.0).ravel()


def game(model, batch):
    """Kernel 0 gains 1; 1 and 2 gain 1 + batch together only; 3 does harm; 4 does nothing; 5 helps 0 and 3."""
    x = on(model)
    return 10.0 - x[0] - (1 + batch) * x[1] * x[2] + 0.5 * x[3] - 0.25 * x[5] * (x[0] + x[3])


def expected(batch):
    pair = (1 + batch) / 2
    return np.stack([1 + 0.125 + 0 * batch, pair, pair, -0.5 + 0.125 + 0 * batch, 0 * batch, 0.25 + 0 * batch])


def test_up_to_four_are_exact():
    found = shapley(game, model(), BATCHES, PLACES[:4])
    # Kernel 5 stays as it is, on at 0.5, so 0 and 3 gain another 0.125 each.
    per_batch = np.stack([np.full(5, 1.125), *[(1 + np.arange(5)) / 2] * 2, np.full(5, -0.375)])
    for place, wanted in zip(PLACES, per_batch, strict=False):
        assert found[place].mean == pytest.approx(wanted.mean(), abs=1e-5)
        assert found[place].stderr == pytest.approx(wanted.std(ddof=1) / math.sqrt(5), abs=1e-5)
        assert found[place].batches == 5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_values_sum_to_what_all_gain_together(count):
    found = shapley(game, model(), BATCHES, PLACES[:count], key=KEY, permutations=8)
    assert list(found) == PLACES[:count]
    state = [S.CULLED, S.ACTIVE]
    arms = [np.asarray(model().seeds.lifecycle), np.asarray(model().seeds.lifecycle)]
    alphas = [np.asarray(model().seeds.alpha), np.asarray(model().seeds.alpha)]
    for arm in (0, 1):
        arms[arm], alphas[arm] = arms[arm].copy(), alphas[arm].copy()
        arms[arm].ravel()[:count], alphas[arm].ravel()[:count] = int(state[arm]), float(arm)
    none, every = np.asarray(coalition_losses(game, model(), BATCHES, np.stack(arms), np.stack(alphas)), np.float64)
    assert math.fsum(gain.mean for gain in found.values()) == pytest.approx((none - every).mean(), rel=1e-12)
    for gain in found.values():
        assert gain.having == pytest.approx(every.mean(), rel=1e-12)
        assert gain.without - gain.having == pytest.approx(gain.mean, rel=1e-9, abs=1e-12)


def test_equals_have_equal_values_and_one_that_changes_nothing_has_none():
    found = shapley(game, model(), BATCHES, [PLACES[1], PLACES[2], PLACES[4]])
    assert found[PLACES[1]].mean == found[PLACES[2]].mean and found[PLACES[1]].stderr == found[PLACES[2]].stderr
    assert (found[PLACES[4]].mean, found[PLACES[4]].stderr) == (0.0, 0.0)
    drawn = shapley(game, model(), BATCHES, PLACES, key=KEY)
    assert (drawn[PLACES[4]].mean, drawn[PLACES[4]].stderr) == (0.0, 0.0)


def test_drawn_values_agree_with_the_exact_ones_within_their_errors():
    wanted = expected(np.arange(5.0))
    misses = []
    for number in range(12):
        found = shapley(game, model(), BATCHES, PLACES, key=jax.random.key(number), permutations=16)
        over_batches = wanted.std(axis=1, ddof=1) / math.sqrt(5)
        for place, value, least in zip(PLACES, wanted.mean(axis=1), over_batches, strict=True):
            assert found[place].stderr >= least * 0.6
            misses.append(abs(found[place].mean - value) > 2.5 * found[place].stderr + 1e-5)
    assert np.mean(misses) < 0.05
    first, again = (shapley(game, model(), BATCHES, PLACES, key=KEY, permutations=16) for _ in range(2))
    assert first == again


X, Y = jax.random.normal(KEY, (3, 8, 3)), jnp.arange(72.0).reshape(3, 8, 3) / 30


def squared(model, batch):
    return jnp.mean((model(batch[0]) - batch[1]) ** 2)


def test_alone_it_is_the_plain_gain():
    noisy = jax.tree.map(lambda leaf: leaf + 0.3 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), model().params)
    grown = model().replace(params={**model().params, "kernels": noisy["kernels"]})
    (alone,) = shapley(squared, grown, (X, Y), [("2", 0)]).values()
    plain = credit(squared, grown, (X, Y), layer="2", seed=0)
    assert plain.mean != 0
    np.testing.assert_allclose(
        [alone.mean, alone.stderr, alone.without, alone.having],
        [plain.mean, plain.stderr, plain.without, plain.having],
        rtol=1e-5,
        atol=1e-6,
    )


def test_one_compile_for_a_number_of_kernels():
    with counting_compiles() as counter:
        shapley(lone, model(), BATCHES, PLACES[:3])
        assert "jit(coalition_losses)" in counter.take().programs
        for places in (PLACES[1:4], PLACES[2:5]):
            shapley(lone, model(), BATCHES, places)
        assert len(counter.take()) == 0


def lone(model, batch):
    return on(model).sum() + batch


def test_a_single_batch_has_no_standard_error():
    found = shapley(game, model(), BATCHES[:1], PLACES[:2])
    assert all(math.isnan(gain.stderr) for gain in found.values())


@pytest.mark.parametrize(
    ("places", "how", "match"),
    [
        (PLACES[:1] * 2, {}, "once"),
        (PLACES, {}, "give a key"),
        (PLACES, dict(key=KEY, permutations=7), "even"),
        (PLACES, dict(key=KEY, permutations=2), "at least 4"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(places, how, match):
    with pytest.raises(ArgumentError, match=match):
        shapley(game, model(), BATCHES, places, **how)


def test_nobody_shares_nothing():
    assert shapley(game, model(), BATCHES, []) == {}
