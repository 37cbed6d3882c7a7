"""Checkpoints of a run on the disk: going on is bit for bit, and a kill at any moment loses one interval at most."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import torch
from torch import nn

import esper
from esper.configs import TamiyoSettings
from esper.errors import ArgumentError, CorruptFileError, StateError
from esper.growth.policy import Germinate, Transition
from esper.lifecycle import SeedLifecycleState as S
from esper.train import stored
from esper.train.keeping import Checkpoints, newest

pytestmark = pytest.mark.usefixtures("compiled_once")
KEY = jax.random.key(7)
TX = optax.adamw(0.01)
ROOT = str(Path(esper.__file__).parent.parent)


@cache
def examples():
    inputs = np.random.default_rng(5).standard_normal((96, 6)).astype(np.float32)
    return inputs, (inputs @ np.random.default_rng(6).standard_normal((6, 3))).argmax(-1)


def model():
    torch.manual_seed(0)
    return esper.wrap(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 3)))


class Script:
    """A policy that has it all: a kernel germinates, trains, blends in over 12 steps, and stays."""

    LIFE = (Germinate("0", 0, "mlp", (("width", 4),), "now"), S.GRAFTING, None, None, S.ACTIVE, S.FOSSILIZED)

    def start(self):
        return (0, {"seen": [0.5]})

    def __call__(self, observation, memory):
        place, held = memory
        found = self.LIFE[place] if place < len(self.LIFE) else None
        move = Transition("0", 0, found, "next") if isinstance(found, S) else found
        return (() if move is None else (move,)), (place + 1, {"seen": [*held["seen"], observation.losses[-1]]})


def run(**changes):
    kept = {"tx": TX, "steps": 40, "key": KEY, "batch_size": 16, "every": 5, "validation": examples()}
    growing = {"growth": TamiyoSettings(blend_steps=12, kernel_warmup_steps=2, swap="evaluation"), "policy": Script()}
    started = changes.pop("model", None) or model()
    return esper.fit(started, changes.pop("data", examples()), **{**kept, **growing, **changes})


@cache
def whole():
    return run()


def leaves(result):
    held = (result.model.params, result.model.buffers, result.model.seeds, result.opt_state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(held)]


def bit_equal(left, right):
    pairs = zip(leaves(left), leaves(right), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def pause(at):
    """A callback that ends a run there; it had more steps to go."""

    def told(record, run):
        if record.event == "evaluate" and record.step == at:
            run.stop("for now")

    return told


@pytest.mark.parametrize("at", [5, 10, 15, 20, 35])
@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
def test_a_run_goes_on_from_the_disk_bit_for_bit(at, background, tmp_path):
    """At 5 a change of structure is being prepared; at 15 the kernel is in the middle of its blend."""

    kept = Checkpoints(tmp_path, background=background)
    part = run(checkpoints=kept, callbacks=[pause(at)])
    assert part.checkpoint.done == at
    rest = run(checkpoints=kept, resume=tmp_path, model=model())
    assert bit_equal(rest, whole()) and rest.losses == whole().losses
    records = [record for record in rest.records if record.event != "resume"]
    assert [(r.step, r.event) for r in records] == [(r.step, r.event) for r in whole().records]
    assert rest.ledger.phases["train"].steps == whole().ledger.phases["train"].steps


def test_what_was_decided_at_the_end_is_not_decided_again(tmp_path):
    """A policy may depend on what is there no more, such as a controller in another process."""

    class Last(Script):
        def __call__(self, observation, memory):
            if observation.step == 40:
                asked.append(observation)
                return (), (memory, "decided")
            return super().__call__(observation, memory)

    asked = []
    whole, again = (run(checkpoints=tmp_path, resume=tmp_path, policy=Last()) for _ in range(2))
    assert len(asked) == 1 and bit_equal(whole, again)
    assert newest(tmp_path).name.endswith("-step-40")


def test_the_blend_was_under_way():
    alphas = [float(record.figures["alpha"]) for record in whole().records if "alpha" in record.figures]
    assert whole().model.seeds.lifecycle[0, 0] == S.FOSSILIZED and all(0 <= alpha <= 1 for alpha in alphas)


def test_built_in_growth_goes_on_too(tmp_path):
    growth = TamiyoSettings(blend_steps=4, patience=1, min_delta=10, train_steps=5, hold_steps=5)
    policy = {"growth": growth, "policy": None}
    wanted = run(steps=60, **policy)
    assert any(record.event == "germinate" for record in wanted.records)
    run(steps=60, checkpoints=tmp_path, callbacks=[pause(25)], **policy)
    assert bit_equal(run(steps=60, resume=tmp_path, model=model(), **policy), wanted)


def test_a_loaded_model_goes_on_without_its_module(tmp_path):
    """What draws new kernels is the same before and after: the model was loaded."""
    wrapped = esper.wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), example_inputs=torch.ones(4, 6))
    esper.save(wrapped, tmp_path / "model", blueprints=["mlp", ("mlp", {"width": 4}), ("mlp", {"width": 8})])
    wanted = run(model=esper.load(tmp_path / "model"))
    run(model=esper.load(tmp_path / "model"), steps=15, checkpoints=tmp_path / "run")
    assert bit_equal(run(model=esper.load(tmp_path / "model"), resume=tmp_path / "run"), wanted)


def test_the_last_few_are_kept(tmp_path):
    run(checkpoints=Checkpoints(tmp_path, every=2, keep=2))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000003-step-30", "000005-step-40"]
    assert newest(tmp_path).name == "000005-step-40"
    assert bit_equal(run(resume=tmp_path), whole())  # it was at its end
    assert newest(tmp_path / "000003-step-30") == tmp_path / "000003-step-30"


def test_another_run_is_not_overwritten(tmp_path):
    run(steps=5, checkpoints=tmp_path)
    with pytest.raises(ArgumentError, match="a checkpoint of another run, which would be removed: resume="):
        run(steps=5, checkpoints=tmp_path)


def test_without_a_checkpoint_the_run_begins(tmp_path):
    found = run(steps=5, checkpoints=tmp_path / "new", resume=tmp_path / "new")
    assert bit_equal(found, run(steps=5))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    run(steps=10, checkpoints=tmp_path)
    with pytest.raises(StateError, match="the optimiser's state is not of the form"):
        run(resume=tmp_path, tx=optax.sgd(0.1))
    other = esper.wrap(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    with pytest.raises(StateError, match="the model is not the one that was saved"):
        run(resume=tmp_path, model=other)
    assert newest(tmp_path).name.endswith("-step-10")  # and nothing is done to it


def changed(checkpoint):
    (file,) = checkpoint.glob("run-*.json")
    file.write_bytes(file.read_bytes().replace(b"evaluate", b"Evaluate", 1))


def emptied(checkpoint):
    (checkpoint / "manifest.json").write_bytes(b"")


def incomplete(checkpoint):
    next(checkpoint.glob("rest-*.safetensors")).unlink()


@pytest.mark.parametrize("spoil", [changed, emptied, incomplete])
def test_a_damaged_checkpoint_is_left_out_and_its_step_is_kept_again(spoil, tmp_path, caplog):
    run(checkpoints=tmp_path, callbacks=[pause(20)])
    last = newest(tmp_path)
    spoil(last)
    with pytest.raises(CorruptFileError, match=r"not what was written|cannot be read"):
        run(resume=last)  # that one and no other was asked for
    rest = run(checkpoints=tmp_path, resume=tmp_path, model=model(), callbacks=[pause(20)])
    assert next(record.step for record in rest.records if record.event == "resume") == 15
    assert f"the checkpoint {last} is damaged and left out: the run goes on from " in caplog.text
    held = [path.name for path in sorted(tmp_path.iterdir())]
    assert [name[7:] for name in held] == ["step-10", "step-15", "step-20.damaged", "step-20"]
    assert held[2] == f"{last.name}.damaged"
    caplog.clear()
    assert bit_equal(run(checkpoints=tmp_path, resume=tmp_path, model=model()), whole())
    assert not caplog.text and newest(tmp_path).name.endswith("-step-40")


def test_where_every_checkpoint_is_damaged_they_are_named_and_the_next_move(tmp_path):
    run(steps=15, checkpoints=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        changed(tmp_path / name)
    with pytest.raises(CorruptFileError) as problem:
        run(steps=15, checkpoints=tmp_path, resume=tmp_path)
    said = str(problem.value)
    assert len(names) == 3 and all(name in said for name in names) and "remove that folder" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    run(steps=15, checkpoints=tmp_path)
    last, opened = newest(tmp_path), os.open

    def kept_from(path, *given):
        if Path(path).parent == last:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *given)

    monkeypatch.setattr(os, "open", kept_from)
    with pytest.raises(StateError, match="Permission denied; let this process read it") as problem:
        run(steps=15, resume=tmp_path)
    assert not isinstance(problem.value, CorruptFileError)


def test_a_memory_that_no_file_can_hold_is_said(tmp_path):
    class Odd(Script):
        def start(self):
            return object()

        def __call__(self, observation, memory):
            return (), memory

    with pytest.raises(StateError, match="the run's memory is a object, which cannot be written"):
        run(policy=Odd(), checkpoints=tmp_path)


def test_a_disk_that_fails_is_said_and_what_was_there_stays(tmp_path, monkeypatch):
    """Training goes on to the next checkpoint, which raises."""
    run(steps=5, checkpoints=tmp_path)
    before = newest(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esper.train.stored.write_tensors", full)
    with pytest.raises(StateError, match="No space left on device"):
        run(steps=20, checkpoints=tmp_path, resume=tmp_path)
    monkeypatch.undo()
    assert newest(tmp_path) == before
    assert bit_equal(run(steps=20, resume=tmp_path), run(steps=20))


@pytest.mark.parametrize("background", [True, False], ids=["background", "foreground"])
def test_a_forgiving_run_goes_on_past_a_disk_that_fails(background, tmp_path, monkeypatch, caplog):
    write, calls = stored.write, []

    def full_for_a_while(folder, content):
        calls.append(folder)
        if len(calls) < 3:
            raise StateError("No space left on device")
        write(folder, content)

    monkeypatch.setattr("esper.train.stored.write", full_for_a_while)
    found = run(checkpoints=Checkpoints(tmp_path, background=background, forgiving=True))
    assert bit_equal(found, whole()) and newest(tmp_path).name.endswith("-step-40")
    assert "no checkpoint is kept for now, training goes on: No space left on device" in caplog.text


def test_a_forgiving_run_does_not_wait_for_a_slow_disk(tmp_path, monkeypatch):
    write, slow = stored.write, threading.Event()

    def held_up(folder, content):
        assert slow.wait(60)
        write(folder, content)

    def told(record, run):
        if record.event == "evaluate" and record.step == 35:
            slow.set()  # only now: all evaluations before have gone by

    monkeypatch.setattr("esper.train.stored.write", held_up)
    run(checkpoints=Checkpoints(tmp_path, keep=9, forgiving=True), callbacks=[told])
    kept = [path.name for path in sorted(tmp_path.iterdir())]
    assert (kept[0], kept[-1][7:]) == ("000001-step-5", "step-40") and len(kept) <= 4


@pytest.mark.parametrize("wrong", [{"every": 0}, {"keep": 0}, {"keep": True}, {"every": 1.5}])
def test_wrong_settings_are_said(wrong):
    with pytest.raises(ArgumentError, match="a whole number of at least 1"):
        Checkpoints("anywhere", **wrong)


# ---- kills ----------------------------------------------------------------------------------------------

CRASHES = """
import json, os, sys
from pathlib import Path
from esper.persistence import folder as folders

def parts(tag):
    return {name: (lambda file, name=name: file.write_bytes((name + tag).encode() * 4000))
            for name in ("host.safetensors", "rest.safetensors", "model.json")}

def content(path):
    return {name: bytes(data) for name, data in folders.read_folder(path, "model").items()}

path = Path(sys.argv[1]) / "model"
folders.write_folder(path, "model", parts("old"))
old = content(path)
folders.write_folder(Path(sys.argv[1]) / "other", "model", parts("new"))
new = content(Path(sys.argv[1]) / "other")
CALLS = ("open", "fsync", "replace", "unlink", "read", "close", "scandir")
seen = {"old": 0, "new": 0}
for number in range(10_000):
    child = os.fork()
    if not child:
        left = number

        def counted(call):
            def counting(*args, **kwargs):
                global left
                left -= 1
                if left < 0:
                    os._exit(9)
                return call(*args, **kwargs)
            return counting

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        folders.write_folder(path, "model", parts("new"))
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = content(path)
    assert found in (old, new), number
    seen["old" if found == old else "new"] += 1
    folders.write_folder(path, "model", parts("old"))  # and what was left there is in nobody's way
    assert content(path) == old and len(list(path.iterdir())) == 4, number
    if not ended:
        break
print(json.dumps(seen))
"""


def test_a_crash_at_any_step_of_a_save_leaves_the_old_or_the_new(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["old"] > 10 and seen["new"] > 3


TRAINING = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np
import test_run_checkpoints as tests
from esper.caching import caches
from esper.train.keeping import Checkpoints

folder = sys.argv[1] + "/run"
kept = Checkpoints(folder, keep=2, background=sys.argv[3] == "background")

def tell(record, run):
    if record.event in ("start", "resume"):
        print("from", record.step, flush=True)

with caches():
    found = tests.run(
        steps=tests.STEPS, every=2, checkpoints=kept, resume=folder, callbacks=[tell],
        on_step=lambda run: print("at", run.done, flush=True),
    )
np.savez(sys.argv[1] + "/end.npz", *tests.leaves(found))
print("end", flush=True)
"""

STEPS = 400
KILLS = 3


def kills(config):
    return 100 if config.getoption("--sweep") == "all" else KILLS


def test_kill_9_at_any_moment_loses_an_interval_at_most(tmp_path, request):
    wanted, draw, killed, done, ended = run(steps=STEPS, every=2), random.Random(3), 0, 0, False
    while not ended:
        mode = draw.choice(["background", "background", "foreground"])
        wait = 2 * draw.random() if killed < kills(request.config) else 1000
        done, ended = _train_and_kill(tmp_path, mode, wait, done)
        killed += not ended
        if killed < kills(request.config) and (ended or done >= STEPS - 50):
            shutil.rmtree(tmp_path / "run")  # there is to be something left to kill
            done, ended = 0, False
    found = np.load(tmp_path / "end.npz")
    assert killed >= kills(request.config)
    for name, array in zip(found.files, leaves(wanted), strict=True):
        assert np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")


def _train_and_kill(folder, mode, wait, before):
    """How far a process came, and whether it came to the end."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TRAINING, str(folder), str(Path(__file__).parent), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    ) as process:
        return _followed(process, wait, before)


def _followed(process, wait, before):
    done, deadline = before, 0.0
    for line in process.stdout:
        what, _, number = line.strip().partition(" ")
        if what == "from":
            start = int(number)
            # After a step all evaluations before it are done, and a checkpoint is whole when the next one begins.
            assert start >= ((before - 1) // 2 - 1) * 2, (start, before)
            deadline = time.monotonic() + wait
        elif what == "at":
            done = int(number)
            if time.monotonic() > deadline:
                process.send_signal(signal.SIGKILL)
                break
        elif what == "end":
            break
    rest, error = process.communicate()  # what it said before the signal came
    assert process.returncode in (0, -9), error
    said = [line for line in rest.splitlines() if line.startswith("at ")]
    done = int(said[-1].split()[1]) if said else done
    return done, process.returncode == 0
