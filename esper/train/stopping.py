"""When to stop before the last step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from esper.errors import ArgumentError


@dataclass(frozen=True)
class EarlyStopping:
    """Stops when the held-out loss has not improved for a while.

    Attributes:
        patience: Evaluations without improvement until then.
        min_delta: Decrease of the loss that counts as an improvement.
    """

    patience: int = 10
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise ArgumentError(f"patience is at least 1 and min_delta at least 0; given: {self}")

    def reason(self, losses: Sequence[float]) -> str:
        """Why to stop after these held-out losses; empty: go on.

        Example:
            >>> EarlyStopping(patience=2).reason([3.0, 2.0, 2.5, 2.1])
            'held-out loss has not improved on 2.0000 in 2 evaluations'
            >>> EarlyStopping(patience=2).reason([3.0, 2.0, 2.5, 1.9])
            ''
        """
        earlier, recent = losses[: -self.patience], losses[-self.patience :]
        if not earlier or min(recent) < min(earlier) - self.min_delta:
            return ""
        return f"held-out loss has not improved on {min(earlier):.4f} in {self.patience} evaluations"
