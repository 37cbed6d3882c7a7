"""Curves of many points as curves of few that look the same: what is highest and lowest stays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Point = tuple[float, float]


def thinned(points: Sequence[Point], limit: int) -> list[Point]:
    """At most about `limit` of the points, in order: of each stretch its first, lowest, highest and last.

    Gaps, which are points whose value is not finite, stay gaps.

    >>> thinned([(x, x % 7) for x in range(1000)], 16)[0]
    (0, 0)
    """
    if len(points) <= limit:
        return list(points)
    stretch = math.ceil(len(points) / max(1, limit // 4))
    kept: list[Point] = []
    for at in range(0, len(points), stretch):
        kept.extend(_told(points[at : at + stretch]))
    return kept


def stretches(points: Sequence[Point]) -> Iterator[list[Point]]:
    """The pieces between gaps."""
    piece: list[Point] = []
    for point in points:
        if math.isfinite(point[1]):
            piece.append(point)
        elif piece:
            yield piece
            piece = []
    if piece:
        yield piece


def _told(points: Sequence[Point]) -> list[Point]:
    finite = [place for place, point in enumerate(points) if math.isfinite(point[1])]
    places = {0, len(points) - 1}
    if len(finite) < len(points):
        places.add(next(place for place in range(len(points)) if not math.isfinite(points[place][1])))
    if finite:
        places |= {min(finite, key=lambda place: points[place][1]), max(finite, key=lambda place: points[place][1])}
    return [points[place] for place in sorted(places)]
