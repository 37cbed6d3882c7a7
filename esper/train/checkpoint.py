"""Where a run is, whole: what `fit` returns to go on from, and gives its callbacks on request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from esper.growth.policy import Observation
from esper.train.change import Change
from esper.train.governor import Memory
from esper.train.history import Record
from esper.train.ledger import Ledger
from esper.train.step import TrainState


@dataclass(frozen=True, eq=False)
class SoundPoint:
    """Where a run was when all was well, to go back to.

    Attributes:
        state: The state.
        done: Steps done.
        losses: How many evaluations there were.
        ledger: What it had cost.
    """

    state: TrainState
    done: int
    losses: int
    ledger: Ledger


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run between two steps, at an evaluation; immutable, its arrays are its own.

    Going on from it, with the arguments of the run, gives the run that would have been, bit for bit.

    Attributes:
        state: Model, optimiser state, key and sums.
        done: Steps done.
        epoch: Which epoch of the data comes next.
        index: How many of its batches have been seen.
        memory: What the policy remembers.
        guard: What the governor remembers.
        losses: Held-out losses so far.
        records: What happened so far.
        ledger: What it has cost so far.
        recent: The last training batches, which initialisers look at.
        change: A change of structure that is decided and not yet made.
        undecided: What the policy was shown and has not answered yet.
        sound: Where the governor would go back to; None: to this very point, if there is a governor.
    """

    state: TrainState
    done: int
    epoch: int
    index: int
    memory: Any
    guard: Memory
    losses: tuple[float, ...]
    records: tuple[Record, ...]
    ledger: Ledger
    recent: tuple[Any, ...] = ()
    change: Change | None = None
    undecided: Observation | None = None
    sound: SoundPoint | None = None
