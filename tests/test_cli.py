"""The command `esper`: exit codes, messages, files."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from esper.cli import main
from esper.train import history


@pytest.fixture
def config(tmp_path):
    """A run of seconds in which a seed germinates."""
    tamiyo = dict(patience=1, min_delta=10.0, train_steps=4, blend_steps=4, hold_steps=4, max_kernels=1, rank=4)
    training = dict(data="digits", model="mlp", steps=24, batch_size=16, eval_every=4)
    training |= dict(seeds_per_layer=1, output_dir=str(tmp_path / "run"))
    document = {
        "name": "test",
        "components": {"tamiyo": {"config": tamiyo}},
        "training": training,
        "logging": {"level": "INFO", "format": "text"},
    }

    def written(**changes):
        for path, value in changes.items():
            section, key = path.split("__")
            document[section][key] = value
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document))
        return str(path)

    return written


def test_grow_trains_reports_and_writes(config, tmp_path, capsys):
    assert main(["grow", config()]) == 0
    out, err = capsys.readouterr()
    for wanted in (
        "before training",
        "before growth",
        "control: the host alone",
        "germinate mlp",
        "compiles caused by seeds' transitions: 0",
        "Certificate",
        "weights_only=False",
    ):
        assert wanted in out
    assert "germinate" in err and "held-out loss has not improved" in err
    place = tmp_path / "run"
    module = torch.load(place / "trained.pt", weights_only=False)
    tensors = load_file(place / "model.safetensors")
    state = torch.load(place / "state_dict.pt", weights_only=True)
    assert state.keys() == tensors.keys() == module.state_dict().keys()
    assert all(torch.equal(state[name], tensors[name]) for name in state)
    assert module(torch.zeros(2, 64)).shape == (2, 10)
    assert {"head.weight", "head.bias", "inner.weight", "inner.bias"} <= state.keys()
    assert json.loads((place / "certificate.json").read_text())["max_rel"] <= 1e-5
    with safe_open(place / "model.safetensors", "pt") as file:
        seeds = json.loads(file.metadata()["seeds"])
    assert {(seed["layer"], seed["seed"]) for seed in seeds} == {("inner", 0), ("head", 0)}
    assert {"lifecycle", "alpha", "health", "age"} <= seeds[0].keys()
    network = json.loads((place / "network.json").read_text())
    assert [layer["name"] for layer in network["layers"] if layer["kasmina"]] == ["inner", "head"]
    assert main(["report", str(place)]) == 0 and "SmallMLP" in (place / "report.html").read_text()
    records = history.read(place / "history.jsonl")
    assert {record.run for record in records} == {"growth", "control"}


def test_grow_without_control_quietly_elsewhere(config, tmp_path, capsys):
    place = tmp_path / "elsewhere"
    assert main(["grow", config(training__steps=4), "--no-control", "--quiet", "--output-dir", str(place)]) == 0
    out, err = capsys.readouterr()
    assert "control:" not in out and err == "" and "nothing grew" in out
    assert (place / "trained.pt").exists() and not (tmp_path / "run").exists()


def test_a_structured_log_is_json(config, capsys):
    assert main(["grow", config(logging__format="structured", logging__level="DEBUG", training__steps=8)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert {"start", "evaluate", "score", "end"} <= {line.get("event") for line in lines}
    assert [line["message"] for line in lines if "event" not in line] == ["this run computes on: cpu"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__model": "no.such.module:make"}, "no module 'no'"),
        ({"training__model": "torch.nn:Nothing"}, "torch.nn has no 'Nothing'"),
        ({"training__model": "torch.nn:functional"}, "a module is no factory"),
        ({"training__model": "builtins:dict"}, "makes a dict"),
        ({"training__model": "torch.nn:Identity"}, "gives"),
        ({"training__target_layers": ["nothing"]}, "SmallMLP (1); by name: 'inner', 'head'"),
        ({"training__steps": 0}, "training.steps (line"),
        ({"training__data": "imagenet"}, "training.data"),
    ],
    ids=str,
)
def test_what_cannot_be_grown_is_one_message_and_2(config, capsys, changes, message):
    assert main(["grow", config(**changes)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.startswith("esper: ") and "Traceback" not in err


def test_a_model_that_does_not_take_the_data_is_said_with_both_and_where(config, tmp_path, monkeypatch, capsys):
    (tmp_path / "narrow_host.py").write_text(
        "from torch import nn\n"
        "class Narrow(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(8, 10)\n"
        "    def forward(self, x):\n"
        "        return self.head(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["grow", config(training__model="narrow_host:Narrow"), "--quiet"]) == 2
    said = capsys.readouterr().err
    wanted = ("training.model 'narrow_host:Narrow'", "training.data 'digits'", "[batch, 64]", "narrow_host.py:7")
    assert all(part in said for part in (*wanted, "mat1 and mat2 shapes cannot be multiplied"))
    assert "Traceback" not in said


@pytest.mark.parametrize("command", [["grow"], ["config", "check"]])
def test_a_missing_file_is_one_message_and_2(capsys, command):
    assert main([*command, "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_inspect_shows_programs_layers_and_operators(capsys):
    assert main(["inspect", "cnn"]) == 0
    out = capsys.readouterr().out
    for wanted in (
        "Program (eval",
        "Program (train",
        "aten.conv2d.default  2, 2",
        "3 layers can grow",
        "head  Linear  mlp",
        "conv1  Conv2d  conv",
        "Every operator has a lowering",
    ):
        assert wanted in out


def test_inspect_lists_what_has_no_lowering(capsys, tmp_path, monkeypatch):
    (tmp_path / "odd_host.py").write_text(
        "import torch\n"
        "@torch.library.custom_op('esper_tests::shrug', mutates_args=())\n"
        "def shrug(x: torch.Tensor) -> torch.Tensor:\n"
        "    return x.clone()\n"
        "shrug.register_fake(torch.empty_like)\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = torch.nn.Linear(4, 2)\n"
        "    def forward(self, x, *, scale):\n"
        "        return self.head(shrug(x)) * scale\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    arguments = ["inspect", "odd_host:Odd", "--no-program", "--input", "3x4:float32", "--input", "scale=:float32"]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "1 operator has no lowering" in out and "esper_tests.shrug.default" in out and "odd_host.py:11" in out
    assert "head  Linear  mlp" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torch.nn:Identity"], "--input 1x3x32x32:float32"),
        (["cnn", "--input", "what"], "--input what"),
        (["cnn", "--input", "1x2:float99"], "no dtype float99"),
        (["cnn", "--input", "1x2:float32"], "esper: "),
        (["resnet"], "'resnet' is neither cnn nor mlp"),
    ],
)
def test_what_cannot_be_inspected_is_one_message_and_2(capsys, arguments, message):
    assert main(["inspect", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_config_check(config, capsys):
    assert main(["config", "check", config()]) == 0
    assert "no problems" in capsys.readouterr().out
    assert main(["config", "check", config(training__batch_size=0, logging__format="xml")]) == 2
    err = capsys.readouterr().err
    assert "2 problems" in err and "training.batch_size" in err and "logging.format" in err


def test_config_schema(tmp_path, capsys):
    assert main(["config", "schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["config", "schema", str(tmp_path / "schema.json")]) == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == printed
    assert main(["config", "schema", str(tmp_path / "no" / "schema.json")]) == 2


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["config"], ["grow"]])
def test_a_command_line_that_makes_no_sense_is_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: esper" in capsys.readouterr().err


def test_python_dash_m_is_the_command_and_its_help_is_light():
    code = "import sys, esper.cli; print(sorted({'torch', 'jax', 'pydantic', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    found = subprocess.run([sys.executable, "-m", "esper", "--version"], capture_output=True, text=True, check=True)
    assert found.stdout == "esper 0.2.0\n"


def test_a_reader_that_goes_away_ends_a_command_quietly():
    reads, writes = os.pipe()
    os.close(reads)
    try:
        command = [sys.executable, "-m", "esper", "config", "reference"]
        found = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writes)
    assert (found.returncode, found.stderr) == (141, "")


def test_a_terminal_that_cannot_show_a_sign_shows_another(tmp_path):
    (tmp_path / "history.jsonl").write_text(history.Record(3, "hold", "0.1 ± 0.2 … ≥ 1").to_json() + "\n")
    command = [sys.executable, "-m", "esper", "watch", "--once", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert found.returncode == 0 and b"0.1 ? 0.2" in found.stdout, found.stderr


def test_a_pipe_that_breaks_elsewhere_is_said(monkeypatch, capsys):
    def broken(asked):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("esper.cli.config._config_schema", broken)
    assert main(["config", "schema"]) == 2
    assert "Broken pipe" in capsys.readouterr().err


def test_grow_warns_of_a_component_that_nothing_reads(config, capsys):
    path = Path(config(training__model="no.such.module:make"))
    document = yaml.safe_load(path.read_text())
    document["components"]["kasmina"] = {}
    path.write_text(yaml.safe_dump(document))
    assert main(["grow", str(path)]) == 2
    assert "nothing reads components.kasmina" in capsys.readouterr().err
