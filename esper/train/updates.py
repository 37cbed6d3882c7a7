"""Changes that are asked of a run while it goes on: two small files in its folder, and what they do to its course.

`updates.jsonl` holds a line for each field that somebody asks to change; nobody but they writes it. The run reads it at
every evaluation, and keeps in `updates.applied.jsonl` at which evaluation it met each line. A run that was killed and
goes on from an earlier checkpoint thus meets it at the same one again, and one that goes on from a later checkpoint has
it in its records. A run that begins anew begins with neither file.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.configs.changes import LOGGING, TAMIYO, Change, change
from esper.errors import ConfigError
from esper.telemetry.folder import JOURNAL
from esper.telemetry.reading import HISTORY
from esper.train.history import Figures, Record

if TYPE_CHECKING:
    from esper.train.run import Course

ASKED, MET = "updates.jsonl", "updates.applied.jsonl"
EVENTS = ("update", "update_refused")
_LONGEST = 1 << 16  # bytes of a line
_LOG = logging.getLogger("esper.job")


@dataclass(frozen=True)
class Request:
    """A line of the file: its number from 0, and what it says, which anybody may have written."""

    number: int
    field: str
    value: Any


def ask(folder: str | os.PathLike[str], changes: Iterable[Change]) -> None:
    """Asks the run in this folder for changes; it makes them at its next evaluation, and records each.

    Raises:
        ConfigError: No run that takes changes has begun there, or it has ended.
    """
    place = Path(folder)
    if not (place / ASKED).is_file():
        raise ConfigError(f"no run that takes changes has begun in {place}: name the folder it writes to (output_dir)")
    marks = [line for line in _lines(place / MET) if line.keys() & {"began", "ended"}]
    if marks and "ended" in marks[-1]:
        if (place / JOURNAL).is_file() and not (place / HISTORY).is_file():  # the marks are those of a run before it
            raise ConfigError(f"the run that was begun last in {place} has no events yet: ask again when it has some")
        raise ConfigError(f"the run in {place} ended at step {marks[-1]['ended']}: nothing of it can change any more")
    now = datetime.now(UTC).isoformat()
    lines = [{"field": change.field, "value": change.value, "time": now} for change in changes]
    _append(place / ASKED, *lines)


class Updates:
    """What is asked of one run, by its folder.

    Args:
        folder: The run's; it is made if it is not there.
        resumed: Whether the run goes on from a checkpoint, or may: what was asked before still counts.
    """

    def __init__(self, folder: str | os.PathLike[str], *, resumed: bool) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        if not resumed:
            for name in (ASKED, MET):
                (self._folder / name).unlink(missing_ok=True)
        try:
            _append(self._folder / ASKED)
        except OSError as error:  # such as a full disk, which is no reason not to train
            _LOG.warning("nothing can be changed in this run until there is %s: %s", self._folder / ASKED, error)
        lines = _lines(self._folder / MET)
        self._met: dict[int, int] = {line["request"]: line["evaluation"] for line in lines if "request" in line}
        self._done: set[int] = set()
        self._unsaid: int | None = None  # where the run began, until it is kept on the disk

    def begin(self, step: int, records: Iterable[Record]) -> None:
        """The run begins or goes on at this step; what its records hold has been done."""
        told = (record for record in records if record.event in EVENTS)
        self._done = {int(record.figures["request"]) for record in told if "request" in record.figures}
        self._unsaid = step
        self._say()

    def due(self, evaluation: int, step: int) -> list[Request]:
        """What is to be done at this evaluation: what is new, and what was done at it before.

        What cannot be kept on the disk waits: the run could not be gone through again.

        Args:
            evaluation: Its number; steps will not do, since a run that was put back comes to them twice.
            step: The step it is at, for those who read the file.
        """
        self._say()
        lines = _lines(self._folder / ASKED)
        due = []
        for number in (number for number in range(len(lines)) if number not in self._done):
            if number not in self._met and not self._keep(number, evaluation, step):
                break
            if self._met[number] <= evaluation:
                due.append(number)
        self._done.update(due)
        return [Request(number, str(lines[number].get("field", "")), lines[number].get("value")) for number in due]

    def end(self, step: int) -> None:
        """The run has ended, in good order or not: nobody listens any more."""
        with suppress(OSError):  # all that is lost is a better message for who asks later
            _append(self._folder / MET, {"ended": step})

    def _say(self) -> None:
        if self._unsaid is not None:
            with suppress(OSError):  # it is tried again at the next evaluation
                _append(self._folder / MET, {"began": self._unsaid})
                self._unsaid = None

    def _keep(self, number: int, evaluation: int, step: int) -> bool:
        try:
            _append(self._folder / MET, {"request": number, "evaluation": evaluation, "step": step})
        except OSError:  # the disk is full, or the folder gone: training goes on, and this is tried again
            return False
        self._met[number] = evaluation
        return True


def met(course: Course, request: Request, step: int) -> tuple[Course, Record]:
    """The course after a request, and the record that says so; one that is not in order changes nothing."""
    figures: Figures = {"request": request.number, "field": request.field}
    try:
        return changed(course, change(request.field, request.value), step, figures)
    except RecursionError:
        return course, Record(
            step, "update_refused", f"{request.field}: the value is nested too deeply", figures=figures
        )
    except ConfigError as error:
        return course, Record(step, "update_refused", str(error), figures=figures)


def changed(course: Course, asked: Change, step: int, figures: Figures | None = None) -> tuple[Course, Record]:
    """The course with a change, and the record of it, with the old value and the new one.

    Raises:
        ConfigError: The run's policy is not one whose settings can change.
    """
    old, course = _revised(course, asked)
    values: Figures = {"field": asked.field, "old": json.dumps(old), "new": json.dumps(asked.value)}
    reason = f"{asked.field} was {values['old']} and is {values['new']} from here on"
    heeds = getattr(course.policy, "heeded_by", "") if asked.section == TAMIYO else ""
    reason += f", for {heeds}" if heeds else ""
    return course, Record(step, "update", reason, figures={**(figures or {}), **values})


def again(course: Course, records: Iterable[Record]) -> Course:
    """The course with every change that these records hold, for a run that goes on after them."""
    for record in records:
        if record.event == "update":
            asked = change(str(record.figures["field"]), json.loads(str(record.figures["new"])))
            _, course = _revised(course, asked)
    return course


def _revised(course: Course, asked: Change) -> tuple[Any, Course]:
    if asked.section == LOGGING:  # whoever writes the log hears of it by the record
        return logging.getLevelName(logging.getLogger("esper").level), course
    if asked.section != TAMIYO:
        swap = asked.value if course.swap == course.every else course.swap
        return course.every, replace(course, every=asked.value, swap=swap)
    settings, updated = getattr(course.policy, "settings", None), getattr(course.policy, "updated", None)
    if settings is None or updated is None:
        kind = "no policy" if course.policy is None else f"the policy {type(course.policy).__name__}"
        raise ConfigError(f"{asked.field}: the run has {kind}, whose settings cannot be changed from outside")
    return getattr(settings, asked.name), replace(course, policy=updated(**{asked.name: asked.value}))


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file, a line each; one that is none counts as empty, one without its end is not there yet."""
    try:
        *whole, _ = path.read_bytes().split(b"\n")
    except OSError:  # it is not there, or not now: nothing is asked
        return []
    return [_object(line) for line in whole]


def _object(line: bytes) -> dict[str, Any]:
    if len(line) > _LONGEST:
        return {}
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # neither JSON nor UTF-8, or brackets without end
        return {}
    return found if isinstance(found, dict) else {}


def _append(path: Path, *lines: dict[str, Any]) -> None:
    """Adds lines in one write, so that two writers do not mix theirs; all of them, or none.

    Raises:
        OSError: There is no room for them, or the file cannot be written.
    """
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, text)
        if written < len(text):
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
            if os.fstat(descriptor).st_size == end:  # else somebody has added lines since
                os.ftruncate(descriptor, end - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(descriptor)
