"""EsperConfig from Python: the contract, substitution, the environment, errors, secrets, the typed views."""

import os
import subprocess
import sys
import traceback

import pytest
from pydantic import BaseModel

from esper.configs import (
    ComponentConfig,
    DatabaseConfig,
    EsperConfig,
    LoggingSettings,
    RedisConfig,
    StorageConfig,
    TamiyoSettings,
    TrainingSettings,
)
from esper.errors import ConfigError, EsperError, MissingVariableError

SECRET = "hunter2-SECRET"
DATABASE = {"username": "urza", "password": SECRET}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("ESPER_")]:
        monkeypatch.delenv(name)


# ---- the contract ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            DatabaseConfig(username="u", password="p"),
            dict(host="localhost", port=5432, database="urza_db", username="u", password="p", ssl_mode="prefer"),
        ),
        (RedisConfig(), dict(host="localhost", port=6379, database=0, password=None)),
        (
            StorageConfig(access_key="a", secret_key="s"),
            dict(
                endpoint_url="http://localhost:9000",
                access_key="a",
                secret_key="s",
                bucket_name="esper-artifacts",
                region="us-east-1",
            ),
        ),
        (ComponentConfig(), dict(enabled=True, replicas=1, resources={}, config={})),
        (
            EsperConfig(name="n"),
            dict(
                name="n",
                version="0.1.0",
                environment="development",
                database=None,
                redis=None,
                storage=None,
                components={},
                training={},
                logging={"level": "INFO", "format": "structured"},
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fields_and_defaults_are_the_contract(section, expected):
    """Those of the services have been added to since, and nothing of that says anything by default."""
    assert isinstance(section, BaseModel)
    found = section.model_dump()
    assert {name: found[name] for name in expected} == expected
    added = found.keys() - expected.keys()
    assert all(found[name] in (None, False) or name.endswith("timeout") for name in added)


def test_open_sections_take_anything_and_stay_dicts():
    config = EsperConfig(
        name="n", training={"anything": 1}, logging={"sink": "x"}, components={"kasmina": {"config": {"a": [1]}}}
    )
    assert (config.training, config.logging) == ({"anything": 1}, {"sink": "x"})
    assert config.components["kasmina"].config == {"a": [1]}


def test_defaults_are_not_shared():
    one, other = EsperConfig(name="1"), EsperConfig(name="2")
    one.training["steps"] = 1
    one.logging["level"] = "DEBUG"
    one.components["x"] = ComponentConfig()
    assert (other.training, other.logging["level"], other.components) == ({}, "INFO", {})


def test_built_sections_are_taken_as_they_are():
    database = DatabaseConfig(username="u", password="${NOT_A_REFERENCE} ${")
    tamiyo = ComponentConfig(config={"patience": 2})
    config = EsperConfig(name="n", database=database, components={"tamiyo": tamiyo})
    assert config.database == database
    assert config.components["tamiyo"] == tamiyo
    assert config.model_copy(deep=True) == config


@pytest.mark.parametrize(
    ("section", "url"),
    [
        (
            DatabaseConfig(username="a b", password="p@:/?#%w", database="d/b", ssl_mode="require"),
            "postgresql://a%20b:p%40%3A%2F%3F%23%25w@localhost:5432/d%2Fb?sslmode=require",
        ),
        (DatabaseConfig(username="u", password="", host="::1"), "postgresql://u@[::1]:5432/urza_db?sslmode=prefer"),
        (RedisConfig(), "redis://localhost:6379/0"),
        (RedisConfig(password=""), "redis://localhost:6379/0"),
        (RedisConfig(password="p@w", host="cache", port=1, database=2), "redis://:p%40w@cache:1/2"),
        (RedisConfig(username="a:b", password="p", tls=True), "rediss://a%3Ab:p@localhost:6379/0"),
        (RedisConfig(username="nissa"), "redis://nissa@localhost:6379/0"),
        (
            DatabaseConfig(username="u", password="p", ssl_mode="verify-full", ssl_root_cert="/a b/ca&.pem"),
            "postgresql://u:p@localhost:5432/urza_db?sslmode=verify-full&sslrootcert=%2Fa%20b%2Fca%26.pem",
        ),
    ],
)
def test_urls_are_quoted(section, url):
    assert section.url() == url


# ---- ${VAR} ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("${SET}", "value"),
        ("a-${SET}-${SET}-b", "a-value-value-b"),
        ("${SET:-default}", "value"),
        ("${UNSET:-default}", "default"),
        ("${UNSET:-}", ""),
        ("${UNSET:-http://h:1/-x}", "http://h:1/-x"),
        ("${EMPTY}", ""),
        ("${EMPTY:-default}", "default"),
        ("$${SET}", "${SET}"),
        ("$SET $ $$ pa$$word {SET}", "$SET $ $$ pa$$word {SET}"),
        ("${SCRIPT}", "${SET} $${ ${"),  # what was put in is not scanned again
        (["${SET}", {"k": ("${SET}", 1)}], ["value", {"k": ("value", 1)}]),
        ({"${SET}": "${SET}"}, {"${SET}": "value"}),
        (3, 3),
        (None, None),
    ],
)
def test_substitution(monkeypatch, written, expected):
    monkeypatch.delenv("UNSET", raising=False)
    for name, value in {"SET": "value", "EMPTY": "", "SCRIPT": "${SET} $${ ${"}.items():
        monkeypatch.setenv(name, value)
    assert EsperConfig(name="n", training={"x": written}).training == {"x": expected}


def test_a_variable_becomes_the_type_of_its_field(monkeypatch):
    monkeypatch.setenv("DB_PORT", "6543")
    monkeypatch.setenv("ON", "false")
    config = EsperConfig(
        name="n",
        database={**DATABASE, "port": "${DB_PORT}"},
        components={"tamiyo": {"enabled": "${ON}"}},
        training={"steps": "${STEPS:-7}", "learning_rate": "1e-3"},
    )
    assert config.database.port == 6543
    assert config.components["tamiyo"].enabled is False
    assert (config.training_settings().steps, config.training_settings().learning_rate) == (7, 1e-3)


def test_all_missing_variables_come_in_one_error():
    with pytest.raises(MissingVariableError) as caught:
        EsperConfig(
            name="n",
            database={"username": "${NO_USER}", "password": f"{SECRET}${{NO_PASSWORD}}"},
            training={"list": ["${NO_USER}"]},
        )
    assert caught.value.problems == (
        "database.username: NO_USER is not set",
        "database.password: NO_PASSWORD is not set",
        "training.list.0: NO_USER is not set",
    )
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["${", "${}", "${1A}", "${A-b}", "${A:?b}", "${A:-${B}}", "${A B}", "${A:-b"])
def test_a_malformed_reference_is_refused_without_being_shown(text):
    with pytest.raises(ConfigError, match=r"^EsperConfig has 1 problem:\n  training\.x: '\$\{' should start") as caught:
        EsperConfig(name="n", training={"x": SECRET + text})
    assert SECRET not in str(caught.value)


def test_a_section_that_contains_itself_is_refused():
    training = {}
    training["self"] = training
    with pytest.raises(ConfigError, match="contains itself"):
        EsperConfig(name="n", training=training)


# ---- ESPER_... ------------------------------------------------------------------------------------------

TAMIYO = "ESPER_COMPONENTS__TAMIYO__CONFIG"
REMOTE = {f"{TAMIYO}__REMOTE": '{"channel": "folder", "folder": "there", "secret": "x"}'}


@pytest.mark.parametrize(
    ("variables", "read", "expected"),
    [
        ({"ESPER_DATABASE__PASSWORD": "12 ${X} $${"}, lambda c: c.database.password, "12 ${X} $${"),
        ({"ESPER_DATABASE__PASSWORD": "0123"}, lambda c: c.database.password, "0123"),
        ({"esper_database__port": "6000"}, lambda c: c.database.port, 6000),
        ({"ESPER_DATABASE__PORT": "6000"}, lambda c: c.database.username, "urza"),
        ({"ESPER_NAME": "other"}, lambda c: c.name, "other"),
        ({"ESPER_REDIS__HOST": "cache"}, lambda c: c.redis.host, "cache"),
        ({"ESPER_REDIS": '{"host": "cache"}', "ESPER_REDIS__PORT": "1"}, lambda c: c.redis.url(), "redis://cache:1/0"),
        ({"ESPER_TRAINING__STEPS": "9"}, lambda c: c.training_settings().steps, 9),
        ({"ESPER_TRAINING__STEPS": "9"}, lambda c: c.training["batch_size"], 5),
        ({"ESPER_TRAINING__TARGET_LAYERS": '["0"]'}, lambda c: c.training_settings().target_layers, ["0"]),
        ({"ESPER_TRAINING__OUTPUT_DIR": "12"}, lambda c: c.training_settings().output_dir, "12"),
        ({"ESPER_COMPONENTS__TAMIYO__CONFIG__PATIENCE": "8"}, lambda c: c.tamiyo_settings().patience, 8),
        ({"ESPER_COMPONENTS__TAMIYO__CONFIG__PATIENCE": "8"}, lambda c: c.tamiyo_settings().max_kernels, 3),
        ({"ESPER_COMPONENTS__TAMIYO__ENABLED": "false"}, lambda c: c.tamiyo_settings().policy, "none"),
        ({f"{TAMIYO}__MAX_PARAMETERS": "null"}, lambda c: c.tamiyo_settings().max_parameters, None),
        ({f"{TAMIYO}__MAX_PARAMETERS": "500"}, lambda c: c.tamiyo_settings().max_parameters, 500),
        ({f"{TAMIYO}__BLUEPRINTS": '{"A": ["mlp"]}'}, lambda c: c.tamiyo_settings().blueprints, {"A": ["mlp"]}),
        ({f"{TAMIYO}__BLUEPRINTS__LINEAR": '["mlp"]'}, lambda c: c.tamiyo_settings().blueprints, {"linear": ["mlp"]}),
        ({f"{TAMIYO}__BLUEPRINTS__LINEAR": "null"}, lambda c: c.tamiyo_settings().blueprints, {"linear": "null"}),
        (REMOTE, lambda c: c.tamiyo_settings().remote.folder, "there"),
        ({**REMOTE, f"{TAMIYO}__REMOTE__TIMEOUT": "9"}, lambda c: c.tamiyo_settings().remote.timeout, 9.0),
        ({**REMOTE, f"{TAMIYO}__REMOTE__SECRET": "12"}, lambda c: c.tamiyo_settings().remote.secret, "12"),
        ({"ESPER_COMPONENTS__URZA__CONFIG__TAGS": '["a", "b"]'}, lambda c: c.urza_settings().tags, ["a", "b"]),
        ({"ESPER_COMPONENTS__URZA__CONFIG__FOLDER": '["a"]'}, lambda c: c.urza_settings().folder, '["a"]'),
        ({"ESPER_COMPONENTS__URZA__CONFIG": '{"tags": ["a"]}'}, lambda c: c.urza_settings().tags, ["a"]),
        ({"ESPER_COMPONENTS__OTHER__CONFIG__X": "[1]"}, lambda c: c.components["other"].config, {"x": "[1]"}),
        ({"ESPER_LOGGING__LEVEL": "ERROR"}, lambda c: c.logging, {"level": "ERROR", "format": "structured"}),
        ({"ESPER_HOME": "/x", "ESPER_": "", "ESPER_FOO__BAR": "1", "OTHER": "1"}, lambda c: c.name, "n"),
    ],
)
@pytest.mark.parametrize("built", [False, True], ids=["dicts", "objects"])
def test_the_environment_overrides(monkeypatch, built, variables, read, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tamiyo = {"config": {"max_kernels": 3}}
    config = EsperConfig(
        name="n",
        database=DatabaseConfig(**DATABASE) if built else DATABASE,
        components={"tamiyo": ComponentConfig(**tamiyo) if built else tamiyo},
        training={"batch_size": 5},
    )
    assert read(config) == expected


def test_an_overridden_variable_need_not_be_set(monkeypatch):
    monkeypatch.setenv("ESPER_DATABASE__PASSWORD", SECRET)
    config = EsperConfig(name="n", database={"username": "u", "password": "${NOT_SET}"})
    assert config.database.password == SECRET


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("ESPER_DATABASE__PORT", SECRET, "database.port (ESPER_DATABASE__PORT): should be a valid integer"),
        ("ESPER_REDIS__PASWORD", SECRET, "redis.pasword (ESPER_REDIS__PASWORD): unknown key; did you mean 'password'?"),
        ("ESPER_STORAGE__SECRET_KEY", SECRET, "storage.access_key (ESPER_STORAGE__SECRET_KEY): is required"),
        ("ESPER_REDIS", SECRET, "redis (ESPER_REDIS): should be a valid dictionary"),
        ("ESPER_COMPONENTS", "{" + SECRET, "not JSON: ESPER_COMPONENTS"),
    ],
)
def test_a_wrong_override_names_its_variable(monkeypatch, variable, value, problem):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        EsperConfig(name="n", database=DATABASE)
    assert problem in str(caught.value)
    assert_no_secret(caught.value)


@pytest.mark.parametrize(
    ("path", "sections"),
    [
        ("training.output_dir", {"training": {"output_dir": "a\0b"}}),
        ("components.urza.config.folder", {"components": {"urza": {"config": {"folder": "a\0b"}}}}),
        ("redis.ca_file", {"redis": {"ca_file": "a\0b"}}),
    ],
)
def test_a_path_with_a_null_character_is_refused(path, sections):
    with pytest.raises(ConfigError, match=rf"{path}: should have no null character"):
        EsperConfig(name="n", **sections).check()


# ---- errors and secrets ---------------------------------------------------------------------------------


def assert_no_secret(error: BaseException) -> None:
    assert isinstance(error, ConfigError)
    assert isinstance(error, EsperError)
    assert isinstance(error, ValueError)
    assert error.__cause__ is None
    assert error.__context__ is None
    assert SECRET not in "".join([str(error), repr(error), *error.problems, *traceback.format_exception(error)])


# Assigned outside the table: `traceback` prints the source line of the call.
BAD_DATABASE = {"username": [SECRET], "password": {SECRET: SECRET}, "port": SECRET, "ssl_mode": SECRET, "prot": SECRET}


@pytest.mark.parametrize(
    "build",
    [
        lambda: DatabaseConfig(**BAD_DATABASE),
        lambda: DatabaseConfig.model_validate(BAD_DATABASE),
        lambda: DatabaseConfig.model_validate_json(f'{{"password": "{SECRET}"'),
        lambda: DatabaseConfig.model_validate_strings({"password": SECRET}),
        lambda: EsperConfig(name="n", database=BAD_DATABASE),
        lambda: EsperConfig.model_validate({"name": "n", "database": BAD_DATABASE}),
        lambda: EsperConfig(name="n", database=SECRET),
        lambda: setattr(DatabaseConfig(**DATABASE), "port", SECRET),
        lambda: EsperConfig(name="n", training={"model": SECRET, "key": SECRET}).training_settings(),
        lambda: EsperConfig(name="n", logging={"level": SECRET}),
    ],
)
def test_no_error_shows_a_value(build):
    with pytest.raises(ConfigError) as caught:
        build()
    assert caught.value.problems
    assert_no_secret(caught.value)


def test_every_problem_is_listed_by_path():
    with pytest.raises(ConfigError) as caught:
        EsperConfig(
            naem="n",
            database={"username": "u", "password": 123, "port": 0, "pasword": "x"},
            components={"tamiyo": {"replcas": 1, "replicas": -1}},
            zzzzzz=1,
        )
    assert str(caught.value).startswith("EsperConfig has 8 problems:\n  ")
    assert set(caught.value.problems) == {
        "name: is required",
        "naem: unknown key; did you mean 'name'?",
        "database.password: should be a valid string (in YAML, quote it)",
        "database.port: should be greater than or equal to 1",
        "database.pasword: unknown key; did you mean 'password'?",
        "components.tamiyo.replicas: should be greater than or equal to 0",
        "components.tamiyo.replcas: unknown key; did you mean 'replicas'?",
        "zzzzzz: unknown key; the known ones are: name, version, environment, database, redis, storage, components, "
        "training, logging",
    }


def test_assignment_is_validated():
    config = EsperConfig(name="n", database=DATABASE)
    config.database.port = "6000"
    assert config.database.port == 6000
    with pytest.raises(ConfigError, match="prot: unknown key; did you mean 'port'"):
        config.database.prot = 1
    with pytest.raises(ConfigError, match="port: should be less than or equal to 65535"):
        config.database.port = 65536
    assert config.database.port == 6000


def test_secrets_stay_out_of_sight_and_within_reach():
    config = EsperConfig(
        name="n",
        database=DATABASE,
        redis={"password": SECRET},
        storage={"access_key": SECRET, "secret_key": SECRET, "endpoint_url": f"https://u:{SECRET}@h"},
        components={"urza": {"config": {"api_key": SECRET, "tokens": 3, "nested": [{"db_password": SECRET}]}}},
        training={"hub_token": SECRET, "tracker": f"http://u:{SECRET}@h/x"},
    )
    shown = config.redacted()
    for text in (repr(config), str(config), repr(shown), repr(config.database), repr(config.components)):
        assert SECRET not in text
    assert shown["database"] == {**config.database.model_dump(), "password": "***"}
    assert shown["components"]["urza"]["config"] == {
        "api_key": "***",
        "tokens": 3,
        "nested": [{"db_password": "***"}],
    }
    assert shown["training"] == {"hub_token": "***", "tracker": "http://***@h/x"}
    assert type(config.database.password) is str
    assert config.model_dump()["database"]["password"] == SECRET
    assert RedisConfig().redacted()["password"] is None


# ---- what the main job reads ----------------------------------------------------------------------------

VIEWS = {
    "training": (TrainingSettings, lambda section: EsperConfig(name="n", training=section).training_settings()),
    "components.tamiyo.config": (
        TamiyoSettings,
        lambda section: EsperConfig(name="n", components={"tamiyo": {"config": section}}).tamiyo_settings(),
    ),
    "logging": (LoggingSettings, lambda section: EsperConfig(name="n", logging=section).logging_settings()),
}


@pytest.mark.parametrize("path", VIEWS)
def test_a_view_without_a_section_is_its_defaults(path):
    model, view = VIEWS[path]
    assert view({}) == model()


def test_views_of_a_minimal_configuration_are_the_defaults():
    config = EsperConfig(name="n")
    assert (config.training_settings(), config.tamiyo_settings(), config.logging_settings()) == (
        TrainingSettings(),
        TamiyoSettings(),
        LoggingSettings(),
    )


@pytest.mark.parametrize(
    ("path", "section", "problem"),
    [
        ("training", {"stps": 1}, "stps: unknown key; did you mean 'steps'?"),
        ("training", {"data": "cifar"}, "data: should be 'digits' or 'mnist'"),
        (
            "training",
            {"model": "cn"},
            "model: should be a built-in model or 'package.module:factory'; did you mean 'cnn'?",
        ),
        ("training", {"model": "os.system"}, "model: should be a built-in model"),
        ("training", {"steps": 0}, "steps: should be greater than or equal to 1"),
        ("training", {"learning_rate": 0}, "learning_rate: should be greater than 0"),
        ("training", {"learning_rate": "nan"}, "learning_rate: should be a finite number"),
        ("training", {"momentum": 1}, "momentum: should be less than 1"),
        ("training", {"key": 2**32}, "key: should be less than 4294967296"),
        ("training", {"test_fraction": 0.95}, "validation_fraction: should leave data to train on"),
        ("training", {"target_layers": ["a", ""]}, "target_layers.1: should have at least 1 character"),
        ("components.tamiyo.config", {"patiense": 1}, "patiense: unknown key; did you mean 'patience'?"),
        ("components.tamiyo.config", {"policy": "greedy"}, "policy: should be 'plateau' or 'none'"),
        ("components.tamiyo.config", {"rank": 0}, "rank: should be greater than or equal to 1"),
        ("logging", {"levle": "INFO"}, "levle: unknown key; did you mean 'level'?"),
        ("logging", {"level": "LOUD"}, "level: should be 'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'"),
    ],
)
def test_a_view_refuses_what_the_job_does_not_know(path, section, problem):
    with pytest.raises(ConfigError) as caught:
        VIEWS[path][1](section)
    (found,) = caught.value.problems
    assert found.startswith(f"{path}.{problem}")


@pytest.mark.parametrize(
    ("path", "section", "expected"),
    [
        ("training", {"model": "my.package:Factory.build"}, {"model": "my.package:Factory.build"}),
        ("training", {"target_layers": []}, {"target_layers": []}),
        ("training", {"key": 2**32 - 1}, {"key": 2**32 - 1}),
        ("components.tamiyo.config", {"blueprints": {"*.conv1": "low_rank"}}, {"blueprints": {"*.conv1": "low_rank"}}),
        ("components.tamiyo.config", {"max_parameters": "9"}, {"max_parameters": 9}),
        ("logging", {"level": "debug"}, {"level": "DEBUG", "format": "structured"}),
    ],
)
def test_a_view_reads_its_section(path, section, expected):
    view = VIEWS[path][1](section).model_dump()
    assert {key: view[key] for key in expected} == expected


def test_a_disabled_tamiyo_does_not_grow():
    def tamiyo(enabled):
        component = {"enabled": enabled, "config": {"policy": "plateau", "rank": 2}}
        return EsperConfig(name="n", components={"tamiyo": component}).tamiyo_settings()

    assert tamiyo(True) == TamiyoSettings(policy="plateau", rank=2)
    assert tamiyo(False) == TamiyoSettings(policy="none", rank=2)


def test_check_lists_the_problems_of_all_sections():
    EsperConfig(name="n").check()
    config = EsperConfig(
        name="n",
        training={"stps": 1, "batch_size": 0},
        components={"tamiyo": {"enabled": False, "config": {"rnk": 1}}},
        logging={"format": "xml"},
    )
    with pytest.raises(ConfigError) as caught:
        config.check()
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "training.batch_size",
        "training.stps",
        "components.tamiyo.config.rnk",
        "logging.format",
    ]


def test_importing_the_configuration_is_light():
    code = "import sys, esper.configs; print(sorted({'torch', 'jax', 'numpy', 'flax'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
