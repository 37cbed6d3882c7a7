"""Counting XLA compiles: what JAX itself reports, nothing estimated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class Compiles:
    """XLA compiles of some stretch of time.

    Attributes:
        programs: Names of what was compiled, in order; small eager operations count like any other.
        seconds: Time they took.
    """

    programs: tuple[str, ...] = ()
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.programs)

    def __add__(self, other: Compiles) -> Compiles:
        return Compiles(self.programs + other.programs, self.seconds + other.seconds)


@dataclass
class CompileCounter:
    """Counts from one `take` to the next."""

    _programs: list[str] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)

    def take(self) -> Compiles:
        """The compiles since the last call."""
        taken = Compiles(tuple(self._programs), sum(self._seconds))
        self._programs.clear()
        self._seconds.clear()
        return taken

    def _hear(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == _EVENT:
            self._programs.append(str(kwargs.get("fun_name", "?")))
            self._seconds.append(duration_secs)


@contextmanager
def counting_compiles() -> Iterator[CompileCounter]:
    """A counter that hears every compile of the process until the block ends."""
    counter = CompileCounter()
    hear = counter._hear  # one object: JAX finds the listener again by identity
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield counter
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
