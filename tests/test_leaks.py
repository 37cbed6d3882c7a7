"""A canary in every secret place: nothing that a run writes, logs or prints has it, nor what goes wrong in one."""

import traceback

import pytest
import yaml

from esper.cli import main
from esper.configs import EsperConfig
from esper.configs.checks import examine

CANARY = "canary 5ecret/w:rd@"
QUOTED = "canary%205ecret%2Fw%3Ard%40"


@pytest.fixture
def file(tmp_path):
    """A configuration whose services are away: nobody listens at port 1."""
    secret = tmp_path / "secret"
    secret.write_text(CANARY)
    secret.chmod(0o600)
    reference = f"${{file:{secret}}}"
    training = dict(data="digits", model="mlp", steps=8, batch_size=16, eval_every=4, output_dir=str(tmp_path / "run"))
    document = {
        "name": "canary",
        "database": {"host": "127.0.0.1", "port": 1, "username": "u", "password": reference},
        "redis": {"host": "127.0.0.1", "port": 1, "username": "u", "password": reference},
        "storage": {
            "endpoint_url": f"http://u:{QUOTED}@127.0.0.1:1",
            "access_key": reference,
            "secret_key": reference,
            "session_token": reference,
        },
        "training": training,
        "logging": {"level": "DEBUG", "format": "structured"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def assert_clean(text):
    assert CANARY not in text and QUOTED not in text and "5ecret" not in text


def test_nothing_of_a_run_shows_a_secret(file, tmp_path, capfd):
    assert main(["grow", str(file), "--no-control"]) == 0
    out, err = capfd.readouterr()
    assert '"event"' in err
    assert_clean(out + err)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"history.jsonl", "ledger.json", "certificate.json"} <= {path.name for path in written}
    for path in written:
        assert_clean(path.read_bytes().decode("latin-1"))


def test_nothing_that_looks_at_the_configuration_shows_a_secret(file, capfd):
    assert main(["config", "check", str(file)]) == 1
    assert main(["config", "show", str(file)]) == 0
    out, err = capfd.readouterr()
    assert "3 problems" in out and "***" in out
    assert_clean(out + err)


def test_what_drivers_raise_is_not_shown_with_its_cause(file):
    """`options()` and `url()` hold the secrets, because clients have to; nothing else does."""
    config = EsperConfig.from_yaml(file)
    assert config.database.options()["password"] == CANARY and QUOTED in config.redis.url()
    for finding in examine(config, seconds=10):
        assert_clean(repr(finding) + str(finding))


def test_a_file_that_is_refused_shows_no_secret(file, capfd):
    document = yaml.safe_load(file.read_text())
    document["database"]["port"] = document["redis"]["database"] = document["database"]["password"]
    document["storage"]["endpoint_url"] = document["storage"]["extra"] = document["database"]["password"]
    file.write_text(yaml.safe_dump(document))
    assert main(["config", "check", str(file)]) == 2
    out, err = capfd.readouterr()
    assert "4 problems" in err
    assert_clean(out + err)
    with pytest.raises(ValueError, match="4 problems") as caught:
        EsperConfig.from_yaml(file)
    assert_clean("".join(traceback.format_exception(caught.value)))
