"""One story, told on the embedded defaults and again on real servers, by configuration alone.

Run A grows a kernel and publishes it. Run B, in another process and with another host, finds it, grafts it, measures
what it is worth there, and keeps it. Both are watched, and one report shows both.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from esper.telemetry import read

ROOT = Path(__file__).parent.parent.parent
TAMIYO = {"trigger": "always", "train_steps": 60, "blend_steps": 10, "hold_steps": 30, "max_kernels": 1, "rank": 16}
TRAINING = {"data": "digits", "steps": 200, "batch_size": 32, "eval_every": 10, "learning_rate": 0.01}


@pytest.fixture(params=["embedded", "services"])
def sections(request, tmp_path):
    """What the two configurations differ in, and nothing else does."""
    if request.param == "embedded":
        return {}
    names = {"database": "postgres_server", "storage": "s3_server", "redis": "redis_server"}
    return {section: request.getfixturevalue(server).section for section, server in names.items()}


def esper(folder, *command):
    """A process of its own; what it prints."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "esper", *map(str, command)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(folder, name, sections, **training):
    urza = {"folder": "library", "tags": [folder.name]}
    components = {"tamiyo": {"config": TAMIYO}, "urza": {"config": urza}, "oona": {"config": {"prefix": folder.name}}}
    document = {"name": name, "components": components, "training": {**TRAINING, "output_dir": name, **training}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**document, **sections}))
    return path


def test_a_kernel_travels_from_one_host_to_another(tmp_path, sections):
    # A place of its own in what the servers of the session share.
    folder = tmp_path / f"story-{os.urandom(4).hex()}"
    folder.mkdir()
    a = written(folder, "a", sections, model="mlp", target_layers=["inner"])
    b = written(folder, "b", sections, model="services.hosts:other", target_layers=["0"], key=5)

    esper(folder, "grow", a, "--no-control", "--quiet")
    (entry,) = json.loads(esper(folder, "library", "list", "--config", a, "--json", "--tag", folder.name))
    assert entry["lifecycle"] == "validated" and entry["gain"]["mean"] > 0

    told = esper(folder, "grow", b, "--no-control", "--quiet")
    events = read(folder / "b" / "history.jsonl")
    (loaded,) = [event for event in events if event.event == "load"]
    assert loaded.figures["artifact"] == entry["digest"] and loaded.layer == "0"
    (kept,) = [event for event in events if event.event == "fossilized"]
    assert kept.step > loaded.step and "gain +" in kept.reason
    assert "published 1 kernels" in " ".join(told.split())

    shown = json.loads(esper(folder, "library", "list", "--config", b, "--json", "--tag", folder.name))
    (child,) = [one for one in shown if one["digest"] != entry["digest"]]
    whole = json.loads(esper(folder, "library", "show", child["digest"], "--config", b, "--json"))
    assert whole["origins"][0]["parent"] == entry["digest"]
    if not sections:  # what the servers of the session hold besides is other tests'
        esper(folder, "library", "verify", "--config", b)

    watched = esper(folder, "watch", "--once", *(["--config", b] if sections else ["a", "b"]))
    assert "fossilized" in watched.lower()

    esper(folder, "report", "a", "b", "-o", "both.html")
    page = (folder / "both.html").read_text()
    assert entry["digest"][7:19] in page and kept.reason.split(":")[0] in page
