"""Telemetry in training: it changes nothing, and a run's history says what its records say."""

import json

import jax
import numpy as np
import yaml
from scripted import fitted

from esper.cli import main
from esper.configs import EsperConfig
from esper.growth.policy import Germinate, Transition
from esper.lifecycle import SeedLifecycleState as S
from esper.telemetry import Bus, Jsonl, read
from esper.telemetry.assemble import bus_of
from esper.train import history
from telemetry.samples import Collecting

LIFE = ((Germinate("0", 0, "low_rank", (), "by the script"),), (Transition("0", 0, S.GRAFTING, "it gains"),))


def test_a_run_with_a_dead_sink_is_bit_equal_to_one_without(tmp_path):
    plain = fitted(LIFE, steps=20)
    dead = Collecting("dead", failures=10**9)
    hung = Collecting("hung")
    hung.open.clear()
    with Bus(Jsonl(tmp_path / "history.jsonl"), dead, hung, timeout=0.1) as bus:
        told = fitted(LIFE, bus, steps=20)
    hung.open.set()
    held = [jax.tree.leaves((run.model.params, run.model.seeds, run.opt_state)) for run in (plain, told)]
    assert all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(*held, strict=True))
    assert plain.losses == told.losses and bus.counts()["dead"].written == 0
    assert bus.counts()["jsonl"].dropped == 0
    known = [event for event in read(tmp_path) if event.event not in ("sink_down", "drops")]
    assert len(known) == len(told.records) > 5
    for event, record in zip(known, told.records, strict=True):
        assert all(getattr(event, name) == value for name, value in vars(record).items())


def test_grow_tells_its_history_while_it_runs(tmp_path):
    place, seen = tmp_path / "run", []
    tamiyo = dict(patience=1, min_delta=10.0, train_steps=4, blend_steps=4, hold_steps=4, max_kernels=1, rank=4)
    document = {
        "name": "test",
        "components": {"tamiyo": {"config": tamiyo}, "nissa": {"config": {"tensorboard": True, "prometheus_port": 0}}},
        "training": dict(data="digits", model="mlp", steps=12, batch_size=16, eval_every=4, output_dir=str(place)),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    from esper.job import run

    run(
        EsperConfig.from_yaml(tmp_path / "config.yaml"),
        watch=lambda step: seen.append(len(read(place)) if (place / "history.jsonl").exists() else 0),
    )
    assert seen[-1] > 0  # long before the run was over
    found = read(place)
    assert [event.sequence for event in found] == list(range(len(found)))
    assert {event.run for event in found} == {"growth", "control"} and len({event.run_id for event in found}) == 1
    assert [record.event for record in history.read(place / "history.jsonl")] == [event.event for event in found]
    first = json.loads((place / "history.jsonl").read_text().splitlines()[0])
    assert {"schema_version", "run_id", "sequence", "time", "step", "event", "figures", "run"} <= first.keys()
    assert len(list((place / "tensorboard").glob("*/events.out.tfevents.*"))) == 2


def test_the_bus_is_what_the_configuration_says(tmp_path):
    nissa = {"tensorboard": True, "prometheus_port": 0, "otel_endpoint": "http://localhost:1", "close_timeout": 0.0}
    redis = {"host": "localhost", "port": 1, "password": "hidden one"}

    def names(**sections):
        config = EsperConfig(name="x", **sections)
        config.check()
        with bus_of(config, tmp_path) as bus:
            assert "hidden one" not in repr(bus)
        return list(bus.counts())

    assert names() == ["jsonl"]
    assert names(redis=redis, components={"nissa": {"config": {"close_timeout": 0.0}}}) == ["jsonl", "redis"]
    assert names(redis=redis, components={"nissa": {"config": {"redis": False}}}) == ["jsonl"]
    everything = {"nissa": {"config": nissa}, "oona": {"config": {"prefix": "other"}}}
    assert names(redis=redis, components=everything) == ["jsonl", "redis", "tensorboard", "prometheus", "otel"]
    assert names(redis=redis, components={"nissa": {"enabled": False, "config": nissa}}) == ["jsonl"]


def test_settings_that_are_wrong_are_all_said(tmp_path, capsys):
    nissa, oona = {"prometheus_port": 70_000, "otel_endpoint": "localhost"}, {"prefix": "a b", "maxlen": 0}
    document = {"name": "x", "components": {"nissa": {"config": nissa}, "oona": {"config": oona}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    assert main(["config", "check", str(tmp_path / "config.yaml")]) == 2
    err = capsys.readouterr().err
    for path in (
        "nissa.config.prometheus_port",
        "nissa.config.otel_endpoint",
        "oona.config.prefix",
        "oona.config.maxlen",
    ):
        assert f"components.{path} (line" in err
