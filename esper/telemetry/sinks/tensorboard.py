"""Figures for TensorBoard, in the format of its own package."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from esper.errors import MissingExtraError
from esper.telemetry.events import Event
from esper.telemetry.sinks.base import Sink
from esper.telemetry.sinks.files import Appended


class TensorBoard(Sink):
    """Figures as curves, a folder for each of the runs that share an id; what happened to seeds, and why, as text.

    Where a run goes back or is resumed, TensorBoard is told to forget what was after the step it goes on from.

    Args:
        folder: Where its files go, for `tensorboard --logdir`.

    Raises:
        MissingExtraError: The package `tensorboard` is not installed.
    """

    name = "tensorboard"

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            import tensorboard.summary  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("TensorBoard", "tensorboard", "tensorboard") from error
        self._folder, self._files = Path(folder), dict[str, Appended]()

    def write(self, events: Sequence[Event]) -> None:
        """Appends the events' figures and reasons to the files of their runs."""
        for run in dict.fromkeys(event.run for event in events):
            written = [each for event in events if event.run == run for each in _written(event)]
            self._file(run).append(_records(written))

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()

    def _file(self, run: str) -> Appended:
        if run not in self._files:
            name = f"events.out.tfevents.{int(time.time())}.esper.{os.getpid()}"  # what TensorBoard looks for
            self._files[run] = Appended(self._folder / run / name, begin=_begin)
        return self._files[run]


def _begin(file: int) -> None:
    written, *_ = _messages()
    if not os.fstat(file).st_size:
        os.write(file, _records([written(wall_time=time.time(), file_version="brain.Event:2")]))


def _records(written: Iterable[Any]) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    held = io.BytesIO()
    records = RecordWriter(held)
    for each in written:
        records.write(each.SerializeToString())
    return held.getvalue()


def _written(event: Event) -> Iterator[Any]:
    """The event as TensorBoard's events."""
    from tensorboard.plugins.text.summary_v2 import text_pb

    written, summary, session = _messages()
    at = {"step": event.step, "wall_time": event.time.timestamp() if event.time else 0.0}
    if (goes_on := _goes_on_from(event)) is not None:
        yield written(**at | {"step": goes_on + 1}, session_log=session(status=session.START))
    place = "" if event.layer is None else f"{event.layer or '(root)'}[{event.seed}]/"
    for name, value in event.figures.items():
        if isinstance(value, int | float):
            figure = summary.Value(tag=f"{place}{name}", simple_value=float(value))
            yield written(**at, summary=summary(value=[figure]))
    if event.reason:
        yield written(**at, summary=text_pb(f"{place}{event.event}", event.reason))


def _goes_on_from(event: Event) -> int | None:
    """The step that a run goes back to; None: it does not."""
    if event.event == "resume":
        return event.step
    back = event.figures.get("back_to") if event.event in ("rollback", "give_up") else None
    return back if isinstance(back, int) else None


def _messages() -> tuple[Any, Any, Any]:
    """TensorBoard's Event, Summary and SessionLog, made when they are imported, so that no type checker knows them."""
    from tensorboard.compat.proto import event_pb2, summary_pb2

    events: Any = event_pb2
    summaries: Any = summary_pb2
    return events.Event, summaries.Summary, events.SessionLog
