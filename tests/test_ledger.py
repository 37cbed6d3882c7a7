"""The books: what is counted, that parts add up to what runs, and where entries go."""

import json
from functools import cache, partial
from io import StringIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from rich.console import Console
from torch import manual_seed, nn

import esper
from esper.errors import ArgumentError, SeedError
from esper.growth.isolation import isolated_loss
from esper.growth.optimizer import per_kernel
from esper.growth.recovery import recovered
from esper.jax_backend.flops import flops
from esper.lifecycle import SeedLifecycleState as S
from esper.train.ledger import Ledger, Spent, interval, kernel_names
from esper.train.step_cost import (
    StepCost,
    evaluation_flops,
    gain_flops,
    places,
    statistics_flops,
    step_flops,
)

TX = per_kernel(optax.adam(1e-2))
EXAMPLES, INPUTS, WIDTH, OUTPUTS = 64, 32, 64, 48
HELD_OUT = (jnp.ones((4, EXAMPLES, INPUTS)), jnp.zeros((4, EXAMPLES, OUTPUTS)))
BATCH = (HELD_OUT[0][0], HELD_OUT[1][0])


def training(model, batch, key):
    made, moved = model.apply(batch[0], train=True, key=key)
    return jnp.mean((made - batch[1]) ** 2), moved


def held_out(model, batch):
    return training(model, batch, jax.random.key(0))[0]


def wrapped(**options):
    manual_seed(0)
    layers = nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUTPUTS)
    return esper.wrap(nn.Sequential(*layers), **options)


@cache
def host():
    model = wrapped(seeds_per_layer=2)
    model(BATCH[0])
    return model


@cache
def grown(**states):
    """The host with a kernel in each state, by layer: {"l0": state} is seed 0 of layer "0", {"l2_1": ...} seed 1."""
    model = host()
    for where, state in states.items():
        layer, _, seed = where[1:].partition("_")
        place = {"layer": layer, "seed": int(seed or 0)}
        model, _ = esper.germinate(model, None, **place, blueprint="mlp", options={"width": 16}, key=jax.random.key(1))
        model = model.replace(
            seeds=model.seeds.set(
                model.structure.row(layer), place["seed"], lifecycle=int(state), alpha=float(state != S.TRAINING)
            )
        )
    return model


def cost(model, race=1):
    live, trains = places(model)
    return step_flops(training, model, BATCH, TX, live=live, training=trains, race=race)


def real(loss, model):
    """Operations of a step as it stands in a loop."""

    def step(model, opt_state, key):
        def value(params):
            return loss(lambda m: training(m, BATCH, key), model.replace(params=params))

        (_, moved), grads = jax.value_and_grad(value, has_aux=True)(model.params)
        moved, grads = recovered(moved, grads)
        updates, opt_state = TX.update(grads, opt_state, moved.params)
        return moved.replace(params=optax.apply_updates(moved.params, updates)), opt_state

    return flops(step, model, TX.init(model.params), jax.random.key(0))


def plain(loss, model):
    return loss(model)


def near(found, wanted, share):
    assert abs(found - wanted) <= share * wanted, (found, wanted)


# Counting single operations.


def gathered(table):
    return (table[jnp.arange(5)] ** 2).sum()


def both(flag, x):
    return lax.cond(flag, lambda x: jnp.sin(jnp.cos(x)), lambda x: jnp.tan(x), x)


ROWS = jnp.ones((100, 8))
WINDOW = partial(lax.reduce_window, window_dimensions=(2, 2), window_strides=(2, 2), padding="VALID")
COUNTS = {
    "adding to rows: each update": (lambda x: x.at[jnp.array([3, 4])].add(1.0, mode="clip"), (ROWS,), 2 * 8, 8),
    "setting rows": (lambda x: x.at[np.array([[3], [4]])].set(1.0, mode="clip"), (ROWS,), 0, 8),
    "a sum": (jnp.sum, (ROWS,), 800, 0),
    "a reduction of one's own": (lambda x: lax.reduce(x, 1.0, lambda a, b: a * b, (0,)), (ROWS,), 800, 8),
    "pooling": (lambda x: WINDOW(x, 0.0, lax.add), (ROWS,), 800, 0),
    "pooling, its gradient": (jax.grad(lambda x: WINDOW(x, -jnp.inf, lax.max).sum()), (ROWS,), 800 + 800 + 200, 0),
    "a running sum": (jnp.cumsum, (ROWS,), 800, 0),
    "sorting": (jnp.sort, (ROWS,), 800, 0),
    "the largest": (lambda x: lax.top_k(x, 2)[0], (ROWS,), 800, 0),
    "a function with a rule": (jax.nn.relu, (ROWS,), 800, 0),
    "a loop of unknown length": (lambda x: lax.while_loop(lambda c: c[0, 0] < 3, jnp.sin, x), (ROWS,), 800, 1),
    "a scan": (lambda x: lax.scan(lambda c, row: (jnp.sin(row), None), x[0], x)[0], (ROWS,), 800, 0),
    "a barrier": (lax.optimization_barrier, (ROWS,), 0, 0),
    "a branch: its dearest side": (both, (True, ROWS), 1600, 0),
    "a mapped branch: both": (jax.vmap(both), (jnp.ones(100, bool), ROWS), 2400, 200),
    "a convolution": (lambda x, w: lax.conv(x, w, (2, 2), "VALID"), (jnp.ones((1, 3, 9, 9)), jnp.ones((4, 3, 3, 3))),
                      2 * (4 * 4 * 4) * 27, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_operations(name):
    function, arguments, wanted, slack = COUNTS[name]
    assert wanted <= flops(function, *arguments) <= wanted + slack


def test_a_strided_convolution_takes_backward_what_it_takes_forward():
    x, w = jnp.ones((2, 3, 16, 16)), jnp.ones((4, 3, 2, 2))
    conv = partial(lax.conv, window_strides=(2, 2), padding="VALID")
    once = flops(conv, x, w)
    near(flops(lambda x, w: jax.vjp(conv, x, w)[1](jnp.ones((2, 4, 8, 8))), x, w), 3 * once, 0.01)


# A training step.


def test_a_step_takes_three_forwards_less_the_gradient_of_the_inputs():
    found = cost(host())
    matrices = 2 * EXAMPLES * (3 * (WIDTH * WIDTH + WIDTH * OUTPUTS) + 2 * INPUTS * WIDTH)
    near(found.host, matrices, 0.05)
    assert (found.kernels, found.isolation, found.live, found.training) == (0, 0, (), ())
    near(found.optimizer, 14 * sum(leaf.size for leaf in host().params["host"].values()), 0.5)


def test_an_empty_seed_costs_nothing():
    assert cost(host()) == cost(wrapped(target_layers=[]))


@pytest.mark.parametrize("states", [{}, {"l0": S.ACTIVE}, {"l0": S.FOSSILIZED, "l2": S.GRAFTING}])
def test_parts_add_up_to_the_step_without_isolation(states):
    model = grown(**states)
    found = cost(model)
    near(found.total, real(plain, model), 0.002)
    assert found.isolation == 0 and (found.kernels > 0) is bool(states)


@pytest.mark.parametrize("race", [1, 2])
def test_parts_add_up_to_the_step_with_isolation(race):
    model = grown(l0=S.TRAINING, l2=S.TRAINING, l4=S.ACTIVE)
    live = grown(l4=S.ACTIVE)
    passes = real(partial(isolated_loss, race=race), model) - real(plain, model)
    found = cost(model, race)
    near(found.isolation, passes, 0.02)
    assert found.kernels == cost(live).kernels


def test_a_training_kernel_shows_in_isolation_only():
    found = cost(grown(l2=S.TRAINING))
    assert (found.host, found.kernels) == (cost(host()).host, 0)
    assert found.training == ((("2", 0), found.isolation),) and found.live == ()
    # The frozen host: a forward, and a backward from the loss to the kernel; the kernel: three forwards.
    forward, back = INPUTS * WIDTH + WIDTH * WIDTH + WIDTH * OUTPUTS, WIDTH * OUTPUTS
    near(found.isolation, 2 * EXAMPLES * (forward + back + 3 * 2 * WIDTH * 16), 0.05)


def test_arms_of_a_race_cost_what_follows_the_kernel():
    model = grown(l0=S.TRAINING, l0_1=S.TRAINING)
    assert 1.3 * cost(model, 1).isolation < cost(model, 2).isolation < 2 * cost(model, 1).isolation
    assert cost(model, 2) == cost(model, 5)  # never more arms than kernels
    assert len(cost(grown(l0=S.TRAINING, l0_1=S.TRAINING, l2=S.TRAINING), 2).training) == 2  # the third waits


def test_a_kernel_that_is_off_is_computed_beside_one_that_is_on():
    alone, beside = cost(grown(l2=S.ACTIVE)), cost(grown(l2=S.ACTIVE, l2_1=S.CULLED))
    assert cost(grown(l2=S.CULLED)).kernels == 0
    near(beside.kernels, 2 * alone.kernels, 0.1)
    assert beside.live == ((("2", 0), beside.kernels),)


def test_the_work_of_live_kernels_is_divided_among_them():
    found = cost(grown(l0=S.FOSSILIZED, l2=S.GRAFTING))
    assert sum(own for _, own in found.live) == found.kernels
    (_, small), (_, large) = found.live  # the layer of 32 inputs, and that of 64
    assert 0 < small < large


def test_a_count_is_remembered(monkeypatch):
    model = grown(l0=S.ACTIVE)
    found = cost(model)
    monkeypatch.setattr("esper.train.step_cost.flops", None)
    trained = model.replace(params=jax.tree.map(lambda leaf: leaf + 1, model.params))
    assert cost(trained) is found


def test_counting_compiles_and_runs_nothing():
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (grown(l0=S.ACTIVE), BATCH))
    live, _ = places(grown(l0=S.ACTIVE))
    assert step_flops(training, *abstract, TX, live=live, training=()) == cost(grown(l0=S.ACTIVE))


def test_a_seed_without_a_kernel_has_no_work():
    with pytest.raises(SeedError, match="layer '2', seed 1 holds no kernel"):
        step_flops(training, grown(l2=S.ACTIVE), BATCH, TX, live=[("2", 1)], training=[])


# Measurements.


def test_an_evaluation_is_a_forward_of_every_batch():
    forward = 2 * EXAMPLES * (INPUTS * WIDTH + WIDTH * WIDTH + WIDTH * OUTPUTS)
    near(evaluation_flops(held_out, host(), HELD_OUT, live=()), 4 * forward, 0.05)
    model = grown(l2=S.TRAINING)
    assert evaluation_flops(held_out, model, HELD_OUT, live=()) == evaluation_flops(held_out, host(), HELD_OUT, live=())
    assert evaluation_flops(held_out, model, HELD_OUT, live=[("2", 0)]) > 4 * forward


def test_a_gain_has_two_arms():
    model = grown(l2=S.ACTIVE)
    once = evaluation_flops(held_out, model, HELD_OUT, live=[("2", 0)])
    behind = 4 * 2 * EXAMPLES * WIDTH * OUTPUTS
    assert once + behind < gain_flops(held_out, model, HELD_OUT) < 2 * once  # what lies before the kernel is shared


def test_statistics_are_a_step_and_products_of_what_the_layer_sees():
    model = host()
    found = statistics_flops(held_out, model, HELD_OUT, layers=["2"], live=())
    forward = 2 * (INPUTS * WIDTH + WIDTH * WIDTH + WIDTH * OUTPUTS)
    products = 2 * ((WIDTH + 1) ** 2 + (WIDTH + 1) * WIDTH + WIDTH**2)
    back = 2 * WIDTH * OUTPUTS  # from the loss to the layer's output
    near(found, 4 * EXAMPLES * (forward + products + back), 0.05)


# The books.

NAMES = {("0", 0): ("0", 0, 7), ("2", 0): ("2", 0, 8)}
COST = StepCost(100, 20, 40, 10, live=((("0", 0), 20),), training=((("2", 0), 40),))


def test_an_interval_goes_to_training_and_isolation():
    books = interval(Ledger(), COST, steps=10, seconds=1.7, names=NAMES)
    assert books.phases["train"] == Spent(1300, pytest.approx(1.3), 10)
    assert books.phases["isolation"] == Spent(400, pytest.approx(0.4), 10)
    assert books.kernels == {("0", 0, 7): 200, ("2", 0, 8): 400}
    assert books.total_flops == 10 * COST.total and books.total_seconds == pytest.approx(1.7)
    assert "isolation" not in interval(Ledger(), StepCost(100, 0, 0, 10), steps=1, seconds=1, names={}).phases


def test_a_ledger_does_not_change():
    first = Ledger().add("train", flops=1)
    first.add("train", flops=1)
    first.sized(3, 10)
    assert first == Ledger().add("train", flops=1)


def test_culled_work_is_that_of_kernels_that_did_not_stay():
    books = interval(Ledger(), COST, steps=10, seconds=1, names=NAMES)
    assert books.culled_flops == 0
    assert books.settled([("0", 0, 7)]).culled_flops == 400
    assert books.settled([("0", 0, 99)]).culled_flops == 600  # another kernel in the same seed


def test_what_is_thrown_away_is_counted_once():
    before = interval(Ledger().sized(0, 50), COST, steps=10, seconds=1, names=NAMES)
    later = interval(before, COST, steps=5, seconds=0.5, names=NAMES).add("compile", seconds=2, count=3)
    later = later.add("evaluation", flops=11).sized(10, 70)
    back = later.thrown_away(before)
    assert back.total_flops == later.total_flops and back.total_seconds == pytest.approx(later.total_seconds)
    assert back.phases["train"] == before.phases["train"] and back.phases["isolation"] == before.phases["isolation"]
    assert back.phases["rollback"] == Spent(5 * COST.total, pytest.approx(0.5), 5, 1)
    assert back.phases["compile"].count == 3 and back.kernels == later.kernels and back.parameters == ((0, 50),)
    again = interval(back, COST, steps=2, seconds=0.1, names=NAMES).thrown_away(before)
    assert again.phases["rollback"].steps == 7 and again.phases["rollback"].count == 2
    with pytest.raises(ArgumentError, match="later than this one"):
        before.thrown_away(later)


def test_parameters_are_noted_when_they_change():
    assert Ledger().sized(0, 5).sized(10, 5).sized(20, 8).parameters == ((0, 5), (20, 8))


def full():
    books = interval(Ledger().sized(0, 5), COST, steps=10, seconds=1.5, names=NAMES).add("compile", seconds=2, count=3)
    return books.add("evaluation", flops=300, seconds=0.5, count=2).settled([("0", 0, 7)])


def test_a_ledger_survives_json():
    for books in (Ledger(), full()):
        assert Ledger.from_dict(json.loads(json.dumps(books.as_dict()))) == books


@pytest.mark.parametrize(
    "spoil",
    [
        lambda plain: plain.pop("kernels"),
        lambda plain: plain["phases"].update(lunch={"flops": 1}),
        lambda plain: plain["phases"].update(train={"joules": 1}),
        lambda plain: plain.update(kernels=[["0", 1]]),
    ],
)
def test_what_is_no_ledger(spoil):
    plain = full().as_dict()
    spoil(plain)
    with pytest.raises(ArgumentError, match="this is no ledger"):
        Ledger.from_dict(plain)


def test_entries_that_cannot_be():
    with pytest.raises(ArgumentError, match="no phase 'lunch'"):
        Ledger().add("lunch")
    with pytest.raises(ArgumentError, match="not negative"):
        Ledger().add("train", flops=-1)


def test_names_tell_one_kernel_of_a_seed_from_the_next():
    model = grown(l0=S.ACTIVE)
    (name,) = kernel_names(model).values()
    assert name == ("0", 0, int(model.seeds.kernel_id[0, 0])) and name[2] != 0


def test_the_table():
    from esper.train.report import ledger_table

    rows = {row.phase: row for row in full().table()}
    assert list(rows) == ["train", "isolation", "evaluation", "compile"]
    assert sum(row.share for row in rows.values()) == pytest.approx(1) and rows["isolation"].share == 0.2
    console = Console(width=140, file=StringIO())
    console.print(ledger_table(full()))
    shown = console.file.getvalue()
    for text in ("isolation", "20.0%", "2.00 k", "kernels that did not stay", "5 from step 0"):
        assert text in shown, shown
