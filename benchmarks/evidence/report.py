"""docs/evidence.md, made from the benchmarks' files alone; never edited by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.evidence.plots import drawn
from benchmarks.evidence.results import FOLDER, Arm, Benchmark, load, spelt
from benchmarks.markdown import table

PAGE = FOLDER.parent / "evidence.md"

_SHOWN = 9
"""Growth events shown of a run; the files have all."""

_HEAD = """# Evidence

What growth is worth, against controls with equal budgets. `make evidence` runs all of this and writes this page from
the files in `docs/evidence/`; nothing here is edited by hand.

Every arm of a benchmark is swept over the same learning rates, chosen on validation; its schedule decays fully over its
own budget; the test split is looked at once, at the end. Figures are mean ± standard deviation over keys. FLOPs are
counted on jaxprs by one counter, forward, backward and optimiser; for arms that grow they are the ledger's total, with
the isolation pass, kernels that were culled, held-out evaluations and measurements included.
"""


def write(folder: Path = FOLDER, page: Path = PAGE) -> Path:
    """Writes the page and its plots, of the benchmarks whose files are there."""
    names = sorted(path.stem.upper() for path in folder.glob("b*.json"))
    found = [load(name, folder) for name in names]
    page.write_text("\n".join(_lines(found, folder)) + "\n")
    return page


def _lines(found: list[Benchmark], folder: Path) -> Iterator[str]:
    claims = [(benchmark, claim) for benchmark in found for claim in benchmark.claims]
    yield _HEAD
    yield f"## Claims: {sum(claim.met for _, claim in claims)} of {len(claims)} met"
    yield ""
    rows = (
        [b.name, c.claim, c.target, c.measured, "met" if c.met else "**missed**", _sentence(c.why)] for b, c in claims
    )
    yield from table(["", "claim", "target", "measured", "", "why, or what to know"], rows)
    for benchmark in found:
        yield from _section(benchmark, folder)


def _section(benchmark: Benchmark, folder: Path) -> Iterator[str]:
    yield f"\n## {benchmark.name}: {benchmark.title}\n"
    yield from (f"- {line}" for line in benchmark.setup)
    if not benchmark.arms:
        yield from _notes(benchmark)
        return
    for path in drawn(benchmark, folder):
        yield f"\n![{benchmark.metric} by FLOPs of every arm of {benchmark.name}]({folder.name}/{path.name})"
    yield ""
    digits = 2 if "%" in benchmark.metric else 3
    heads = ["arm", f"test {benchmark.metric}", "validation", "GFLOPs", "parameters", "steps", "rate (tried)"]
    yield from table(heads, (_row(arm, digits) for arm in benchmark.arms))
    yield ""
    yield from (f"- *{arm.name}*: {arm.about}" for arm in benchmark.arms if not _is_elsewhere(arm))
    growing = [arm for arm in benchmark.arms if any(run.events for run in arm.runs)]
    if growing:
        yield "\nWhat grew, key by key:\n"
        yield from table(["arm", "key", "events", f"test {benchmark.metric}"], _histories(growing, digits))
        yield from _spendings(growing)
    yield from _notes(benchmark)


def _notes(benchmark: Benchmark) -> Iterator[str]:
    if benchmark.notes:
        yield ""
        yield from (f"- {note}" for note in benchmark.notes)
    if benchmark.seconds:
        yield f"\nIt took {benchmark.seconds / 60:.1f} minutes."


def _row(arm: Arm, digits: int) -> list[str]:
    tried = ", ".join(f"{rate}: {value:.{digits}f}" for rate, value in arm.swept.items())
    chosen = "" if arm.rate is None else f"{arm.rate:g}"
    return [
        arm.name,
        spelt(arm.values("test"), digits),
        spelt(arm.values("validation"), digits),
        f"{arm.mean('flops') / 1e9:.2f}",
        f"{arm.mean('parameters'):,.0f}",
        f"{arm.steps:,}",
        f"{chosen} ({tried})" if tried else chosen,
    ]


def _histories(arms: list[Arm], digits: int) -> Iterator[list[str]]:
    for arm in arms:
        for run in arm.runs:
            told = "; ".join(f"{event.step} {event.what} {event.detail}" for event in run.events[:_SHOWN]) or "nothing"
            if len(run.events) > _SHOWN:
                told += f"; and {len(run.events) - _SHOWN} more"
            yield [arm.name, str(run.key), told, f"{run.test:.{digits}f}"]


def _spendings(arms: list[Arm]) -> Iterator[str]:
    """Where the FLOPs of arms that grow went, as far as the runs say it."""
    for arm in arms:
        shares = [name for name in arm.runs[0].extra if name.endswith(" share")]
        known = [name for name in shares if all(run.extra.get(name) is not None for run in arm.runs)]
        told = ", ".join(f"{name.removesuffix(' share')} {100 * arm.mean(name):.1f} %" for name in known)
        if told:
            yield f"\nFLOPs of *{arm.name}*: {told} (of which culled kernels are part of the others)."


def _sentence(words: str) -> str:
    return words.strip()


def _is_elsewhere(arm: Arm) -> bool:
    return ": " in arm.name
