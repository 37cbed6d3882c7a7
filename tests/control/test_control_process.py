"""The controller as a process of its own, by the configuration: killed, started again, told to end."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import esper
from control.runs import GROWTH, alone, bit_equal, run, told
from esper import job
from esper.cli import main
from esper.configs import EsperConfig, RemoteSettings
from esper.control import RemotePolicy
from esper.control.connect import controller_of, keys_of, policy_of
from esper.control.keys import new_key
from esper.errors import ConfigError

ROOT = str(Path(esper.__file__).parent.parent)
GIVEN = GROWTH.model_dump(exclude_defaults=True)


def written(folder, **remote):
    """A configuration file, and the line with its key."""
    line = new_key("k1")
    (folder / "keys").write_text(line + "\n")
    settings = {**GIVEN, "remote": {"key_file": str(folder / "keys"), "folder": str(folder / "control"), **remote}}
    held = {"name": "test", "components": {"tamiyo": {"config": settings}}, "logging": {"format": "structured"}}
    (folder / "esper.yaml").write_text(yaml.safe_dump(held))
    return folder / "esper.yaml", line


class Process:
    """`esper tamiyo`."""

    def __init__(self, config, log):
        self.log, command = log, [sys.executable, "-m", "esper", "tamiyo", "--config", str(config)]
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)

    def serves(self, times):
        """Waits until it has been started so many times."""
        deadline = time.monotonic() + 300
        while self.log.read_text().count("serving every run") < times:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def end(self, how):
        getattr(self.process, how)()
        return self.process.wait(60)


@contextmanager
def ended(processes):
    try:
        yield processes
    finally:
        for process in processes:
            process.end("kill")


def test_a_controller_process_that_is_killed_and_started_again(tmp_path):
    file, line = written(tmp_path, timeout=8.0, patience=1, longest_rest=1)
    log = tmp_path / "log"

    def disturb(record, run):
        if record.event == "evaluate" and record.step == 15:
            processes[0].end("kill")
        if record.event == "evaluate" and record.step == 25:
            processes.append(Process(file, log))
            processes[-1].serves(2)

    with ended([Process(file, log)]) as processes, policy_of(EsperConfig.from_yaml(file), "run-1") as policy:
        processes[0].serves(1)
        found = run(policy, callbacks=[disturb])
        assert processes[-1].end("terminate") == 0
    assert bit_equal(found, alone())
    who = [reason.split(":")[0] for reason in told(found, "remote")]
    assert "the local default decides" in who and who[0].startswith("the controller")
    assert who[-1].startswith("the controller decides")
    said = log.read_text()
    assert "told to end" in said and line.split()[1] not in said and "Traceback" not in said


def test_without_the_setting_there_is_none(tmp_path):
    config = EsperConfig(name="test")
    with policy_of(config, "run-1") as policy:
        assert policy is None
    with pytest.raises(ConfigError, match=r"components\.tamiyo\.config\.remote"), controller_of(config):
        pass
    file, _ = written(tmp_path)
    still = EsperConfig.from_yaml(file)
    still.components["tamiyo"].enabled = False
    with policy_of(still, "run-1") as policy:
        assert policy is None


def test_the_main_job_is_controlled(tmp_path, monkeypatch):
    class Begun(Exception):
        """Whose policy is looked at."""

    def grow(*given, policy, **named):
        raise Begun(policy)

    monkeypatch.setattr("esper.job.grow", grow)
    config = EsperConfig.from_yaml(written(tmp_path, timeout=7.0)[0])
    config.training = {"data": "digits", "model": "mlp", "output_dir": str(tmp_path / "run")}
    with pytest.raises(Begun) as found:
        job.run(config)
    policy = found.value.args[0]
    assert isinstance(policy, RemotePolicy) and policy._line.timeout == 7.0
    assert policy.settings.min_delta == GROWTH.min_delta


@pytest.mark.parametrize(
    ("remote", "problem"),
    [
        ({}, "one of the two"),
        ({"key_file": "a", "secret": "b"}, "one of the two"),
        ({"key_file": "a", "channel": "redis"}, "redis needs a `redis` section"),
        ({"key_file": "a", "timeout": 0}, "timeout"),
        ({"key_file": "a", "policy": "nothing"}, "policy"),
        ({"key_file": "a", "unknown": 1}, "unknown"),
    ],
)
def test_settings_that_are_refused(remote, problem):
    config = EsperConfig(name="test", components={"tamiyo": {"config": {"remote": remote}}})
    with pytest.raises(ConfigError, match=problem):
        config.check()


@pytest.mark.parametrize(
    "policy", ["nowhere:policy", "esper.control:nothing", "builtins:dict", "json:loads", "esper.growth.policy:Policy"]
)
def test_policies_that_are_none(policy, tmp_path):
    file, _ = written(tmp_path, policy=policy)
    with pytest.raises(ConfigError, match=policy.replace(".", r"\.")), controller_of(EsperConfig.from_yaml(file)):
        pass


def test_a_policy_of_the_users_own(tmp_path):
    file, _ = written(tmp_path, policy="control.test_control_process:Still")
    with controller_of(EsperConfig.from_yaml(file)) as (controller, _):
        assert isinstance(controller.policy, Still)


def test_no_controller_takes_questions_that_it_does_not_answer(tmp_path, capsys):
    """All share an inbox: one that served some runs would take those of the others from who answers them."""
    file, _ = written(tmp_path)
    with pytest.raises(SystemExit):
        main(["tamiyo", "--config", str(file), "--run", "a"])
    assert "unrecognized arguments: --run" in capsys.readouterr().err


class Still:
    def start(self):
        return ()

    def __call__(self, observation, memory):
        return (), memory


def test_secrets_are_not_shown():
    line = new_key("k1")
    settings = RemoteSettings(secret=line)
    config = EsperConfig(name="test", components={"tamiyo": {"config": {"remote": {"secret": line}}}})
    assert keys_of(settings).signing == "k1"
    shown = f"{settings!r} {config!r} {config.redacted()} {config.tamiyo_settings()!r} {settings.redacted()}"
    assert line.split()[1] not in shown
