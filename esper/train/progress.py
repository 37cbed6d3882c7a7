"""A progress bar for terminals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID


class Tick:
    """A bar: called once a step, or told where things stand."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def __call__(self) -> None:
        """One step more."""
        self._progress.advance(self._task)

    def stands_at(self, steps: int) -> None:
        """So many steps are done, whoever did them."""
        self._progress.update(self._task, completed=steps)


@contextmanager
def progress_bar(steps: int, *, shown: bool = True, console: Console | None = None) -> Iterator[Tick]:
    """A bar over so many steps, on standard error, if that is a terminal; what it gives is called once a step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), transient=True) as progress:
        yield Tick(progress, progress.add_task("training", total=steps))
