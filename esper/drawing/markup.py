"""Elements of HTML and SVG, with everything that is no element escaped: the only place where that is done."""

from __future__ import annotations

import math
import re
from html import escape
from typing import Any

# What XML has no place for, and what turns text around for the eye while its letters stay as they are.
_UNSAYABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]|[\ud800-\udfff]"
)
_VOID = frozenset({"meta", "link", "br", "hr", "input", "col"})


class Markup(str):
    """Text that is elements already."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """Any value as text of an element or an attribute.

    >>> text('<b onclick="x">')
    '&lt;b onclick=&quot;x&quot;&gt;'
    """
    if isinstance(value, Markup):
        return value
    return Markup(escape(_UNSAYABLE.sub("\ufffd", _number(value) if isinstance(value, float) else str(value))))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element.

    Args:
        name: Of the element.
        children: Elements, or anything else, which becomes text; None is left out.
        attributes: `class_` is "class", `stroke_width` "stroke-width"; None and False are left out, True has no value.

    >>> tag("text", "a < b", x=1.50001, class_="es-tick")
    '<text x="1.5" class="es-tick">a &lt; b</text>'
    """
    opened = name + "".join(_attribute(key, value) for key, value in attributes.items())
    inner = "".join(text(child) for child in children if child is not None)
    if name in _VOID:
        return Markup(f"<{opened}>")
    return Markup(f"<{opened}>{inner}</{name}>")


def join(parts: Any) -> Markup:
    """Elements, or texts, one after the other."""
    return Markup("".join(text(part) for part in parts if part is not None))


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
    return f" {name}" if value is True else f' {name}="{Markup(text(value))}"'


def _number(value: float) -> str:
    """Short, as a coordinate.

    >>> _number(12.0), _number(0.1234)
    ('12', '0.12')
    """
    if not math.isfinite(value):
        return str(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
