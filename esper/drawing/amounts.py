"""Numbers for people."""

from __future__ import annotations

import math

MINUS, TIMES, ALPHA = "\u2212", "\u00d7", "\u03b1"
"""Characters that are easily taken for others."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def counted(count: float) -> str:
    """With a prefix of thousands.

    >>> counted(999), counted(1418), counted(1_250_000), counted(0)
    ('999', '1.42 k', '1.25 M', '0')
    """
    if not math.isfinite(count):
        return measured(count)
    power = 0
    while abs(count) >= 999.5 and power < len(_PREFIXES) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {_PREFIXES[power]}" if power else f"{count:.3g}"


def whole(count: float) -> str:
    """All digits, in groups of three."""
    return f"{round(count):,}" if math.isfinite(count) else measured(count)


def measured(value: float) -> str:
    """A measurement with four digits.

    >>> measured(0.33932), measured(2.4174), measured(1234.5), measured(0.0000123), measured(float("nan"))
    ('0.3393', '2.417', '1,234', '1.23e-05', 'not a number')
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else f"{MINUS}infinite"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        shown = f"{abs(value):.2e}"
    else:
        shown = f"{abs(value):,.0f}" if abs(value) >= 1000 else f"{abs(value):.4g}"
    return MINUS + shown if value < 0 else shown


def rounded(value: float) -> str:
    """A round number, such as one of an axis, as short as it is.

    >>> rounded(1e-6), rounded(0.0025), rounded(1.0025), rounded(20_000.0), rounded(2.5e6)
    ('1e-06', '0.0025', '1.0025', '20,000', '2.5e+06')
    """
    return f"{MINUS if value < 0 else ''}{abs(value):,.6g}"


def signed(value: float) -> str:
    """A measurement with its sign.

    >>> signed(0.2604)
    '+0.2604'
    """
    return measured(value) if value < 0 or math.isnan(value) else f"+{measured(value)}"


def percent(share: float, digits: int = 1) -> str:
    """A share of 1 in hundredths.

    >>> percent(0.92201)
    '92.2 %'
    """
    if not math.isfinite(share):
        return measured(share)
    return f"{MINUS if share < 0 else ''}{abs(share) * 100:.{digits}f} %"


def scored(value: float, share: bool) -> str:
    """A score: in hundredths if it is a share of 1, else as it was measured.

    >>> scored(0.54, True), scored(54.0, False)
    ('54.0 %', '54')
    """
    return percent(value) if share else measured(value)


def sized(shape: object) -> str:
    """A shape without the batch, which is its first size where that is open.

    >>> sized(["s0", 10]), sized([10]), sized([])
    ('10', '10', '')
    """
    sizes = list(shape) if isinstance(shape, list | tuple) else []
    if len(sizes) > 1 and isinstance(sizes[0], str):
        sizes = sizes[1:]
    return TIMES.join(str(size) for size in sizes)
