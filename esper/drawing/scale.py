"""From values to places on the paper, and the values worth naming on an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_LEAST, _MOST = 1e-280, 1e300  # a scale's air, ratios and ticks stay within what a float holds


@dataclass(frozen=True)
class Scale:
    """A range of values on a stretch of paper.

    Attributes:
        low: The least value.
        high: The largest; above `low`.
        start: Where the least value lies.
        end: Where the largest lies.
        log: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies; values beyond the range lie at its ends."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self, count: int) -> list[float]:
        """About so many round values in the range."""
        return _log_ticks(self.low, self.high, count) if self.log else ticks(self.low, self.high, count)


def steps_scale(steps: float, start: float, end: float) -> Scale:
    """Training steps from 0 on."""
    return Scale(0.0, max(1.0, float(steps)), start, end)


def value_scale(values: Iterable[float], start: float, end: float, *, share: bool = False) -> Scale:
    """A scale that all finite values fit on with a little air.

    Values nearer to 0 than 1e-280 are taken for 0, and those beyond 1e300 lie at the end.

    Args:
        values: What is to fit.
        start: Where the least lies.
        end: Where the largest lies.
        share: Whether they are shares of 1, which are never logarithmic and end at 1.
    """
    finite = sorted(_drawable(value) for value in values if math.isfinite(value))
    if not finite:
        return Scale(0.0, 1.0, start, end)
    low, high = finite[0], finite[-1]
    # A few that have exploded do not flatten all others.
    usual = finite[min(len(finite) - 1, math.ceil(0.98 * len(finite)) - 1)] if len(finite) > 50 else high
    high = high if high <= 20 * max(abs(usual), 1e-12) else usual
    if not share and low > 0 and high / low >= 4:
        air = high**0.04 / low**0.04
        return Scale(low / air, min(high * air, _MOST), start, end, log=True)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = low - air, high + air
    return Scale(max(0.0, low), min(1.0, high), start, end) if share else Scale(low, high, start, end)


def _drawable(value: float) -> float:
    return 0.0 if abs(value) < _LEAST else min(max(value, -_MOST), _MOST)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About so many round values from `low` to `high`.

    >>> ticks(0, 1600, 5)
    [0.0, 500.0, 1000.0, 1500.0]
    """
    rough = (high - low) / max(1, count)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in _STEPS if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [place * step + 0.0 for place in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low <= value <= high]
        if len(found) <= count + 1:
            return found if len(found) > 1 else ticks(low, high, count)
    return found[:: math.ceil(len(found) / max(1, count))]
