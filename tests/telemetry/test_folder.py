"""A folder holds the account of one run at a time, and what an earlier one left is kept."""

import json
import shutil
import time

import pytest

import esper.report
from esper import job
from esper.cli.grow import _loading
from esper.configs import EsperConfig
from esper.errors import ConfigError, TelemetryError
from esper.telemetry import Jsonl, event_of, read
from esper.telemetry.folder import TOLD, claimed, set_aside, write_again
from telemetry.samples import evaluation


class Begun(Exception):
    """Training would begin."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a run that wrote everything."""

    def grow(*given, listen, **named):
        listen(evaluation(7))
        raise Begun

    monkeypatch.setattr("esper.job.grow", grow)
    for name in TOLD:
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "history.jsonl").write_bytes(event_of(evaluation(0), run_id="earlier-1", sequence=0, seconds=1e9).line)
    return tmp_path


def config(folder, **tamiyo):
    training = {"data": "digits", "model": "mlp", "output_dir": str(folder)}
    return EsperConfig(name="x", training=training, components={"tamiyo": {"config": tamiyo}})


def test_a_run_that_never_begins_leaves_the_folder_as_it_was(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="no-such-file"):
        job.run(config(folder, remote={"key_file": str(folder / "no-such-file")}))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_run_that_begins_keeps_the_account_of_the_one_before_and_shows_none_of_it(folder):
    with pytest.raises(Begun):
        job.run(config(folder))
    assert [event.step for event in read(folder / "history.earlier-1.jsonl")] == [0]
    assert [event.step for event in read(folder)] == [7, 7]  # the evaluation, and that it failed
    files = ("certificate.json", "ledger.json", "network.json", "model.safetensors", "state_dict.pt", "trained.pt")
    for name in files:
        stem, _, suffix = name.partition(".")
        assert not (folder / name).exists() and (folder / f"{stem}.earlier-1.{suffix}").read_text() == "{}\n", name


def test_two_runs_do_not_share_a_folder(folder):
    before = (folder / "history.jsonl").read_bytes()
    with claimed(folder), pytest.raises(ConfigError, match=f"another run is writing to {folder}"):
        job.run(config(folder))
    assert (folder / "history.jsonl").read_bytes() == before
    with claimed(folder):  # it was given back
        pass


def test_of_several_processes_one_tells_the_run(folder, monkeypatch):
    monkeypatch.setattr("esper.job.is_main", lambda: False)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Begun):
        job.run(config(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before


@pytest.mark.parametrize("name", ["../up", "", "a/b", "x" * 300])
def test_what_a_run_is_called_leads_out_of_no_folder(tmp_path, name):
    line = json.loads(event_of(evaluation(0), run_id="r", sequence=0, seconds=1e9).line) | {"run_id": name}
    for _ in range(2):
        (tmp_path / "history.jsonl").write_text(json.dumps(line) + "\n")
        set_aside(tmp_path)
    assert sorted(path.name[:16] for path in tmp_path.iterdir()) == ["history.earlier."] * 2


def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="choose another output_dir"):
        job.run(config(tmp_path / "file" / "run"))


def growing(folder, **nissa):
    training = {"data": "digits", "model": "mlp", "output_dir": str(folder), "steps": 4, "eval_every": 2}
    components = {"nissa": {"config": {"close_timeout": 0.1, **nissa}}}
    return EsperConfig(name="x", training=training, components=components)


def test_a_history_that_could_not_be_written_while_it_went_on_is_written_at_the_end(tmp_path, monkeypatch, caplog):
    said = []

    def failing(sink, events):
        raise OSError("the disk is full")

    monkeypatch.setattr(Jsonl, "write", failing)
    done = job.run(growing(tmp_path), control=False, listen=said.append)
    assert done.lost["jsonl"] >= len(said)
    found = read(tmp_path)
    assert [(event.step, event.event) for event in found] == [(one.step, one.event) for one in said]
    assert [event.sequence for event in found] == list(range(len(said)))
    assert "events were lost, 0 written: the disk is full" in caplog.text
    assert {path.name for path in done.files.values()} <= set(TOLD)  # what the next run is to put aside
    assert "written again at the end" in _loading(done)[str(tmp_path / "history.jsonl")]
    (tmp_path / "history.jsonl").unlink()
    (tmp_path / "history.jsonl").mkdir()
    with pytest.raises(TelemetryError, match="its history cannot be written to"):
        write_again(tmp_path, found)
    assert not list(tmp_path.glob(".history*"))


def test_a_history_that_is_taken_away_while_it_goes_on_is_written_whole_at_the_end(tmp_path, caplog):
    place, said = tmp_path / "run", []

    def remove(step):
        if step == 3:
            time.sleep(0.3)  # until what was told is there
            shutil.rmtree(place, ignore_errors=True)  # something may be written there meanwhile

    done = job.run(growing(place), control=False, listen=said.append, watch=remove)
    assert "jsonl" not in done.lost and "it is written again" in caplog.text
    found = read(place)
    assert [(event.step, event.event) for event in found] == [(one.step, one.event) for one in said]
    assert [event.sequence for event in found] == list(range(len(said)))
    assert esper.report.run(place).missing == 0
