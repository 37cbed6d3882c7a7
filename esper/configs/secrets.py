"""Secrets that stand in files: read once, never shown, and a warning where everybody can read them."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

from esper.errors import ConfigError

_LARGEST = 65536


class FromFile(str):
    """Text that a file held: a secret, whatever the name of the field it came to."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class SecretFileWarning(UserWarning):
    """A secret that every account of the machine can read."""


def read_secret(path: str | os.PathLike[str], what: str) -> FromFile:
    """The text in a file, without the line breaks at its end.

    Args:
        path: Absolute, or below `~`.
        what: What is read, for messages.

    Raises:
        ConfigError: There is no such file, or it holds no text; the message shows nothing of it.
    """
    place = Path(path).expanduser()
    problem = "" if place.is_absolute() else "write an absolute path: a relative one means another file elsewhere"
    if not problem:
        try:
            return _text(place)
        except OSError as error:
            problem = error.strerror or type(error).__name__
        except UnicodeDecodeError:
            problem = "it is not UTF-8 text"
        except ValueError as error:
            problem = str(error)
    raise ConfigError(f"{what}: cannot read the secret in {place}: {problem}", [f"{what}: {place}: {problem}"])


def is_open(place: Path) -> bool:
    """Whether every account of the machine can read the file, through every folder above it."""
    place = place.resolve()
    ways = all(parent.stat().st_mode & stat.S_IXOTH for parent in place.parents)
    return bool(place.stat().st_mode & stat.S_IROTH) and ways


def warn_if_open(place: Path) -> None:
    """Warns of a secret that every account of the machine can read."""
    if is_open(place):
        warnings.warn(
            f"everybody on this machine can read the secret in {place}: chmod o-r {place}",
            SecretFileWarning,
            stacklevel=3,
        )


def _text(place: Path) -> FromFile:
    if not place.is_file():
        raise ValueError("there is no such file" if not place.exists() else "it is no file")
    with place.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"it holds more than {_LARGEST} bytes: is it the right file?")
    text = content.decode("utf-8").rstrip("\r\n")
    if not text:
        raise ValueError("it is empty")
    warn_if_open(place)
    return FromFile(text)
