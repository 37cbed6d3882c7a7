"""One run on its way: steps, evaluations, decisions. The device is waited for at evaluations only."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from esper.configs import changes as configs
from esper.errors import EsperError
from esper.growth.credit import paired_losses
from esper.growth.policy import Observation, Plan, Policy, act, asked, forgives
from esper.jax_backend.devices import fetched
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState as S
from esper.train import change as changes
from esper.train.ahead import Ahead
from esper.train.books import Books, record_of
from esper.train.change import Change, Evidence, Preparation
from esper.train.checkpoint import Checkpoint, SoundPoint
from esper.train.governor import GiveUp, Governor, Memory, Reading, Rollback, Sound, rolled_back
from esper.train.history import Figures, Record
from esper.train.observe import measured, observed, with_health, with_measurements
from esper.train.step import Learner, Measured, Metric, TrainState, copied, evaluate, train_step
from esper.train.stopping import EarlyStopping
from esper.train.stream import Stream
from esper.train.updates import Updates, again, changed, met

OnStep = Callable[["Run"], None]
"""Told every step, without waiting for it."""

_RECENT = 8  # training batches that initialisers look at

# What is folded into the run's key; the numbers of steps stay below.
_GERMINATION, _CREDIT, _RETRY = 2**31, 2**31 + 1, 2**31 + 2


@dataclass(frozen=True)
class Course:
    """What a run is to do; a change that is asked for on the way makes another one.

    Attributes:
        learner: How to learn.
        steps: Steps of the whole run.
        every: Steps between evaluations.
        swap: Steps from a decision that changes the structure until it is made; None: as soon as it is compiled.
        metrics: What is measured at evaluations besides the loss.
        policy: What decides on growth; None: nothing grows.
        plans: What each layer could grow by.
        rank: Of first-order gains.
        governor: What judges the run's health; None: nobody.
        stopping: When to stop early.
        on_step: Told every step.
        updates: What is asked of the run from outside; None: nothing.
    """

    learner: Learner
    steps: int
    every: int
    swap: int | None
    metrics: tuple[Metric, ...] = ()
    policy: Policy[Any] | None = None
    plans: Mapping[str, tuple[Plan, ...]] = field(default_factory=dict)
    rank: int = 8
    governor: Governor | None = None
    stopping: EarlyStopping | None = None
    on_step: OnStep = lambda run: None
    updates: Updates | None = None


class Run:
    """A run, as callbacks see it.

    Attributes:
        done: Steps done; after a rollback, those that count.
        losses: Held-out losses at the evaluations so far.
        stopped: Why the run ends before its last step; empty: it does not.
        books: Records and costs so far.
    """

    def __init__(self, course: Course, state: TrainState, stream: Stream, held_out: Any, books: Books) -> None:
        self._course, self._state, self._stream, self._held_out = course, state, stream, held_out
        self._preparation: Preparation | None = None
        self._begun: list[Preparation] = []
        self._waited = 0.0
        self._memory = course.policy.start() if course.policy else None
        self._guard: Memory = course.governor.start() if course.governor else Memory()
        self._sound: SoundPoint | None = None
        self._since = 0
        self._ahead = Ahead(state.step)
        self._recent: list[Any] = []
        self._undecided: Observation | None = None
        self._asked: list[configs.Change] = []
        self.books = books
        self.done, self.stopped = 0, ""
        self.losses: list[float] = []

    @property
    def model(self) -> MorphableModel:
        """The model as it is now. The next step consumes its arrays: copy what is to be kept."""
        return self._state.model

    @property
    def opt_state(self) -> Any:
        """The optimiser's state as it is now; as for `model`."""
        return self._state.opt_state

    @property
    def is_settled(self) -> bool:
        """Whether no change of structure is under way; one that is looks at what was before, so it is not kept."""
        return self._preparation is None

    @property
    def is_decided(self) -> bool:
        """Whether the policy has been heard on the last evaluation; a checkpoint within one is not, and asks again."""
        return self._undecided is None

    def stop(self, reason: str) -> None:
        """Ends the run at the next step boundary."""
        self.stopped = self.stopped or reason

    def update(self, field: str, value: Any) -> None:
        """Changes a setting at the next evaluation, before anything is decided there; `CHANGEABLE` lists them.

        Raises:
            ConfigError: The field may not change in a run, or the value is refused.
        """
        asked = configs.change(field, value)
        changed(self._course, asked, self.done)  # so that what cannot be done is said here
        self._asked.append(asked)

    def checkpoint(self) -> Checkpoint:
        """The run as it is, in arrays of its own.

        One that is taken when an evaluation is told, or after the run, can be gone on from exactly.
        """
        return Checkpoint(
            state=copied(self._state),
            done=self.done,
            epoch=self._stream.epoch,
            index=self._stream.index,
            memory=copy.deepcopy(self._memory),  # a policy may write into what it remembers
            guard=self._guard,
            losses=tuple(self.losses),
            records=tuple(self.books.records),
            ledger=self.books.ledger,
            recent=tuple(self._recent),
            change=self._preparation.change if self._preparation else None,
            undecided=self._undecided,
            sound=self._sound,
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes to where the checkpoint is; the stream and the state are there already."""
        self.done, self.losses = checkpoint.done, list(checkpoint.losses)
        self._course = again(self._course, checkpoint.records)
        self._memory, self._guard = copy.deepcopy(checkpoint.memory), checkpoint.guard
        self._recent = list(checkpoint.recent)
        here = SoundPoint(copied(self._state), self.done, len(self.losses), self.books.ledger)
        self._sound = checkpoint.sound or here
        if checkpoint.change:
            self._prepare(checkpoint.change)
        if checkpoint.undecided:
            self._decide(checkpoint.undecided)
        if self.losses and self._course.stopping and (reason := self._course.stopping.reason(self.losses)):
            self.stop(reason)

    def go(self) -> None:
        """Runs until the last step, or until it is stopped."""
        updates = self._course.updates
        if updates:
            updates.begin(self.done, self.books.records)
        try:
            self._go()
        finally:
            if updates:
                updates.end(self.done)

    def _go(self) -> None:
        if self._course.governor and self._sound is None:
            self._begin_guard(self._course.governor)
        while self.done < self._course.steps and not self.stopped:
            course = self._course
            self._advance(min(course.every - self.done % course.every, course.steps - self.done))
            if self._since:
                self._update()
                self._evaluate()

    def close(self) -> None:
        """Waits for threads that still prepare something: none outlives the run."""
        for preparation in self._begun:
            preparation.wait()

    # ---- steps ----------------------------------------------------------------------------------------------

    def _advance(self, steps: int) -> None:
        self._since = 0
        for _ in range(steps):
            self._make_if_due()
            batch = next(self._stream)
            self.books.met(batch, self)
            self._state = train_step(self._course.learner, self._state, batch)
            self._recent = [*self._recent[1 - _RECENT :], batch]
            self.done, self._since = self.done + 1, self._since + 1
            self._ahead(self._state.step)
            if self.done < self._course.steps:
                self._stream.fetch()  # before anybody can wait for the step
            self._course.on_step(self)
            if self.stopped:
                return

    # ---- evaluations ----------------------------------------------------------------------------------------

    def _update(self) -> None:
        """Makes the changes that were asked for, in time for what is decided now."""
        asked, self._asked = self._asked, []
        for wish in asked:
            self._course, record = changed(self._course, wish, self.done)
            self.books.note(record, self)
        if self._course.updates is None:
            return
        evaluations = sum(record.event in ("evaluate", "rollback") for record in self.books.records)
        for request in self._course.updates.due(evaluations, self.done):
            self._course, record = met(self._course, request, self.done)
            self.books.note(record, self)

    def _evaluate(self) -> None:
        train_loss = float(self._state.loss) / self._since
        self.books.account(self._state.model)
        found = self._measure()
        loss = train_loss if found is None else float(np.mean(found.losses))
        figures = _figures(train_loss, found)
        if not self._judge(train_loss, loss, found, figures):
            return
        self.losses.append(loss)
        self._make_if_due()
        self._undecided = self._observe(train_loss, figures)
        self._state = self._state.rewound()
        self.books.note(Record(self.done, "evaluate", figures=figures | untold(self._state.model, self.done)), self)
        if self._undecided is not None and not self.stopped:
            self._decide(self._undecided)
        if self._course.stopping and (reason := self._course.stopping.reason(self.losses)):
            self.stop(reason)

    def _measure(self) -> Measured | None:
        if self._held_out is None:
            return None
        with self.books.timed("evaluation"):
            objective = self._course.learner.objective
            found = fetched(evaluate(objective, self._course.metrics, self._state.model, self._held_out))
        self.books.evaluated(self._state.model, self._held_out)
        return found

    def _observe(self, train_loss: float, figures: Figures) -> Observation | None:
        """What the policy decides on; None where it is not asked: while a change is on its way, what it sees is old."""
        course, policy = self._course, self._course.policy
        if policy is None or self._preparation is not None:
            return None
        pulls = np.sqrt(np.asarray(self._state.pull) / self._since)
        layers = observed(self._state.model, pulls, course.plans)
        metrics = tuple((name, value) for name, value in figures.items() if isinstance(value, float))
        seen = Observation(self.done, course.steps, course.every, tuple(self.losses), layers, train_loss, metrics)
        with self.books.timed("decision"):
            asks = asked(policy, seen, self._memory)
        key = jax.random.fold_in(jax.random.fold_in(self._state.key, _CREDIT), self.done)
        with self.books.timed("measurement"):
            model, objective = self._state.model, course.learner.objective
            found = measured(objective, model, self._held_out, asks, rank=course.rank, key=key)
        self.books.measured(asks, self._state.model, self._held_out)
        self._state = replace(self._state, model=with_health(self._state.model, found.gains))
        figures |= found.figures()
        return replace(seen, layers=with_measurements(layers, found))

    # ---- decisions ------------------------------------------------------------------------------------------

    def _decide(self, observation: Observation) -> None:
        assert self._course.policy is not None
        with self.books.timed("decision"):
            actions, self._memory = self._course.policy(observation, self._memory)
        self._undecided = None
        at_once, deferred = changes.split(actions)
        for action in at_once:
            try:
                model, opt_state = act(self._state.model, self._state.opt_state, action, key=self._state.key)
            except EsperError as error:
                self._reject(error)
                continue
            self._state = replace(self._state, model=model, opt_state=opt_state)
            self.books.note(record_of(action, self.done), self)
        if deferred:
            due = None if self._course.swap is None else self.done + self._course.swap
            key = jax.random.fold_in(jax.random.fold_in(self._state.key, _GERMINATION), self.done)
            change = Change(deferred, self.done, due, key)
            self._state = changes.announced(self._state, change)
            self.books.note(Record(self.done, "prepare", changes.told(change)), self)
            self._prepare(change)
            self._make_if_due()

    def _reject(self, error: EsperError) -> None:
        """Goes on without what cannot be done, if the policy is told from outside; its change is taken back."""
        if not forgives(self._course.policy):
            raise error
        self._preparation = None
        self._state = replace(self._state, model=changes.withdrawn(self._state.model))
        self.books.note(Record(self.done, "rejected", f"impossible: {error}"), self)

    def _prepare(self, change: Change) -> None:
        aside = change.due is None or change.due > self.done
        self._waited = -time.perf_counter()
        preparation = Preparation(change, self.books.counter)
        evidence = Evidence(self._course.learner.objective, tuple(self._recent), self._held_out)
        try:
            self._preparation = preparation.begin(copied(self._state), evidence, self._compile, aside=aside)
        except EsperError as error:
            self._reject(error)
            return
        self._waited += time.perf_counter()
        self._begun = [*(begun for begun in self._begun if not begun.ready), preparation]

    def _compile(self, state: TrainState) -> None:
        """Compiles what runs on this structure, for batches like the last one; usually in another thread."""
        learner, one = self._course.learner, np.int32(0)
        train_step.lower(learner, state, self._recent[-1]).compile()
        copied.lower(state).compile()
        self.books.foresee(state.model)
        if self._held_out is not None:
            evaluate.lower(learner.objective, self._course.metrics, state.model, self._held_out).compile()
            paired_losses.lower(learner.objective, state.model, self._held_out, one, one, np.float32(1)).compile()

    def _make_if_due(self) -> None:
        if self._preparation is None:
            return
        due = self._preparation.change.due
        if self._preparation.ready if due is None else self.done >= due:
            self._make(self._preparation)

    def _make(self, preparation: Preparation) -> None:
        """Makes the change that was prepared."""
        self.books.account(self._state.model)
        self._preparation = None
        began = time.perf_counter()
        try:
            self._state, steps, compiles = preparation.finish(self._state)
        except EsperError as error:
            self._reject(error)
            return
        self.books.changed(steps, compiles, self._waited + time.perf_counter() - began, self)

    # ---- health ---------------------------------------------------------------------------------------------

    def _begin_guard(self, governor: Governor) -> None:
        """The state before the first step is the first to go back to."""
        found = self._measure()
        self._sound = SoundPoint(copied(self._state), self.done, 0, self.books.ledger)
        if found is not None:
            reading = Reading(self.done, None, float(np.mean(found.losses)), bool(found.finite), float(found.spread))
            _, self._guard = governor.judge(reading, self._guard)

    def _judge(self, train_loss: float, loss: float, found: Measured | None, figures: Figures) -> bool:
        """Whether the run goes on from here; if not, it has been put back to where it was sound."""
        governor = self._course.governor
        if governor is None:
            return True
        finite = math.isfinite(train_loss) and (found is None or bool(found.finite))
        spread = math.nan if found is None else float(found.spread)
        reading = Reading(self.done, train_loss, loss, finite, spread, _seeds(self._state.model))
        verdict, self._guard = governor.judge(reading, self._guard)
        match verdict:
            case Sound():
                self._sound = SoundPoint(
                    copied(self._state.rewound()), self.done, len(self.losses) + 1, self.books.ledger
                )
            case Rollback() | GiveUp():
                self._put_back(verdict, figures)
                return False
            case _:
                self.books.note(Record(self.done, "watch", verdict.reason, figures=dict(figures)), self)
        return True

    def _put_back(self, verdict: Rollback | GiveUp, figures: Figures) -> None:
        """The last sound state, whole; seeds that may be to blame are culled there, and what is drawn changes."""
        assert self._sound is not None
        failed, self.done, state = self.done, self._sound.done, copied(self._sound.state)
        del self.losses[self._sound.losses :]
        self._preparation = None  # what it was decided on is gone; its thread works on a copy and may end
        if isinstance(verdict, GiveUp):
            self.stop(f"given up: {verdict.reason}")
            figures = {**figures, "back_to": self.done}
            self._state = replace(state, model=changes.withdrawn(state.model))
            self.books.put_back(Record(failed, "give_up", verdict.reason, figures=figures), self._sound.ledger, self)
            return
        model = changes.withdrawn(rolled_back(state.model, verdict.culprits))
        self._state = replace(state, model=model, key=jax.random.fold_in(state.key, _RETRY + verdict.retry))
        culprits = ", ".join(f"{layer or '(root)'}[{seed}]" for layer, seed in verdict.culprits) or "none"
        figures = {**figures, "back_to": self.done, "retry": verdict.retry, "culled": culprits}
        self.books.put_back(Record(failed, "rollback", verdict.reason, figures=figures), self._sound.ledger, self)


def _figures(train_loss: float, found: Measured | None) -> Figures:
    figures: Figures = {"train_loss": train_loss}
    if found is not None:
        figures["validation_loss"] = float(np.mean(found.losses))
        figures |= {f"validation_{name}": float(np.mean(values)) for name, values in found.metrics.items()}
    return figures


def untold(model: MorphableModel, step: int) -> Figures:
    """What happened to seeds within steps, which no event tells: alpha of those that graft, when a kernel failed.

    The states have been fetched for the books already, so this waits for nothing.
    """
    found: Figures = {}
    for layer, seed, state, since in _seeds(model):
        if state is S.GRAFTING:
            found[f"alpha {layer}[{seed}]"] = float(np.asarray(model.seeds.alpha)[model.structure.row(layer), seed])
        elif state is S.ERROR_RECOVERY:
            found[f"failed {layer}[{seed}]"] = step - since
    return found


def _seeds(model: MorphableModel) -> tuple[tuple[str, int, S, int], ...]:
    """The seeds that hold kernels: layer, number, state, steps since it was entered."""
    if not model.structure.kernels:
        return ()
    seeds = jax.device_get(model.seeds)
    found = []
    for kernel in model.structure.kernels:
        at = model.structure.row(kernel.layer), kernel.seed
        found.append(
            (kernel.layer, kernel.seed, S(int(seeds.lifecycle[at])), int(seeds.age[at] - seeds.last_update[at]))
        )
    return tuple(found)
