"""Secrets from files and directories: where they come from, what beats what, and that none is ever shown."""

import json
import os
import traceback
import warnings
from contextlib import contextmanager

import pytest

from esper.cli import main
from esper.configs import EsperConfig
from esper.configs.checks import examine
from esper.configs.redaction import key_ids_of, scrubbed, secrets_of
from esper.configs.secrets import SecretFileWarning, is_open
from esper.errors import ConfigError

CANARY = "canary-5ecret/${X}:@%"
DATABASE = {"username": "urza", "password": "from the file"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("ESPER_")]:
        monkeypatch.delenv(name)


def secret(folder, name="secret", text=CANARY, mode=0o600):
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_reference_to_a_file_is_its_text(tmp_path, end):
    written = {"username": "u", "password": f"${{file:{secret(tmp_path, text=' a b ' + end)}}}"}
    assert EsperConfig(name="n", database=written).database.password == " a b "


def test_what_a_file_holds_is_not_scanned_again(tmp_path):
    config = EsperConfig(name="n", training={"pin": f"${{file:{secret(tmp_path)}}}", "x": "$${file:/y}"})
    assert config.training == {"pin": CANARY, "x": "${file:/y}"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "from the file"),
        (["directory"], "from the directory"),
        (["directory", "pointer"], "from the pointer"),
        (["directory", "variable"], "from the variable"),
        (["variable"], "from the variable"),
        (["pointer"], "from the pointer"),
    ],
)
def test_what_beats_what(tmp_path, monkeypatch, given, expected):
    if "directory" in given:
        secret(tmp_path, "database__password", "from the directory\n")
        monkeypatch.setenv("ESPER_SECRETS_DIR", str(tmp_path))
    if "pointer" in given:
        monkeypatch.setenv("ESPER_DATABASE__PASSWORD_FILE", secret(tmp_path, text="from the pointer\n"))
    if "variable" in given:
        monkeypatch.setenv("ESPER_DATABASE__PASSWORD", "from the variable")
    assert EsperConfig(name="n", database=DATABASE).database.password == expected


def test_a_section_of_the_environment_beats_a_secret_of_the_directory(tmp_path, monkeypatch):
    secret(tmp_path, "database__password", "from the directory\n")
    secret(tmp_path, "database__port", "6432\n")
    monkeypatch.setenv("ESPER_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("ESPER_DATABASE", '{"password": "from the environment"}')
    database = EsperConfig(name="n", database=DATABASE).database
    assert (database.username, database.password, database.port) == ("urza", "from the environment", 6432)


def test_a_value_and_its_file_are_one_too_many(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPER_DATABASE__PASSWORD", CANARY)
    monkeypatch.setenv("ESPER_DATABASE__PASSWORD_FILE", secret(tmp_path))
    with pytest.raises(ConfigError, match="ESPER_DATABASE__PASSWORD and ESPER_DATABASE__PASSWORD_FILE") as caught:
        EsperConfig(name="n")
    assert CANARY not in str(caught.value)


def test_a_field_whose_name_ends_like_a_pointer_is_itself(monkeypatch):
    monkeypatch.setenv("ESPER_REDIS__CA_FILE", "/no/such/file")
    assert EsperConfig(name="n").redis.ca_file == "/no/such/file"


def test_open_sections_take_secrets_of_the_directory(tmp_path, monkeypatch):
    secret(tmp_path, "components__tamiyo__config__pin")
    secret(tmp_path, "training__steps", "9\n")
    secret(tmp_path, "unrelated")
    secret(tmp_path, "other__thing")
    (tmp_path / "redis__host").mkdir()
    monkeypatch.setenv("ESPER_SECRETS_DIR", str(tmp_path))
    config = EsperConfig(name="n")
    assert config.components["tamiyo"].config == {"pin": CANARY} and config.redis is None
    assert config.training_settings().steps == 9
    assert CANARY not in repr(config) + str(config.redacted())


LINE = "k1 " + "0" * 64
REMOTE = ("components", {"tamiyo": {"config": {"remote": {"key_file": None}}}})


@pytest.mark.parametrize(
    ("name", "subject", "there"),
    [
        ("redis__password", "redis", ("redis", {})),
        ("components__tamiyo__config__remote__secret", "components.tamiyo.config.remote", REMOTE),
    ],
)
def test_a_mounted_secret_by_itself_switches_nothing_on(tmp_path, monkeypatch, name, subject, there):
    place = secret(tmp_path, name, LINE)
    monkeypatch.setenv("ESPER_SECRETS_DIR", str(tmp_path))
    off = EsperConfig(name="n", training={"output_dir": str(tmp_path)})
    assert off.redis is None and off.tamiyo_settings().remote is None
    assert off.idle_secrets() == ((subject, place),)
    told = [finding for finding in examine(off, connect=False) if finding.subject == subject]
    assert [finding.verdict for finding in told] == ["ok"] and place in told[0].told and LINE not in str(told[0])
    on = EsperConfig(name="n", **dict([there]))
    assert LINE in secrets_of(on) and on.idle_secrets() == ()


@pytest.mark.parametrize("beside", ["file", "variable", "section"])
def test_a_mounted_secret_goes_with_what_the_environment_brings(tmp_path, monkeypatch, beside):
    secret(tmp_path, "redis__password")
    if beside == "file":
        secret(tmp_path, "redis__host", "cache")
    if beside == "variable":
        monkeypatch.setenv("ESPER_REDIS__HOST", "cache")
    if beside == "section":
        monkeypatch.setenv("ESPER_REDIS", '{"host": "cache"}')
    monkeypatch.setenv("ESPER_SECRETS_DIR", str(tmp_path))
    config = EsperConfig(name="n")
    assert (config.redis.host, config.redis.password) == ("cache", CANARY)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda folder: str(folder / "absent"), "there is no such file"),
        (lambda folder: str(folder), "it is no file"),
        (lambda folder: secret(folder, text="\n"), "it is empty"),
        (lambda folder: secret(folder, text="x" * 70_000), "more than 65536 bytes"),
        (lambda folder: "relative/secret", "write an absolute path"),
    ],
)
@pytest.mark.parametrize("way", ["reference", "pointer"])
def test_a_secret_that_cannot_be_read_says_where_it_should_be(tmp_path, monkeypatch, make, problem, way):
    path = make(tmp_path)
    database = {"username": "u", "password": f"${{file:{path}}}"} if way == "reference" else None
    if way == "pointer":
        monkeypatch.setenv("ESPER_DATABASE__PASSWORD_FILE", path)
    with pytest.raises(ConfigError, match=problem) as caught:
        EsperConfig(name="n", database=database)
    named = "database.password" if way == "reference" else "ESPER_DATABASE__PASSWORD_FILE"
    assert named in str(caught.value) and path in str(caught.value)


def test_bytes_that_are_no_text_are_not_shown(tmp_path):
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe" + CANARY.encode())
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        EsperConfig(name="n", training={"x": f"${{file:{path}}}"})
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_a_missing_directory_of_secrets_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPER_SECRETS_DIR", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"ESPER_SECRETS_DIR: cannot read .*: No such file"):
        EsperConfig(name="n")


def test_a_wrong_secret_names_its_file(tmp_path, monkeypatch):
    place = secret(tmp_path, "database__port")
    secret(tmp_path, "redis__pasword")
    monkeypatch.setenv("ESPER_SECRETS_DIR", str(tmp_path))
    with pytest.raises(ConfigError) as caught:
        EsperConfig(name="n", database=DATABASE)
    assert f"database.port ({place}): should be a valid integer" in str(caught.value)
    assert f"redis.pasword ({tmp_path / 'redis__pasword'}): unknown key" in str(caught.value)
    assert CANARY not in "".join([*traceback.format_exception(caught.value), *caught.value.problems])


@contextmanager
def reachable(folder):
    """Everybody may go through every folder above: what a test writes to is closed to others."""
    closed = [parent for parent in (folder, *folder.parents) if not parent.stat().st_mode & 0o001]
    modes = [(parent, parent.stat().st_mode) for parent in closed]
    assert all(parent.stat().st_uid == os.getuid() for parent in closed)
    try:
        for parent, mode in modes:
            parent.chmod(mode | 0o001)
        yield
    finally:
        for parent, mode in modes:
            parent.chmod(mode)


def test_secrets_that_everybody_can_read_are_warned_of(tmp_path):
    place = secret(tmp_path, mode=0o644)
    closed = [parent for parent in (tmp_path, *tmp_path.parents) if not parent.stat().st_mode & 0o001]
    assert is_open(tmp_path / "secret") == (not closed)
    with reachable(tmp_path):
        with pytest.warns(SecretFileWarning, match=f"chmod o-r {place}"):
            EsperConfig(name="n", training={"x": f"${{file:{place}}}"})
        os.chmod(place, 0o640)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            EsperConfig(name="n", training={"x": f"${{file:{place}}}"})


@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o600, False)])
def test_keys_of_remote_control_that_everybody_can_read_are_warned_of(tmp_path, capsys, mode, warned):
    keys = secret(tmp_path, "control.keys", LINE, mode)
    remote = {"key_file": keys, "folder": str(tmp_path)}
    document = {"name": "n", "components": {"tamiyo": {"config": {"remote": remote}}}}
    document["training"] = {"output_dir": str(tmp_path)}
    file = secret(tmp_path, "esper.yaml", json.dumps(document))
    with reachable(tmp_path):
        assert main(["config", "check", "--offline", file]) == 0
    assert (f"chmod o-r {keys}" in capsys.readouterr().out) == warned


def everything_secret(folder):
    """A configuration with the canary in every place that can hold a secret."""
    reference = f"${{file:{secret(folder)}}}"
    return EsperConfig(
        name="n",
        database={"host": reference, "username": reference, "password": reference},
        redis={"username": reference, "password": reference},
        storage={"access_key": reference, "secret_key": reference, "session_token": reference},
        components={
            "tamiyo": {
                "config": {"signing_key": reference, "api_key": reference, "pin": reference, "list": [reference]}
            },
            "nissa": {"config": {"url": f"redis://u:{'pa55word'}@h", "token": reference}},
        },
        training={"wandb_api_key": reference, "anything": {"deep": [{"x": reference}]}},
        logging={"sink_password": reference},
    )


def test_the_canary_is_never_shown(tmp_path):
    config = everything_secret(tmp_path)
    shown = [repr(config), str(config), f"{config}", repr(config.redacted())]
    shown += [
        repr(part) + str(part) for part in (config.database, config.redis, config.storage, *config.components.values())
    ]
    shown += [repr(config.training), repr(config.logging), repr(vars(config)["training"])]
    for view in (config.training_settings, config.logging_settings, config.tamiyo_settings, config.check):
        with pytest.raises(ConfigError) as caught:
            view()
        shown += ["".join(traceback.format_exception(caught.value)), repr(caught.value), *caught.value.problems]
    with pytest.raises(ConfigError) as caught:
        config.database.port = CANARY
    shown += ["".join(traceback.format_exception(caught.value)[-1:])]
    assert len(shown) > 20 and not [text for text in shown if "5ecret" in text or "pa55word" in text]
    assert config.database.password == CANARY == config.storage.session_token


def test_what_drivers_say_is_scrubbed(tmp_path):
    config = everything_secret(tmp_path)
    found = secrets_of(config)
    assert found == {CANARY}
    url = config.database.url()
    assert "canary" in url and "canary" not in scrubbed(f"{CANARY} is no host", found)
    assert "canary" not in scrubbed(f"cannot connect to {url} with '{CANARY}'", found)
    assert scrubbed("redis://u:pw@h is away", ()) == "redis://***@h is away"


def test_an_access_key_id_is_masked_where_it_stands_for_itself():
    storage = {"access_key": "esper", "secret_key": "s3cret"}
    config = EsperConfig(name="test", storage=storage)
    secrets, key_ids = secrets_of(config), key_ids_of(config)
    assert (secrets, key_ids) == ({"s3cret"}, {"esper"})
    same = "/esper-artifacts/x.esper /esper/x esper.io vesper esper_1"
    assert scrubbed(same, secrets, key_ids) == same
    said = 'Credential=esper/2026, "esper" (esper) key esper.'
    assert scrubbed(said, secrets, key_ids) == 'Credential=***/2026, "***" (***) key ***.'
    assert scrubbed("esper-artifacts", secrets | {"esper"}, key_ids) == "***-artifacts"


@pytest.mark.parametrize("login", ["u:pw", "pw", "u:p/w", "u:p@w", ":pw"])
def test_whatever_stands_before_the_host_of_a_url_is_hidden(login):
    shown = EsperConfig(name="n", training={"url": f"https://{login}@h/x"}).redacted()
    assert shown["training"] == {"url": "https://***@h/x"}


@pytest.mark.parametrize(
    "name", ["pwd", "bearer", "Authorization", "authorisation", "http_auth", "auth", "key", "x-key"]
)
def test_names_of_secrets_hide_their_values(name):
    shown = EsperConfig(name="n", training={name: "5ecret", "key_file": "/k", "keys": 2, "author": "a"}).redacted()
    assert shown["training"] == {name: "***", "key_file": "/k", "keys": 2, "author": "a"}


def test_a_secret_file_is_hidden_after_an_assignment_too_and_stays_text(tmp_path):
    config = everything_secret(tmp_path)
    config.redis.username = config.database.username
    assert CANARY not in repr(config.redis) and config.redis.username == CANARY
    with pytest.raises(ConfigError, match=r"redis\.database: should be a valid integer"):
        EsperConfig(name="n", redis={"database": f"${{file:{secret(tmp_path)}}}"})
