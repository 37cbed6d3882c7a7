"""Templates, reference tables, and `esper config` as far as it needs no server."""

import os
import re
import socket
import sys
import time
import warnings
from pathlib import Path

import pytest
import yaml

from esper.cli import main
from esper.configs import EsperConfig, TamiyoSettings
from esper.configs.checks import Finding, examine
from esper.configs.checks.findings import Probe, within
from esper.configs.reference import BEGIN, END, filled, sections
from esper.configs.secrets import SecretFileWarning
from esper.configs.templates import TEMPLATES, template
from esper.errors import ConfigError

ROOT = Path(__file__).parent.parent
CANARY = "canary-5ecret"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("ESPER_")]:
        monkeypatch.delenv(name)


def written(folder, text, name="run.yaml"):
    path = folder / name
    path.write_text(text)
    return str(path)


def with_secrets(text, folder):
    """The text with files of the test's own where it names files."""
    secret = folder / "secret"
    secret.write_text(CANARY)
    secret.chmod(0o600)
    return re.sub(r"/run/secrets/esper/\w+(\.pem)?", str(secret), text)


# ---- templates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_template_is_valid_as_it_is_and_says_what_it_says(name, tmp_path):
    text = template(name)
    config = EsperConfig.from_yaml(written(tmp_path, with_secrets(text, tmp_path)))
    config.check()
    assert config.name == name and max(map(len, text.splitlines())) <= 100
    for path, values in TEMPLATES[name].given.items():
        section = yaml.safe_load(text)
        for step in filter(None, path.split(".")):
            section = section[step]
        assert {key: section[key] for key in values} == values


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_value_of_a_template_stands_below_its_documentation(name):
    meanings = {field.meaning for section in sections() for field in section.fields}
    lines = template(name).splitlines()
    fields = [number for number, line in enumerate(lines) if re.match(r"\s*(# )?\w+: \S", line)]
    assert len(fields) >= 15
    for number in fields:
        comment, above = "", number - 1
        while lines[above].lstrip().startswith("# ") and above not in fields:
            comment, above = f"{lines[above].lstrip()[2:]} {comment}", above - 1
        assert comment.strip() in meanings, lines[number]


def test_what_a_template_leaves_out_can_be_switched_on(tmp_path):
    """The commented fields of the services are valid too."""
    text = with_secrets(re.sub(r"^(\s*)# (\w+: \S+)$", r"\1\2", template("cluster"), flags=re.M), tmp_path)
    config = EsperConfig.from_yaml(written(tmp_path, text))
    assert config.storage.model_fields_set == set(type(config.storage).model_fields)


def test_init_writes_a_file_once(tmp_path, capsys):
    path = tmp_path / "new.yaml"
    assert main(["config", "init", str(path), "--template", "gpu"]) == 0
    assert path.read_text() == template("gpu")
    assert main(["config", "init", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err and path.read_text() == template("gpu")
    assert main(["config", "init"]) == 0
    assert capsys.readouterr().out == template("laptop")
    assert main(["config", "init", "--template", "clutser"]) == 2
    assert "did you mean 'cluster'?" in capsys.readouterr().err


# ---- reference ------------------------------------------------------------------------------------------


def test_the_page_on_configuration_is_current():
    """Regenerate with `make reference`."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == filled(page)


def test_every_field_is_documented():
    found = {section.path: section for section in sections()}
    assert {"", "database", "redis", "storage", "training", "logging"} < found.keys()
    assert {field.name for field in found["components.tamiyo.config"].fields} == set(TamiyoSettings.model_fields)
    for section in found.values():
        assert section.meaning
        for field in section.fields:
            assert field.meaning and field.type != "anything", f"{section.path}.{field.name}"


def test_a_page_without_a_place_for_the_tables_is_refused(tmp_path, capsys):
    assert main(["config", "reference", written(tmp_path, f"{BEGIN}\n", "page.md")]) == 2
    assert END in capsys.readouterr().err
    assert main(["config", "reference"]) == 0
    assert "### `database`" in capsys.readouterr().out


# ---- show and check -------------------------------------------------------------------------------------


def test_show_has_overrides_and_no_secrets(tmp_path, capsys, monkeypatch):
    path = written(tmp_path, with_secrets(template("cluster"), tmp_path))
    monkeypatch.setenv("ESPER_DATABASE__PORT", "6432")
    assert main(["config", "show", path]) == 0
    out = capsys.readouterr().out
    shown = yaml.safe_load(out)
    assert shown["database"]["port"] == 6432 and shown["database"]["password"] == "***" and CANARY not in out


def verdicts(config, **options):
    return {finding.subject: finding for finding in examine(config, **options)}


def test_folders_are_tried(tmp_path):
    found = verdicts(EsperConfig(name="n", training={"output_dir": str(tmp_path / "not" / "yet")}))
    assert found["training.output_dir"].verdict in ("ok", "warning") and not (tmp_path / "not").exists()
    (tmp_path / "file").touch()
    found = verdicts(EsperConfig(name="n", training={"output_dir": str(tmp_path / "file" / "run")}))
    assert found["training.output_dir"].verdict == "failed" and "is no folder" in found["training.output_dir"].told
    found = verdicts(EsperConfig(name="n", training={"output_dir": "/proc/esper"}))
    assert found["training.output_dir"].verdict == "failed" and "uid" in found["training.output_dir"].move


def test_the_folder_of_the_library_is_tried_where_a_run_uses_it(tmp_path):
    """It is a default of the settings too, and none of a component that is off."""
    folder, subject = {"folder": "/proc/esper"}, "components.urza.config.folder"
    for urza, looked_at in [({"config": {}}, True), ({"config": folder}, True), ({"enabled": False}, False)]:
        config = EsperConfig(name="n", training={"output_dir": str(tmp_path)}, components={"urza": urza})
        assert (subject in verdicts(config)) == looked_at
    config.components["urza"].config = folder
    assert subject not in verdicts(config)
    config.components["urza"].enabled = True
    assert verdicts(config)[subject].verdict == "failed"


def test_servers_that_no_run_would_use_are_warned_of(tmp_path):
    given = {"database": {"username": "u", "password": "p"}, "training": {"output_dir": str(tmp_path)}}
    found = verdicts(EsperConfig(name="n", **given), connect=False)
    assert found["components.urza"].verdict == "warning" and "in database nor" in found["components.urza"].told
    on = EsperConfig(name="n", **given, components={"urza": {}})
    assert "components.urza" not in verdicts(on, connect=False)
    config = EsperConfig.from_yaml(written(tmp_path, with_secrets(template("cluster"), tmp_path)))
    assert config.urza_settings().draw and config.urza_settings().publish


REMOTE = "components.tamiyo.config.remote"
NISSA = "components.nissa.config"


@pytest.mark.parametrize(
    ("training", "remote", "nissa", "subject", "verdict", "told"),
    [
        ({"model": "no.such:thing"}, {}, {}, "training.model", "failed", "no module no.such here (No module named"),
        ({"model": "nosuch:thing"}, {}, {}, "training.model", "failed", "no module nosuch here"),
        ({}, {"folder": "/proc/esper"}, {}, f"{REMOTE}.folder", "failed", "uid"),
        ({}, {"policy": "nomod.x:y"}, {}, f"{REMOTE}.policy", "warning", "`esper tamiyo` does"),
        ({}, {"key_file": "/no/such/keys"}, {}, f"{REMOTE}.key_file", "failed", "No such file"),
        ({}, {"secret": f"not {CANARY}"}, {}, f"{REMOTE}.secret", "failed", "not hexadecimal"),
        (
            {},
            {},
            {"prometheus_port": 0, "prometheus_host": "192.0.2.1"},
            f"{NISSA}.prometheus_port",
            "failed",
            "address",
        ),
    ],
)
def test_what_would_stop_a_run_is_said_before(tmp_path, capsys, training, remote, nissa, subject, verdict, told):
    """192.0.2.1 is an address of nobody's."""
    key = {} if "key_file" in remote or "secret" in remote else {"secret": f"a {'0' * 64}"}
    components = {"tamiyo": {"config": {"remote": {**key, **remote}}}, "nissa": {"config": nissa}}
    whole = {"name": "n", "training": {"output_dir": str(tmp_path), **training}, "components": components}
    path = written(tmp_path, yaml.safe_dump(whole))
    assert main(["config", "check", path, "--offline"]) == (verdict == "failed")
    out = capsys.readouterr().out
    assert re.search(rf"^{verdict} *{re.escape(subject)}: .*{re.escape(told)}", out, re.M), out
    assert CANARY not in out


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "host_of_mine.py").write_text("raise RuntimeError('it is only looked for')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    path = written(tmp_path, f"name: n\ntraining: {{model: 'host_of_mine:make', output_dir: {tmp_path}}}")
    assert main(["config", "check", path]) == 0
    assert "training.model" not in capsys.readouterr().out


def test_a_component_that_nothing_reads_is_warned_of(tmp_path, capsys):
    """Other programs may read it; a slip of one that esper reads is none of theirs."""
    training = f"training: {{output_dir: {tmp_path}}}"
    path = written(tmp_path, f"name: n\n{training}\ncomponents: {{kasmina: {{}}, oona: {{}}}}")
    assert main(["config", "check", path]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "nothing reads it" in line]
    assert line.startswith("warning  components.kasmina: ")
    for slip, meant in (("urzaa", "urza"), ("tamyio", "tamiyo"), ("Nissa", "nissa")):
        path = written(tmp_path, f"name: n\n{training}\ncomponents:\n  {slip}: {{config: {{folder: a}}}}")
        assert main(["config", "check", path]) == 2
        assert f"components.{slip} (line 4): unknown component; did you mean '{meant}'?" in capsys.readouterr().err


def test_a_port_that_is_taken_is_warned_of(tmp_path):
    """It may be taken by the run that is looked at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        nissa = {"config": {"prometheus_port": taken.getsockname()[1]}}
        config = EsperConfig(name="n", training={"output_dir": str(tmp_path)}, components={"nissa": nissa})
        assert verdicts(config)[f"{NISSA}.prometheus_port"].verdict == "warning"
    assert verdicts(config)[f"{NISSA}.prometheus_port"].verdict == "ok"


def test_a_package_that_a_run_needs_names_its_extra(monkeypatch, tmp_path):
    otel = "opentelemetry.exporter.otlp.proto.http"  # whole: another test may have imported it
    for package in ("mlxtend", "tensorboard", "prometheus_client", otel, "sqlalchemy"):
        monkeypatch.setitem(sys.modules, package, None)
    nissa = {"tensorboard": True, "prometheus_port": 0, "otel_endpoint": "http://localhost:4318"}
    components = {"urza": {}, "nissa": {"config": nissa}}
    found = examine(EsperConfig(name="n", training={"output_dir": str(tmp_path)}, components=components))
    moves = {finding.subject: finding.move for finding in found if finding.verdict == "failed"}
    extras = {"tensorboard": "tensorboard", "prometheus_port": "prometheus", "otel_endpoint": "otel"}
    assert moves == {f"{NISSA}.{name}": f'pip install "esper[{extra}]"' for name, extra in extras.items()} | {
        "training.data": 'pip install "esper[demo]"',
        "components.urza": 'pip install "esper[library]"',
    }


def test_a_full_disk_is_said_before_it_is_full(tmp_path, monkeypatch):
    class Usage:
        free = 10

    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage)
    found = verdicts(EsperConfig(name="n", training={"output_dir": str(tmp_path)}))
    assert found["training.output_dir"].verdict == "failed" and "make room" in found["training.output_dir"].move
    Usage.free = 2**29
    found = verdicts(EsperConfig(name="n", training={"output_dir": str(tmp_path)}))
    assert found["training.output_dir"].verdict == "warning"


def test_files_of_certificates_are_looked_at(tmp_path):
    pem, key, der = tmp_path / "ca.pem", tmp_path / "own.key", tmp_path / "ca.der"
    pem.write_text("-----BEGIN CERTIFICATE-----\n")
    key.write_text("-----BEGIN PRIVATE KEY-----\n")
    key.chmod(0o644)
    der.write_bytes(b"\x30\x82")
    config = EsperConfig(
        name="n",
        training={"output_dir": str(tmp_path)},
        database={"username": "u", "password": "p", "ssl_root_cert": str(pem), "ssl_key": str(key)},
        redis={"ca_file": str(der)},
        storage={"access_key": "a", "secret_key": "s", "ca_file": str(tmp_path / "absent")},
    )
    found = verdicts(config, connect=False)
    assert found["database.ssl_root_cert"].verdict == "ok"
    assert "chmod 600" in found["database.ssl_key"].move
    assert "is no PEM file" in found["redis.ca_file"].told
    assert "No such file" in found["storage.ca_file"].told
    key.chmod(0o600)
    assert verdicts(config, connect=False)["database.ssl_key"].verdict == "ok"


def test_services_that_are_not_there_are_said_and_no_secret_is(tmp_path, capsys):
    """Nobody listens at port 1."""
    path = written(
        tmp_path,
        with_secrets(
            f"""
            name: n
            training: {{output_dir: {tmp_path}}}
            database: {{host: 127.0.0.1, port: 1, username: u, password: "${{file:/run/secrets/esper/x}}"}}
            redis: {{host: 127.0.0.1, port: 1, password: "${{file:/run/secrets/esper/x}}"}}
            storage: {{endpoint_url: "http://127.0.0.1:1", access_key: {CANARY}, secret_key: {CANARY}}}
            """,
            tmp_path,
        ),
    )
    assert main(["config", "check", path]) == 1
    out = capsys.readouterr().out
    assert "3 problems" in out and len(re.findall("^failed .* start the server", out, re.M)) == 3 and CANARY not in out
    assert main(["config", "check", path, "--offline"]) == 0
    assert "failed" not in capsys.readouterr().out


def test_what_came_from_a_file_is_told_nowhere(tmp_path, capsys):
    """Whatever the field: a host, a folder, a name."""
    file, module = "${file:/run/secrets/esper/x}", f"${{file:{tmp_path / 'module'}}}"
    (tmp_path / "module").write_text("canary_5ecret.deeper:f")
    remote = {"key_file": file, "policy": module, "folder": file}
    document = {
        "name": file,
        "version": file,
        "environment": file,
        "training": {"output_dir": file, "model": module},
        "database": {"host": file, "port": 1, "username": file, "password": file, "database": file, "ssl_key": file},
        "redis": {"host": file, "port": 1, "username": file, "ca_file": file},
        "storage": {"endpoint_url": f"http://{file}:1", "bucket_name": file, "access_key": file, "secret_key": file},
        "components": {
            "tamiyo": {"config": {"remote": remote}},
            "urza": {"config": {"folder": file}},
            "nissa": {"config": {"prometheus_host": file, "prometheus_port": 0}},
        },
    }
    path = written(tmp_path, with_secrets(yaml.safe_dump(document), tmp_path))
    main(["config", "check", path, "--timeout", "5"])
    told = capsys.readouterr()
    assert "problems" in told.out and "5ecret" not in told.out + told.err
    assert all(f"{name}:" in told.out for name in ("database", "redis", "storage", "training.model", "redis.ca_file"))
    path = written(tmp_path, with_secrets(f"name: {file}\ntraining: {{output_dir: {tmp_path}}}", tmp_path))
    assert main(["config", "check", path]) == 0
    assert "no problems; *** 0.1.0, development" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1", "1e9", "soon"])
def test_a_time_that_cannot_be_waited_for_is_refused(tmp_path, capsys, seconds):
    with pytest.raises(SystemExit) as ended:
        main(["config", "check", written(tmp_path, "name: n"), "--timeout", seconds])
    assert ended.value.code == 2
    assert f"a number of seconds above 0 to 86400, not '{seconds}'" in capsys.readouterr().err


def test_check_says_every_problem_of_a_file(tmp_path, capsys, monkeypatch):
    """Whichever of them would have been met first."""
    path = written(
        tmp_path,
        """name: n
database: {username: u, password: p, port: many}
logging: {level: LOUD, formt: text}
training:
  steps: 0
components:
  tamiyo: {config: {patience: 0}}
  urza: {config: {}}
""",
    )
    monkeypatch.setenv("ESPER_COMPONENTS__URZA__CONFIG__CANDIDATES", "0")
    assert main(["config", "check", path]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"esper: {path} has 6 problems:") and "training.steps (line 5): should be" in said
    assert all(f"{name} (line" in said for name in ("database.port", "logging.level", "logging.formt"))
    assert "components.tamiyo.config.patience (line 7)" in said
    assert "components.urza.config.candidates (ESPER_COMPONENTS__URZA__CONFIG__CANDIDATES): should" in said


def test_check_warns_of_secrets_that_are_open(tmp_path, capsys, monkeypatch):
    path = written(tmp_path, with_secrets("name: n\ntraining: {x: '${file:/run/secrets/esper/x}'}", tmp_path))
    monkeypatch.setattr("esper.configs.secrets.is_open", lambda place: True)
    assert main(["config", "check", path]) == 2  # training.x is no field of this job
    with pytest.warns(SecretFileWarning):
        EsperConfig.from_yaml(path)
    path = written(tmp_path, f"name: '${{file:{tmp_path}/secret}}'\ntraining: {{output_dir: {tmp_path}}}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["config", "check", path, "--offline"]) == 0
    assert "warning  everybody on this machine can read" in capsys.readouterr().out


def test_a_service_that_hangs_is_left_behind():
    def hang(section):
        yield Finding("ok", "x", "reached")
        time.sleep(2)

    found = within(Probe("x", hang, None), 0.1, ())
    assert [finding.verdict for finding in found] == ["ok", "failed"] and "no answer within 0.1 s" in found[1].told


def test_a_driver_that_fails_is_heard_without_its_secrets():
    def fail(section):
        raise RuntimeError(f"\n  bad {CANARY} in redis://u:{CANARY}@h\nand more")
        yield

    (found,) = within(Probe("x", fail, None), 5, {CANARY})
    assert found.said == "bad *** in redis://***@h" and "RuntimeError" in str(found)


def test_a_missing_driver_names_its_extra(monkeypatch, tmp_path):
    for package in ("psycopg", "redis", "obstore"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    config = EsperConfig(
        name="n",
        training={"output_dir": str(tmp_path)},
        database={"username": "u", "password": "p"},
        redis={},
        storage={"access_key": "a", "secret_key": "s"},
    )
    moves = {finding.subject: finding.move for finding in examine(config) if finding.verdict == "failed"}
    assert moves == {
        "database": 'pip install "esper[postgres]"',
        "redis": 'pip install "esper[redis]"',
        "storage": 'pip install "esper[library]"',
    }


def test_an_unknown_template_is_refused():
    with pytest.raises(ConfigError, match="the known ones are: laptop, gpu, cluster"):
        template("zzz")
