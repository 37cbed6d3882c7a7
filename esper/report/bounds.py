"""How much of a run goes into a page, so that a page stays a page: some 3 MB a run at most, whatever it did.

What is left out is said where it is left out, and is in the run folder.
"""

RUNS = 24
"""Runs of a page."""
POINTS = 400
"""Of a curve, with every stretch's lowest and highest among them."""
TABLE_ROWS = 60
"""Of the table beside a chart."""
MARKS = 24
"""Events marked on a chart and listed under it."""
LANES = 240
"""Seeds drawn."""
DECISIONS = 600
"""Rows of the table of decisions."""
TEXT = 700
"""Characters of a reason or a name."""
PANELS = 4
"""Charts of curves: the loss, and so many metrics less one."""
KERNELS = 400
"""Rows of the table of kernels."""
TALL = 30
"""Rows beyond which a table scrolls by itself."""
PIECES = 40
"""Of a curve that rollbacks threw away."""
SPANS = 9_000
"""States of all seeds together that are drawn: of each the latest."""
LEAST = 24
"""States that every seed gets, however many seeds there are."""


def cut(text: str, limit: int = TEXT) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}\u2026"
