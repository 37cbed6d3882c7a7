"""What a record of a run says, whoever holds it: the loop that made it, telemetry, or the report that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Happening(Protocol):
    """What happened, when, where and why."""

    @property
    def step(self) -> int: ...  # noqa: D102
    @property
    def event(self) -> str: ...  # noqa: D102
    @property
    def reason(self) -> str: ...  # noqa: D102
    @property
    def layer(self) -> str | None: ...  # noqa: D102
    @property
    def seed(self) -> int | None: ...  # noqa: D102
    @property
    def figures(self) -> Mapping[str, Any]: ...  # noqa: D102


class Recorded(Happening, Protocol):
    """What `esper.train.history.Record` has, and an event of telemetry too."""

    @property
    def compiles(self) -> int: ...  # noqa: D102
    @property
    def programs(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def compile_seconds(self) -> float: ...  # noqa: D102
    @property
    def waited(self) -> float: ...  # noqa: D102
    @property
    def run(self) -> str: ...  # noqa: D102
