"""Records of the training loop to events, and lines of JSON to events.

The loop is a floor above: a record is met by its fields, not by its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from esper.errors import EventError
from esper.recorded import Recorded
from esper.telemetry.events import KINDS, LARGEST, SCHEMA_VERSION, Event, Notice, Other, Seed, as_number, is_too_large

_SHORT = 400  # bytes of a line in which there is no room for a number that is too large
_TEXT, _SCALARS = frozenset([str]), frozenset((bool, int, float, str))
_PLACED = frozenset([(int, str, str, str, int, dict, int, tuple, float, float, str)])
_PROPER = frozenset(
    (int, str, str, layer, seed, dict, int, tuple, float, float, str)
    for layer in (str, type(None))
    for seed in (int, type(None))
)
"""Types of a record's fields, in their order; those of a `Seed`'s, and of others."""

_BLANK: dict[str, Event] = {
    name: kind.model_validate({"step": 0, "event": name, "layer": "", "seed": 0}) for name, kind in KINDS.items()
}


def event_of(
    record: Recorded,
    *,
    run_id: str,
    sequence: int,
    seconds: float,
    part: int = 0,
    figures: Any = None,
    place: tuple[int, str] = (0, "growth"),
) -> Event:
    """The event of a record; one that is no proper record becomes a `Notice` that says so.

    Args:
        record: What happened.
        run_id: Which run it is of.
        sequence: Its number in the run.
        seconds: When it was told, since the epoch.
        part: How often the run had been resumed.
        figures: In place of the record's own, which may have changed since; None: those.
        place: Step and run of such a notice.
    """
    stamp = stamped(run_id, sequence, part, seconds)
    with suppress(Exception):  # for numbers of numpy's, options that are tuples, text that is no Unicode: few have any
        return _event({**stamp, **_fields(record, figures)})
    try:
        return _event({**stamp, **{name: _plain(value) for name, value in _fields(record, figures).items()}})
    except Exception as error:  # whatever it is, the thread that meets it has others to write
        wrong = _wrong(error) if isinstance(error, ValidationError) else type(error).__name__
        reason = f"a {type(record).__name__} is no event: {wrong}"
        return Notice(**stamp, step=place[0], event="malformed", reason=_plain(reason), run=_plain(place[1]))


def stamped(run_id: str, sequence: int, part: int, seconds: float) -> dict[str, Any]:
    """The envelope of an event, its fields in their order."""
    return {"run_id": run_id, "sequence": sequence, "part": part, "time": datetime.fromtimestamp(seconds, UTC)}


def proper(record: Recorded) -> dict[str, Any] | None:
    """The fields of a record if they are what validation would make of them, as nearly all are; else None.

    It takes a microsecond, and validation five.
    """
    try:
        fields = _fields(record, None)
        kind, figures = KINDS[fields["event"]], fields["figures"]
        good = (
            tuple(map(type, fields.values())) in (_PLACED if kind is Seed else _PROPER)
            and 0 <= fields["step"] <= LARGEST
            and _SCALARS.issuperset(map(type, figures.values()))
            and _TEXT.issuperset(map(type, figures))
            and _TEXT.issuperset(map(type, fields["programs"]))
        )
    except Exception:  # `event_of` says what it is
        return None
    return fields if good else None


def proper_line(stamp: Mapping[str, Any], fields: Mapping[str, Any]) -> bytes:
    """What `proper` found, as the line of its event.

    Raises:
        ValueError: Some text in it is no Unicode, or a number too large.
    """
    line = to_json({"schema_version": SCHEMA_VERSION, **stamp, **fields}, inf_nan_mode="null") + b"\n"
    if len(line) > _SHORT and any(map(is_too_large, fields["figures"].values())):
        raise ValueError("a number too large")
    return line


def proper_event(stamp: Mapping[str, Any], fields: Mapping[str, Any]) -> Event:
    """What `proper` found, as an event."""
    return _BLANK[fields["event"]].model_copy(update={**stamp, **fields})


def _fields(record: Recorded, figures: Any) -> dict[str, Any]:
    return {
        "step": record.step,
        "event": record.event,
        "reason": record.reason,
        "layer": record.layer,
        "seed": record.seed,
        "figures": record.figures if figures is None else figures,
        "compiles": record.compiles,
        "programs": record.programs,
        "compile_seconds": record.compile_seconds,
        "waited": record.waited,
        "run": record.run,
    }


def _event(values: dict[str, Any]) -> Event:
    event = KINDS.get(values["event"], Other).model_validate(values)
    assert event.line  # can be written
    return event


def _wrong(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())


def parse(line: str | bytes, *, run_id: str = "", sequence: int = 0) -> Event:
    """The event that a line of JSON holds.

    Args:
        line: An object with the fields of an event; those of the envelope may be missing.
        run_id: For a line without one.
        sequence: For a line without one.

    Raises:
        EventError: It is none, or of a newer major version.
    """
    try:
        plain = from_json(line)
    except ValueError:
        raise EventError("no JSON") from None
    if not isinstance(plain, dict) or not isinstance(plain.get("event"), str):
        raise EventError('no object with an "event"')
    version = plain.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
        raise EventError(
            f"an event of schema version {version!r}, and this esper reads up to {SCHEMA_VERSION}: "
            "read it with the version of esper that wrote it, or a newer one"
        )
    try:
        return KINDS.get(plain["event"], Other).model_validate({"run_id": run_id, "sequence": sequence, **plain})
    except ValidationError as error:
        raise EventError(_wrong(error)) from None


def _plain(value: Any) -> Any:
    """The value as JSON can hold it, in flat lists; what is neither number nor text by its `repr`."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool | int | float):
        return as_number(value)
    if isinstance(value, Mapping):
        return {_plain(str(name)): _listed(item) for name, item in value.items()}
    return _listed(value)


def _listed(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    if isinstance(value, list | tuple):
        return [as_number(item) if isinstance(item, bool | int | float) else _plain(str(item)) for item in value]
    return as_number(value) if isinstance(value, bool | int | float) else _plain(str(value))
