"""What happened in a run, one typed record an event, kept as JSON lines.

Telemetry writes the same lines while the run goes on, with an envelope besides: `esper.telemetry.read` has it too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from esper.errors import ArgumentError

Figures = dict[str, float | int | str]
"""Measurements, by name."""


@dataclass(frozen=True)
class Record:
    """One event of a run.

    Attributes:
        step: Training steps done when it happened.
        event: "start", "resume", "evaluate", "score", "prepare" (a change of structure is decided and being compiled),
            "germinate", "load" (a trained kernel arrived from the library), "declined" (its initialiser
            found no kernel worth having, or the library had none that fits), "training", "grafting", "active",
            "fossilized", "culled", "error_recovery", "dormant", "remove", "alpha", "hold", "shape" (batches of another
            shape), "library" (what became of drawing from it, or of publishing), "remote" (who decides, where another
            process may), "rejected" (a message or an action from outside that is not heeded), "update" (a setting
            changed, with `field`, `old` and `new`), "update_refused", "watch", "rollback", "give_up" or "end".
        reason: Why, in a sentence with the figures that were observed; for evaluations empty.
        layer: The layer it happened to, if it was one.
        seed: Which of its seeds.
        figures: Measurements, by name.
        compiles: XLA compiles it caused; those of a germination are made in the background, before it.
        programs: Names of what was compiled.
        compile_seconds: Time that took.
        waited: Seconds that training waited for it; what the background had not finished.
        run: "growth" or "control".
    """

    step: int
    event: str
    reason: str = ""
    layer: str | None = None
    seed: int | None = None
    figures: Figures = field(default_factory=dict)
    compiles: int = 0
    programs: tuple[str, ...] = ()
    compile_seconds: float = 0.0
    waited: float = 0.0
    run: str = "growth"

    def to_json(self) -> str:
        """One line of JSON; figures that are not finite become null, which JSON can say."""
        plain = asdict(self)
        plain["figures"] = {name: _sayable(value) for name, value in self.figures.items()}
        return json.dumps(plain, ensure_ascii=False, allow_nan=False)


def read(path: str | Path) -> list[Record]:
    """The records of a `history.jsonl`.

    What telemetry adds to a line is left out, and so is a last line that was cut short.

    Raises:
        ArgumentError: A line is no record; the message has its number.
    """
    records = []
    *lines, _ = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_record(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ArgumentError(f"{path}, line {number}: no history record ({error})") from error
    return records


def write(path: str | Path, records: Iterable[Record]) -> None:
    """Writes the records, a line each."""
    Path(path).write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")


def _record(plain: Any) -> Record:
    needed = {"step", "event"}
    if not isinstance(plain, dict) or not plain.keys() >= needed:
        raise TypeError(f"an object with {sorted(needed)} is expected")
    known = {found.name: plain[found.name] for found in fields(Record) if found.name in plain}
    figures = {name: math.nan if value is None else value for name, value in plain.get("figures", {}).items()}
    return Record(**{**known, "figures": figures, "programs": tuple(plain.get("programs", ()))})


def _sayable(value: float | int | str) -> float | int | str | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value
