"""Figures as the page has them."""

from __future__ import annotations

import math
import statistics

NOTHING = "-"


def number(value: float) -> str:
    """With two decimals."""
    return f"{value:.2f}" if math.isfinite(value) else NOTHING


def mean(ratios: list[float]) -> str:
    """Of runs."""
    return number(statistics.fmean(ratios)) if ratios else NOTHING


def spelt(ratios: list[float]) -> str:
    """Every run's, and the mean."""
    if not ratios:
        return NOTHING
    return f"{', '.join(map(number, ratios))}: **{mean(ratios)}**"


def spread(ratios: list[float], digits: int = 2) -> str:
    """The mean, and from where to where runs go, if there are several."""
    if not ratios:
        return NOTHING
    middle, low, high = (f"{found:.{digits}f}" for found in (statistics.fmean(ratios), min(ratios), max(ratios)))
    return middle if len(ratios) == 1 else f"{middle} ({low}-{high})"
