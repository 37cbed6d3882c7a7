"""The main job: train, watch, grow. The device is waited for at evaluations only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.configs import TamiyoSettings, TrainingSettings
from esper.errors import ArgumentError
from esper.growth.credit import Gain
from esper.growth.plans import plans
from esper.growth.policy import (
    STRUCTURAL,
    Action,
    Germinate,
    Hold,
    Observation,
    Policy,
    SetAlpha,
    Transition,
    act,
    asked,
)
from esper.growth.schedule import schedule
from esper.growth.tamiyo import Tamiyo
from esper.growth.verbs import cull
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState
from esper.train.compiles import CompileCounter, Compiles, counting_compiles
from esper.train.data import Dataset
from esper.train.history import Record
from esper.train.observe import gains, growing, measured, observed, with_health, with_measurements
from esper.train.rehearsal import rehearse
from esper.train.step import Learner, TrainState, batch_table, credit_loss, evaluate, learner, train_step

HELD_OUT_BATCHES = 16
"""Batches that the validation part is measured in; standard errors are over these."""

Watch = Callable[[int], None]
Listen = Callable[[Record], None]


@dataclass(frozen=True)
class Score:
    """How good the model was at some point, on the test part, which nothing is decided on.

    Attributes:
        label: "untrained", "before growth" or "end".
        step: Training steps done.
        loss: Mean loss.
        accuracy: Share of right answers.
        examples: How many examples were asked.
        parameters: How many parameters the model had, kernels included.
    """

    label: str
    step: int
    loss: float
    accuracy: float
    examples: int
    parameters: int


@dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
        model: The trained model; kernels that were culled are gone.
        opt_state: The optimiser's state for it.
        records: What happened, in order.
        scores: Test scores by label.
        gains: Held-out gain, on the validation part, of each kernel that stayed.
    """

    model: MorphableModel
    opt_state: Any
    records: tuple[Record, ...]
    scores: dict[str, Score]
    gains: dict[tuple[str, int], Gain]


def grow(
    model: MorphableModel,
    data: Dataset,
    training: TrainingSettings,
    tamiyo: TamiyoSettings,
    *,
    policy: Policy[Any] | None = None,
    name: str = "growth",
    watch: Watch = lambda step: None,
    listen: Listen = lambda record: None,
) -> Result:
    """Trains a classifier, growing it as the policy says.

    Args:
        model: A wrapped model that gives logits, shape [batch, classes]; it is left as it is.
        data: What to train, decide and report on.
        training: Steps, batch size, optimiser, key.
        tamiyo: Durations of a seed's stages, and what the built-in policy goes by.
        policy: Another policy.
        name: Of the run, in its records.
        watch: Told every step's number, without waiting for the step.
        listen: Told every record as it is made.

    Returns:
        The trained model and what happened.

    Raises:
        ArgumentError: The model gives no logits for these data.
    """
    _check_logits(model, data)
    learning = learner(
        training,
        kernel_warmup_steps=tamiyo.kernel_warmup_steps,
        blend_steps=tamiyo.blend_steps,
        rise=schedule(tamiyo.schedule),
    )
    with counting_compiles() as counter:
        run = _Run(training, learning, data, policy or Tamiyo(tamiyo), counter, name, watch, listen)
        run.begin(model, tamiyo)
        while run.done < training.steps:
            run.advance(min(training.eval_every, training.steps - run.done))
            run.decide(run.observe())
        return run.finish()


@dataclass
class _Run:
    """One run's mutable side: the state between steps, and the books."""

    training: TrainingSettings
    learner: Learner
    data: Dataset
    policy: Policy[Any]
    counter: CompileCounter
    name: str
    watch: Watch
    listen: Listen
    state: TrainState = field(init=False)
    done: int = 0
    losses: list[float] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    pending: list[tuple[Action, Compiles]] = field(default_factory=list)
    scores: dict[str, Score] = field(default_factory=dict)

    def begin(self, model: MorphableModel, tamiyo: TamiyoSettings) -> None:
        """Draws the batches, compiles what data-only events will run, and scores the untrained model."""
        self.step_key, table_key, self.germination_key = jax.random.split(jax.random.key(self.training.key), 3)
        size = min(self.training.batch_size, len(self.data.train))
        self.table = batch_table(table_key, len(self.data.train), size, self.training.steps)
        self.held_out = self.data.validation.stacked(HELD_OUT_BATCHES)
        self.planned = plans(model, tamiyo.blueprints, tamiyo.rank, tamiyo.blend)
        self.memory, self.rank = self.policy.start(), tamiyo.rank
        self.state = self.learner.begin(model)
        if self.planned:
            layer, (plan, *_) = next(iter(self.planned.items()))
            rehearse(model, (layer, plan))
        self.note(Record(0, "start", "batches drawn, small operations compiled"), self.counter.take())
        self.score("untrained")

    def advance(self, steps: int) -> None:
        """Runs steps, without waiting for any."""
        for _ in range(steps):
            self.state = train_step(self.learner, self.state, self.table, self.data.train, self.step_key)
            self.done += 1
            self.watch(self.done)
        self.since = steps

    def observe(self) -> Observation:
        """Measures on the validation part, notes it down, and starts the sums afresh."""
        losses, accuracies = evaluate(self.state.model, self.held_out)
        loss, accuracy = float(np.mean(losses)), float(np.mean(accuracies))
        self.losses.append(loss)
        figures: dict[str, float | int | str] = {
            "train_loss": float(self.state.loss) / self.since,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
        }
        pulls = np.sqrt(np.asarray(self.state.pull) / self.since)
        layers = observed(self.state.model, pulls, self.planned)
        seen = Observation(self.done, self.training.steps, self.training.eval_every, tuple(self.losses), layers)
        # Every gain is written down, whether the policy reads it now or not.
        asks = replace(asked(self.policy, seen, self.memory), gains=growing(self.state.model))
        found = measured(credit_loss, self.state.model, self.held_out, asks, rank=self.rank)
        self.state = replace(self.state, model=with_health(self.state.model, found.gains)).rewound()
        self.settle(figures | found.figures())
        return replace(seen, layers=with_measurements(layers, found))

    def decide(self, observation: Observation) -> None:
        """Does what the policy says; what it compiles is counted until the next evaluation is over."""
        actions, self.memory = self.policy(observation, self.memory)
        if any(isinstance(action, Germinate) for action in actions) and "before growth" not in self.scores:
            self.score("before growth")
        for action in actions:
            key = jax.random.fold_in(self.germination_key, self.done)
            model, opt_state = act(self.state.model, self.state.opt_state, action, key=key)
            self.state = replace(self.state, model=model, opt_state=opt_state)
            self.pending.append((action, self.counter.take()))

    def settle(self, figures: dict[str, float | int | str]) -> None:
        """Writes down the events of the last evaluation, with their compiles, then this evaluation."""
        rest = self.counter.take()
        heir = _heir([action for action, _ in self.pending])
        for place, (action, own) in enumerate(self.pending):
            caused = own + rest if place == heir else own
            self.note(_record(action, self.done - self.since), caused)
        self.note(Record(self.done, "evaluate", figures=figures), Compiles() if self.pending else rest)
        self.pending.clear()

    def finish(self) -> Result:
        """Removes what was culled, scores the result and closes the books."""
        for action, own in self.pending:
            self.note(_record(action, self.done), own)
        model, opt_state = self.state.model, self.state.opt_state
        states = np.asarray(model.seeds.lifecycle)
        for kernel in model.structure.kernels:
            if states[model.structure.row(kernel.layer), kernel.seed] == int(SeedLifecycleState.CULLED):
                model, opt_state = cull(model, opt_state, layer=kernel.layer, seed=kernel.seed)
        self.state = replace(self.state, model=model, opt_state=opt_state)
        self.score("end")
        found = gains(credit_loss, model, self.held_out, growing(model, fossilised=True))
        self.note(Record(self.done, "end", "the last step is done"), self.counter.take())
        return Result(with_health(model, found), opt_state, tuple(self.records), self.scores, found)

    def score(self, label: str) -> None:
        """Measures on the test part; for the report only."""
        model, test = self.state.model, self.data.test
        losses, accuracies = evaluate(model, test.stacked(1))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        score = Score(label, self.done, float(np.mean(losses)), float(np.mean(accuracies)), len(test), parameters)
        self.scores[label] = score
        figures: dict[str, float | int | str] = {"test_loss": score.loss, "test_accuracy": score.accuracy}
        self.note(Record(self.done, "score", label, figures=figures | {"parameters": parameters}), self.counter.take())

    def note(self, record: Record, compiles: Compiles) -> None:
        """Adds a record, with what it compiled."""
        full = replace(
            record,
            compiles=len(compiles),
            programs=compiles.programs,
            compile_seconds=round(compiles.seconds, 4),
            run=self.name,
        )
        self.records.append(full)
        self.listen(full)


def _heir(actions: list[Action]) -> int:
    """Whose the compiles are that show up between actions and the next evaluation.

    Of those that change the structure, a germination; without any, of the first: it should have none, and
    if it has, they are not to be hidden.
    """
    for kind in (Germinate, STRUCTURAL):
        for place, action in enumerate(actions):
            if isinstance(action, kind):
                return place
    return 0


def _record(action: Action, step: int) -> Record:
    match action:
        case Hold(reason):
            return Record(step, "hold", reason)
        case Transition(layer, seed, to, reason):
            return Record(step, to.name.lower(), reason, layer, seed)
        case SetAlpha(layer, seed, alpha, reason):
            return Record(step, "alpha", reason, layer, seed, {"alpha": alpha})
        case Germinate(layer, seed, blueprint, options, reason):
            return Record(step, "germinate", reason, layer, seed, {"blueprint": blueprint, **dict(options)})
    return Record(step, "remove", action.reason, action.layer, action.seed)


def _check_logits(model: MorphableModel, data: Dataset) -> None:
    inputs = data.train.inputs[:2]
    logits = jax.eval_shape(lambda m, x: m(x), model, inputs)
    wanted = (len(inputs), data.classes)
    if getattr(logits, "shape", None) != wanted or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ArgumentError(
            f"the model is to give logits, shape [batch, {data.classes}]; for inputs of shape {inputs.shape} "
            f"it gives {logits}"
        )
