"""The page's plots: the metric by FLOPs, at the end of every arm and on the way there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evidence.results import Arm, Benchmark

_CONTROLS = (
    "#1f77b4",
    "#2ca02c",
    "#9467bd",
    "#8c564b",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
    "#e377c2",
    "#000000",
    "#aec7e8",
)
_GROWN = ("#d62728", "#ff7f0e", "#8c1d40")


def drawn(benchmark: Benchmark, folder: Path) -> Iterator[Path]:
    """Draws the arms, those of other data (named "data: arm") apart, and gives the files."""
    here = [arm for arm in benchmark.arms if ": " not in arm.name]
    elsewhere = [arm for arm in benchmark.arms if ": " in arm.name]
    for arms, suffix in ((here, ""), (elsewhere, "-control")):
        if arms:
            path = folder / f"{benchmark.name.lower()}{suffix}.png"
            _figure(benchmark, arms, path)
            yield path


def _figure(benchmark: Benchmark, arms: Sequence[Arm], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.2), sharey=False, facecolor="white")
    for arm, colour in zip(arms, _colours(arms), strict=True):
        spread = 0.0 if len(arm.runs) < 2 else arm.spread()
        left.errorbar(
            arm.mean("flops") / 1e9, arm.mean(), yerr=spread, fmt="o", ms=6, capsize=3, color=colour, label=arm.name
        )
        _curve(right, arm, colour)
    for axes, title in ((left, "test, at the end (mean and standard deviation)"), (right, "validation, on the way")):
        axes.set_xlabel("GFLOPs")
        axes.set_ylabel(benchmark.metric)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    if benchmark.metric.startswith("loss"):
        right.set_yscale("log")
    figure.legend(*left.get_legend_handles_labels(), loc="lower center", ncol=3, fontsize=8, frameon=False)
    figure.suptitle(f"{benchmark.name}: {benchmark.title}", fontsize=12)
    rows = -(-len(arms) // 3)
    figure.tight_layout(rect=(0, 0.03 + 0.045 * rows, 1, 1))
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)


def _curve(axes: Any, arm: Arm, colour: str) -> None:
    """The mean over keys, where all have as many points."""
    curves = [run.curve for run in arm.runs if run.curve]
    if not curves:
        return
    points = min(map(len, curves))
    found = np.asarray([curve[:points] for curve in curves], float)
    axes.plot(found[..., 0].mean(0) / 1e9, found[..., 1].mean(0), color=colour, lw=1.4)


def _colours(arms: Sequence[Arm]) -> list[str]:
    controls, grown = iter(_CONTROLS * 3), iter(_GROWN * 3)
    return [next(grown if arm.name.split(": ")[-1].startswith("esper") else controls) for arm in arms]
