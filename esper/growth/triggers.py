"""When to grow: what of the held-out loss says that it is time."""

from __future__ import annotations

import math

from esper.configs import TamiyoSettings
from esper.growth.policy import Observation

NAMES = {"plateau": "a plateau", "stable": "a stable loss", "always": "growth at any time"}
"""What each trigger is called in reasons."""


def triggered(observation: Observation, settings: TamiyoSettings, *, best: float, stale: int, seen: int) -> str:
    """Why it is time to grow, with the figures; empty: it is not.

    Args:
        observation: What there is.
        settings: Which trigger, and its thresholds.
        best: Lowest held-out loss since growth last changed something.
        stale: Evaluations since then without a loss below `best` by `min_delta`.
        seen: Evaluations since growth last changed something.
    """
    if observation.step < settings.start_step:
        return ""
    match settings.trigger:
        case "plateau" if stale >= settings.patience:
            return f"held-out loss has not improved on {best:.4f} by {settings.min_delta:g} in {stale} evaluations"
        case "stable" if seen > settings.patience:
            return _stable(observation.losses[-settings.patience - 1 :], settings)
        case "always":
            return (
                f"step {observation.step} of {observation.total_steps} and nothing is growing that must be waited for"
            )
    return ""


def _stable(losses: tuple[float, ...], settings: TamiyoSettings) -> str:
    middle = math.fsum(losses) / len(losses)
    spread = max(losses) - min(losses)
    if not all(map(math.isfinite, losses)) or spread > settings.stability * abs(middle):
        return ""
    return (
        f"held-out loss has stayed between {min(losses):.4f} and {max(losses):.4f} over {settings.patience} "
        f"evaluations, within {settings.stability:.1%} of itself"
    )
