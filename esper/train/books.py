"""The books of a run: its records, with the compiles of each, and what everything cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax

from esper.growth.birth import DoNotGerminate
from esper.growth.policy import ARRIVING, Action, Asks, Germinate, Hold, Load, Note, SetAlpha, Transition
from esper.growth.rows import is_served
from esper.growth.shapley import EXACT
from esper.jax_backend.artifact import KernelArtifact
from esper.jax_backend.model import MorphableModel
from esper.train.change import Arrival, Missing, Steps
from esper.train.checkpoint import Checkpoint
from esper.train.compiles import CompileCounter, Compiles
from esper.train.history import Figures, Record
from esper.train.ledger import Ledger, interval, kernel_names
from esper.train.step import Learner
from esper.train.step_cost import Place, StepCost, evaluation_flops, gain_flops, places, statistics_flops, step_flops

if TYPE_CHECKING:
    from esper.train.run import Run

_ORDERS = 64  # that `shapley` draws, as `train.observe` calls it

Callback = Callable[[Record, "Run"], None]
"""Told every record as it is made, and the run."""


class Books:
    """Records and ledger of a run.

    Attributes:
        records: What happened, in order.
        ledger: What it cost.
        counter: Of compiles.
    """

    def __init__(
        self,
        counter: CompileCounter,
        learner: Learner,
        name: str,
        callbacks: tuple[Callback, ...],
        before: Checkpoint | None,
    ) -> None:
        self.counter, self._learner, self._name, self._callbacks = counter, learner, name, callbacks
        self.records: list[Record] = list(before.records) if before else []
        self.ledger = before.ledger if before else Ledger()
        self._batch: Any = before.recent[-1] if before and before.recent else None
        self._met: set[Any] = set()
        self._compiled = Compiles()
        self._steps, self._clock = 0, time.perf_counter()

    def note(self, record: Record, run: Run, compiles: Compiles | None = None) -> None:
        """Adds a record with what was compiled since the last one, and tells it.

        Args:
            record: What happened.
            run: The run it happened to.
            compiles: What another thread compiled for it.
        """
        self._clock += self._heard()
        caused, self._compiled = self._compiled + (compiles or Compiles()), Compiles()
        if caused.programs:
            self.ledger = self.ledger.add("compile", seconds=caused.seconds, count=len(caused))
        full = replace(
            record,
            compiles=len(caused),
            programs=caused.programs,
            compile_seconds=round(caused.seconds, 4),
            run=self._name,
        )
        self.records.append(full)
        for callback in self._callbacks:
            callback(full, run)

    def changed(self, steps: Steps, compiles: Compiles, waited: float, run: Run) -> None:
        """Notes a change of structure that was made; what it compiled is its germination's, else its first action's."""
        self._clock += waited
        heir = next((at for at, (action, _) in enumerate(steps) if isinstance(action, ARRIVING)), 0)
        for place, (action, newborn) in enumerate(steps):
            record = _born(record_of(action, run.done), newborn)
            if place == heir:
                record = replace(record, waited=round(waited, 4))
            self.note(record, run, compiles if place == heir else None)
        self.sized(run.done, run.model)

    def put_back(self, record: Record, since: Ledger, run: Run) -> None:
        """Notes that the run went back to where the ledger was `since`."""
        self.ledger = self.ledger.thrown_away(since)
        self.note(record, run)

    def met(self, batch: Any, run: Run) -> None:
        """A step is to be taken on this batch; one of a shape that is new after others is announced: it compiles."""
        self._batch = batch
        self._steps += 1
        shape = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shape not in self._met:
            if self._met:
                said = ", ".join(str(list(part)) for part in shape)
                reason = f"a batch of another shape, {said}: the step is compiled for it"
                self.note(Record(run.done, "shape", reason), run)
            self._met.add(shape)

    def sized(self, step: int, model: MorphableModel) -> None:
        """Notes how many parameters there are from now on."""
        self.ledger = self.ledger.sized(step, sum(leaf.size for leaf in jax.tree.leaves(model.params)))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """What happens inside is time of this phase."""
        self._clock += self._heard()
        began = time.perf_counter()
        yield
        spent = time.perf_counter() - began
        self._clock += spent
        self.ledger = self.ledger.add(phase, seconds=max(0.0, spent - self._heard()))

    def account(self, model: MorphableModel) -> None:
        """Accounts for the steps since the last time, all with the structure and the seeds of this model."""
        now = time.perf_counter()
        steps, seconds = self._steps, max(0.0, now - self._clock - self._heard())
        self._steps, self._clock = 0, now
        if not steps:
            return
        cost = self._step_cost(model, *places(model))
        self.ledger = interval(self.ledger, cost, steps=steps, seconds=seconds, names=kernel_names(model))

    def foresee(self, model: MorphableModel) -> None:
        """Counts what steps of this model will cost, before and after its TRAINING kernels are blended in."""
        live, training = places(model)
        self._step_cost(model, live, training)
        self._step_cost(model, live | training, frozenset())

    def _heard(self) -> float:
        """Seconds of the compiles in this thread since the last time, which are no time of what they happened in."""
        own = self.counter.take()
        self._compiled += own
        return own.seconds

    def _step_cost(self, model: MorphableModel, live: frozenset[Place], training: frozenset[Place]) -> StepCost:
        learner = self._learner
        loss, race = learner.objective.training, learner.race
        return step_flops(loss, model, self._batch, learner.tx, live=live, training=training, race=race)

    def evaluated(self, model: MorphableModel, batches: Any) -> None:
        """Accounts for an evaluation."""
        live, _ = places(model)
        cost = evaluation_flops(self._learner.objective.evaluation, model, batches, live=live)
        self.ledger = self.ledger.add("evaluation", flops=cost, count=1)

    def measured(self, asks: Asks, model: MorphableModel, batches: Any) -> None:
        """Accounts for what a policy asked for."""
        loss, cost = self._learner.objective, 0
        if asks.gains or asks.credits:
            arms = 2 * len(asks.gains) + _coalitions(len(asks.credits))
            cost += arms * gain_flops(loss, model, batches) // 2
        if asks.scores:
            layers = [site.name for site in model.structure.sites if site.name in asks.scores and is_served(site)]
            cost += statistics_flops(loss, model, batches, layers=layers, live=places(model)[0])
        if cost:
            self.ledger = self.ledger.add("measurement", flops=cost, count=1)

    def settle(self, model: MorphableModel) -> None:
        """Closes the ledger: the kernels that take part in the model are those that stayed."""
        names, (live, _) = kernel_names(model), places(model)
        self.ledger = self.ledger.settled(names[place] for place in live)


def _coalitions(kernels: int) -> int:
    """How many the credits of so many kernels evaluate; beyond the exact ones, at most."""
    if kernels <= EXACT:
        return 2**kernels if kernels else 0
    return min(2**kernels, _ORDERS * (kernels - 1) + 2)


def _born(record: Record, newborn: Arrival) -> Record:
    """The record with what an initialiser said; where no kernel is worth having or to be had, "declined"."""
    if isinstance(newborn, Missing):
        return replace(record, event="declined", reason=newborn.reason)
    if isinstance(newborn, KernelArtifact):  # the policy may have named it by the beginning of its digest
        return replace(record, figures={**record.figures, "artifact": newborn.digest})
    report = None if newborn is None else newborn.report
    if report is None:
        return record
    said: Figures = {"init": report.initialiser, "init_gain": report.gain, "init_scale": report.scale}
    if report.check is not None:
        said |= {"init_check": report.check.mean, "init_check_stderr": report.check.stderr}
    record = replace(record, figures={**record.figures, **said})
    if isinstance(newborn, DoNotGerminate):
        reason = f"no scale of a fitted kernel's output is better than none: {report.check}"
        return replace(record, event="declined", reason=reason)
    return record


def record_of(action: Action, step: int) -> Record:
    """The record of an action."""
    match action:
        case Hold(reason):
            return Record(step, "hold", reason)
        case Note(event, reason, waited):
            return Record(step, event, reason, waited=round(waited, 4))
        case Transition(layer, seed, to, reason):
            return Record(step, to.name.lower(), reason, layer, seed)
        case SetAlpha(layer, seed, alpha, reason):
            return Record(step, "alpha", reason, layer, seed, {"alpha": alpha})
        case Germinate(layer, seed, blueprint, options, reason):
            return Record(step, "germinate", reason, layer, seed, {"blueprint": blueprint, **dict(options)})
        case Load(layer, seed, artifact, reason, blueprint):
            return Record(step, "load", reason, layer, seed, {"blueprint": blueprint, "artifact": artifact})
    return Record(step, "remove", action.reason, action.layer, action.seed)
