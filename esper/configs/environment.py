"""What overrides the file: `ESPER_DATABASE__PASSWORD`, `ESPER_DATABASE__PASSWORD_FILE`, and a directory of secrets.

| where | beats |
|---|---|
| `ESPER_DATABASE__PASSWORD`, the value | everything below |
| `ESPER_DATABASE__PASSWORD_FILE`, the file that holds it; not beside the variable itself | everything below |
| the file `database__password` in the directory `ESPER_SECRETS_DIR` | what the YAML file or Python says |

What lies in the directory may be there for others too: a secret of it goes with a section that there is, and does not
switch one on.

pydantic-settings' conventions: the prefix `ESPER_`, `__` between the parts of a path, JSON for lists
and whole sections. The settings of components, whose types it does not know, are read in the same way here. What names
no section of the configuration is not ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, create_model
from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from esper.configs.control import RemoteSettings
from esper.configs.problems import holds_others, keys_at, kinds_at
from esper.configs.schema import COMPONENTS
from esper.configs.secrets import FromFile, read_secret
from esper.configs.services import DatabaseConfig, RedisConfig, StorageConfig
from esper.errors import ConfigError

PREFIX = "ESPER_"
DELIMITER = "__"
POINTER = "_FILE"
DIRECTORY = "ESPER_SECRETS_DIR"

_OPTIONAL: dict[tuple[str, ...], type[BaseModel]] = {
    ("database",): DatabaseConfig,
    ("redis",): RedisConfig,
    ("storage",): StorageConfig,
    ("components", "tamiyo", "config", "remote"): RemoteSettings,
}
"""What is off where its section is left out."""

Sections = Mapping[str, Any]
"""The types of the configuration's sections, by name."""


@dataclass(frozen=True)
class Source:
    """Where an override stands.

    Attributes:
        label: The variable or file to name in a message.
        file: The file to read, if it is one.
        in_directory: Whether it lies in the directory of secrets, which the environment beats.
    """

    label: str
    file: Path | None = None
    in_directory: bool = False


def sections_of(model: type[BaseModel], **typed: type[BaseModel]) -> dict[str, Any]:
    """The types of the fields of `model`; `typed` says more of those that it leaves open."""
    return {name: typed.get(name, field.annotation) for name, field in model.model_fields.items()}


def sources(sections: Sections) -> dict[str, Source]:
    """What is overridden, by the name of its variable in capitals.

    Raises:
        ConfigError: A value and the file that holds it are both given, or the directory cannot be read.
    """
    names = {name.upper(): name for name in os.environ}
    found = {variable: Source(str(place), place, True) for variable, place in _in_directory(sections)}
    pointers = {
        name.removesuffix(POINTER): Source(name, Path(os.environ[given]))
        for name, given in names.items()
        if _is_pointer(name, sections)
    }
    twice = sorted(f"{name} and {source.label}" for name, source in pointers.items() if name in names)
    if twice:
        raise ConfigError(f"a value is given twice, keep one of each: {', '.join(twice)}", twice)
    plain = {name: Source(name) for name in names if name.startswith(PREFIX) and not _is_pointer(name, sections)}
    return {**found, **pointers, **plain}


def overrides(sections: Sections, given: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """What the environment and the secrets say about the sections, as nested mappings.

    Args:
        sections: Their types.
        given: What the file or Python says of them.

    Returns:
        What they say, and the secrets that were left alone: the section that is not there, and the file.

    Raises:
        ConfigError: A secret cannot be read, or a section is overridden with something that is not JSON.
    """
    environment = {name.upper(): value for name, value in os.environ.items()}
    directory: dict[str, str] = {}
    found = sources(sections)
    idle = _idle(found, given)
    for name, source in found.items():
        if source.file is not None and name not in idle:
            (directory if source.in_directory else environment)[name] = read_secret(source.file, source.label)
    left = tuple((".".join(_path(name)[:-1]), found[name].label) for name in idle)
    return _merged(_nested(directory, sections), _nested(environment, sections)), left


def _idle(found: Mapping[str, Source], given: Mapping[str, Any]) -> list[str]:
    """The secrets of the directory that are all there is of a section."""
    idle: list[str] = []
    for section, model in _OPTIONAL.items():
        hidden = {variable_name((*section, name)) for name, field in model.model_fields.items() if not field.repr}
        names = [name for name in found if name.startswith(variable_name(section) + DELIMITER)]
        alone = all(found[name].in_directory and name in hidden for name in names)
        whole = any(variable_name(section[:length]) in found for length in range(1, len(section) + 1))
        if alone and not whole and not _has(given, section):
            idle += names
    return idle


def _has(given: Any, path: tuple[str, ...]) -> bool:
    """Whether anything is given at this path."""
    for step in path:
        given = given.get(step) if isinstance(given, Mapping) else getattr(given, step, None)
    return given is not None


def _path(name: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(PREFIX).lower().split(DELIMITER))


def _merged(base: Any, over: Any) -> Any:
    """`base` with `over` on top: mappings merge key by key, everything else is replaced."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}


def _nested(values: Mapping[str, str], sections: Sections) -> dict[str, Any]:
    reader = EnvSettingsSource(
        _reader(tuple(sections.items())), env_prefix=PREFIX, env_nested_delimiter=DELIMITER, case_sensitive=False
    )
    given = {name: value for name, value in sorted(values.items()) if not _is_pointer(name, sections)}
    typed = {name: value for name, value in given.items() if _settings_of(_path(name)) is not None}
    reader.env_vars = {name.lower(): value for name, value in given.items() if name not in typed}
    try:
        return _merged(reader(), _of_components(typed))
    except SettingsError:  # its cause holds the text that was parsed
        broken = [variable_name((name,)) for name in sections if variable_name((name,)).lower() in reader.env_vars]
    raise ConfigError(f"the environment overrides a section with something that is not JSON: {', '.join(broken)}")


def _of_components(values: Mapping[str, str]) -> dict[str, Any]:
    """What is said about the settings of the components that esper reads; a section comes before its parts."""
    found: dict[str, Any] = {}
    for name, text in values.items():
        path = _path(name)
        value: Any = _plain(text, kinds_at(_settings_of(path), path[3:]))
        for step in reversed(path):
            value = {step: value}
        found = _merged(found, value)
    return found


def _settings_of(path: tuple[str, ...]) -> type[BaseModel] | None:
    """The settings of the component of which `path` names a part; None: it names something else."""
    match path:
        case ("components", name, "config", _, *_):
            return COMPONENTS.get(name)
        case _:
            return None


def _plain(text: str, kinds: Collection[Any]) -> Any:
    """What a variable says: JSON for lists and sections, and `null` where the field takes no text."""
    if isinstance(text, FromFile):  # a part of it would be a secret no more
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(found, list | dict):
        return found if any(map(holds_others, kinds)) else text
    return None if found is None and str not in kinds else text


def variable_name(path: tuple[str, ...]) -> str:
    """The variable that overrides what is at `path`."""
    return PREFIX + DELIMITER.join(path).upper()


def overriding(path: tuple[str, ...], sections: Sections, whole: bool = False) -> str | None:
    """What sets `path`, a variable or a file; with `whole`, anything that sets a part of its section."""
    found = sources(sections)
    if variable_name(path) in found:
        return found[variable_name(path)].label
    section = variable_name(path[:1])
    parts = (name for name in sorted(found) if name == section or name.startswith(section + DELIMITER))
    return next((found[name].label for name in parts), None) if whole else None


def _is_pointer(name: str, sections: Sections) -> bool:
    """Whether a variable names the file that holds the value; `redis.ca_file` is a field and no such thing."""
    path = _path(name)
    if not name.startswith(PREFIX) or not name.endswith(POINTER) or len(path) < 2:
        return False
    value = (*path[:-1], path[-1].removesuffix(POINTER.lower()))
    return _is_field(value, sections) and not _is_field(path, sections)


def _is_field(path: tuple[str, ...], sections: Sections) -> bool:
    return path[0] in sections and path[-1] in keys_at(sections[path[0]], path[1:-1])


def _in_directory(sections: Sections) -> Iterator[tuple[str, Path]]:
    """The secrets in the directory, `database__password` and the like, by the names of their variables."""
    directory = os.environ.get(DIRECTORY)
    if not directory:
        return
    try:
        places = sorted(Path(directory).expanduser().resolve().iterdir())
    except OSError as error:
        problem = f"{DIRECTORY}: cannot read {directory}: {error.strerror or type(error).__name__}"
    else:
        for place in places:
            path = place.name.lower().split(DELIMITER)
            if len(path) > 1 and path[0] in sections and place.is_file():
                yield variable_name(tuple(path)), place
        return
    raise ConfigError(problem, [problem])


@cache
def _reader(sections: tuple[tuple[str, Any], ...]) -> type[BaseSettings]:
    fields: dict[str, Any] = {name: (annotation, None) for name, annotation in sections}
    return create_model("EsperEnvironment", __base__=BaseSettings, **fields)
