"""fit keeps the device busy: nothing of a step waits for it, batches are fetched ahead, and by how far is bounded."""

import threading
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import esper
from esper.errors import EsperError
from esper.train.ahead import STEPS
from esper.train.fit import fit
from esper.train.objective import cross_entropy
from esper.train.stream import Stream

KEY = jax.random.key(7)
TX = optax.sgd(0.01)


def model():
    torch.manual_seed(0)
    return esper.wrap(nn.Linear(3, 2), target_layers=[])


def batches(count=10, size=4):
    found = []
    for at in range(count):
        inputs = np.random.default_rng(at).normal(size=(size, 3)).astype(np.float32)
        found.append((inputs, (inputs.sum(1) > 0).astype(np.int32)))
    return found


def run(data, steps=10, **changes):
    return fit(model(), data, **{"tx": TX, "steps": steps, "key": KEY, "every": steps, "governor": None, **changes})


def slow(logits, labels):
    """Cross-entropy, and work that takes a device many times as long as the host needs for a step."""
    square = jnp.full((200, 200), logits[0, 0])
    square = jax.lax.fori_loop(0, 30, lambda _, x: jnp.tanh(x @ x), jax.lax.stop_gradient(square))
    return cross_entropy(logits, labels) + 1e-9 * square.mean()


# ---- the host does not wait -----------------------------------------------------------------------------


def test_no_step_is_waited_for():
    done = []
    run(batches(), loss=slow, on_step=lambda run: done.append(run.model.params["host"]["weight"].is_ready()))
    assert done == [False] * 10


def test_the_host_is_ahead_by_a_bounded_number_of_steps():
    marks, leads, apart = [], [], 4

    def on_step(run):
        if run.done % apart == 0:
            marks.append(jnp.copy(run.model.params["host"]["weight"]))
        leads.append(run.done - apart * sum(mark.is_ready() for mark in marks))

    on_device = jax.tree.map(jnp.asarray, batches())  # each that is put there counts as work under way
    run(on_device, steps=40, loss=slow, on_step=on_step)
    assert apart < max(leads) < 2 * STEPS + apart


def test_the_next_batch_is_fetched_before_the_step_is_told():
    events = []

    def epoch(number):
        for at, batch in enumerate(batches(3)):
            events.append(f"batch {number}.{at}")
            yield batch

    run(epoch, steps=4, on_step=lambda run: events.append(f"step {run.done}"))
    assert events == ["batch 0.0", "batch 0.1", "step 1", "batch 0.2", "step 2", "batch 1.0", "step 3", "step 4"]


# ---- and nobody notices ---------------------------------------------------------------------------------


def test_a_checkpoint_counts_consumed_batches_and_a_run_goes_on_from_it():
    seen, kept = [], {}

    def epoch(number):
        for at, batch in enumerate(batches(3)):
            seen.append((number, at))
            yield batch

    def keep(run):
        kept[run.done] = run.checkpoint()

    whole = run(epoch, steps=8, on_step=keep)
    assert [(kept[step].epoch, kept[step].index) for step in range(1, 8)] == [
        (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 1)
    ]  # fmt: skip
    for step in (2, 3, 4):
        seen.clear()
        again = run(epoch, steps=8, resume=kept[step], every=8)
        np.testing.assert_array_equal(again.model.params["host"]["weight"], whole.model.params["host"]["weight"])
        # The batches before the checkpoint are gone through again, as an iterator's must be; no other twice.
        assert seen == [divmod(at, 3) for at in range(3 * kept[step].epoch, 8)]


def test_as_many_batches_as_steps_are_enough():
    assert run(iter(batches(5)), steps=5).checkpoint.done == 5


def test_memory_of_a_loader_that_uses_it_again_is_copied():
    wanted = run(batches()).model.params["host"]["weight"]
    for convert in (np.asarray, torch.from_numpy):
        inputs, labels = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)

        def epoch(number, inputs=inputs, labels=labels, convert=convert):
            for x, y in batches():
                inputs[:], labels[:] = x, y
                yield convert(inputs), convert(labels)

        np.testing.assert_array_equal(run(epoch).model.params["host"]["weight"], wanted)


# ---- errors ---------------------------------------------------------------------------------------------


def failing(at):
    def epoch(number):
        yield from batches(at)
        raise OSError("the disk is gone")

    return epoch


def test_an_error_of_the_data_is_raised_where_its_batch_is_needed():
    told = []
    with pytest.raises(OSError, match="the disk is gone") as caught:
        run(failing(3), on_step=lambda run: told.append(run.done))
    assert told == [1, 2, 3]
    frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert frames[-1] == "epoch" and "fit" in frames
    assert threading.active_count() == len(threading.enumerate()) and not [
        thread for thread in threading.enumerate() if thread.name.startswith("esper")
    ]


def test_a_run_that_stops_before_it_does_not_meet_it():
    found = run(failing(3), on_step=lambda run: run.stop("enough") if run.done == 3 else None)
    assert found.stopped == "enough" and found.checkpoint.done == 3


def test_a_stream_raises_again_what_its_data_raise_again():
    stream = Stream(batches(1) + [("no", "array")], model().structure.source)
    next(stream)
    stream.fetch()
    with pytest.raises(EsperError, match="batch 1 of epoch 0, part 0"):
        stream.peek()
    assert (stream.epoch, stream.index) == (0, 1)
    assert jnp.shape(next(stream)[0]) == (4, 3) and (stream.epoch, stream.index) == (1, 1)
