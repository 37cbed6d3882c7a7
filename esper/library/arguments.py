"""What callers give, checked before anything is looked up or written; numpy's and JAX's scalars become Python's."""

from __future__ import annotations

import math
import operator
import re
from typing import Any

from esper.errors import ArgumentError

LARGEST = (1 << 63) - 1
"""The largest whole number that a catalogue holds."""

_UNWRITABLE = re.compile(r"[\x00\ud800-\udfff]")
_NO_NUMBERS = (bool, str, bytes, bytearray)
_RAISED = (TypeError, ValueError, OverflowError, RuntimeError)


def whole(name: str, value: object, least: int, most: int = LARGEST) -> int:
    """A whole number in a range.

    Raises:
        ArgumentError: It is none, or out of the range.
    """
    given: Any = value
    try:
        found = None if isinstance(value, _NO_NUMBERS) else operator.index(given)
    except _RAISED:
        found = None
    if found is None or not least <= found <= most:
        raise ArgumentError(f"{name} is a whole number from {least} to {most}, not {_shown(value)}")
    return found


def number(name: str, value: object) -> float:
    """A number; it may be infinite, or none (NaN).

    Raises:
        ArgumentError: It is something else, such as a text or an array of several.
    """
    given: Any = value
    try:
        if not isinstance(value, _NO_NUMBERS) and getattr(value, "ndim", 0) == 0 and _kind(value) != "b":
            return float(given)
    except _RAISED:
        pass
    raise ArgumentError(f"{name} is a number, not {_shown(value)}")


def finite(name: str, value: object) -> float:
    """A number that is neither infinite nor NaN.

    Raises:
        ArgumentError: It is something else.
    """
    found = number(name, value)
    if not math.isfinite(found):
        raise ArgumentError(f"{name} is a finite number, not {found}")
    return found


def text(name: str, value: object) -> str:
    """A text that every database and terminal can be given.

    Raises:
        ArgumentError: It is none, or has a NUL or half of a surrogate pair in it.
    """
    if not isinstance(value, str) or _UNWRITABLE.search(value):
        raise ArgumentError(f"{name} is text of whole characters without NUL, not {_shown(value)}")
    return value


def plain(name: str, value: object) -> Any:
    """An attribute's value as JSON has it.

    Raises:
        ArgumentError: No attribute has such a value.
    """
    if isinstance(value, list | tuple):
        return [plain(name, one) for one in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return text(name, value)
    kind = _kind(value)
    if kind == "b" and getattr(value, "ndim", None) == 0:
        return bool(value)
    if isinstance(value, int) or kind in ("i", "u"):
        return whole(name, value, -LARGEST - 1)
    return finite(name, value)


def _shown(value: object) -> str:
    """A value as a message can show it, in ASCII; what cannot be shown, such as a deleted array, by its type."""
    try:
        return f"{value!a:.80}"
    except Exception:
        return f"something of {type(value).__name__}"


def _kind(value: object) -> str | None:
    """The letter by which numpy names what an array or scalar is of; None: it is of Python's."""
    return getattr(getattr(value, "dtype", None), "kind", None)
