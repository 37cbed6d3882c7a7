"""A connection to PostgreSQL that gives a server up which does not answer, though its machine does."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
from sqlalchemy import Engine, event


def be_patient(engine: Engine, seconds: float) -> None:
    """Lets the engine's connections wait so long for the next word of an answer, and then fail.

    TCP notices a machine that is away, not a server that was stopped, or a lock that nobody gives back.
    """

    class Patient(psycopg.Connection[Any]):
        """One that does not wait for ever."""

        def wait(self, gen: Generator[Any, Any, Any], *args: Any, **options: Any) -> Any:
            """Runs what talks to the server."""
            return super().wait(_bounded(gen, self, seconds), *args, **options)

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, args: Any, options: Any) -> Any:
        return Patient.connect(*args, **options)


def _bounded(gen: Generator[Any, Any, Any], connection: psycopg.Connection[Any], seconds: float) -> Any:
    """The generator, which is told every moment whether there is something to read or to write."""
    until = time.monotonic() + seconds
    try:
        wanted = next(gen)
        while True:
            if ready := (yield wanted):
                until = time.monotonic() + seconds
            elif time.monotonic() > until:
                connection.pgconn.finish()  # whatever it says later is an answer to nothing
                raise psycopg.OperationalError(f"no answer in {seconds:.0f} s")
            wanted = gen.send(ready)
    except StopIteration as done:
        return done.value
