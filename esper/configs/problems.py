"""How a refused configuration is worded: every problem, by dotted path, without its value.

A problem is one line, `path: what is wrong`. Values never appear: any of them may be a secret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from esper.errors import ConfigError

Location = tuple[int | str, ...]

_SUBJECT = re.compile(r"^[A-Z][a-z]+ should")
_UNKNOWN_KEY = {"extra_forbidden", "no_such_attribute"}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The closest known word as a question, or all of them when none is close."""
    names = list(known)
    close = difflib.get_close_matches(word.lower(), names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"the known ones are: {', '.join(names)}" if names else "there are none"


def refusal(
    subject: str, problems: Sequence[str], hint: str = "", kind: type[ConfigError] = ConfigError
) -> ConfigError:
    """One error that lists every problem found in `subject`."""
    noun = "problem" if len(problems) == 1 else "problems"
    lines = [f"{subject} has {len(problems)} {noun}:", *(f"  {problem}" for problem in problems)]
    return kind("\n".join([*lines, hint] if hint else lines), problems)


def from_validation(error: ValidationError, model: type[BaseModel]) -> ConfigError:
    """The readable form of what pydantic found wrong with a `model`."""
    found = error.errors(include_url=False, include_input=False)
    for item in found:
        # A refusal raised inside a constructor that pydantic called is already in its final form.
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ConfigError):
            return inner
    return refusal(model.__name__, [_problem(item["loc"], item["type"], item["msg"], model) for item in found])


def _problem(location: Location, kind: str, message: str, model: type[BaseModel]) -> str:
    path = ".".join(str(step) for step in location if step != "[key]")
    if kind in _UNKNOWN_KEY:
        return f"{path}: unknown key; {did_you_mean(str(location[-1]), keys_at(model, location[:-1]))}"
    if kind == "missing":
        return f"{path}: is required"
    text = _SUBJECT.sub("should", message.removeprefix("Value error, "))
    if kind == "string_type":
        text += " (in YAML, quote it)"
    return f"{path}: {text}" if path else text


def keys_at(model: Any, location: Location) -> list[str]:
    """The keys that the model found by walking `location` from `model` accepts; none where anything goes."""
    return [key for kind in kinds_at(model, location) if _is_model(kind) for key in kind.model_fields]


def kinds_at(model: Any, location: Location) -> list[Any]:
    """The types that may be found by walking `location` from `model`, each alternative of a union by itself."""
    reached: list[Any] = [model]
    for step in location:
        reached = [inner for annotation in reached for inner in _inside(annotation, step)]
    return [kind for annotation in reached for kind in _members(annotation)]


def holds_others(kind: Any) -> bool:
    """Whether a type is a section, a list or a mapping."""
    return _is_model(kind) or get_origin(kind) in (dict, list)


def _inside(annotation: Any, step: int | str) -> list[Any]:
    found = []
    for kind in _members(annotation):
        if _is_model(kind) and step in kind.model_fields:
            found.append(kind.model_fields[step].annotation)
        elif get_origin(kind) in (dict, list):
            found.append(get_args(kind)[-1])
    return found


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the annotation itself."""
    if get_origin(annotation) in (dict, list) or not get_args(annotation):
        return [annotation]
    return [member for argument in get_args(annotation) for member in _members(argument)]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
