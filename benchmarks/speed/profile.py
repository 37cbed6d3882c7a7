"""Which operations a train step spends its time in: `python -m benchmarks.speed.profile WORKLOAD [--contender NAME]`.

A trace of the compiled step is joined with the program's text. An operation's time is its own, without what it calls;
operations that ran on both cores at once add up to more than the step took.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from benchmarks.speed.contenders import Contender, enter
from benchmarks.speed.hlo import Instruction, instructions
from benchmarks.speed.workloads import WORKLOADS, prepared
from esper.allocation import keep_freed_memory

WARM_UP, STEPS = 3, 10


@dataclass(frozen=True)
class Row:
    """What one operation, or one kind, took in a step.

    Attributes:
        label: Which.
        milliseconds: In one step.
        calls: In one step.
    """

    label: str
    milliseconds: float
    calls: float


def profiled(contender: Contender, steps: int = STEPS) -> tuple[float, dict[str, Row]]:
    """Milliseconds of a step, and what each instruction took in it."""
    for _ in range(WARM_UP):
        contender.step()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            seconds = [contender.step()[1] for _ in range(steps)]
        (path,) = Path(folder).rglob("*.xplane.pb")
        found: dict[str, list[float]] = {}
        for name, spent in own_times(path):
            found.setdefault(name, []).append(spent)
    rows = {name: Row(name, sum(spent) / steps / 1e6, len(spent) / steps) for name, spent in found.items()}
    return 1e3 * sum(seconds) / steps, rows


def own_times(path: Path) -> Iterator[tuple[str, float]]:
    """Every run of an instruction with its nanoseconds, those of instructions inside it taken off."""
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            events = [(e.start_ns, e.end_ns, dict(e.stats).get("hlo_op")) for e in line.events]
            yield from _own([(start, end, str(op)) for start, end, op in events if op])


def _own(events: list[tuple[float, float, str]]) -> Iterator[tuple[str, float]]:
    open_: list[list] = []
    for start, end, op in sorted(events, key=lambda event: (event[0], -event[1])):
        while open_ and open_[-1][1] <= start:
            yield from _closed(open_)
        open_.append([start, end, op, end - start])
    while open_:
        yield from _closed(open_)


def _closed(open_: list[list]) -> Iterator[tuple[str, float]]:
    start, end, op, own = open_.pop()
    if open_:
        open_[-1][3] -= end - start
    yield op, own


def grouped(rows: dict[str, Row], known: dict[str, Instruction]) -> list[Row]:
    """The same by JAX primitive."""
    sums: dict[str, list[float]] = {}
    for name, row in rows.items():
        label = known[name].primitive if name in known else name
        total = sums.setdefault(label, [0.0, 0.0])
        total[0], total[1] = total[0] + row.milliseconds, total[1] + row.calls
    return [Row(label, *total) for label, total in sums.items()]


def table(rows: Iterable[Row], whole: float, top: int) -> Iterator[str]:
    """The slowest rows, as text."""
    for row in sorted(rows, key=lambda row: -row.milliseconds)[:top]:
        yield f"{row.milliseconds:9.3f} ms {100 * row.milliseconds / whole:5.1f} % {row.calls:7.1f} x  {row.label}"


def described(row: Row, known: dict[str, Instruction]) -> Row:
    """The row with what is known of its instruction."""
    op = known.get(row.label)
    if op is None:
        return row
    shapes = f"{', '.join(op.operands)} -> {op.shape}"
    return Row(f"{op.kind}  [{row.label}]  {shapes[:160]}\n{'':31}{op.scope}", row.milliseconds, row.calls)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.profile")
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--contender", default="esper", help="any that is JAX")
    parser.add_argument("--top", type=int, default=40, help="operations to print")
    parser.add_argument("--text", type=Path, help="where to write the compiled program")
    chosen = parser.parse_args()
    keep_freed_memory()  # as where it is timed
    contender = enter(chosen.contender, prepared(WORKLOADS[chosen.workload]))
    if contender.program is None:
        raise SystemExit(f"{chosen.contender} has no compiled program to look into")
    text = contender.program.as_text()
    if chosen.text:
        chosen.text.write_text(text)
    known = instructions(text)
    whole, rows = profiled(contender)
    covered = sum(row.milliseconds for row in rows.values())
    print(f"{chosen.workload}, {chosen.contender}: {whole:.2f} ms a step, {covered:.2f} ms of it in operations")
    print("\nby primitive:", *table(grouped(rows, known), covered, 25), sep="\n")
    print("\nby operation:", *table((described(row, known) for row in rows.values()), covered, chosen.top), sep="\n")


if __name__ == "__main__":
    main()
