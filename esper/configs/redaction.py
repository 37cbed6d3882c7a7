"""What must not reach a `repr`, a log line or an error, and how it is masked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

MASK = "***"

# Free-form sections (`components.*.config`, `training`, `logging`) have no declared secrets: the name decides.
_SECRET_NAME = re.compile(
    r"passw(or)?d|passphrase|secret|credential|(^|_)(token|dsn)$|(api|access|private)_?key", re.IGNORECASE
)
_URL_USERINFO = re.compile(r"(?<=://)[^\s/@]*:[^\s/]*@")


def redacted(value: Any) -> Any:
    """A copy of `value` in plain containers, its secrets replaced by `***`; nothing else changes."""
    if isinstance(value, BaseModel):
        hidden = {name for name, field in type(value).model_fields.items() if not field.repr}
        return _redacted_items(((name, getattr(value, name)) for name in type(value).model_fields), hidden)
    if isinstance(value, Mapping):
        return _redacted_items(value.items(), {key for key in value if _SECRET_NAME.search(str(key))})
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    if isinstance(value, str):
        return _URL_USERINFO.sub(f"{MASK}@", value)
    return value


def _redacted_items(items: Iterable[tuple[Any, Any]], hidden: set[Any]) -> dict[Any, Any]:
    # An absent or empty secret says that there is none: worth seeing in a log.
    return {key: MASK if key in hidden and value else redacted(value) for key, value in items}
