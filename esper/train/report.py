"""What a run gave, as tables for people; every figure says what it was measured on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.table import Table

from esper.train.history import Record
from esper.train.ledger import Ledger
from esper.train.loop import Result, Score

STORY = (
    "germinate",
    "load",
    "grafting",
    "active",
    "fossilized",
    "culled",
    "error_recovery",
    "alpha",
    "hold",
    "library",
    "rollback",
    "give_up",
)
_PREFIXES = "kMGTPEZ"
_DATA_ONLY = ("grafting", "active", "fossilized", "culled", "dormant", "error_recovery", "alpha")


def accuracy_table(growth: Result, control: Result | None) -> Table:
    """Test scores before and after growth, and of the control."""
    table = _table("Accuracy on the test part (no decision was taken on it)", "", "steps", "parameters", "loss")
    table.add_column("accuracy ± standard error", justify="right")
    named = {
        "untrained": "untrained host",
        "before growth": "before growth (at the first germination)",
        "end": "after growth" if "before growth" in growth.scores else "at the end (nothing grew)",
    }
    for label, text in named.items():
        if label in growth.scores:
            table.add_row(text, *_score(growth.scores[label]))
    if control is not None:
        table.add_row("control: the host alone, same steps and batches", *_score(control.scores["end"]))
    table.caption = "Equal steps, not equal arithmetic: a grown network computes more in each step than the control."
    return table


def story_table(records: Iterable[Record]) -> Table:
    """What each seed did, when and why."""
    table = _table("What the seeds did, and why", "step")
    for name in ("seed", "event"):
        table.add_column(name, no_wrap=True)
    table.add_column("reason", ratio=1)
    for record in records:
        if record.event in STORY:
            seed = "" if record.layer is None else f"{record.layer or '(root)'}[{record.seed}]"
            made = f" {record.figures['blueprint']}" if "blueprint" in record.figures else ""
            table.add_row(str(record.step), seed, record.event + made, record.reason)
    return table


def kernels_table(result: Result) -> Table:
    """The kernels that stayed, and what each is worth at the end."""
    table = _table("The kernels that stayed", "seed", "blueprint", "parameters", "alpha")
    table.add_column("gain in validation loss, with it against without it", justify="right")
    for kernel in result.model.structure.kernels:
        row = result.model.structure.row(kernel.layer)
        size = sum(leaf.size for leaf in result.model.params["kernels"][kernel.layer][kernel.seed].values())
        options = ", ".join(f"{name}={value}" for name, value in kernel.options)
        table.add_row(
            f"{kernel.layer or '(root)'}[{kernel.seed}]",
            f"{kernel.blueprint}({options})",
            f"{size:,}",
            f"{float(result.model.seeds.alpha[row, kernel.seed]):.2f}",
            str(result.gains.get((kernel.layer, kernel.seed), "")),
        )
    table.caption = (
        "The rest of the network has come to rely on a kernel that stayed, so this is also what losing it would cost."
    )
    return table


def compiles_table(records: Iterable[Record]) -> Table:
    """XLA compiles by kind of event."""
    table = _table("XLA compiles, as JAX reports them", "event", "times", "compiles", "most at once", "seconds")
    for event, held in compile_counts(records).items():
        cells = (len(held), sum(r.compiles for r in held), max(r.compiles for r in held))
        table.add_row(event, *map(str, cells), f"{sum(r.compile_seconds for r in held):.1f}")
    table.caption = (
        "What a germination compiles is compiled in the background, before the kernel enters. "
        "Every other event of a seed's life changes data only: 0."
    )
    return table


def compile_counts(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The records by event, each kind in order of its first occurrence."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.event, []).append(record)
    return found


def transitions_compiled(records: Iterable[Record]) -> int:
    """Compiles of all events that change data only; 0 unless something is wrong."""
    return sum(record.compiles for record in records if record.event in _DATA_ONLY)


def ledger_table(ledger: Ledger) -> Table:
    """Where the work went, by phase."""
    table = _table("Where the work went", "phase", "FLOPs", "share", "seconds", "steps", "times")
    table.add_column("what it is", ratio=1)
    for row in ledger.table():
        spent = row.spent
        amounts = _flops(spent.flops), f"{row.share:.1%}", f"{spent.seconds:.1f}", _counted(spent.steps)
        table.add_row(row.phase, *amounts, _counted(spent.count), row.about)
    table.add_section()
    table.add_row("together", _flops(ledger.total_flops), "", f"{ledger.total_seconds:.1f}", "", "", "")
    if ledger.stayed is not None:
        lost = ledger.culled_flops
        share = f"{lost / max(1, ledger.total_flops):.1%}"
        table.add_row("of it, culled", _flops(lost), share, "", "", "", "training and use of kernels that did not stay")
    sizes = [f"{parameters:,} from step {step}" for step, parameters in ledger.parameters]
    table.caption = "FLOPs are counted on the programs, not measured."
    if sizes:
        table.caption += f" Parameters: {', '.join(sizes)}."
    return table


def figures_table(title: str, figures: Mapping[str, str]) -> Table:
    """Names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in figures.items():
        table.add_row(name, value)
    return table


def summary(growth: Result, control: Result | None) -> RenderableType:
    """Everything about a run that does not need torch."""
    tables = [accuracy_table(growth, control), story_table(growth.records), compiles_table(growth.records)]
    tables.append(ledger_table(growth.ledger))
    if growth.model.structure.kernels:
        tables.insert(2, kernels_table(growth))
    return Group(*tables)


def _flops(count: int) -> str:
    """With a prefix of thousands.

    >>> _flops(999), _flops(2000), _flops(999_950_000)
    ('999', '2.00 k', '999.95 M')
    """
    power = min((len(str(count)) - 1) // 3, len(_PREFIXES))
    return f"{count / 1000**power:.2f} {_PREFIXES[power - 1]}" if power else str(count)


def _counted(count: int) -> str:
    return f"{count:,}" if count else ""


def _score(score: Score) -> tuple[str, ...]:
    error = math.sqrt(score.accuracy * (1 - score.accuracy) / score.examples)
    accuracy = f"{score.accuracy:.1%} ± {error:.1%}"
    return str(score.step), f"{score.parameters:,}", f"{score.loss:.4f}", accuracy


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 else "right")
    return table
