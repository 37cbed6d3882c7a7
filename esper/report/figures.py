"""Figures for papers: what the page draws, by matplotlib, for `pip install "esper[notebook]"`.

Each gives a `matplotlib.figure.Figure` that belongs to no window and no `pyplot` state: save it as PDF or SVG, where
text stays text. Colours are the page's, which colour-blind people tell apart, with patterns on top of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.drawing.lanes import Span
from esper.drawing.network import kernel_name, rows
from esper.drawing.scale import value_scale
from esper.drawing.states import STATES, look
from esper.errors import ArgumentError, MissingExtraError
from esper.report.read import RunData
from esper.report.read import run as read_run
from esper.report.sections.charts import marks_of, panels
from esper.report.timeline import label, lives, planned_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOOKS: dict[str, dict[str, Any]] = {
    "es-train": {"color": "#6d7682", "linewidth": 1.0},
    "es-validation": {"color": "#0067a3", "linewidth": 1.6},
    "es-control": {"color": "#a3510a", "linewidth": 1.4, "linestyle": (0, (5, 3))},
    "es-point-test": {"color": "#1c2430", "marker": "D", "linestyle": "none", "markersize": 4, "clip_on": False},
    "es-point-control": {"color": "#a3510a", "marker": "D", "linestyle": "none", "markersize": 4, "clip_on": False},
}
_HATCHES = {"none": "", "lines": "////", "rising": "||||", "dots": "....", "cross": "xxxx"}
_LEAST = 0.04  # inches of a lane that a state takes at least
_PLAIN = {"parse_math": False}  # names are a run's own, and may hold dollars
_EMBEDDED = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "hatch.linewidth": 0.5, "font.size": 8}


def curves(run: RunData | str | Path, *, width: float = 6.4, height: float = 2.3) -> Figure:
    """Loss and metrics over the steps, a panel each, with what grew marked.

    Args:
        run: A run, or its folder.
        width: Of the figure, in inches.
        height: Of each panel.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: The run has no evaluations.
    """
    held = _read(run)
    marks, _ = marks_of(held.events)
    found = panels(held, marks)
    if not found:
        raise ArgumentError(f"run {held.name!r} has no evaluations yet: there is no curve to draw")
    with _style():
        figure, axes = _figure(width, height * len(found), len(found))
        for panel, ax in zip(found, axes, strict=True):
            for series in panel.series:
                shown = list(zip(*series.points, strict=True))
                ax.plot(*shown, label=series.label, **_LOOKS[series.look])
            values = [value for series in panel.series for _, value in series.points]
            if value_scale(values, 0, 1, share=panel.share).log:
                ax.set_yscale("log")
            for mark in panel.marks:
                ax.axvline(mark.step, color=look(mark.state).edge, linewidth=0.8, linestyle=":")
                ax.annotate(
                    str(mark.number),
                    (mark.step, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6,
                )
            ax.set_ylabel(panel.title, **_PLAIN)
            ax.legend(frameon=False, fontsize=7, loc="best")
        axes[-1].set_xlabel("training steps")
        axes[-1].set_xlim(0, max(1, planned_steps(held.events)))
    return figure


def lanes(run: RunData | str | Path, *, width: float = 6.4, each: float = 0.42) -> Figure:
    """The lifecycle of each seed, and its alpha.

    Args:
        run: A run, or its folder.
        width: Of the figure, in inches.
        each: Height of a lane.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: Nothing happened to any seed.
    """
    held = _read(run)
    found = lives(held.events)
    if not found:
        raise ArgumentError(f"nothing happened to any seed of run {held.name!r}: there is no lane to draw")
    with _style():
        figure, (ax,) = _figure(width, 1.0 + each * len(found), 1)
        steps = max(1, planned_steps(held.events))
        for row, life in enumerate(found):
            for span in life.spans:
                shown = look(span.state)
                bar = {"facecolor": shown.colour, "edgecolor": shown.edge, "hatch": _HATCHES[shown.pattern]}
                ax.broken_barh([_stretch(span, steps, width)], (row - 0.4, 0.36), linewidth=0.6, **bar)
            if life.alpha:
                at, alpha = zip(*life.alpha, strict=True)
                ax.plot(at, [row + 0.4 - 0.4 * value for value in alpha], color="#1c2430", linewidth=1)
        ax.set_yticks(range(len(found)), [label(life.place) for life in found], **_PLAIN)
        ax.set_ylim(len(found) - 0.5, -0.5)
        ax.set_xlim(0, steps)
        ax.set_xlabel("training steps")
        _state_legend(figure, {span.state for life in found for span in life.spans})
    return figure


def network(run: RunData | str | Path, *, width: float = 6.4, each: float = 0.3) -> Figure:
    """Parameters of each layer, and of the kernels beside it.

    Args:
        run: A run, or its folder.
        width: Of the figure, in inches.
        each: Height of a layer.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ArgumentError: The run has written no network.
    """
    held = _read(run)
    if not held.network:
        raise ArgumentError(f"run {held.name!r} has no network.json, which a run writes at its end")
    lines = [row for row in rows(held.network["layers"]) if row.parameters or row.kernels]
    with _style():
        figure, (ax,) = _figure(width, 1.0 + each * len(lines), 1)
        for at, row in enumerate(lines):
            ax.barh(at, row.parameters, height=0.62, color="#9aa3ae")
            end = row.parameters
            for kernel in row.kernels:
                shown, size = look(str(kernel.get("state", ""))), int(kernel.get("parameters") or 0)
                bar = {"facecolor": shown.colour, "edgecolor": shown.edge, "hatch": _HATCHES[shown.pattern]}
                ax.barh(at, size, left=end, height=0.62, linewidth=0.6, **bar)
                end += size
            if row.kernels:
                named = ", ".join(map(kernel_name, row.kernels))
                ax.annotate(named, (end, at), (3, -2), textcoords="offset points", fontsize=6, **_PLAIN)
        ax.set_yticks(range(len(lines)), [f"{row.title}  {row.kind}"[:44] for row in lines], **_PLAIN)
        ax.set_ylim(len(lines) - 0.5, -0.5)
        ax.set_xlabel("parameters (grey: the host's own)")
        ax.margins(x=0.18)
        _state_legend(figure, {str(kernel.get("state", "")) for row in lines for kernel in row.kernels})
    return figure


def _read(run: RunData | str | Path) -> RunData:
    return run if isinstance(run, RunData) else read_run(run)


def _style() -> Any:
    return _matplotlib().rc_context(_EMBEDDED)


def _figure(width: float, height: float, count: int) -> tuple[Figure, list[Any]]:
    """A figure with so many panels that share the axis of steps."""
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0].tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="both", color="#dde1e7", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def _stretch(span: Span, steps: int, width: float) -> tuple[float, float]:
    """Where a state begins and how long it is drawn; what a seed came to at the last step is seen too."""
    least = steps * _LEAST / width
    left = min(span.start, steps - least)
    return left, max(least, span.end - left)


def _state_legend(figure: Figure, met: set[str]) -> None:
    from matplotlib.patches import Patch

    shown = [known for state, known in STATES.items() if state in met]
    patches = [
        Patch(facecolor=known.colour, edgecolor=known.edge, hatch=_HATCHES[known.pattern], label=known.label)
        for known in shown
    ]
    if patches:
        figure.legend(
            handles=patches, loc="outside upper center", ncols=min(6, len(patches)), frameon=False, fontsize=7
        )


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("a figure", "matplotlib", "notebook") from None
    return matplotlib
