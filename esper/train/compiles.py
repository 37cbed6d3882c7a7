"""Counting XLA compiles: what JAX itself reports, nothing estimated."""

from __future__ import annotations

import threading
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
    """Counts, for each thread by itself, from one `take` to the next."""

    _heard: dict[int, list[tuple[str, float]]] = field(default_factory=dict)

    def take(self, thread: int | None = None) -> Compiles:
        """The compiles since the last call, in the thread of that identity; None: in this one."""
        heard = self._heard.pop(threading.get_ident() if thread is None else thread, [])
        return Compiles(tuple(name for name, _ in heard), sum(seconds for _, seconds in heard))

    def _hear(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == _EVENT:
            heard = self._heard.setdefault(threading.get_ident(), [])
            heard.append((str(kwargs.get("fun_name", "?")), duration_secs))


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
