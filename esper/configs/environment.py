"""`ESPER_DATABASE__PASSWORD` and the like: values from the environment that override the file.

pydantic-settings' conventions: the prefix `ESPER_`, `__` between the parts of a path, JSON for lists
and whole sections. A variable whose first part is no section of the configuration is not ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import BaseModel, create_model
from pydantic_settings import BaseSettings, EnvSettingsSource
from pydantic_settings.exceptions import SettingsError

from esper.errors import ConfigError

PREFIX = "ESPER_"
DELIMITER = "__"


def overrides(model: type[BaseModel], **typed: type[BaseModel]) -> dict[str, Any]:
    """What the environment says about the fields of `model`, as nested mappings.

    `typed` names the types of fields that `model` itself leaves open: they say where JSON is expected.
    """
    sections = {name: typed.get(name, field.annotation) for name, field in model.model_fields.items()}
    source = EnvSettingsSource(
        _reader(tuple(sections.items())), env_prefix=PREFIX, env_nested_delimiter=DELIMITER, case_sensitive=False
    )
    try:
        return source()
    except SettingsError:  # its cause holds the text that was parsed
        broken = [variable_name((name,)) for name in sections if variable_name((name,)).lower() in source.env_vars]
    raise ConfigError(f"the environment overrides a section with something that is not JSON: {', '.join(broken)}")


def variable_name(path: tuple[str, ...]) -> str:
    """The variable that overrides what is at `path`."""
    return PREFIX + DELIMITER.join(path).upper()


def overriding(path: tuple[str, ...], variables: Iterable[str], whole: bool = False) -> str | None:
    """The variable among `variables` that sets `path`; with `whole`, any that sets a part of its section."""
    names = sorted(name.upper() for name in variables)
    if variable_name(path) in names:
        return variable_name(path)
    section = variable_name(path[:1])
    return (
        next((name for name in names if name == section or name.startswith(section + DELIMITER)), None)
        if whole
        else None
    )


@cache
def _reader(sections: tuple[tuple[str, Any], ...]) -> type[BaseSettings]:
    fields: dict[str, Any] = {name: (annotation, None) for name, annotation in sections}
    return create_model("EsperEnvironment", __base__=BaseSettings, **fields)
