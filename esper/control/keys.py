"""The keys that messages are signed with: one that signs, and any number that are accepted beside it."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from esper.configs.secrets import warn_if_open
from esper.errors import ConfigError

LEAST = 32
"""Bytes of a key, at least."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_HOW = "one key a line, `id secret`, the secret at least 64 hexadecimal digits; `esper tamiyo --new-key ID` prints one"


@dataclass(frozen=True)
class Keys:
    """Keys by id. To change keys, add the new one on both sides, then sign with it, then take the old one away.

    Attributes:
        signing: Id of the key that signs.
        secrets: Every key that is accepted, by id.

    Raises:
        ConfigError: A key is too short, an id is none, or the signing key is not among them.
    """

    signing: str
    secrets: Mapping[str, bytes] = field(repr=False)

    def __post_init__(self) -> None:
        if self.signing not in self.secrets:
            raise ConfigError(f"the key {self.signing!r} that should sign is not among the keys {sorted(self.secrets)}")
        for name, secret in self.secrets.items():
            if not _ID.fullmatch(name):
                raise ConfigError(f"a key's id has up to 32 letters, digits and . _ -; this one does not: give {_HOW}")
            if len(secret) < LEAST:
                raise ConfigError(
                    f"the key {name!r} has {len(secret)} bytes, and a key has at least {LEAST}: give {_HOW}"
                )

    @classmethod
    def parse(cls, text: str) -> Keys:
        """Keys from text; the first one signs. Empty lines and those that begin with # are left out.

        Raises:
            ConfigError: The text is something else; no part of it is quoted.
        """
        found: dict[str, bytes] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            words = line.split()
            if len(words) != 2 or words[0] in found:
                raise ConfigError(f"line {number} of the keys holds no new key: give {_HOW}")
            try:
                found[words[0]] = bytes.fromhex(words[1])
            except ValueError:
                problem = f"the secret on line {number} of the keys is not hexadecimal: give {_HOW}"
            else:
                continue
            raise ConfigError(problem)  # outside the handler, whose error may quote the secret
        if not found:
            raise ConfigError(f"there are no keys: give {_HOW}")
        return cls(next(iter(found)), found)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Keys:
        """Keys from a file; one that every account of the machine can read is warned of.

        Raises:
            ConfigError: It cannot be read, or holds something else.
        """
        try:
            text = Path(path).read_text(encoding="ascii")
            warn_if_open(Path(path))
        except OSError as error:
            raise ConfigError(f"cannot read the keys in {os.fspath(path)}: {error.strerror}") from error
        except ValueError:
            text = ""
        return cls.parse(text)


def new_key(name: str) -> str:
    """A line with a new key, for a file of keys."""
    line = f"{name} {secrets.token_hex(LEAST)}"
    Keys.parse(line)
    return line
