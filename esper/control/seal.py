"""Signed messages: `esper-control/1 KEY MAC BODY`, one line of ASCII. The body is read after its signature is checked.

The signature is HMAC-SHA256 over what the message is for, which says its direction too, the key's id and the body's
bytes: an answer is no question, and one kind of question no other.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Literal

from esper.control.keys import Keys
from esper.errors import MessageError

MAX_BYTES = 4 * 2**20
"""Of a message."""

Purpose = Literal["run asks to decide", "run asks what to measure", "controller decides", "controller asks to measure"]

_VERSION = b"esper-control/1"
_FORM = re.compile(rb"esper-control/(\d{1,9}) ([A-Za-z0-9._-]{1,32}) ([0-9a-f]{64}) ([ -~]*)")


def sealed(body: str, purpose: Purpose, keys: Keys) -> bytes:
    """A signed message.

    Raises:
        MessageError: It would be too large ("oversized").
    """
    held = body.encode("ascii")
    message = b" ".join((_VERSION, keys.signing.encode(), _mac(keys, keys.signing, purpose, held), held))
    _check_size(message)
    return message


def opened(message: bytes, purpose: Purpose, keys: Keys) -> str:
    """The body of a message that was signed, for this purpose, with one of the keys.

    Raises:
        MessageError: "oversized", "malformed", "version", "key" (an unknown one) or "signature".
    """
    _check_size(message)
    found = _FORM.fullmatch(message)
    if not found:
        raise MessageError("malformed", "no signed message")
    version, name, mac, body = found.groups()
    if version != b"1":
        raise MessageError("version", f"version {int(version)}, and this side speaks version 1: update the older one")
    key = name.decode()
    if key not in keys.secrets:
        raise MessageError("key", f"signed with a key {key!r} that is not known here; known: {sorted(keys.secrets)}")
    if not hmac.compare_digest(_mac(keys, key, purpose, body), mac):
        raise MessageError("signature", f"the signature with the key {key!r} is not that of such a message")
    return body.decode("ascii")


def _mac(keys: Keys, key: str, purpose: Purpose, body: bytes) -> bytes:
    signed = b"\0".join((_VERSION, purpose.encode(), key.encode(), body))
    return hmac.new(keys.secrets[key], signed, hashlib.sha256).hexdigest().encode()


def _check_size(message: bytes) -> None:
    if len(message) > MAX_BYTES:
        raise MessageError("oversized", f"more than the {MAX_BYTES} bytes that a message may have")
