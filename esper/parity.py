"""Agreement with eager PyTorch: the measure, and the tolerance of each dtype, written once.

Errors are taken against the larger of the reference's own magnitude and one unit, so that a sum that
cancels to nearly nothing is not held to the precision of nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Largest accepted error, relative to max(1, largest reference magnitude): values, then gradients.
TOLERANCE: dict[str, tuple[float, float]] = {
    "float64": (1e-11, 1e-10),
    "float32": (1e-5, 1e-4),
    "bfloat16": (2e-2, 5e-2),
    "float16": (2e-3, 1e-2),
    "complex128": (1e-11, 1e-10),
    "complex64": (1e-5, 1e-4),
}
EXACT = (0.0, 0.0)  # integers and booleans


@dataclass(frozen=True)
class Agreement:
    """How far an array is from its reference.

    Attributes:
        max_abs: Largest absolute difference.
        max_rel: `max_abs` over the largest magnitude of the reference (1 if that is 0).
        scaled: `max_abs` over max(1, largest magnitude of the reference): what tolerances are for.
    """

    max_abs: float
    max_rel: float
    scaled: float


def tolerance(dtype: str, *, gradient: bool = False) -> float:
    """The accepted scaled error of a dtype."""
    return TOLERANCE.get(dtype, EXACT)[gradient]


def compare(actual: Any, expected: Any) -> Agreement:
    """The agreement of two arrays of equal shape; equal infinities and NaNs at equal places agree.

    Raises:
        ValueError: The shapes differ.
    """
    if np.shape(actual) != np.shape(expected):
        raise ValueError(f"shape {np.shape(actual)} where {np.shape(expected)} is expected")
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    left, right = np.asarray(actual).astype(wide), np.asarray(expected).astype(wide)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(same, 0.0, np.abs(left - right))
    largest = float(np.max(gap, initial=0.0))
    largest = float("inf") if np.isnan(largest) else largest
    magnitudes = np.abs(right[np.isfinite(right)])
    size = float(np.max(magnitudes, initial=0.0))
    return Agreement(largest, largest / (size or 1.0), largest / max(1.0, size))
