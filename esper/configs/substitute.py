"""`${VAR}` in leaf strings, and overrides laid over the data: plain data in, plain data out.

| written | becomes |
|---|---|
| `${VAR}` | the variable; an error when it is not set |
| `${VAR:-default}` | the variable; `default` when it is not set or empty |
| `${file:/run/secrets/x}` | the text in the file, without the line breaks at its end: a secret, never shown |
| `$${` | a literal `${` |

Text that was put in is never scanned again, and neither are overrides nor sections that were built
as objects: a password may hold `${`. Keys are not substituted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from esper.configs.problems import refusal
from esper.configs.secrets import FromFile, read_secret
from esper.errors import ConfigError, MissingVariableError

_REFERENCE = re.compile(
    r"(?P<escape>\$\$\{)|\$\{file:(?P<file>[^{}]+)\}|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:(?!\$\{)[^}])*))?\}|(?P<malformed>\$\{)"
)


@dataclass(frozen=True)
class Verbatim:
    """A value that substitution leaves as it is."""

    value: Any


def overlay(base: Any, override: Any) -> Any:
    """`base` with `override` on top: mappings merge key by key, everything else is replaced."""
    if not isinstance(override, Mapping):
        return Verbatim(override)
    merged = _children(base)
    return {**merged, **{key: overlay(merged.get(key), value) for key, value in override.items()}}


def _children(base: Any) -> dict[Any, Any]:
    if isinstance(base, Mapping):
        return dict(base)
    value = base.value if isinstance(base, Verbatim) else base
    if isinstance(value, BaseModel):
        return {name: Verbatim(getattr(value, name)) for name in value.model_fields_set}
    return {key: Verbatim(item) for key, item in value.items()} if isinstance(value, Mapping) else {}


def substitute(tree: Any, variables: Mapping[str, str], subject: str) -> Any:
    """`tree` with the references in its leaf strings replaced.

    Raises:
        MissingVariableError: Variables without a default are not set; all of them are listed.
        ConfigError: A `${` starts no reference, or a file cannot be read.
    """
    work = _Substitution(variables)
    try:
        result = work.visit(tree, ())
    except RecursionError:
        raise refusal(subject, ["a section contains itself"]) from None
    if work.problems:
        raise refusal(subject, work.problems)
    if work.missing:
        hint = "Set them in the environment, or write a default: ${NAME:-value}."
        raise refusal(subject, work.missing, hint, MissingVariableError)
    return result


@dataclass
class _Substitution:
    variables: Mapping[str, str]
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def visit(self, value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, Verbatim):
            return value.value
        if isinstance(value, Mapping):
            return {key: self.visit(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.visit(item, (*path, str(index))) for index, item in enumerate(value))
        return self.filled(value, ".".join(path)) if isinstance(value, str) else value

    def filled(self, text: str, path: str) -> str:
        result = _REFERENCE.sub(self.replacement(path), text)
        secret = any(match["file"] for match in _REFERENCE.finditer(text))
        return FromFile(result) if secret else result

    def secret(self, place: str, path: str) -> str:
        try:
            return read_secret(place, path)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return ""

    def replacement(self, path: str) -> Callable[[re.Match[str]], str]:
        def replace(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            if match["escape"]:
                return "${"
            if match["file"]:
                return self.secret(match["file"], path)
            if match["malformed"]:
                forms = "${NAME}, ${NAME:-default} or ${file:PATH}"
                self.problems.append(f"{path}: '${{' should start {forms}; write '$${{' for '${{'")
                return ""
            found = self.variables.get(name)
            if default is not None:
                return found or default
            if found is None:
                self.missing.append(f"{path}: {name} is not set")
            return found or ""

        return replace
