"""The events of a run: one typed, versioned, frozen model for each family of them.

An event has the fields of a record of the training loop, and an envelope: which run it is of, its number in that run,
and when it happened. The schema's number is its major version: what is added within it are fields and events, which
readers of before pass over or keep as `Other`; a change that they would misunderstand raises it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

SCHEMA_VERSION = 1
LARGEST = 2**63 - 1  # number of a step, or of an event

Scalar = bool | int | float | str


def as_number(value: Any) -> Any:
    """A figure, or a list of some: whole numbers that no float reaches are not finite."""
    if isinstance(value, list):
        return [as_number(each) for each in value]
    if not is_too_large(value):
        return value
    return math.inf if value > 0 else -math.inf


def is_too_large(value: Any) -> bool:
    """Whether it is a whole number beyond the range of a float; the longest cannot even be read again."""
    return isinstance(value, int) and value.bit_length() > sys.float_info.max_exp - 1


def _as_numbers(figures: Any) -> Any:
    """JSON has no figure that is not finite: null stands for it."""
    if not isinstance(figures, Mapping):
        return figures
    return {name: math.nan if value is None else as_number(value) for name, value in figures.items()}


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("no such time in UTC") from None


Figures = Annotated[dict[str, Scalar | list[Scalar]], BeforeValidator(_as_numbers)]
UtcTime = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class Base(BaseModel, frozen=True):
    """What every event says.

    Figures that are not finite are null in JSON, and NaN when they are read again. Fields that are not known are passed
    over: they are those of a newer version.
    """

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True, hide_input_in_errors=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    """Major version of this schema."""
    run_id: str = ""
    """Which run it is of, the same after a resume; unique among runs."""
    sequence: int = Field(default=0, ge=0, le=LARGEST)
    """Its number in the run, from 0. One that is missing is an event that was dropped; one that is met twice was
    written again after a failure."""
    part: int = Field(default=0, ge=0, le=LARGEST)
    """How often the run had been resumed. Numbers go on from what the history held then, so that some that had gone
    elsewhere already are given again: a part and a number name one event."""
    time: UtcTime | None = None
    """When it was told, UTC; null in files of before events had an envelope."""
    step: int = Field(ge=0, le=LARGEST)
    """Training steps done when it happened."""
    event: str
    """What happened."""
    reason: str = ""
    """Why, in a sentence with the figures that were observed."""
    layer: str | None = None
    """The layer it happened to, if it was one; the root's name is empty."""
    seed: int | None = None
    """Which of the layer's seeds."""
    figures: Figures = Field(default={})
    """Measurements and settings, by name; null is a figure that is not finite."""
    compiles: int = 0
    """XLA compiles it caused."""
    programs: tuple[str, ...] = ()
    """Names of what was compiled."""
    compile_seconds: float = 0.0
    """Time that took."""
    waited: float = 0.0
    """Seconds that training waited for it."""
    run: str = "growth"
    """Which of the runs that share a `run_id`: "growth" or "control"."""

    @cached_property
    def line(self) -> bytes:
        """The event as one line of JSON, its end included; made once for all who write it."""
        return self.model_dump_json().encode() + b"\n"

    def to_json(self) -> str:
        """The event as JSON, without an end of line."""
        return self.line.decode().rstrip("\n")


class Course(Base, frozen=True):
    """A run begins, goes on, or ends; "failed": by an error."""

    event: Literal["start", "resume", "end", "failed"]
    """What happened."""


class Measurement(Base, frozen=True):
    """Metrics: of an evaluation, or a score on data that nothing is decided on."""

    event: Literal["evaluate", "score"]
    """What happened."""


class Seed(Base, frozen=True):
    """Something happened to a seed: a transition of its lifecycle, its birth, its alpha."""

    event: Literal[
        "germinate",
        "load",
        "declined",
        "loading",
        "training",
        "grafting",
        "active",
        "fossilized",
        "culled",
        "error_recovery",
        "dormant",
        "remove",
        "alpha",
    ]
    """What happened."""
    layer: str = Field(default=...)
    """The layer it happened to; the root's name is empty."""
    seed: int = Field(default=...)
    """Which of the layer's seeds."""


class Decision(Base, frozen=True):
    """A policy decided to hold still, or on a change of structure, which is being compiled."""

    event: Literal["hold", "prepare"]
    """What happened."""


class Outside(Base, frozen=True):
    """What came of what is beyond the run: the kernel library, a controller, a message that is not heeded."""

    event: Literal["library", "remote", "rejected"]
    """What happened."""


class Update(Base, frozen=True):
    """A setting of the run was changed while it runs, with `field`, `old` and `new`, or could not be."""

    event: Literal["update", "update_refused"]
    """What happened."""


class Compile(Base, frozen=True):
    """Batches of another shape came: the step is compiled for them. Compiles of other causes are on their events."""

    event: Literal["shape"]
    """What happened."""


class Health(Base, frozen=True):
    """The governor looks closer, goes back to a sound state, or gives the run up."""

    event: Literal["watch", "rollback", "give_up"]
    """What happened."""


class Notice(Base, frozen=True):
    """Telemetry about itself: a sink failed or is back, events were dropped, a record was none."""

    event: Literal["sink_down", "sink_up", "drops", "malformed"]
    """What happened."""


class Other(Base, frozen=True):
    """An event that this version does not know, with all its fields."""

    model_config = ConfigDict(extra="allow")


Known = Annotated[
    Course | Measurement | Seed | Decision | Outside | Update | Compile | Health | Notice,
    Field(discriminator="event"),
]
Event = Course | Measurement | Seed | Decision | Outside | Update | Compile | Health | Notice | Other

KINDS: dict[str, type[Event]] = {
    name: kind
    for kind in (Course, Measurement, Seed, Decision, Outside, Update, Compile, Health, Notice)
    for name in get_args(kind.model_fields["event"].annotation)
}
"""The class of every event that is known, by its name."""


def json_schema() -> dict[str, Any]:
    """JSON Schema of one line of a history: a known event, discriminated on `event`, or another one.

    >>> json_schema()["$schema"]
    'https://json-schema.org/draft/2020-12/schema'
    """
    schema = TypeAdapter(Known | Other).json_schema(mode="serialization")
    for described in schema["$defs"].values():
        figures = described["properties"]["figures"]["additionalProperties"]
        figures["anyOf"].append({"type": "null"})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"An event of an esper run, schema version {SCHEMA_VERSION}",
        **schema,
    }
