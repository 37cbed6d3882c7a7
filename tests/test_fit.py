"""fit: what it takes, what it promises: reproducible, resumable, growth without stalls, a way back."""

import math
import re
import threading
import time
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from scripted import Script
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.configs import TamiyoSettings
from esper.errors import ArgumentError, UnknownBlueprintError
from esper.growth.policy import Cull, Germinate, Transition
from esper.lifecycle import SeedLifecycleState as S
from esper.train.change import Change, split
from esper.train.fit import fit
from esper.train.governor import Governor
from esper.train.objective import Objective, accuracy
from esper.train.stopping import EarlyStopping
from esper.train.stream import Shuffled, Stream

KEY = jax.random.key(7)
TX = optax.adamw(0.01)
GROWTH = TamiyoSettings(blend_steps=4, kernel_warmup_steps=2)


@cache
def examples():
    inputs = jax.random.normal(jax.random.key(5), (96, 6))
    labels = (inputs @ jax.random.normal(jax.random.key(6), (6, 3))).argmax(-1)
    return inputs, labels


@cache
def model():
    torch.manual_seed(0)
    return esper.wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 3)))


def run(**changes):
    kept = dict(tx=TX, steps=20, key=KEY, batch_size=16, every=5, validation=examples())
    data = changes.pop("data", examples())
    return fit(changes.pop("model", model()), data, **{**kept, **changes})


def sprout(seed=0, blueprint="mlp", layer="0"):
    return Germinate(layer, seed, blueprint, (("width", 4),) if blueprint == "mlp" else (), "by the script")


def move(seed, to):
    return Transition("0", seed, to, f"to {to.name}")


LIFE = ((sprout(),), (move(0, S.GRAFTING),), (move(0, S.ACTIVE),), (move(0, S.FOSSILIZED),))


def leaves(result):
    held = (result.model.params, result.model.buffers, result.model.seeds, result.opt_state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(held)]


def bit_equal(left, right):
    pairs = zip(leaves(left), leaves(right), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def events(result, *kinds):
    return [record for record in result.records if record.event in kinds]


# ---- what it takes --------------------------------------------------------------------------------------


def batches(kind):
    inputs, labels = (np.asarray(part) for part in examples())
    cut = [(inputs[i : i + 16], labels[i : i + 16]) for i in range(0, 96, 16)]
    match kind:
        case "numpy":
            return cut
        case "jax":
            return [tuple(map(jnp.asarray, batch)) for batch in cut]
        case "function":
            return lambda epoch: iter(cut)
        case "loader":
            return DataLoader(TensorDataset(torch.tensor(inputs), torch.tensor(labels)), batch_size=16)


@pytest.mark.parametrize("kind", ["numpy", "jax", "function", "loader"])
def test_batches_of_any_kind_train_alike(kind):
    assert bit_equal(run(data=batches(kind)), run(data=batches("numpy")))


def test_it_learns_and_reports():
    found = run(steps=60, metrics={"accuracy": accuracy})
    assert len(found.losses) == 12 and found.losses[-1] < found.losses[0]
    last = events(found, "evaluate")[-1]
    assert {"train_loss", "validation_loss", "validation_accuracy"} <= last.figures.keys()
    assert last.figures["validation_accuracy"] > 0.5 and found.stopped == ""
    assert found.records[0].event == "start" and found.records[-1].event == "end"


def test_an_objective_takes_batches_of_any_form():
    def squared(outputs, batch):
        return (outputs - batch["wanted"]) ** 2

    def call(model, batch, **how):
        return model.apply(batch["seen"], **how)

    inputs, _ = examples()
    data = {"seen": inputs, "wanted": inputs[:, :3]}
    metrics = {"largest": lambda outputs, batch: jnp.abs(outputs - batch["wanted"]).max()}
    found = run(data=data, validation=data, loss=Objective(squared, call), metrics=metrics)
    assert found.losses[-1] < found.losses[0]
    assert events(found, "evaluate")[0].figures["validation_largest"] > 0


def test_without_held_out_data_the_training_loss_counts():
    found = run(validation=None, steps=10)
    assert len(found.losses) == 2 and all(map(math.isfinite, found.losses))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is a whole number"),
        ({"every": 2.5}, "every is a whole number"),
        ({"loss": "hinge"}, "no loss 'hinge'"),
        ({"loss": 3}, "a loss is a name"),
        ({"loss": "mean_squared_error"}, "arrays of one shape"),
        ({"loss": lambda outputs, targets: targets}, "a loss is to be a floating number"),
        ({"validation": None, "growth": GROWTH}, "held-out data: give them as `validation`"),
        ({"data": []}, "no batch in epoch 0"),
        ({"data": 3}, "iterable of batches"),
        ({"data": [("words", 1)]}, "a batch is made of arrays"),
        ({"data": (np.ones((4, 6), np.float32), np.zeros(3, int))}, "arrays of one leading size"),
        (
            {"validation": [(np.ones((4, 6)), np.zeros(4, int)), (np.ones((3, 6)), np.zeros(3, int))] * 2},
            "these differ",
        ),
        ({"data": [(np.ones((4, 7), np.float32), np.zeros(4, int))]}, "[4, 7]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_fitted_is_said_before_anything_runs(changes, message):
    with pytest.raises(esper.errors.EsperError, match=re.escape(message)):
        run(**changes)


def test_an_iterator_that_is_used_up_is_said():
    with pytest.raises(ArgumentError, match="gives its batches once"):
        run(data=iter(batches("numpy")), steps=10)


def test_batches_of_another_shape_are_announced():
    inputs, labels = (np.asarray(part) for part in examples())
    cut = [(inputs[:16], labels[:16]), (inputs[16:24], labels[16:24])]
    found = run(data=cut, steps=8, every=4)
    (record,) = events(found, "shape")
    assert record.step == 1 and "8" in record.reason


# ---- reproducible and resumable -------------------------------------------------------------------------


def test_the_same_key_gives_the_same_run():
    assert bit_equal(run(), run())
    assert not bit_equal(run(), run(key=jax.random.key(8)))


def test_the_given_model_is_left_as_it_is():
    run()
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(model()))


@pytest.mark.parametrize("at", [5, 10, 20, 25])
@pytest.mark.parametrize("told", [True, False], ids=["told of an evaluation", "after a shorter run"])
def test_a_run_goes_on_from_any_evaluation_bit_for_bit(at, told):
    growing = dict(growth=GROWTH, policy=Script(LIFE))

    def pause(record, run):
        if record.event == "evaluate" and record.step == at:
            run.stop("for now")

    whole = grown_whole()
    part = run(**growing, steps=30, callbacks=[pause]) if told else run(**growing, steps=at)
    assert part.checkpoint.done == at and (part.stopped == "for now") is told
    rest = run(**growing, steps=30, resume=part.checkpoint)
    assert bit_equal(rest, whole)
    assert rest.losses == whole.losses
    records = [record for record in rest.records if record.event != "resume"]
    assert [(r.step, r.event) for r in records] == [(r.step, r.event) for r in whole.records]


@cache
def grown_whole():
    return run(growth=GROWTH, policy=Script(LIFE), steps=30)


def test_a_finished_run_goes_on_with_more_steps():
    assert bit_equal(run(steps=20, resume=run(steps=10).checkpoint), run(steps=20))
    with pytest.raises(ArgumentError, match="give more `steps`"):
        run(steps=10, resume=run(steps=10).checkpoint)


def test_a_stream_knows_where_it_is():
    source = model().structure.source
    data = Shuffled(examples(), 16, KEY)
    stream = Stream(data, source)
    seen = [next(stream) for _ in range(9)]
    assert (stream.epoch, stream.index) == (1, 3)
    again = Stream(data, source, 1, 1)
    assert again.peek() is again.peek() and (again.epoch, again.index) == (1, 1)
    for batch in seen[7:]:
        assert np.array_equal(next(again)[0], batch[0])


# ---- growth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("swap", "steps"), [("evaluation", 10), (0, 5), (3, 8), (7, 12)])
def test_a_germination_is_made_when_it_is_due(swap, steps):
    growth = GROWTH.model_copy(update={"swap": swap})
    found = run(growth=growth, policy=Script(LIFE[:1]))
    assert [record.step for record in events(found, "prepare")] == [5]
    (record,) = events(found, "germinate")
    assert (record.step, record.layer, record.figures["blueprint"]) == (steps, "0", "mlp")


def test_as_soon_as_it_is_compiled():
    def wait(run):
        while run.done == 8 and any(thread.name == "esper-prepare" for thread in threading.enumerate()):
            time.sleep(0.01)

    found = run(growth=GROWTH.model_copy(update={"swap": "ready"}), policy=Script(LIFE[:1]), steps=10, on_step=wait)
    (record,) = events(found, "germinate")
    assert 5 <= record.step <= 8 and record.waited < 1 and found.model.structure.kernels


@pytest.mark.parametrize("swap", ["evaluation", 0])
def test_only_germination_compiles(swap):
    learnt = dict(tx=optax.adamw(0.01), policy=Script(LIFE))  # an optimiser of its own, so that nothing is compiled yet
    found = run(growth=GROWTH.model_copy(update={"swap": swap}), steps=45, **learnt)
    (germination,) = events(found, "germinate")
    assert "jit(train_step)" in germination.programs
    kinds = ["grafting", "active", "fossilized"]
    assert [record.event for record in events(found, *kinds)] == kinds
    for record in found.records:
        if record.event not in ("start", "germinate", "end", "prepare") and record.step > 5:
            assert record.programs == (), record
    assert found.model.layers["0"].seeds.lifecycle[0] == S.FOSSILIZED


def test_a_germination_of_what_is_in_reserve_compiles_nothing():
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    waiting = esper.wrap(host, reserve={"0": ("mlp", {"width": 4})})
    found = run(model=waiting, growth=GROWTH.model_copy(update={"swap": 0}), policy=Script(LIFE[:1]), steps=15)
    (record,) = events(found, "germinate")
    assert "jit(train_step)" not in record.programs and "jit(evaluate)" not in record.programs
    assert found.model.structure.kernels and int(found.model.layers["0"].seeds.age[0]) == 10
    assert found.model.layers["0"].seeds.lifecycle[0] == S.TRAINING
    assert int(found.opt_state.kernels["0"][0].steps) == 10


def test_training_goes_on_while_a_germination_is_compiled():
    threads = set()
    seen = []

    def watch(run):
        threads.update(thread.name for thread in threading.enumerate())
        seen.append((run.done, len(run.model.structure.kernels)))

    found = run(growth=GROWTH, policy=Script(LIFE[:1]), steps=15, on_step=watch)
    assert "esper-prepare" in threads
    assert [kernels for step, kernels in seen if 5 < step <= 10] == [0] * 5 and seen[-1] == (15, 1)
    assert int(found.model.layers["0"].seeds.age[0]) == 5


def test_a_seed_is_loading_while_its_kernel_is_compiled():
    states = []
    found = run(
        growth=GROWTH,
        policy=Script(LIFE[:1]),
        on_step=lambda run: states.append(int(run.model.seeds.lifecycle[0, 0])),
    )
    assert states[:5] == [S.DORMANT] * 5 and states[5:10] == [S.LOADING] * 5 and states[10:] == [S.TRAINING] * 10
    assert events(found, "germinate")[0].step == 10


def test_a_training_kernel_leaves_the_host_bit_equal_to_a_run_without():
    grown, alone = run(growth=GROWTH, policy=Script(LIFE[:1])), run()
    assert grown.model.structure.kernels
    hosts = [jax.tree.leaves(found.model.params["host"]) for found in (grown, alone)]
    assert all(np.array_equal(a, b) for a, b in zip(*hosts, strict=True))


def test_what_was_culled_is_gone_from_the_result():
    found = run(growth=GROWTH, policy=Script((LIFE[0], (move(0, S.CULLED),))), steps=25)
    assert found.model.structure.kernels == () and found.gains == {}
    assert found.model.layers["0"].seeds.lifecycle[0] == S.CULLED


def test_a_germination_takes_along_what_was_culled():
    clearing = (Cull("0", 0, "its arrays go"), Transition("0", 0, S.DORMANT, "its rest is over"), sprout(0))
    found = run(growth=GROWTH, policy=Script((LIFE[0], (move(0, S.CULLED),), clearing)), steps=30)
    assert [record.step for record in events(found, "germinate")] == [10, 20]
    assert found.model.layers["0"].seeds.lifecycle[0] == S.TRAINING


def test_what_goes_wrong_aside_is_raised_where_training_is():
    with pytest.raises(UnknownBlueprintError, match="no blueprint 'nothing'"):
        run(growth=GROWTH, policy=Script(((sprout(0, "nothing"),),)))


@pytest.mark.parametrize("init", ["pairs", "gradmax", "tiny", "least_squares"])
def test_new_kernels_start_as_the_initialiser_says(init):
    found = run(growth=GROWTH, policy=Script(((replace(sprout(), init=init),),)), steps=10)
    (record,) = events(found, "germinate", "declined")
    assert record.figures["init"] == init and record.step == 10
    if record.event == "declined":
        assert record.figures["init_scale"] == 0 and found.model.layers["0"].seeds.lifecycle[0] == S.DORMANT
    else:
        kernel = found.model.params["kernels"]["0"][0]
        drawn = run(growth=GROWTH, policy=Script(LIFE[:1]), steps=10).model.params["kernels"]["0"][0]
        assert any(not np.array_equal(kernel[name], drawn[name]) for name in kernel)


def test_a_kernel_that_an_initialiser_finds_not_worth_having_does_not_germinate():
    inputs, labels = examples()
    noise = (jax.random.normal(jax.random.key(9), inputs.shape), labels)
    fitted = replace(sprout(), init="least_squares")
    found = run(data=noise, validation=examples(), growth=GROWTH, policy=Script(((fitted,),)), steps=10)
    (record,) = events(found, "declined")
    assert "no scale" in record.reason and not events(found, "germinate")
    assert found.model.structure.kernels == () and found.model.layers["0"].seeds.lifecycle[0] == S.DORMANT


def test_actions_are_split_by_the_seeds_whose_kernels_move():
    actions = (move(1, S.CULLED), Cull("0", 0, ""), Transition("0", 0, S.DORMANT, ""), sprout(0))
    assert split(actions) == (actions[:1], actions[1:])


def test_a_race_is_judged_by_tamiyo():
    growth = TamiyoSettings(
        trigger="always",
        blueprints={"Linear": ["mlp", "low_rank"]},
        race=2,
        train_steps=20,
        blend_steps=5,
        hold_steps=5,
        rank=4,
    )
    found = run(growth=growth, steps=60)
    assert [r.figures["blueprint"] for r in events(found, "germinate")[:2]] == ["mlp", "low_rank"]
    assert events(found, "grafting", "culled")
    assert all(record.reason for record in events(found, "grafting", "culled", "germinate"))


# ---- health ---------------------------------------------------------------------------------------------


def poisoned(when):
    """Batches of which those numbered `when` hold a NaN; numbers go on from epoch to epoch."""
    cut = batches("numpy")

    def epoch(number):
        for place, (inputs, labels) in enumerate(cut):
            bad = number * len(cut) + place in when
            yield (np.full_like(inputs, np.nan) if bad else inputs), labels

    return epoch


def test_a_failed_stretch_is_done_again_with_other_data():
    found = run(data=poisoned({8}), steps=20)
    (record,) = events(found, "rollback")
    assert (record.step, record.figures["back_to"], record.figures["retry"]) == (10, 5, 1)
    assert "not finite" in record.reason
    assert found.checkpoint.done == 20 and found.stopped == "" and len(found.losses) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.model.params))


def test_a_run_that_keeps_failing_ends_where_it_was_sound():
    found = run(data=poisoned(set(range(7, 99))), steps=20, governor=Governor(retries=2))
    assert [record.event for record in events(found, "rollback", "give_up")] == ["rollback", "rollback", "give_up"]
    assert found.stopped.startswith("given up: not finite") and found.checkpoint.done == 5
    assert bit_equal_host(found, run(data=batches("numpy"), steps=5))


def bit_equal_host(left, right):
    pairs = zip(jax.tree.leaves(left.model.params), jax.tree.leaves(right.model.params), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_without_a_governor_nothing_goes_back():
    found = run(data=poisoned({8}), steps=20, governor=None)
    assert not events(found, "rollback") and not math.isfinite(found.losses[-1])


def test_going_back_takes_seeds_and_optimiser_along():
    """A kernel that entered after the last sound point is gone, with its optimiser's state; the host is as it was."""
    found = run(data=poisoned({12}), steps=13, every=5, growth=GROWTH, policy=Script(LIFE[:1]))
    (record,) = events(found, "rollback")
    assert (
        record.step == 13 and record.figures["back_to"] == 10 and [r.step for r in events(found, "germinate")] == [10]
    )
    assert found.model.layers["0"].seeds.lifecycle[0] == S.DORMANT and found.model.structure.kernels == ()
    assert found.opt_state.kernels == {}


def test_a_change_on_its_way_is_dropped_when_the_run_goes_back():
    found = run(data=poisoned({8}), steps=20, growth=GROWTH, policy=Script(LIFE[:1]))
    assert events(found, "rollback")[0].figures["back_to"] == 5
    assert not events(found, "germinate")
    assert found.model.layers["0"].seeds.lifecycle[0] == S.DORMANT


# ---- stopping and telling -------------------------------------------------------------------------------


def test_it_stops_early():
    found = run(steps=500, tx=optax.sgd(0.0), early_stopping=EarlyStopping(patience=3))
    assert found.checkpoint.done == 20 and "has not improved" in found.stopped
    assert events(found, "end")[0].reason == found.stopped
    with pytest.raises(ArgumentError, match="patience is at least 1"):
        EarlyStopping(patience=0)


def test_callbacks_are_told_everything_and_may_stop_the_run():
    told = []

    def listen(record, run):
        told.append(record)
        if record.event == "evaluate" and record.step == 10:
            run.stop("enough")

    found = run(callbacks=[listen])
    assert told == list(found.records) and found.stopped == "enough" and found.checkpoint.done == 10


def test_steps_do_not_wait_for_the_device():
    found = []

    def watch(run):
        if run.done % 5 == 1:
            found.append(jax.transfer_guard_device_to_host("disallow"))
            found[-1].__enter__()
        elif run.done % 5 == 4:
            found.pop().__exit__(None, None, None)

    run(on_step=watch)
    assert not found


def test_a_checkpoint_is_plain_data_with_its_own_arrays():
    kept = []
    run(callbacks=[lambda record, run: kept.append(run.checkpoint()) if record.event == "evaluate" else None])
    assert [checkpoint.done for checkpoint in kept] == [5, 10, 15, 20]
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves([checkpoint.state for checkpoint in kept]))
    assert Change((), 0, None, KEY).due is None
