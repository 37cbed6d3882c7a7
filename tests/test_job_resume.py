"""`esper grow --resume`: a run that was killed goes on as if it had not been, and what cannot go on is refused."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open
from telemetry.samples import evaluation

import esper
import esper.report
from esper import job
from esper.cli import main
from esper.configs import EsperConfig
from esper.errors import ConfigError, EventError, RunFinishedError, RunFolderError, WriteError
from esper.journal import found, settings
from esper.shelf import Shelf
from esper.telemetry import Bus, Jsonl, read
from esper.telemetry.folder import claimed
from esper.told import Told, told_before
from esper.train import history
from esper.train.keeping import newest

ROOT = str(Path(esper.__file__).parent.parent)
STEPS, EVERY = 40, 4

KILLED = """
import json, os, signal, sys, time
from pathlib import Path
from esper import job
from esper.cli import main
from esper.train.keeping import newest

grown, left = job.run, int(sys.argv[1])

def run(config, *, watch, **asks):
    place = Path(config.training_settings().output_dir)
    def counted(step):
        global left
        left -= 1
        if not left:  # checkpoint and history are written beside the steps, which take no time here
            time.sleep(0.5)
            stage = json.loads((place / "job.json").read_text())["stage"]
            while step > 8 and newest(place / "checkpoints" / stage) is None:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        watch(step)
    return grown(config, watch=counted, **asks)

job.run = run
sys.exit(main(["grow", *sys.argv[2:]]))
"""


def written(tmp_path, name, **training):
    """A configuration of a run of seconds in which kernels germinate, stay and are culled."""
    tamiyo = dict(patience=1, min_delta=10.0, train_steps=4, blend_steps=6, hold_steps=4, max_kernels=2, rank=4)
    place = str(tmp_path / name)
    training = (
        dict(data="digits", model="mlp", steps=STEPS, batch_size=16, eval_every=EVERY, output_dir=place) | training
    )
    library = {"folder": str(tmp_path / f"{name}-library"), "draw": True, "publish": True}  # nothing is in it yet
    components = {"tamiyo": {"config": tamiyo}, "urza": {"config": library}}
    document = {"name": "test", "components": components, "training": training}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def killed(after, *arguments):
    """Runs the command in a process that is killed within the step of that number."""
    given = [sys.executable, "-W", "ignore", "-c", KILLED, str(after), *arguments, "--quiet"]
    done = subprocess.run(given, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == -9, done.stderr


def happened(place):
    """What a run's history says: every event but that the run went on, without what the clock and XLA had to say."""
    found = esper.report.run(place)
    told = [event for event in (*found.events, *found.control) if event.event != "resume"]
    keep = [e for e in told if (e.event, e.step) != ("library", 0)]  # one that goes on looks into its library again
    return [(e.run, e.step, e.event, e.layer, e.seed, e.reason, dict(e.figures)) for e in keep]


def spent(place):
    """The ledger without seconds, and without compiles, which every process has of its own."""
    ledger = json.loads((place / "ledger.json").read_text())
    ledger["phases"].pop("compile")
    for phase in ledger["phases"].values():
        phase.pop("seconds")
    return ledger


def tensors(place):
    """What is in the file of tensors, whose entries are in no order."""
    with safe_open(place / "model.safetensors", "np") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118  no mapping


def test_a_run_that_is_killed_in_both_its_parts_ends_as_one_that_is_not(tmp_path, capsys):
    whole, place = tmp_path / "whole", tmp_path / "killed"
    assert main(["grow", written(tmp_path, "whole"), "--quiet"]) == 0
    config = written(tmp_path, "killed")
    killed(STEPS // 2 + 1, config, "--resume-if-begun")
    stopped = esper.report.run(place)
    assert stopped.is_running and not (place / "ledger.json").exists()
    drawn = json.loads((place / "network.json").read_text())
    assert 0 < drawn["step"] <= STEPS // 2 and any(layer["kernels"] for layer in drawn["layers"])
    killed(STEPS, config, "--resume")  # half of them grow
    told = read(place)
    assert {event.run for event in told} == {"growth", "control"}
    assert max(event.step for event in told if event.run == "control") < STEPS
    capsys.readouterr()
    assert main(["grow", config, "--resume-if-begun", "--quiet"]) == 0
    assert "control: the host alone" in capsys.readouterr().out
    told = read(place)
    assert len({event.run_id for event in told}) == 1 and {event.part for event in told} == {0, 1, 2}
    assert [(event.run, event.event) for event in told if event.event == "resume"] == [
        ("growth", "resume"),
        ("control", "resume"),
    ]
    assert happened(place) == happened(whole)
    assert spent(place) == spent(whole)
    for name in ("certificate.json", "network.json"):
        assert (place / name).read_bytes() == (whole / name).read_bytes(), name
    assert tensors(place) == tensors(whole)
    assert not (place / "checkpoints").exists()
    assert main(["grow", config, "--resume-if-begun"]) == 0
    assert "is finished: nothing of it is left to do" in capsys.readouterr().out


# ---- what is damaged ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """The configuration of a run that was killed in its growth, its folder, and that of one that was not killed."""
    base = tmp_path_factory.mktemp("halfway")
    assert main(["grow", written(base, "whole"), "--no-control", "--quiet"]) == 0
    config = written(base, "killed")
    killed(STEPS // 2 + 1, config)
    return config, base / "killed", base / "whole"


def comes_to_the_same(halfway, place):
    """Whether the run goes on in a copy of its folder to what it would have come to."""
    config, stopped, whole = halfway
    job.run(EsperConfig.from_yaml(config), output_dir=place, control=False, resume=True)
    named = {event.run_id for event in read(place)} == {event.run_id for event in read(stopped)}
    same = happened(place) == happened(whole) and spent(place) == spent(whole)
    return named and same and tensors(place)[1] == tensors(whole)[1] and not (place / "checkpoints").exists()


def test_a_run_whose_last_checkpoint_is_damaged_goes_on_from_the_one_before(halfway, tmp_path, caplog):
    place = tmp_path / "run"
    shutil.copytree(halfway[1], place)
    last = newest(place / "checkpoints" / "growth")
    (last / "manifest.json").write_bytes(b"")
    assert comes_to_the_same(halfway, place)
    assert f"the checkpoint {last} is damaged and left out" in caplog.text


def test_a_damaged_history_is_set_aside_and_told_again(halfway, tmp_path, caplog):
    place = tmp_path / "run"
    shutil.copytree(halfway[1], place)
    (run_id,) = {event.run_id for event in read(place)}
    history, aside = place / "history.jsonl", place / f"history.{run_id}.damaged.jsonl"
    damaged = history.read_bytes().replace(b"{", b"\0", 1)
    history.write_bytes(damaged)
    assert comes_to_the_same(halfway, place)
    assert aside.read_bytes() == damaged and f"it is damaged, and set aside as {aside}" in caplog.text


def test_where_every_checkpoint_is_damaged_the_command_says_what_to_do(halfway, tmp_path, capsys):
    config, stopped, _ = halfway
    place = tmp_path / "run"
    shutil.copytree(stopped, place)
    for manifest in place.glob("checkpoints/growth/*/manifest.json"):
        manifest.write_bytes(b"{}")
    assert main(["grow", config, "--output-dir", str(place), "--resume", "--no-control", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"no checkpoint in {place / 'checkpoints' / 'growth'} is as it was written" in said
    assert "remove that folder, and it starts again" in said and "Traceback" not in said


def test_the_history_of_a_newer_esper_is_not_set_aside(stopped):
    place, config = stopped
    line = json.dumps({"event": "evaluate", "step": 1, "schema_version": 1000}) + "\n"
    (place / "history.jsonl").write_text(line)
    with pytest.raises(EventError, match="schema version 1000"):
        job.run(EsperConfig.from_yaml(config), resume=True)
    assert (place / "history.jsonl").read_text() == line


# ---- a disk that is full at the end ---------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 0], ids=["with checkpoints", "without"])
def test_a_run_whose_files_cannot_be_written_says_so_and_goes_on_to_the_same(tmp_path, monkeypatch, capsys, every):
    whole, place = tmp_path / "whole", tmp_path / "full"
    assert main(["grow", written(tmp_path, "whole"), "--quiet"]) == 0
    published, config = [], written(tmp_path, "full", checkpoint_every=every)
    wrote, publish = job.write_file, Shelf.publish

    def full(file, data):
        if file.suffix in (".pt", ".safetensors"):
            raise OSError(errno.ENOSPC, "No space left on device")
        wrote(file, data)

    def told(shelf, result):
        published.append(result)
        return publish(shelf, result)

    monkeypatch.setattr(Shelf, "publish", told)
    with monkeypatch.context() as patched:
        patched.setattr("esper.job.write_file", full)
        with pytest.raises(WriteError) as problem:
            job.run(EsperConfig.from_yaml(config))
    assert isinstance(problem.value, OSError) and len(problem.value.problems) == 3 and not published
    said = str(problem.value)
    assert f"{place / 'model.safetensors'}: No space left on device" in said and "esper grow CONFIG --resume" in said
    assert ("goes on from the last checkpoint" in said) == bool(every)
    assert not [path.name for path in place.iterdir() if path.suffix in (".pt", ".safetensors") or path.name[0] == "."]
    assert esper.report.run(place).failure
    capsys.readouterr()
    assert main(["grow", config, "--resume", "--quiet"]) == 0
    assert happened(place) == happened(whole) and esper.report.run(place).missing == 0
    assert not esper.report.run(place).failure
    assert tensors(place) == tensors(whole) and (place / "trained.pt").is_file()
    assert len(published) == 1  # its kernels, once the run has its model


def test_files_that_a_run_in_its_control_cannot_write_are_written_when_it_goes_on(tmp_path, monkeypatch):
    config, place = written(tmp_path, "run"), tmp_path / "run"
    killed(STEPS + 2, config)  # of which the growth took STEPS
    wrote = job.write_file

    def full(file, data):
        if file.suffix == ".pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        wrote(file, data)

    with monkeypatch.context() as patched:
        patched.setattr("esper.job.write_file", full)
        assert main(["grow", config, "--resume", "--quiet"]) == 2
    assert esper.report.run(place).failure
    assert main(["grow", config, "--resume", "--quiet"]) == 0
    found = esper.report.run(place)
    assert not found.failure and not found.is_running and (place / "trained.pt").is_file()


# ---- what cannot go on ----------------------------------------------------------------------------------


class Stopped(Exception):
    """The run is stopped."""


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The configuration of a run that was stopped before its first checkpoint, and what it was called."""

    def grow(*given, listen, **named):
        listen(evaluation(7))
        raise Stopped

    monkeypatch.setattr("esper.job.grow", grow)
    config = written(tmp_path, "run")
    with pytest.raises(Stopped):
        job.run(EsperConfig.from_yaml(config))
    return tmp_path / "run", config


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_again_as_the_same(stopped):
    place, config = stopped
    with pytest.raises(Stopped):
        job.run(EsperConfig.from_yaml(config), resume=True)
    told = read(place)
    assert len({event.run_id for event in told}) == 1 and [event.part for event in told] == [0, 0, 1, 1]
    assert [event.sequence for event in told] == [0, 1, 2, 3]


def test_a_run_that_begins_anew_sets_one_that_could_go_on_aside(stopped, caplog):
    place, config = stopped
    (place / "checkpoints" / "growth").mkdir(parents=True)
    (run_id,) = {event.run_id for event in read(place)}
    with pytest.raises(Stopped):
        job.run(EsperConfig.from_yaml(config))
    assert (place / f"checkpoints.{run_id}" / "growth").is_dir() and (place / f"job.{run_id}.json").is_file()
    assert {event.run_id for event in read(place)} != {run_id}
    assert "is set aside; --resume would have gone on with it" in caplog.text


def test_another_configuration_is_refused_with_every_field_that_matters(stopped, tmp_path, capsys):
    place, _ = stopped
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    config = written(tmp_path, "run", steps=80, optimizer="sgd", checkpoint_every=3, cache_size_mb=64)
    assert main(["grow", config, "--resume"]) == 2
    said = capsys.readouterr().err
    assert 'training.optimizer was "adamw" and is "sgd"' in said and "training.steps was 40 and is 80" in said
    assert "checkpoint_every" not in said and "cache_size_mb" not in said and "Traceback" not in said
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
    with pytest.raises(Stopped):  # how often checkpoints are kept may change
        job.run(EsperConfig.from_yaml(written(tmp_path, "run", checkpoint_every=3)), resume=True)


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "a run of before there were journals"])
def test_where_there_is_nothing_to_resume_it_is_said(tmp_path, there, capsys):
    config, place = written(tmp_path, "run"), tmp_path / "run"
    if there:
        place.mkdir()
        (place / "history.jsonl").write_text("")
    with pytest.raises(RunFolderError):
        job.run(EsperConfig.from_yaml(config), resume=True)
    assert main(["grow", config, "--resume"]) == 2
    assert f"there is nothing to resume in {place}" in capsys.readouterr().err
    assert place.exists() == there


def test_a_run_that_goes_on_in_another_process_is_not_resumed(stopped):
    place, config = stopped
    with claimed(place), pytest.raises(ConfigError, match="another run is writing to"):
        job.run(EsperConfig.from_yaml(config), resume=True)


def test_checkpoints_stay_until_the_folder_knows_that_the_run_has_ended(stopped, monkeypatch):
    place, config = stopped
    (place / "checkpoints").mkdir(exist_ok=True)
    journal = found(place, EsperConfig.from_yaml(config))

    def full(*given):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("esper.journal.write_file", full)
        journal.reached("ended")
    assert (place / "checkpoints").is_dir()
    journal.reached("ended")
    assert not (place / "checkpoints").exists()


def test_a_run_that_is_finished_says_so(stopped):
    place, config = stopped
    held = json.loads((place / "job.json").read_text())
    (place / "job.json").write_text(json.dumps(held | {"stage": "ended"}))
    with pytest.raises(RunFinishedError, match=f"the run {held['run_id']} in .* is finished"):
        job.run(EsperConfig.from_yaml(config), resume=True)


@pytest.mark.parametrize(
    "change",
    [{"stage": "elsewhere"}, {"run_id": "../up"}, {"run_id": 3}, {"settings": 7}, {"published": {}}, None],
    ids=str,
)
def test_a_journal_that_is_none_is_refused(stopped, change):
    place, config = stopped
    held = json.loads((place / "job.json").read_text())
    (place / "job.json").write_text("{" if change is None else json.dumps(held | change))
    with pytest.raises(ConfigError, match=r"job\.json does not say how far a run is"):
        job.run(EsperConfig.from_yaml(config), resume=True)


def test_a_journal_of_a_later_version_is_refused(stopped):
    place, config = stopped
    held = json.loads((place / "job.json").read_text())
    (place / "job.json").write_text(json.dumps(held | {"schema_version": 2}))
    with pytest.raises(ConfigError, match="of version 2, and this esper reads 1"):
        job.run(EsperConfig.from_yaml(config), resume=True)


def test_a_journal_holds_no_secret_and_all_else_that_decides_the_course(tmp_path):
    remote = {"secret": "5:" + "ab" * 32, "timeout": 1.0}
    components = {"tamiyo": {"config": {"remote": remote}}, "urza": {"config": {"candidates": 5}}}
    found = settings(EsperConfig(name="x", components=components))
    assert "abab" not in json.dumps(found) and found["components.tamiyo.config.remote"] == "a controller"
    assert found["components.urza.config.candidates"] == 5 and "training.output_dir" not in found


# ---- what the history is to hold ------------------------------------------------------------------------


def test_what_a_kill_kept_from_the_history_is_told_when_the_run_goes_on(tmp_path):
    """The last tenth of a second before a kill is in the checkpoint alone."""
    records = [history.Record(step, "evaluate", figures={"train_loss": 1.0 / step}) for step in (4, 8, 12)]
    with Bus(Jsonl(tmp_path / "history.jsonl"), run_id="a") as bus:
        told = Told(tmp_path, bus, lambda record: None)
        for record in records[:2]:
            told(record)
    heard = []
    before = told_before(tmp_path, "a")
    with Bus(Jsonl(tmp_path / "history.jsonl", resume=True), run_id="a") as bus:
        told = Told(tmp_path, bus, heard.append, before)
        told.recall(records)
        told(history.Record(12, "resume"))
    found = read(tmp_path)
    assert [(event.step, event.event) for event in found] == [
        *((4, "evaluate"), (8, "evaluate"), (12, "evaluate"), (12, "resume"))
    ]
    assert [record.event for record in heard] == ["resume"]  # whoever listens has heard the others
    assert [(event.sequence, event.part, event.step) for event in told.events()] == [
        (event.sequence, event.part, event.step) for event in found
    ]
