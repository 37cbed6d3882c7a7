"""Where a run's work went: operations, seconds and steps, by phase and by kernel. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from esper.errors import ArgumentError
from esper.jax_backend.model import MorphableModel
from esper.phases import PHASES
from esper.train.step_cost import Place, StepCost

KernelName = tuple[str, int, int]
"""A layer's name, which of its seeds, and the kernel's id: a seed holds one kernel after the other."""


@dataclass(frozen=True)
class Spent:
    """What was spent on something.

    Attributes:
        flops: Floating-point operations.
        seconds: Wall time.
        steps: Training steps.
        count: How often it was done.
    """

    flops: int = 0
    seconds: float = 0.0
    steps: int = 0
    count: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.steps + other.steps,
            self.count + other.count,
        )

    def __sub__(self, other: Spent) -> Spent:
        return self + Spent(-other.flops, -other.seconds, -other.steps, -other.count)


@dataclass(frozen=True)
class Row:
    """A phase, what it stands for, what was spent on it, and its share of all operations, 0 to 1."""

    phase: str
    about: str
    spent: Spent
    share: float


@dataclass(frozen=True)
class Ledger:
    """The books of a run; immutable, every entry gives a new one.

    Attributes:
        phases: What was spent, by phase.
        kernels: Operations of each kernel while it was TRAINING or blended in, part of the phases' own.
        parameters: (step, how many parameters from then on), when that changed.
        stayed: The kernels that are there at the end; None while the run goes on.

    Example:
        >>> books = Ledger().add("train", flops=300, steps=1).add("evaluation", flops=100, seconds=0.5)
        >>> books.total_flops, books.phases["evaluation"].seconds
        (400, 0.5)
    """

    phases: Mapping[str, Spent] = field(default_factory=dict)
    kernels: Mapping[KernelName, int] = field(default_factory=dict)
    parameters: tuple[tuple[int, int], ...] = ()
    stayed: frozenset[KernelName] | None = None

    def add(
        self,
        phase: str,
        *,
        flops: int = 0,
        seconds: float = 0.0,
        steps: int = 0,
        count: int = 0,
        kernels: Mapping[KernelName, int] | None = None,
    ) -> Ledger:
        """The ledger with one more entry.

        Args:
            phase: A name of `PHASES`.
            flops: Floating-point operations.
            seconds: Wall time.
            steps: Training steps.
            count: How often it was done, such as programs compiled.
            kernels: Which of the operations are those of kernels.

        Raises:
            ArgumentError: No such phase, or a negative amount.
        """
        if phase not in PHASES:
            raise ArgumentError(f"no phase {phase!r} in the ledger; there are: {', '.join(PHASES)}")
        if min(flops, seconds, steps, count) < 0:
            raise ArgumentError(f"work is not negative: {flops} operations, {seconds} s, {steps} steps, {count} times")
        spent = self.phases.get(phase, Spent()) + Spent(flops, seconds, steps, count)
        accounts = {**self.kernels}
        for name, own in (kernels or {}).items():
            accounts[name] = accounts.get(name, 0) + own
        return replace(self, phases={**self.phases, phase: spent}, kernels=accounts)

    def sized(self, step: int, parameters: int) -> Ledger:
        """The ledger with the number of parameters from this step on."""
        if self.parameters and self.parameters[-1][1] == parameters:
            return self
        return replace(self, parameters=(*self.parameters, (step, parameters)))

    def thrown_away(self, since: Ledger) -> Ledger:
        """The ledger when the run goes back to a snapshot.

        Training and isolation since then become "rollback"; kernels keep their accounts, and what was measured and
        compiled stays where it is.

        Args:
            since: The ledger as it was at the snapshot.

        Raises:
            ArgumentError: `since` has entries that this ledger lacks.
        """
        train, isolation = (
            self.phases.get(name, Spent()) - since.phases.get(name, Spent()) for name in ("train", "isolation")
        )
        if min(train.flops, isolation.flops, train.steps) < 0:
            raise ArgumentError("the ledger to go back to is later than this one; give the one kept with the snapshot")
        kept = {name: since.phases.get(name, Spent()) for name in ("train", "isolation")}
        lost = Spent(train.flops + isolation.flops, train.seconds + isolation.seconds, train.steps, count=1)
        phases = {**self.phases, **kept, "rollback": self.phases.get("rollback", Spent()) + lost}
        return replace(self, phases=phases, parameters=since.parameters)

    def settled(self, stayed: Iterable[KernelName]) -> Ledger:
        """The ledger at the end of the run, when it is known which kernels stayed."""
        return replace(self, stayed=frozenset(stayed))

    @property
    def total_flops(self) -> int:
        """Operations of the whole run."""
        return sum(spent.flops for spent in self.phases.values())

    @property
    def total_seconds(self) -> float:
        """Wall time that is accounted for; what a background thread compiled runs beside it."""
        return sum(spent.seconds for spent in self.phases.values())

    @property
    def culled_flops(self) -> int:
        """Operations of kernels that did not stay; 0 while that is not known."""
        return sum(own for name, own in self.kernels.items() if self.stayed is not None and name not in self.stayed)

    def table(self) -> tuple[Row, ...]:
        """The phases in which something was spent."""
        whole = max(1, self.total_flops)
        held = [(phase, about, self.phases[phase]) for phase, about in PHASES.items() if phase in self.phases]
        return tuple(Row(phase, about, spent, spent.flops / whole) for phase, about, spent in held)

    def as_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold, for `from_dict`."""
        return {
            "phases": {phase: asdict(spent) for phase, spent in self.phases.items()},
            "kernels": [[*name, own] for name, own in self.kernels.items()],
            "parameters": [list(point) for point in self.parameters],
            "stayed": None if self.stayed is None else [list(name) for name in sorted(self.stayed)],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Ledger:
        """The ledger that `as_dict` wrote.

        Raises:
            ArgumentError: It is not one.
        """
        try:
            stayed = plain["stayed"]
            return cls(
                phases={_known(phase): Spent(**spent) for phase, spent in plain["phases"].items()},
                kernels={(layer, seed, kernel): own for layer, seed, kernel, own in plain["kernels"]},
                parameters=tuple((step, count) for step, count in plain["parameters"]),
                stayed=None if stayed is None else frozenset((layer, seed, kernel) for layer, seed, kernel in stayed),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArgumentError(f"this is no ledger: {error}; give what `Ledger.as_dict` made") from error


def interval(
    ledger: Ledger, cost: StepCost, *, steps: int, seconds: float, names: Mapping[Place, KernelName]
) -> Ledger:
    """The ledger after some steps with the same kernels in the same states.

    Args:
        ledger: The ledger so far.
        cost: What each step cost.
        steps: How many steps.
        seconds: How long they took together. A step is one program, so they are divided by operations.
        names: The kernels by place (`kernel_names`).
    """
    share = cost.isolation / max(1, cost.total)
    live = {names[place]: steps * own for place, own in cost.live}
    ledger = ledger.add(
        "train",
        flops=steps * (cost.total - cost.isolation),
        seconds=seconds * (1 - share),
        steps=steps,
        kernels=live,
    )
    if not cost.isolation:
        return ledger
    training = {names[place]: steps * own for place, own in cost.training}
    return ledger.add("isolation", flops=steps * cost.isolation, seconds=seconds * share, steps=steps, kernels=training)


def kernel_names(model: MorphableModel) -> dict[Place, KernelName]:
    """What the ledger calls the model's kernels; waits for the device."""
    ids = np.asarray(model.seeds.kernel_id)
    places = [(kernel.layer, kernel.seed) for kernel in model.structure.kernels]
    return {(layer, seed): (layer, seed, int(ids[model.structure.row(layer), seed])) for layer, seed in places}


def _known(phase: str) -> str:
    if phase not in PHASES:
        raise ValueError(f"it has a phase {phase!r}")
    return phase
