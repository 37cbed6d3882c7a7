"""Settings that change while a run goes on: at the next evaluation, on record, and the same again after a kill."""

import errno
import json
import os
import threading

import jax
import numpy as np
import optax
import pytest
import torch
from torch import nn

import esper
from esper.cli import main
from esper.configs import TamiyoSettings
from esper.configs.changes import CHANGEABLE, change, parsed
from esper.control import Keys, RemotePolicy
from esper.control.channel import Post
from esper.control.keys import new_key
from esper.errors import ConfigError
from esper.growth.tamiyo import Tamiyo
from esper.train import updates as updating
from esper.train.keeping import Checkpoints
from esper.train.updates import ASKED, MET, ask

pytestmark = pytest.mark.usefixtures("compiled_once")
TX = optax.adam(0.01)
# Nothing germinates before its start is brought forward.
GROWTH = TamiyoSettings(
    trigger="always", start_step=10_000, train_steps=5, blend_steps=5, hold_steps=5, rank=2, max_kernels=1
)


class Killed(Exception):
    pass


def examples():
    inputs = np.random.default_rng(5).standard_normal((96, 6)).astype(np.float32)
    return inputs, (inputs @ np.random.default_rng(6).standard_normal((6, 3))).argmax(-1)


def run(folder, asking=None, **changes):
    """40 steps, an evaluation every 5; `asking` maps steps to what is asked for before them, once."""
    torch.manual_seed(0)
    model = esper.wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))
    left = dict(asking or {})

    def on_step(run):
        for wish in left.pop(run.done, ()):
            if isinstance(wish, type):
                raise wish
            ask(folder, parsed([wish]))

    given = {"tx": TX, "steps": 40, "key": jax.random.key(7), "batch_size": 16, "every": 5, "validation": examples()}
    given |= {"growth": GROWTH, "updates": folder, "on_step": on_step}
    return esper.fit(model, examples(), **given | changes)


def updates(result):
    return [record for record in result.records if record.event.startswith("update")]


def leaves(result):
    held = (result.model.params, result.model.seeds, result.opt_state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(held)]


def events(result):
    return [(record.step, record.event, record.reason, record.layer) for record in result.records][1:]


def test_a_change_counts_from_the_next_evaluation_on_and_is_on_record(tmp_path):
    result = run(tmp_path, {7: ["start_step=0"], 12: ["eval_every=4"]})
    first, second = updates(result)
    assert (first.step, first.event) == (10, "update")
    told = {"request": 0, "field": "components.tamiyo.config.start_step", "old": "10000", "new": "0"}
    assert first.figures == told
    assert (second.step, second.figures["old"], second.figures["new"]) == (15, "5", "4")
    germinated = [record.step for record in result.records if record.event in ("prepare", "germinate")]
    assert germinated and germinated[0] == 10
    evaluations = [record.step for record in result.records if record.event == "evaluate"]
    assert evaluations == [5, 10, 15, 16, 20, 24, 28, 32, 36, 40]


ASKING = {2: ["patience=2"], 7: ["start_step=0"], 12: ["hold_steps=3"], 31: ["min_gain=0.5"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), ASKING)


@pytest.mark.parametrize("killed_at", [11, 17, 33])
def test_a_run_that_was_killed_meets_every_change_where_it_did(tmp_path, whole, killed_at):
    """Kept every 15 steps, from 15 on: what was met since is met again, what came before is in the records."""
    kept = Checkpoints(tmp_path / "kept", every=3, background=False)
    before = {step: wishes for step, wishes in ASKING.items() if step < killed_at}
    after = {step: wishes for step, wishes in ASKING.items() if step >= killed_at}
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        run(folder, before | {killed_at: [Killed]}, checkpoints=kept)
    result = run(folder, after, checkpoints=kept, resume=tmp_path / "kept")
    assert [r.figures for r in updates(result)] == [r.figures for r in updates(whole)]
    for here, there in zip(leaves(result), leaves(whole), strict=True):
        np.testing.assert_array_equal(here, there)
    without = [event for event in events(result) if event[1] not in ("start", "resume")]
    assert without == [event for event in events(whole) if event[1] not in ("start", "resume")]


def test_a_run_that_begins_anew_is_asked_nothing(tmp_path):
    run(tmp_path, {2: ["patience=2"]})
    assert len((tmp_path / ASKED).read_text().splitlines()) == 1
    assert updates(run(tmp_path)) == [] and (tmp_path / ASKED).read_text() == ""


def test_what_is_written_by_hand_is_looked_at_as_hard(tmp_path):
    def wrong(run):
        if run.done == 3:
            with (tmp_path / ASKED).open("ab") as file:
                file.write(b'no json\n{"field": "training.steps", "value": 9}\n[1]\n\xff\xfe\n')
                file.write(b'{"field": "patience", "value": "many"}\n{"field": "grafts", "va')
        if run.done == 8:
            with (tmp_path / ASKED).open("ab") as file:
                file.write(b'lue": 2}\n')

    result = run(tmp_path, on_step=wrong)
    refused, done = updates(result)[:-1], updates(result)[-1]
    assert [record.event for record in refused] == ["update_refused"] * 5
    assert {record.step for record in refused} == {5}
    assert "training.steps cannot change in a run: the run began with it" in refused[1].reason
    assert "should be a valid integer" in refused[4].reason
    assert (done.event, done.step, done.figures["new"]) == ("update", 10, "2")


def test_a_policy_of_somebody_elses_has_no_settings_to_change(tmp_path):
    class Idle:
        def start(self):
            return 0

        def __call__(self, observation, memory):
            return (), memory

    (refused,) = updates(run(tmp_path, {2: ["patience=2"]}, policy=Idle()))
    assert refused.event == "update_refused" and "the policy Idle" in refused.reason
    (refused,) = updates(run(tmp_path, {2: ["patience=2"]}, growth=None))
    assert "the run has no policy" in refused.reason


def test_a_callback_changes_settings_too():
    def tell(record, run):
        if record.event == "evaluate" and run.done == 5:
            run.update("patience", 7)
            with pytest.raises(ConfigError, match="cannot change in a run: the compiled step holds it"):
                run.update("blend_steps", 7)

    (told,) = updates(run(None, callbacks=[tell]))
    assert (told.step, told.figures["new"]) == (10, "7") and "request" not in told.figures


def test_training_goes_on_when_the_folder_is_gone(tmp_path):
    def remove(run):
        if run.done == 7:
            for name in os.listdir(tmp_path / "run"):
                (tmp_path / "run" / name).unlink()
            (tmp_path / "run").rmdir()

    result = run(tmp_path / "run", on_step=remove)
    assert result.checkpoint.done == 40 and updates(result) == []


def test_two_who_ask_at_once_do_not_mix_their_lines(tmp_path):
    (tmp_path / ASKED).touch()
    many = [change("patience", number) for number in range(1, 51)]
    threads = [threading.Thread(target=lambda: [ask(tmp_path, [one]) for one in many]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in (tmp_path / ASKED).read_text().splitlines()]
    assert sorted(line["value"] for line in lines) == sorted(list(range(1, 51)) * 4)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("patience", "'patience' is no FIELD=VALUE"),
        ("patience=0", "components.tamiyo.config.patience: should be greater than or equal to 1"),
        ("patience=[", "the value is not understood"),
        ("patience=2024-13-45", "the value is not understood"),
        ("patince=3", "there is no field 'patince' that a run looks at"),
        ("rank=3", "components.tamiyo.config.rank cannot change in a run: what each layer can grow by"),
        ("race=3", "the compiled step holds it; stop it and begin another"),
        ("training.steps=3", "training.steps cannot change in a run"),
        ("database.host=x", "there is no field 'database.host'"),
        ("logging.level=LOUD", "logging.level: should be"),
    ],
)
def test_what_cannot_change_is_said_by_the_command(tmp_path, capsys, given, problem):
    (tmp_path / ASKED).touch()
    assert main(["config", "set", str(tmp_path), "min_gain=0.1", given]) == 2
    assert problem in capsys.readouterr().err
    assert (tmp_path / ASKED).read_text() == ""  # all of it or nothing


def test_the_command_asks(tmp_path, capsys):
    assert main(["config", "set", str(tmp_path), "patience=5"]) == 2
    assert "no run that takes changes has begun" in capsys.readouterr().err
    (tmp_path / ASKED).touch()
    assert main(["config", "set", str(tmp_path), "patience=5", "max_bytes=null", "level=debug"]) == 0
    asked = [json.loads(line) for line in (tmp_path / ASKED).read_text().splitlines()]
    assert [(line["field"].rpartition(".")[2], line["value"]) for line in asked] == [
        ("patience", 5),
        ("max_bytes", None),
        ("level", "DEBUG"),
    ]
    assert "patience = 5: asked for" in capsys.readouterr().out
    (tmp_path / MET).write_text('{"began": 0}\n{"ended": 40}\n')
    assert main(["config", "set", str(tmp_path), "patience=5"]) == 2
    assert "ended at step 40" in capsys.readouterr().err


def test_a_run_that_was_begun_after_another_ended_is_not_taken_for_it(tmp_path):
    """It was killed, or looks at its model still: what the earlier one said of itself is there all the same."""
    (tmp_path / ASKED).touch()
    (tmp_path / MET).write_text('{"began": 0}\n{"ended": 1060}\n')
    (tmp_path / "job.json").write_text("{}")
    with pytest.raises(ConfigError, match="has no events yet"):
        ask(tmp_path, parsed(["patience=5"]))
    (tmp_path / "history.jsonl").touch()
    with pytest.raises(ConfigError, match="ended at step 1060"):
        ask(tmp_path, parsed(["patience=5"]))


def test_what_may_change_exists():
    for section, names in CHANGEABLE.items():
        for name in names:
            with pytest.raises(ConfigError, match=rf"{section}\.{name}: "):
                change(f"{section}.{name}", object())


def test_brackets_without_end_and_lines_without_end_are_no_changes(tmp_path):
    nested = b'{"field": "patience", "value": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    deep = b'{"field": "patience", "value": ' + b"[" * 700 + b"]" * 700 + b"}"
    long = json.dumps({"field": "patience", "value": 2, "note": "x" * 70_000}).encode()

    def wrong(run):
        if run.done == 3:
            (tmp_path / ASKED).write_bytes(b"\n".join([b"[" * 200_000, nested, deep, long, b""]))

    assert [record.event for record in updates(run(tmp_path, on_step=wrong))] == ["update_refused"] * 4


def test_a_full_disk_keeps_no_run_from_training(tmp_path, monkeypatch, caplog):
    full = True

    def append(path, *lines, write=updating._append):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, *lines)

    def room(run):
        nonlocal full
        full = run.done < 7

    monkeypatch.setattr(updating, "_append", append)
    assert run(tmp_path, on_step=room).checkpoint.done == 40
    assert "nothing can be changed in this run" in caplog.text
    assert [json.loads(line) for line in (tmp_path / MET).read_text().splitlines()] == [{"began": 0}, {"ended": 40}]


def test_half_a_line_is_taken_back(tmp_path, monkeypatch):
    whole = b'{"field": "patience", "value": 1}\n'
    (tmp_path / ASKED).write_bytes(whole)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    with pytest.raises(OSError, match="No space left"):
        ask(tmp_path, parsed(["patience=5"]))
    assert (tmp_path / ASKED).read_bytes() == whole


def test_a_run_that_failed_takes_no_changes_any_more(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, {7: [Killed]})
    with pytest.raises(ConfigError, match="ended at step 7"):
        ask(tmp_path, parsed(["patience=5"]))


def test_a_change_says_when_it_counts_for_the_local_default_only(tmp_path):
    policy = RemotePolicy(
        Post().end("run-1"), Keys.parse(new_key("k1")), local=Tamiyo(GROWTH), run="run-1", timeout=0.001
    )
    (done,) = updates(run(tmp_path, {2: ["patience=2"]}, policy=policy, growth=None))
    assert done.event == "update" and "from here on, for the local default only, which also says what is" in done.reason


def test_a_controller_that_says_what_is_measured_misses_nothing():
    policy = RemotePolicy(Post().end("run-1"), Keys.parse(new_key("k1")), local=Tamiyo(GROWTH), measure="remote")
    assert policy.heeded_by == "the local default only"
