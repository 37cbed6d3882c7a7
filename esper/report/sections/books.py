"""Where the work went, and what was certified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esper.drawing.amounts import counted, measured, percent, whole
from esper.drawing.bar import Share, bar
from esper.drawing.markup import Markup, tag
from esper.phases import PHASES
from esper.report.bounds import KERNELS, TABLE_ROWS, cut
from esper.report.elements import Column, Place, drawn, folded, section, table
from esper.report.read import RunData


def ledger(run: RunData, place: Place) -> Markup:
    """The section on the ledger."""
    title, phases = "Where the work went", _phases(run.ledger)
    if not phases:
        return section(place, "ledger", title, lead=_missing(run, "ledger.json", "when it has grown to its end"))
    bars = []
    for measure, said in (("flops", "Floating-point operations by phase"), ("seconds", "Wall time by phase")):
        shares = _shares(phases, measure)
        if shares:
            name = place.id(f"by-{measure}")
            figure = drawn(
                name, lambda width, own, s=shares, t=said: bar(s, width, name=own, title=t), _key(said, shares)
            )
            bars.append(figure)
    return section(
        place,
        "ledger",
        title,
        *bars,
        _table(phases),
        _kernels(run.ledger or {}),
        lead="FLOPs are counted on the programs, not measured. A background thread's compiles run beside the training.",
    )


def _missing(run: RunData, file: str, when: str) -> str:
    """What is to be said in place of a section whose file is not there."""
    if run.failure:
        return f"Not there: the run ended with an error before it has written {file}."
    return f"{'Not there yet: the' if run.is_running else 'The'} run has not written {file}; it does so {when}."


def _phases(held: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    phases = (held or {}).get("phases")
    for name, spent in phases.items() if isinstance(phases, dict) else ():
        if isinstance(spent, dict):
            amounts = {key: spent.get(key) for key in ("flops", "seconds", "steps", "count")}
            found[cut(name, 40)] = {k: float(v) if isinstance(v, int | float) else 0.0 for k, v in amounts.items()}
    known = [name for name in PHASES if name in found]
    return {name: found[name] for name in [*known, *(name for name in found if name not in PHASES)][:20]}


def _shares(phases: Mapping[str, Mapping[str, float]], measure: str) -> list[Share]:
    total = sum(spent[measure] for spent in phases.values())
    if total <= 0:
        return []
    shares = [(name, spent[measure] / total, at % 6) for at, (name, spent) in enumerate(phases.items())]
    return [share for share in shares if share[1] > 0]


def _key(title: str, shares: list[Share]) -> Markup:
    items = [
        tag(
            "li",
            tag(
                "svg",
                tag("rect", width=12, height=12, rx=3, class_=f"es-fill-{colour}"),
                width=12,
                height=12,
                viewBox="0 0 12 12",
                aria_hidden="true",
                class_="swatch",
            ),
            f"{name} {percent(share)}",
        )
        for name, share, colour in shares
    ]
    return tag("figcaption", tag("b", title), tag("ul", *items, class_="legend row"))


def _table(phases: Mapping[str, Mapping[str, float]]) -> Markup:
    total = max(1.0, sum(spent["flops"] for spent in phases.values()))
    rows = [
        [
            name,
            counted(spent["flops"]),
            percent(spent["flops"] / total),
            f"{spent['seconds']:,.1f}",
            whole(spent["steps"]) if spent["steps"] else "",
            whole(spent["count"]) if spent["count"] else "",
            PHASES.get(name, ""),
        ]
        for name, spent in phases.items()
    ]
    seconds = sum(spent["seconds"] for spent in phases.values())
    rows.append(["together", counted(sum(s["flops"] for s in phases.values())), "", f"{seconds:,.1f}", "", "", ""])
    names = ("FLOPs", "share", "seconds", "steps", "times")
    columns = [Column("phase"), *(Column(name, True) for name in names), Column("what it is")]
    return table("Work by phase", columns, rows, seen=False)


def _kernels(held: Mapping[str, Any]) -> Markup | None:
    listed, stayed = held.get("kernels"), held.get("stayed")
    if not isinstance(listed, list) or not listed:
        return None
    rows = []
    for entry in listed[:KERNELS]:
        if isinstance(entry, list) and len(entry) == 4 and isinstance(entry[3], int | float):
            kept = "" if not isinstance(stayed, list) else "stayed" if entry[:3] in stayed else "did not stay"
            rows.append([f"{cut(str(entry[0]), 120) or '(root)'}[{entry[1]}]", counted(entry[3]), kept])
    points = held.get("parameters")
    points = [point for point in points if _are_counts(point)] if isinstance(points, list) else []
    sizes = [[whole(step), whole(count)] for step, count in points[-TABLE_ROWS:]]
    return folded(
        "Work of each kernel, and the network's size",
        table("Training and use of each kernel", [Column("seed"), Column("FLOPs", True), Column("it")], rows),
        table("Parameters, kernels included", [Column("from step", True), Column("parameters", True)], sizes),
    )


def _are_counts(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(isinstance(count, int) for count in point)


def certificate(run: RunData, place: Place) -> Markup:
    """The section on the certificate."""
    held, title = run.certificate, "Certificate"
    if held is None:
        said = _missing(run, "certificate.json", "when it gives the torch module back")
        return section(place, "certificate", title, lead=said)
    worst = held.get("max_rel")
    lead = "The grown model against the torch module that it gave back, on the test part."
    if isinstance(worst, int | float):
        lead += f" They differ by at most {measured(worst)} of the largest output."
    names = {
        "max_abs": "largest absolute error",
        "max_rel": "relative to the largest output",
        "gradient_abs": "largest absolute error of gradients",
        "gradient_rel": "relative to the largest gradient",
        "dtype": "dtype",
        "calls": "calls compared",
        "gradients": "gradients compared",
    }
    rows = [[said, _certified(held[name])] for name, said in names.items() if held.get(name) is not None]
    return section(
        place,
        "certificate",
        title,
        table("What was compared", [Column("what"), Column("found", True)], rows, seen=False),
        lead=lead,
    )


def _certified(value: Any) -> str:
    if isinstance(value, float):
        return measured(value)
    return whole(value) if isinstance(value, int) else cut(str(value), 80)
