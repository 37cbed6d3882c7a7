"""`EsperConfig`: the whole configuration, from a file or from Python."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, Field, PrivateAttr, TypeAdapter, field_validator

from esper.configs import environment
from esper.configs.base import ConfigModel
from esper.configs.nissa import NissaSettings
from esper.configs.oona import OonaSettings
from esper.configs.problems import did_you_mean, refusal
from esper.configs.schema import COMPONENTS, editor_schema
from esper.configs.services import ComponentConfig, DatabaseConfig, RedisConfig, StorageConfig
from esper.configs.settings import LoggingSettings, LogLevel, TamiyoSettings, TrainingSettings
from esper.configs.substitute import overlay, substitute
from esper.configs.urza import UrzaSettings
from esper.configs.yaml_loader import load_yaml
from esper.errors import ConfigError, MissingVariableError

T = TypeVar("T", bound=ConfigModel)

_LOGGING = {"level": "INFO", "format": "structured"}
_LEVEL = TypeAdapter(dict[str, LogLevel])


@dataclass(frozen=True)
class _Origin:
    """Where a configuration was read from; two that say the same are equal wherever they came from."""

    name: str = field(default="EsperConfig", compare=False)
    lines: dict[str, int] = field(default_factory=dict, compare=False)
    idle: tuple[tuple[str, str], ...] = field(default=(), compare=False)


def _component(name: str) -> str:
    """A name that is nearly one that esper reads is a slip, and what it holds would be left out in silence."""
    if name not in COMPONENTS and difflib.get_close_matches(name.lower(), COMPONENTS, n=1):
        raise ValueError(f"unknown component; {did_you_mean(name, COMPONENTS)}")
    return name


class EsperConfig(ConfigModel):
    """The configuration of a deployment and of its training job.

    Built by keyword or by `from_yaml`; both replace `${VAR}`, `${VAR:-default}` and `${file:PATH}` in leaf strings
    (`$${` is a literal `${`), and both let the environment override: `ESPER_DATABASE__PASSWORD`, the file that
    `ESPER_DATABASE__PASSWORD_FILE` names, or `database__password` in the directory `ESPER_SECRETS_DIR` beats
    `database.password`, wherever that came from. Other `ESPER_...` variables are left alone.

    >>> EsperConfig(name="demo", training={"steps": 5}).training_settings().steps
    5

    Raises:
        MissingVariableError: Variables are not set; all of them are listed.
        ConfigError: Anything else is refused; every problem is listed, no value is shown.
    """

    name: str = Field(min_length=1)
    """Name of the deployment."""
    version: str = Field(default="0.1.0", min_length=1)
    """Version of this configuration."""
    environment: str = Field(default="development", min_length=1)
    """Where it runs: development, staging, production, ..."""
    database: DatabaseConfig | None = None
    """PostgreSQL; left out: an embedded catalogue."""
    redis: RedisConfig | None = None
    """Redis; left out: everything stays in the process."""
    storage: StorageConfig | None = None
    """Object storage; left out: artifacts stay on the local disk."""
    components: dict[Annotated[str, AfterValidator(_component)], ComponentConfig] = Field(default={})
    """Components by name."""
    training: dict[str, Any] = Field(default={})
    """The training job; see `TrainingSettings`."""
    logging: dict[str, Any] = Field(default=_LOGGING)
    """The log; see `LoggingSettings`."""

    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    if not TYPE_CHECKING:

        def __init__(self, /, **values: Any) -> None:
            model = type(self)
            over, idle = environment.overrides(_sections(model), values)
            try:
                super().__init__(**_filled(values, over, model.__name__))
                self._origin = replace(self._origin, idle=idle)
                return
            except ConfigError as error:
                refused = _reworded(error, model.__name__, lambda problem: _overridden(problem, values, model))
            raise refused

    @field_validator("logging")
    @classmethod
    def _know_the_level(cls, logging: dict[str, Any]) -> dict[str, Any]:
        if "level" in logging:
            _LEVEL.validate_python({"level": logging["level"]})
        return logging

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Self:
        """Load a YAML file; problems are reported with their line.

        Raises:
            MissingVariableError: Variables are not set; all of them are listed.
            ConfigError: The file cannot be read, is not YAML, gives a key twice, or is refused.
        """
        document = load_yaml(path)
        origin = _Origin(os.fspath(path), document.lines)
        try:
            config = cls(**document.data)
            config._origin = replace(origin, idle=config._origin.idle)
            return config
        except ConfigError as error:
            refused = _reworded(error, origin.name, lambda problem: _located(problem, origin.lines))
        raise refused

    @classmethod
    def checked(cls, path: str | os.PathLike[str]) -> Self:
        """As `from_yaml`, with the sections validated that the main job reads.

        Raises:
            MissingVariableError: Variables are not set; all of them are listed.
            ConfigError: The file cannot be read, or is refused; the problems of all sections are listed.
        """
        document = load_yaml(path)
        try:
            config = cls.from_yaml(path)
        except MissingVariableError:
            raise
        except ConfigError as error:
            refused = error
            if error.problems:
                others = (_overridden(problem, document.data, cls) for problem in _problems_of_open(cls, document.data))
                located = [_located(problem, document.lines) for problem in others]
                refused = refusal(os.fspath(path), [*dict.fromkeys([*error.problems, *located])])
        else:
            config.check()
            return config
        raise refused

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON schema of the file, for editors."""
        return editor_schema(cls)

    def training_settings(self) -> TrainingSettings:
        """The `training` section, validated: what the main job trains."""
        return self._view(TrainingSettings, self.training, "training")

    def tamiyo_settings(self) -> TamiyoSettings:
        """The `components.tamiyo.config` section, validated: how the main job grows.

        Left out: the defaults. A component that is not enabled does not grow: its `policy` is "none".
        """
        tamiyo = self.components.get("tamiyo", ComponentConfig())
        settings = self._view(TamiyoSettings, tamiyo.config, "components.tamiyo.config")
        if settings.remote and settings.remote.channel == "redis" and self.redis is None:
            problem = "components.tamiyo.config.remote.channel: redis needs a `redis` section"
            raise refusal(self._origin.name, [_located(problem, self._origin.lines)])
        return settings if tamiyo.enabled else settings.model_copy(update={"policy": "none"})

    def urza_settings(self) -> UrzaSettings:
        """The `components.urza.config` section, validated: the kernel library.

        Left out or not enabled: nothing is drawn from it, nor published.
        """
        urza = self.components.get("urza", ComponentConfig(enabled=False))
        settings = self._view(UrzaSettings, urza.config, "components.urza.config")
        return settings if urza.enabled else settings.model_copy(update={"draw": False, "publish": False})

    def nissa_settings(self) -> NissaSettings:
        """The `components.nissa.config` section, validated: where events go.

        A component that is not enabled sends them nowhere but to the history of the run.
        """
        nissa = self.components.get("nissa", ComponentConfig())
        settings = self._view(NissaSettings, nissa.config, "components.nissa.config")
        if nissa.enabled:
            return settings
        kept = {"queue_bound": settings.queue_bound, "close_timeout": settings.close_timeout, "fsync": settings.fsync}
        return NissaSettings(redis=False, **kept)

    def oona_settings(self) -> OonaSettings:
        """The `components.oona.config` section, validated: how events travel on Redis."""
        oona = self.components.get("oona", ComponentConfig())
        return self._view(OonaSettings, oona.config, "components.oona.config")

    def logging_settings(self) -> LoggingSettings:
        """The `logging` section, validated."""
        return self._view(LoggingSettings, self.logging, "logging")

    def unread_components(self) -> list[str]:
        """Components of other names than esper reads: nothing comes of what they hold."""
        return [name for name in self.components if name not in COMPONENTS]

    def idle_secrets(self) -> tuple[tuple[str, str], ...]:
        """Secrets of the directory that go with a section there is none of: the section, and the file."""
        return self._origin.idle

    def check(self) -> None:
        """Validate the sections the main job reads, all at once.

        Raises:
            ConfigError: Any of them is refused; the problems of all are listed.
        """
        views: list[Callable[[], ConfigModel]] = [
            self.training_settings,
            self.tamiyo_settings,
            self.urza_settings,
            self.nissa_settings,
            self.oona_settings,
            self.logging_settings,
        ]
        problems: list[str] = []
        for view in views:
            try:
                view()
            except ConfigError as error:
                problems.extend(error.problems)
        if problems:
            raise refusal(self._origin.name, problems)

    def _view(self, model: type[T], section: dict[str, Any], path: str) -> T:
        try:
            return model.model_validate(section)
        except ConfigError as error:
            problems = [_overridden(f"{path}.{problem}", self.model_dump(), type(self)) for problem in error.problems]
        raise refusal(self._origin.name, [_located(problem, self._origin.lines) for problem in problems])


def _filled(values: Mapping[str, Any], over: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """What is given with what overrides it, and without references; one overridden key leaves others at defaults."""
    given = {"logging": _LOGGING, **values} if "logging" in over else values
    return substitute(overlay(given, over), os.environ, subject)


def _problems_of_open(model: type[EsperConfig], values: Mapping[str, Any]) -> Iterator[str]:
    """What the main job refuses in the sections that take anything, of a configuration that is refused itself."""
    try:
        data = _filled(values, environment.overrides(_sections(model), values)[0], model.__name__)
    except ConfigError:  # which has been said
        return
    found = [("training", data.get("training"), TrainingSettings), ("logging", data.get("logging"), LoggingSettings)]
    components = data.get("components")
    for name, component in components.items() if isinstance(components, Mapping) else ():
        if name in COMPONENTS and isinstance(component, Mapping):
            found.append((f"components.{name}.config", component.get("config"), COMPONENTS[name]))
    for path, section, settings in found:
        if isinstance(section, Mapping):
            try:
                settings.model_validate(section)
            except ConfigError as error:
                yield from (f"{path}.{problem}" for problem in error.problems)


def _sections(model: type[EsperConfig]) -> dict[str, Any]:
    return environment.sections_of(model, training=TrainingSettings, logging=LoggingSettings)


def _reworded(error: ConfigError, subject: str, word: Callable[[str], str]) -> ConfigError:
    """The same error about `subject`, each of its problems put into words by `word`."""
    if not error.problems:
        return error
    hint = "\n".join(error.args[0].splitlines()[1 + len(error.problems) :])
    return refusal(subject, [word(problem) for problem in error.problems], hint, type(error))


def _overridden(problem: str, given: Mapping[str, Any], model: type[EsperConfig]) -> str:
    """The problem with the environment variable or the secret it comes from, if it does."""
    path, colon, text = problem.partition(": ")
    steps = tuple(path.split("."))
    variable = environment.overriding(steps, _sections(model), whole=steps[0] not in given)
    return f"{path} ({variable}){colon}{text}" if variable else problem


def _located(problem: str, lines: Mapping[str, int]) -> str:
    """The problem with the line it comes from; for a missing key, the line of its section."""
    path, colon, text = problem.partition(": ")
    line = lines.get(path.rpartition(".")[0] if text == "is required" else path)
    return f"{path} (line {line}){colon}{text}" if line else problem
