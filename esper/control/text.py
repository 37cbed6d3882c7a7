"""Frozen data as JSON text and back, exactly; only classes that are named, only values of the types they declare."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Collection
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from esper.errors import MessageError, StateError
from esper.persistence.plain import Classes, Reader, Writer

DATA = ("enum", "float", "data")
MEMORY = (*DATA, "list", "set", "dict", "complex")


def to_text(value: Any, classes: Classes) -> str:
    """JSON, in ASCII; equal data are equal text.

    Raises:
        MessageError: The value is no plain data ("unsayable").
    """
    writer = Writer(classes)
    try:
        plain = writer.plain(value, "the message")
    except (StateError, RecursionError) as error:
        raise MessageError("unsayable", str(error)) from error
    if writer.arrays:
        raise MessageError("unsayable", "the message holds arrays: give numbers")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_text(text: str, classes: Classes, kinds: Collection[str] = DATA) -> Any:
    """What `to_text` was given.

    Raises:
        MessageError: The text is something else ("malformed").
    """
    try:
        held = json.loads(text, object_pairs_hook=_once, parse_constant=_refused)
        return Reader(classes, {}, kinds).value(held)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise MessageError("malformed", f"no message of this version ({type(error).__name__})") from error


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, all through; where a float is declared, a whole number is one too."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return _is_plain(value)
    if origin in (Union, types.UnionType):
        return any(conforms(value, one) for one in args)
    if origin is tuple:
        if type(value) is not tuple:
            return False
        if args[-1:] == (...,):
            return all(conforms(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(conforms, value, args))
    if hint is float:
        return type(value) in (float, int)
    if dataclasses.is_dataclass(hint):
        return type(value) is hint and all(conforms(getattr(value, name), own) for name, own in _hints(hint).items())
    return type(value) is hint


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _is_plain(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        raise ValueError("a key is given twice")
    return held


def _refused(constant: str) -> Any:
    raise ValueError(constant)
