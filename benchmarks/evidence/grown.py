"""Arms that grow: `esper.fit` with a policy, its ledger, and what it recorded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax

import esper
from benchmarks.evidence.arms import Outcome, Pairs, Task
from benchmarks.evidence.hosts import count
from benchmarks.evidence.learning import Schooling, measured, optimizer
from benchmarks.evidence.results import Event
from esper.configs import TamiyoSettings
from esper.growth.policy import STRUCTURAL, Action, Asks, Cull, Observation, Plan, Policy, asked
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState
from esper.train.objective import accuracy

_TOLD = {"germinate": "germinate", "grafting": "graft", "fossilized": "fossilise", "culled": "cull"}


@dataclass(frozen=True)
class Tidy:
    """A policy's decisions, with plans of one's own, and without the arrays of culled kernels.

    The arrays of kernels that lost a race are taken out as soon as nothing else is under way, since a kernel that is
    switched off beside one that is on is computed.

    Attributes:
        policy: What decides.
        plans: What each layer could grow by; empty: what the settings say.
    """

    policy: Policy[Any]
    plans: Mapping[str, tuple[Plan, ...]] = field(default_factory=dict)

    def start(self) -> Any:
        """As the policy."""
        return self.policy.start()

    def asks(self, observation: Observation, memory: Any) -> Asks:
        """As the policy."""
        return asked(self.policy, self._planned(observation), memory)

    def __call__(self, observation: Observation, memory: Any) -> tuple[tuple[Action, ...], Any]:
        """As the policy, then tidying."""
        actions, memory = self.policy(self._planned(observation), memory)
        if any(isinstance(action, STRUCTURAL) for action in actions):
            return actions, memory
        dead = [s for s in observation.seeds() if s.state is SeedLifecycleState.CULLED and s.parameters]
        return (*actions, *(Cull(*seed.place, "its arrays go") for seed in dead)), memory

    def _planned(self, observation: Observation) -> Observation:
        layers = (replace(layer, plans=self.plans.get(layer.name, layer.plans)) for layer in observation.layers)
        return replace(observation, layers=tuple(layers))


@dataclass(frozen=True, eq=False)
class Growing:
    """How an arm grows.

    Attributes:
        settings: Of the built-in policy; durations count for others too.
        every: Steps between evaluations.
        plans: What each layer could grow by, if the settings do not say it.
    """

    settings: TamiyoSettings
    every: int
    plans: Mapping[str, tuple[Plan, ...]] = field(default_factory=dict)


def grown(
    model: MorphableModel,
    key: int,
    rate: float,
    schooling: Schooling,
    growing: Growing,
    policy: Policy[Any],
    task: Task,
) -> Outcome:
    """One run of `esper.fit`."""
    start, data = time.perf_counter(), task.data
    points: list[tuple[float, float, float]] = []

    def noticed(record: Any, run: Any) -> None:
        if record.event == "evaluate":
            spent = float(run.books.ledger.total_flops)
            points.append((spent, record.figures["validation_loss"], 100 * record.figures["validation_accuracy"]))

    result = esper.fit(
        model,
        (data.train.inputs, data.train.labels),
        tx=optimizer(schooling, rate),
        steps=schooling.steps,
        key=jax.random.key(key),
        batch_size=schooling.batch,
        validation=(data.validation.inputs, data.validation.labels),
        every=growing.every,
        metrics={"accuracy": accuracy},
        growth=growing.settings,
        policy=Tidy(policy, growing.plans),
        governor=None,
        callbacks=[noticed],
    )
    # What is permanent or on trial at the end takes part; measured as it is, like every other arm.
    loss, correct = map(float, measured(result.model, data.validation))
    ledger = result.ledger
    shares = {f"{phase} share": spent.flops / ledger.total_flops for phase, spent in ledger.phases.items()}
    return Outcome(
        model=result.model,
        loss=loss,
        accuracy=correct,
        flops=ledger.total_flops,
        parameters=count(result.model),
        seconds=time.perf_counter() - start,
        losses=tuple((spent, loss) for spent, loss, _ in points),
        accuracies=tuple((spent, accuracy) for spent, _, accuracy in points),
        events=_events(result.records),
        extra={**shares, "culled share": ledger.culled_flops / ledger.total_flops},
    )


def each(pairs: Pairs, one: Any) -> list[Outcome]:
    """Runs one after the other."""
    return [one(key, rate) for key, rate in pairs]


def _events(records: Any) -> tuple[Event, ...]:
    held: dict[tuple[str, int], str] = {}
    found = []
    for record in records:
        if record.event not in _TOLD:
            continue
        place = (record.layer, record.seed)
        if record.event == "germinate":
            options = [f"{name} {value}" for name, value in record.figures.items() if name in ("width", "rank")]
            held[place] = " ".join([str(record.figures["blueprint"]), *options])
        found.append(Event(record.step, _TOLD[record.event], f"{held[place]} at {record.layer or 'the whole'}"))
    return tuple(found)


def winner(outcome_events: tuple[Event, ...]) -> str:
    """The blueprint that was fossilised last; empty: none was."""
    kept = [event.detail.split()[0] for event in outcome_events if event.what == "fossilise"]
    return kept[-1] if kept else ""
