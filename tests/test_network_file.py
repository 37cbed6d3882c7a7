"""`network.json` while a run goes on: what the network is, written in nobody's way."""

import json
import logging
from weakref import WeakKeyDictionary

import pytest
from scripted import fitted

from esper.growth.policy import Germinate, Transition
from esper.jax_backend import description as descriptions
from esper.lifecycle import SeedLifecycleState as S
from esper.train import drawn
from esper.train.drawn import NetworkFile

# A kernel that is decided on at 5 is there from 10 on, is blended in after 15, and is culled at 25.
LIFE = (
    (Germinate("0", 0, "low_rank", (), "now"),),
    (),
    (Transition("0", 0, S.GRAFTING, "next"),),
    (),
    (Transition("0", 0, S.CULLED, "enough"),),
)


def look(folder, seen):
    """A callback that reads the file after each evaluation."""
    network = NetworkFile(folder)

    def told(record, run):
        network(record, run)
        if record.event in ("start", "evaluate"):
            network.close()
            held = json.loads((folder / "network.json").read_text())
            kernels = [kernel for layer in held["layers"] for kernel in layer["kernels"]]
            seen.append((record.step, held["step"], [(kernel["state"], kernel["alpha"]) for kernel in kernels]))

    return told


def test_it_is_the_network_as_it_is_and_is_written_only_where_that_has_changed(tmp_path):
    seen = []
    fitted(LIFE, look(tmp_path, seen), steps=30)
    training, grafting = ([("TRAINING", 0.0)], [("GRAFTING", 1.0)])
    assert seen == [
        *((0, 0, []), (5, 0, []), (10, 10, training), (15, 10, training)),
        *((20, 20, grafting), (25, 20, grafting), (30, 30, [("CULLED", 0.0)])),
    ]


def test_the_forward_is_traced_for_its_work_once(tmp_path, monkeypatch):
    count, counted = [], descriptions._counted
    monkeypatch.setattr(descriptions, "_WORK", WeakKeyDictionary())
    monkeypatch.setattr(descriptions, "_counted", lambda *given: count.append(1) or counted(*given))
    network = NetworkFile(tmp_path)
    result = fitted(LIFE, network, steps=30)
    network.close()
    assert descriptions.description(result.model)["layers"][0]["flops"] and len(count) == 1


@pytest.mark.filterwarnings("error")
def test_where_it_cannot_be_written_training_goes_on_and_it_is_tried_again(tmp_path, monkeypatch, caplog):
    write, calls = drawn.write_file, []

    def full_at_first(path, data):
        calls.append(path)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(drawn, "write_file", full_at_first)
    with caplog.at_level(logging.WARNING, "esper.job"):
        network = NetworkFile(tmp_path)

        def told(record, run):
            network(record, run)
            network.close()

        fitted(LIFE, told, steps=5)
    assert "the network is not drawn for now" in caplog.text and "No space left" in caplog.text
    assert json.loads((tmp_path / "network.json").read_text())["step"] == 5
