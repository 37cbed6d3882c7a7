"""What must not reach a `repr`, a log line or an error, and how it is masked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from pydantic import BaseModel

from esper.configs.secrets import FromFile

MASK = "***"

# Free-form sections (`components.*.config`, `training`, `logging`) have no declared secrets: the name decides.
_SECRET_NAME = re.compile(
    r"passw(or)?d|pwd|passphrase|secret|credential|bearer|authori[sz]ation|(^|[_-])(token|dsn|auth|key)$"
    r"|(api|access|private)[_-]?key",
    re.IGNORECASE,
)
_KEY_ID = "access_key"  # of `StorageConfig`: it says whose the secret key is, and may be a word such as "esper"
_URL_USERINFO = re.compile(r"(?<=://)\S+@")  # a password may hold / and @; a token stands there alone


def redacted(value: Any) -> Any:
    """A copy of `value` in plain containers, its secrets replaced by `***`; nothing else changes."""
    if isinstance(value, BaseModel):
        hidden = {name for name, field in type(value).model_fields.items() if not field.repr}
        return _redacted_items(((name, getattr(value, name)) for name in type(value).model_fields), hidden)
    if isinstance(value, Mapping):
        return _redacted_items(value.items(), {key for key in value if _SECRET_NAME.search(str(key))})
    if isinstance(value, (list, tuple)):
        return [redacted(item) for item in value]
    if isinstance(value, FromFile):
        return MASK
    if isinstance(value, str):
        return _URL_USERINFO.sub(f"{MASK}@", value)
    return value


def _redacted_items(items: Iterable[tuple[Any, Any]], hidden: set[Any]) -> dict[Any, Any]:
    # An absent or empty secret says that there is none: worth seeing in a log.
    return {key: MASK if key in hidden and value else redacted(value) for key, value in items}


def secrets_of(value: Any) -> set[str]:
    """Every text in `value` that `redacted` hides, but ids of access keys: `key_ids_of` gives those."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        hidden = {name for name, field in fields.items() if not field.repr}
        return _secrets_among(((name, getattr(value, name)) for name in fields if name != _KEY_ID), hidden)
    if isinstance(value, Mapping):
        return _secrets_among(value.items(), {key for key in value if _SECRET_NAME.search(str(key))})
    if isinstance(value, (list, tuple)):
        return {secret for item in value for secret in secrets_of(item)}
    return {str(value)} if isinstance(value, FromFile) else set()


def key_ids_of(value: BaseModel) -> set[str]:
    """The ids of access keys among the sections of a configuration."""
    fields = {name: getattr(value, name) for name in type(value).model_fields}
    deeper = (key_ids_of(section) for section in fields.values() if isinstance(section, BaseModel))
    own = {str(text) for name, text in fields.items() if name == _KEY_ID and text}
    return own.union(*deeper)


def scrubbed(text: str, secrets: Iterable[str], key_ids: Iterable[str] = ()) -> str:
    """Text of somebody else's making, such as a driver's error, without what it may quote.

    Args:
        text: The text.
        secrets: What is masked wherever it is.
        key_ids: What is masked where it stands for itself, not within another name, such as a bucket's or a file's.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        for form in _forms(secret):
            text = text.replace(form, MASK)
    for key_id in filter(None, key_ids):
        for form in _forms(key_id):
            text = re.sub(rf"(?<![\w./-]){re.escape(form)}(?!\w|[.-]\w)", MASK, text)
    return _URL_USERINFO.sub(f"{MASK}@", text)


def _forms(text: str) -> tuple[str, ...]:
    """A text as it is, and as URLs have it."""
    return text, quote(text, safe=""), quote_plus(text)


def _secrets_among(items: Iterable[tuple[Any, Any]], hidden: set[Any]) -> set[str]:
    found = ({str(value)} if key in hidden and value else secrets_of(value) for key, value in items)
    return {secret for group in found for secret in group}
