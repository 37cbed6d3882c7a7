"""Floor 5: what a run of the main job has to do with the kernel library: draws from it, publishes into it.

Whatever is wrong with a library, training goes on: it is a record of the run, and kernels wait in the outbox.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from esper.configs import EsperConfig
from esper.growth.credit import Gain
from esper.library import Library, Origin, open_library
from esper.library.entries import Measured, measured
from esper.library.publishing import Published, git_revision, problem_of, publish
from esper.train.history import Figures, Record
from esper.train.loop import Result

Listen = Callable[[Record], None]
Place = tuple[str, int]


class Shelf:
    """A run's library.

    Attributes:
        opened: The library; None: the run has none, or it could not be opened.
        draw: How many of its kernels are tried beside one layer.
    """

    def __init__(self, config: EsperConfig, run: str, listen: Listen, stack: ExitStack) -> None:
        self._config, self._run, self._listen, self._stack = config, run, listen, stack
        self._settings = config.urza_settings()
        self._records: list[Record] = []
        self.opened: Library | None = None
        self.draw = 0
        if self._settings.draw:
            try:
                self.opened, self.draw = self._open(), self._settings.candidates
            except Exception as error:  # the run trains, whatever is wrong with its library
                self._note(0, f"nothing is drawn from the library: {problem_of(error)}")

    def publish(self, result: Result) -> tuple[Result, Published | None]:
        """Publishes the kernels that became permanent; the result with the records of that."""
        if not self._settings.publish:
            return replace(result, records=(*self._records, *result.records)), None
        try:
            published = self._published(result)
        except Exception as error:  # the run has its model, whatever is wrong with what is to be said of it
            published = Published(problem=f"nothing is published: {problem_of(error)}")
        before = tuple(self._records)
        self._note(result.records[-1].step, str(published))
        return replace(result, records=(*before, *result.records, self._records[-1])), published

    def _published(self, result: Result) -> Published:
        training = self._config.training_settings()
        return publish(
            self._open,
            self.opened.folder if self.opened else Path(self._settings.folder).absolute(),
            result.model,
            origin=Origin(run=self._run, data=training.data, revision=git_revision(), key=training.key),
            gains=_gains(result),
            parents=_parents(result.records),
            tags=self._settings.tags,
        )

    def _open(self) -> Library:
        return self.opened or self._stack.enter_context(open_library(self._config))

    def _note(self, step: int, said: str) -> None:
        self._records.append(Record(step, "library", said))
        self._listen(self._records[-1])


def _gains(result: Result) -> dict[Place, Measured]:
    """What is said that kernels gained: when they became permanent, or at the end, whichever is less.

    A network comes to rely on what it has: what losing a kernel costs at the end grows with that.
    """
    found = {place: least for place, gain in result.gains.items() if (least := _finite(gain)) is not None}
    figures: Figures = {}
    for record in result.records:
        place = (record.layer or "", record.seed or 0)
        if record.event == "evaluate":
            figures = record.figures
        elif record.event == "fossilized" and place in found:
            least, now = found[place], _judged(figures, place, found[place].n)
            found[place] = now if now is not None and now.mean < least.mean else least
    return found


def _finite(gain: Gain) -> Measured | None:
    return measured(gain) if math.isfinite(gain.mean) else None


def _judged(figures: Figures, place: Place, batches: int) -> Measured | None:
    """The gain that a verdict was reached by; None: by none."""
    for kind in ("credit", "gain"):
        mean, stderr = (figures.get(f"{kind}{what} {place[0]}[{place[1]}]") for what in ("", " stderr"))
        if isinstance(mean, float) and isinstance(stderr, float) and math.isfinite(mean):
            return Measured(mean, stderr if math.isfinite(stderr) else None, batches)
    return None


def _parents(records: Iterable[Record]) -> dict[Place, str]:
    """Digests of the kernels that seeds were last given from the library, where nothing germinated there since."""
    found: dict[Place, str] = {}
    for record in records:
        place = (record.layer or "", record.seed or 0)
        if record.event == "load":
            found[place] = str(record.figures["artifact"])
        elif record.event == "germinate":
            found.pop(place, None)
    return found


@contextmanager
def shelf(config: EsperConfig, run: str, listen: Listen) -> Iterator[Shelf]:
    """The library of the run with this id, closed afterwards."""
    with ExitStack() as stack:
        yield Shelf(config, run, listen, stack)
