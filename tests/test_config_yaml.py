"""EsperConfig from files: the shipped configurations, YAML that must be refused, the schema for editors."""

import json
import os
import traceback
from pathlib import Path

import pytest
import yaml

from esper.configs import EsperConfig
from esper.errors import ConfigError, MissingVariableError

CONFIGS = Path(__file__).parent.parent / "configs"
SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))
SECRET = "hunter2-SECRET"

PRODUCTION = {
    "DB_HOST": "db.internal",
    "DB_USER": "urza",
    "DB_PASSWORD": "p@ss ${word}",
    "REDIS_HOST": "cache",
    "REDIS_PASSWORD": "redis-pw",
    "S3_ENDPOINT": "https://s3.internal",
    "S3_ACCESS_KEY": "access",
    "S3_SECRET_KEY": "secret",
}

CONTRACT = """\
name: esper-test
version: "0.1.0"
environment: development
database:
  host: localhost
  port: 5432
  database: urza_db
  username: esper
  password: ${DB_PASSWORD}
  ssl_mode: prefer
redis:
  host: localhost
  port: 6379
  database: 0
storage:
  endpoint_url: http://localhost:9000
  access_key: minio
  secret_key: ${S3_SECRET_KEY:-minio-secret}
  bucket_name: esper-artifacts
  region: us-east-1
components:
  tamiyo:
    enabled: true
    replicas: 1
    resources: {cpu: "500m", memory: "1Gi"}
    config: {patience: 4}
  oona: {enabled: false}
training:
  max_epochs: 100
  learning_rate: 0.001
logging:
  level: DEBUG
  format: structured
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("ESPER_") or name in PRODUCTION]:
        monkeypatch.delenv(name)


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "esper.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        EsperConfig.from_yaml(path)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert str(path) in str(error)
    assert SECRET not in "".join([str(error), repr(error), *traceback.format_exception(error)])
    return error


# ---- files that load ------------------------------------------------------------------------------------


def test_the_contract_loads_by_both_ways(monkeypatch, written):
    monkeypatch.setenv("DB_PASSWORD", SECRET)
    path = written(CONTRACT)
    config = EsperConfig.from_yaml(path)
    assert config == EsperConfig(**yaml.safe_load(CONTRACT))
    assert config == EsperConfig.from_yaml(str(path))
    expected = yaml.safe_load(CONTRACT)
    expected["database"]["password"] = SECRET
    expected["storage"]["secret_key"] = "minio-secret"
    assert config.model_dump(exclude_unset=True) == expected
    assert config.tamiyo_settings().patience == 4


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_loads_and_drives_the_job(monkeypatch, name):
    for variable, value in PRODUCTION.items():
        monkeypatch.setenv(variable, value)
    config = EsperConfig.from_yaml(CONFIGS / name)
    config.check()
    assert config.name == Path(name).stem
    assert config.tamiyo_settings().policy == "plateau"
    # Nothing that is written goes unread.
    assert config.training.keys() <= config.training_settings().model_fields_set
    assert config == EsperConfig(**yaml.safe_load((CONFIGS / name).read_text()))


def test_the_shipped_files_are_these():
    assert SHIPPED == ["development.yaml", "production.yaml", "quickstart.yaml", "quickstart_mlp.yaml"]


def test_quickstart_needs_no_service_and_no_variable():
    config = EsperConfig.from_yaml(CONFIGS / "quickstart.yaml")
    assert (config.database, config.redis, config.storage) == (None, None, None)
    training = config.training_settings()
    assert (training.data, training.model, training.output_dir) == ("mnist", "cnn", "runs/quickstart")


def test_production_takes_its_secrets_from_the_environment(monkeypatch):
    for variable, value in PRODUCTION.items():
        monkeypatch.setenv(variable, value)
    config = EsperConfig.from_yaml(CONFIGS / "production.yaml")
    assert config.database.url() == (
        "postgresql://urza:p%40ss%20%24%7Bword%7D@db.internal:5432/urza_db?sslmode=verify-full"
    )
    assert config.redis.url() == "redis://:redis-pw@cache:6379/0"
    assert (config.storage.access_key, config.storage.secret_key) == ("access", "secret")


def test_production_reports_every_missing_variable_with_its_line():
    path = CONFIGS / "production.yaml"
    with pytest.raises(MissingVariableError) as caught:
        EsperConfig.from_yaml(path)
    message, text = str(caught.value), path.read_text().splitlines()
    assert len(caught.value.problems) == len(PRODUCTION)
    for variable in PRODUCTION:
        line = next(number for number, content in enumerate(text, 1) if f"${{{variable}}}" in content)
        assert f"(line {line}): {variable} is not set" in message


def test_merge_keys_may_be_overridden(written):
    text = "name: n\ncomponents:\n  a: &a {replicas: 2}\n  b: &b {<<: *a, replicas: 3}\n  c: {<<: *b, enabled: false}\n"
    components = EsperConfig.from_yaml(written(text)).components
    assert [(c.replicas, c.enabled) for c in components.values()] == [(2, True), (3, True), (3, False)]


def test_a_byte_order_mark_is_no_part_of_the_first_key(written):
    assert EsperConfig.from_yaml(written(b"\xef\xbb\xbfname: n\n")).name == "n"


# ---- files that do not ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- name\n", "should hold a mapping of keys to values, not a list"),
        ("just text\n", "should hold a mapping of keys to values, not a str"),
        ("name: n\n1: x\n", "1: keys should be text"),
        ("name: n\ntraining: {a: 1\n", "is not valid YAML: line 3, column 1: "),
        ("name: n\n\tversion: x\n", "is not valid YAML: line 2, column 1: "),
        ("name: n\n---\nname: m\n", "is not valid YAML: line 2, column 1: "),
        (f"name: n\ndatabase:\n  password: *{SECRET}\n", "line 3, column 13: found undefined alias ..."),
        (f"name: n\ndatabase:\n  password: !{SECRET}\n", "line 3, column 13: could not determine a constructor"),
        (f"name: n\ndatabase:\n  password: @{SECRET}\n", "line 3, column 13: found character ..."),
        (f"name: n\ndatabase:\n  password: {{{{ {SECRET} }}}}\n", "line 3, column 14: found unhashable key"),
        ("name: !!python/object/apply:os.getcwd []\n", "line 1, column 7: could not determine a constructor"),
        ("name: n\nversion: 2024-13-45\n", "line 2, column 10: a value that looks like a date"),
        ("name: n\n# \x00\n", "line 2: a character that YAML does not allow"),
        (b"name: \xff\n", "it is not UTF-8 text"),
        ("name: n\ntraining: &t {again: *t}\n", "contains itself"),
    ],
)
def test_a_broken_file_is_refused(written, content, message):
    assert message in str(refused(written(content)))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "No such file" in str(refused(tmp_path / "absent.yaml"))
    assert "directory" in str(refused(tmp_path))


def test_every_key_given_twice_is_reported_with_both_lines(written):
    text = "name: a\ndatabase:\n  port: 1\n  host: h\n  port: 2\ncomponents:\n  x: {enabled: true}\n  x: {}\nname: b\n"
    assert set(refused(written(text)).problems) == {
        "key 'port' is given twice, on lines 3 and 5",
        "key 'x' is given twice, on lines 7 and 8",
        "key 'name' is given twice, on lines 1 and 9",
    }


def test_a_key_given_twice_on_one_line_is_reported(written):
    assert refused(written("name: n\nredis: {port: 1, port: 2}\n")).problems == (
        "key 'port' is given twice, on lines 2 and 2",
    )


def test_problems_name_their_line(monkeypatch, written):
    monkeypatch.setenv("ESPER_REDIS__PORT", "0")
    path = written(
        f"name: n\ndatabase:\n  prot: 1\n  password: {SECRET}\n"
        "components:\n  x:\n    replicas: -1\nredis: {port: 1}\n"
    )
    assert set(refused(path).problems) == {
        "database.prot (line 3): unknown key; did you mean 'port'?",
        "database.username (line 2): is required",
        "components.x.replicas (line 7): should be greater than or equal to 0",
        "redis.port (ESPER_REDIS__PORT): should be greater than or equal to 1",
    }


def test_views_name_file_and_line(written):
    path = written("name: n\ntraining:\n  steps: 5\n  btach_size: 3\nlogging:\n  level: INFO\n  format: xml\n")
    config = EsperConfig.from_yaml(path)
    with pytest.raises(ConfigError) as caught:
        config.training_settings()
    assert str(caught.value) == (
        f"{path} has 1 problem:\n  training.btach_size (line 4): unknown key; did you mean 'batch_size'?"
    )
    with pytest.raises(ConfigError) as caught:
        config.check()
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "training.btach_size (line 4)",
        "logging.format (line 7)",
    ]


# ---- the schema -----------------------------------------------------------------------------------------


def test_the_committed_schema_is_current():
    """Regenerate with `esper config schema > configs/esper.schema.json`."""
    assert json.loads((CONFIGS / "esper.schema.json").read_text()) == EsperConfig.json_schema()


def test_the_schema_offers_every_key_and_accepts_references():
    schema = EsperConfig.json_schema()
    assert set(schema["properties"]) == set(EsperConfig.model_fields)
    assert schema["additionalProperties"] is False
    port = schema["$defs"]["DatabaseConfig"]["properties"]["port"]
    assert port["anyOf"] == [
        {"type": "integer", "minimum": 1, "maximum": 65535},
        {"type": "string", "pattern": r"\$\{"},
    ]
    assert port["description"] == "TCP port."
    training = schema["properties"]["training"]
    assert "batch_size" in training["properties"]
    assert training["additionalProperties"] is True
