"""The object store: reached, let in, with a bucket that objects can be put in, read, listed and removed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from esper.configs.checks.findings import Finding
from esper.configs.redaction import redacted
from esper.configs.services import StorageConfig

_SUBJECT = "storage"
_LOCAL = ("localhost", "127.0.0.1", "::1")
PREFIX = "esper-check/"

# The code that S3 answers with, wherever it stands in what the client says.
_CODE = re.compile(r"<Code>(\w+)</Code>")
_REASONS = {
    "NoSuchBucket": ("there is no bucket {bucket}", "create it, or check storage.bucket_name"),
    "InvalidAccessKeyId": ("it does not know the access key", "check storage.access_key"),
    "SignatureDoesNotMatch": ("the signature is wrong", "check storage.secret_key and storage.region"),
    "AccessDenied": ("the keys may not do that", "allow it in the policy: docs/operations.md has one"),
    "ExpiredToken": ("the temporary keys have expired", "get new ones: access_key, secret_key and session_token"),
    "InvalidToken": ("the session token is not valid", "check storage.session_token, or leave it out"),
    "RequestTimeTooSkewed": ("its clock and this machine's are too far apart", "synchronise both (NTP)"),
    "PermanentRedirect": ("the bucket is in another region", "set storage.region"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "set storage.region"),
    "SlowDown": ("it is overloaded", "try again later"),
}


def examine(section: StorageConfig) -> Iterator[Finding]:
    """What the store lets these keys do; a small object is made and removed."""
    try:
        import obstore
        from obstore.store import S3Store
    except ImportError:
        yield Finding("failed", _SUBJECT, "obstore is not installed", 'pip install "esper[library]"')
        return
    try:
        store = S3Store(**section.options(), retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)})
    except OSError as error:
        yield Finding("failed", _SUBJECT, f"cannot read storage.ca_file: {error.strerror}", "check the path")
        return
    name = PREFIX + secrets.token_hex(8)
    for step in (_put, _get, _list, _delete):
        try:
            step(obstore, store, name)
        except (obstore.exceptions.BaseError, OSError, ValueError) as error:
            yield _refused(section, step.__name__.removeprefix("_"), error)
            return
    told = f"objects can be put, read, listed and removed in {redacted(section.bucket_name)} at {_place(section)}"
    yield Finding("ok", _SUBJECT, told)
    yield from _encryption(section)


def _put(obstore: Any, store: Any, name: str) -> None:
    obstore.put(store, name, b"esper", use_multipart=False)


def _get(obstore: Any, store: Any, name: str) -> None:
    found = bytes(obstore.get(store, name).bytes())
    if found != b"esper":
        raise ValueError("an object came back changed")


def _list(obstore: Any, store: Any, name: str) -> None:
    found = [item["path"] for item in obstore.list(store, prefix=PREFIX).collect()]
    if name not in found:
        raise ValueError("an object that was put is not listed")


def _delete(obstore: Any, store: Any, name: str) -> None:
    obstore.delete(store, name)


def _refused(section: StorageConfig, step: str, error: BaseException) -> Finding:
    said = str(error)
    code = _CODE.search(said)
    if code and code[1] in _REASONS:
        told, move = _REASONS[code[1]]
        told = told.format(bucket=redacted(section.bucket_name))
        return Finding("failed", _SUBJECT, f"{step}: {told} ({code[1]})", move)
    if code:
        return Finding("failed", _SUBJECT, f"{step}: it answers {code[1]}", "see the server's log")
    return Finding("failed", _SUBJECT, *_by_kind(_place(section), step, type(error).__name__, said))


def _place(section: StorageConfig) -> str:
    """Host and port: the rest of a URL may hold a password, and all of it may come from a file."""
    shown = redacted(section.endpoint_url)
    return urlsplit(shown).netloc.rpartition("@")[2] or shown


def _by_kind(place: str, step: str, kind: str, said: str) -> tuple[str, str]:
    """By what the client makes of it: its text holds URLs and answers, so only what is known is told."""
    match kind:
        case "PermissionDeniedError" | "PermissionError" | "UnauthenticatedError":
            return f"{step}: {place} does not accept the keys", "check storage.access_key and storage.secret_key"
        case "NotFoundError" | "FileNotFoundError":
            return f"{step}: {place} knows no such bucket", "create it, or check storage.bucket_name"
    if "certificate" in said.lower() or "UnknownIssuer" in said:
        return f"{place}: its certificate is not trusted", "name the authority's file as storage.ca_file"
    if "kind: Timeout" in said:
        return f"{place}: no answer in time", "check endpoint_url and firewalls, or raise the timeouts of storage"
    if "dns error" in said:
        return f"{place}: no such host", "check storage.endpoint_url"
    if "kind: Connect" in said:
        return f"{place}: cannot be reached", "start the server, or check storage.endpoint_url"
    return f"{step} failed at {place}: {kind}", "does that port speak what endpoint_url says, http or https?"


def _encryption(section: StorageConfig) -> Iterator[Finding]:
    parts = urlsplit(section.endpoint_url)
    if parts.scheme == "https":
        yield Finding("ok", _SUBJECT, "encrypted, and the server's certificate is checked")
    elif parts.hostname not in _LOCAL:
        yield Finding("warning", _SUBJECT, "not encrypted", "use an https:// endpoint_url")
