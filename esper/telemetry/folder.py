"""The folder of a run: one run at a time, and what an earlier one left there is kept beside the new one's."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic_core import from_json

from esper.errors import ConfigError, EventError, TelemetryError
from esper.telemetry.events import SCHEMA_VERSION, Event
from esper.telemetry.reading import HISTORY
from esper.telemetry.sinks.files import Appended
from esper.telemetry.sinks.jsonl import last_event

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

JOURNAL, CHECKPOINTS = "job.json", "checkpoints"
"""How far the run is, and what it can be gone on from."""

MODEL = ("model.safetensors", "state_dict.pt", "trained.pt")
"""The model that a run gave back."""

TOLD = (JOURNAL, HISTORY, "certificate.json", "ledger.json", "network.json", *MODEL)
"""What is read together as the account of one run; without the first, nothing goes on with it."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Nobody else claims the folder while the block runs; it is made if it is not there.

    The system gives it back when a process dies. Where there are no such locks, as on some network disks, all claim it.

    Raises:
        ConfigError: Another run has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"the run's folder {folder} cannot be made: {reason}; choose another output_dir") from error
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                message = f"another run is writing to {folder}: wait for its end, or give this one another output_dir"
                raise ConfigError(message) from None
        yield
    finally:
        os.close(handle)


def set_aside(folder: Path) -> None:
    """Renames the account of an earlier run and its model, to `history.<run_id>.jsonl` and so on: nothing is mixed up.

    The checkpoints of one that did not come to its end go with it.

    Raises:
        ConfigError: It cannot be renamed.
    """
    earlier = [folder / name for name in TOLD if (folder / name).is_file()]
    earlier += [folder / CHECKPOINTS] if (folder / CHECKPOINTS).is_dir() else []
    if not earlier:
        return
    name = _run_of(folder / HISTORY)
    if any(_beside(path, name).exists() for path in earlier):
        name = f"{name}.{time.time_ns()}"
    try:
        for path in earlier:
            path.rename(_beside(path, name))
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"what an earlier run left in {folder} cannot be renamed: {reason}; choose another output_dir"
        ) from error


def set_damaged_aside(folder: Path, run_id: str) -> Path:
    """Renames the history of a run, a line of which is no event, to `history.<run_id>.damaged.jsonl`.

    Returns:
        Where it is now.

    Raises:
        ConfigError: It cannot be renamed.
    """
    path = folder / HISTORY
    aside = _beside(path, f"{run_id}.damaged")
    if aside.exists():
        aside = _beside(path, f"{run_id}.damaged.{time.time_ns()}")
    try:
        path.rename(aside)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{path} is damaged and cannot be renamed: {reason}; move it away") from error
    return aside


def is_of_newer(history: Path) -> bool:
    """Whether a line of a history has a schema version that this esper does not know yet."""
    with history.open("rb") as lines:
        return any(_version(line) > SCHEMA_VERSION for line in lines)


def write_again(folder: Path, events: Iterable[Event]) -> None:
    """Puts a whole history in place of one that has gaps, since it could not be written while the run went on.

    Raises:
        TelemetryError: It cannot be written now either.
    """
    path = folder / HISTORY
    new = path.with_name(f".{HISTORY}.new")
    file = Appended(new, replace=True)
    try:
        file.append(b"".join(event.line for event in events), sync=True)
        file.close()
        new.replace(path)
    except OSError as error:
        with suppress(OSError):  # what it holds is of no use
            file.close()
            new.unlink(missing_ok=True)
        raise TelemetryError(
            f"the run is over, and its history cannot be written to {path}: {error.strerror or error}; the other files "
            "of the run are there: see to that, and `esper grow CONFIG --resume` comes to the end once more"
        ) from error


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.stem}.{name}{path.suffix}")


def _version(line: bytes) -> int:
    """The schema version that a line gives; 0: it gives none."""
    try:
        plain = from_json(line)
    except ValueError:
        return 0
    version = plain.get("schema_version") if isinstance(plain, dict) else None
    return version if isinstance(version, int) else 0


def _run_of(history: Path) -> str:
    """The name of the run of a history, if it can be part of a file's name."""
    try:
        last = last_event(history)
    except (EventError, OSError):
        last = None
    return last.run_id if last and _NAME.fullmatch(last.run_id) else "earlier"
