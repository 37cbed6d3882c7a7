"""What a contender is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DECAY = 0.01
"""AdamW's weight decay."""


class Unavailable(Exception):
    """A contender that cannot take part; the message says why."""


@dataclass
class Contender:
    """One way to train and run the network.

    Attributes:
        step: Does one AdamW step and waits for it; (loss before the step, seconds).
        infer: Runs the first weights in evaluation mode and waits; (logits, seconds).
        first_call: Seconds that the parts of the first step's call took before or beside its running.
        memory: MiB that the compiled step needs at once, as its compiler says; None where nobody says.
        variant: What was found fastest, where there was a choice.
        program: The compiled step, where there is one to look into.
        close: Ends what the contender keeps running.
    """

    step: Callable[[], tuple[float, float]]
    infer: Callable[[], tuple[np.ndarray, float]]
    first_call: dict[str, float] = field(default_factory=dict)
    memory: float | None = None
    variant: str = ""
    program: Any = None
    close: Callable[[], None] = lambda: None


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What the function returns, and the seconds it took."""
    start = time.perf_counter()
    made = function(*args)
    return made, time.perf_counter() - start
