"""Checkpoints of a run in a folder: written in the background, the last few kept, the newest found again."""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.errors import ArgumentError, CorruptFileError, StateError
from esper.growth.policy import Policy
from esper.jax_backend.devices import is_main, is_spread
from esper.persistence.folder import is_whole, remove_folder
from esper.train import stored
from esper.train.checkpoint import Checkpoint
from esper.train.history import Record
from esper.train.unobtrusive import unobtrusive

if TYPE_CHECKING:
    from esper.train.run import Run

_LOG = logging.getLogger("esper.job")
_NAME = re.compile(r"(\d{6,})-step-(\d+)")


@dataclass(frozen=True)
class Checkpoints:
    """Where a run keeps its checkpoints, and which.

    Attributes:
        folder: A folder of the run's own.
        every: Evaluations from one to the next.
        keep: How many stay; older ones are removed.
        background: Whether they are written while training goes on.
        forgiving: Whether training goes on, with a warning, where one cannot be written, and does without one at an
            evaluation where the last is still being written.

    Raises:
        ArgumentError: `every` or `keep` is below 1.
    """

    folder: str | os.PathLike[str]
    every: int = 1
    keep: int = 3
    background: bool = True
    forgiving: bool = False

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            if isinstance(value := getattr(self, name), bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(f"Checkpoints: {name} is a whole number of at least 1, not {value!r}")


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from.

    Attributes:
        path: Its folder.
        parts: What is in it, byte for byte as it was written.
        damaged: Later ones, which are not as they were written.
    """

    path: Path
    parts: Mapping[str, memoryview]
    damaged: tuple[Path, ...] = ()


def newest(folder: Path, but: Collection[Path] = ()) -> Path | None:
    """The last checkpoint that was written whole and is none of `but`; None: there is none.

    `folder` is one itself, or holds those of a run.
    """
    if is_whole(folder):
        return folder
    names = {path.name for path in but}
    return next((path for path in reversed(_whole(folder)) if path.name not in names), None)


def last_whole(folder: Path) -> Found | None:
    """The last checkpoint that is as it was written, with a warning where later ones are not; None: there is none.

    Args:
        folder: One itself, or that of a run's.

    Raises:
        CorruptFileError: There are some, and none is as it was written.
        StateError: One cannot be read, or is something else.
    """
    if is_whole(folder):
        return Found(folder, stored.parts_of(folder))
    damaged: list[Path] = []
    for path in reversed(_whole(folder)):
        try:
            parts = stored.parts_of(path)
        except CorruptFileError:
            damaged.append(path)
            continue
        for other in damaged:
            _LOG.warning("the checkpoint %s is damaged and left out: the run goes on from %s", other, path.name)
        return Found(path, parts, tuple(damaged))
    if not damaged:
        return None
    names = ", ".join(path.name for path in damaged)
    raise CorruptFileError(
        f"no checkpoint in {folder} is as it was written, and the run cannot go on from one: {names} are damaged; "
        "remove that folder, and it starts again, or begin another run without resume"
    )


class Keeper:
    """A callback that keeps checkpoints: one is written at a time, and what goes wrong is raised at the next.

    Args:
        where: Where, and which.
        policy: What decides on growth in the run.
        resumed: What the run goes on from, if that is on the disk.

    Raises:
        ArgumentError: The folder holds the checkpoints of another run.
    """

    def __init__(self, where: Checkpoints, policy: Policy[Any] | None, resumed: Found | None) -> None:
        self._where, self._folder, self._policy = where, Path(where.folder), policy
        damaged, here = resumed.damaged if resumed else (), self._folder.resolve()
        self._damaged = [path for path in damaged if path.parent.resolve() == here]
        held = newest(self._folder, but=self._damaged)
        if held is not None and (resumed is None or not held.samefile(resumed.path)):
            raise ArgumentError(
                f"{held} is a checkpoint of another run, which would be removed: resume={str(self._folder)!r} goes on "
                "from there, and another folder begins anew"
            )
        self._evaluations = 0
        self._last = 0, True
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __call__(self, record: Record, run: Run) -> None:
        """Keeps the run as it is at an evaluation."""
        if record.event == "evaluate":
            self._evaluations += 1
            if self._evaluations % self._where.every == 0 and not (self._where.forgiving and self._is_writing):
                self.keep(run)

    def keep(self, run: Run) -> None:
        """Writes a checkpoint, after the last one has been written; none while a change of structure is under way."""
        self.close()
        # A run that goes back comes to the same step again, by another way; its readings only ever grow in number.
        readings = sum(record.event in ("evaluate", "rollback") for record in run.books.records)
        at = readings, run.is_decided
        if not run.is_settled or at == self._last:
            return
        self._last, checkpoint = at, run.checkpoint()
        if self._where.background and not is_spread(checkpoint.state.model.params):
            self._thread = threading.Thread(target=self._behind, args=(checkpoint,), name="esper-checkpoint")
            self._thread.start()
        else:
            self._attempt(checkpoint)
            self.close()

    @property
    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Waits until nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Waits until what is being written is there.

        Raises:
            StateError: It could not be written.
        """
        self.wait()
        if self._error is None:
            return
        error, self._error = self._error, None
        if not self._where.forgiving or not isinstance(error, StateError | OSError):
            raise error
        _LOG.warning("no checkpoint is kept for now, training goes on: %s", error)

    def _set_aside(self) -> None:
        """Renames what is damaged, so that it does not count among those that are kept."""
        for path in self._damaged:
            try:
                path.rename(path.with_name(f"{path.name}.damaged"))
            except OSError as error:
                _LOG.warning("the damaged checkpoint %s stays among the others: %s", path, error)
        self._damaged = []

    def _behind(self, checkpoint: Checkpoint) -> None:
        with unobtrusive():
            self._attempt(checkpoint)

    def _attempt(self, checkpoint: Checkpoint) -> None:
        try:
            self._write(checkpoint)
        except BaseException as error:  # raised again in the thread that trains, by `close`
            self._error = error

    def _write(self, checkpoint: Checkpoint) -> None:
        content = stored.fetch(checkpoint, self._policy)
        if not is_main():
            return
        self._set_aside()
        # No number is given twice, those of what was set aside neither.
        number = max((int(named[1]) for named in map(_NAME.match, _names(self._folder)) if named), default=0) + 1
        stored.write(self._folder / f"{number:06d}-step-{checkpoint.done}", content)
        self._prune()

    def _prune(self) -> None:
        """Removes the oldest, what was never finished, and of one step all but the last."""
        latest: dict[str, str] = {}
        for path in _whole(self._folder):
            step = path.name.partition("-")[2]
            latest.pop(step, None)
            latest[step] = path.name
        kept = set(list(latest.values())[-self._where.keep :])
        for name in _names(self._folder):
            if _NAME.fullmatch(name) and name not in kept:
                try:
                    remove_folder(self._folder / name)
                except OSError as error:
                    warnings.warn(f"an old checkpoint stays: {error}", stacklevel=2)


def _whole(folder: Path) -> list[Path]:
    """The checkpoints of a run that were written whole, in order."""
    names = [name for name in _names(folder) if _NAME.fullmatch(name)]
    found = [folder / name for name in sorted(names, key=lambda name: int(name.partition("-")[0]))]
    return [path for path in found if is_whole(path)]


def _names(folder: Path) -> list[str]:
    return (
        [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)] if folder.is_dir() else []
    )
