"""The main job's training: a classifier on one of the data sets, scored on a part that nothing is decided on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import count
from typing import Any

import jax
import numpy as np
import optax

from esper.configs import TamiyoSettings, TrainingSettings
from esper.growth.credit import Gain
from esper.growth.policy import Policy
from esper.jax_backend.model import MorphableModel
from esper.train.books import Callback
from esper.train.compiles import counting_compiles
from esper.train.data import Dataset
from esper.train.fit import FitResult, fit
from esper.train.history import Figures, Record
from esper.train.keeping import Checkpoints
from esper.train.ledger import Ledger
from esper.train.objective import Objective, OnTargets, accuracy, cross_entropy
from esper.train.run import Run
from esper.train.step import check_logits, evaluate

Watch = Callable[[int], None]
Listen = Callable[[Record], None]

OBJECTIVE = Objective(OnTargets(cross_entropy))
METRICS = (("accuracy", OnTargets(accuracy)),)


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
        ledger: What it cost.
    """

    model: MorphableModel
    opt_state: Any
    records: tuple[Record, ...]
    scores: dict[str, Score]
    gains: dict[tuple[str, int], Gain]
    ledger: Ledger


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
    updates: str | os.PathLike[str] | None = None,
    draw: int = 0,
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | None = None,
    resume: str | os.PathLike[str] | None = None,
    recall: Callable[[Sequence[Record]], None] = lambda records: None,
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
        updates: A folder in which changes of settings are asked for.
        draw: How many kernels of the model's library are tried beside one layer (as for `esper.fit`).
        callbacks: Called with every record and the run, as it is made, before `listen`.
        checkpoints: Where checkpoints of the run are kept; None: nowhere.
        resume: A folder of checkpoints to go on from the newest of; None, or one without any: the run begins.
        recall: Told what a run that goes on has recorded before, as soon as that is known.

    Returns:
        The trained model and what happened.

    Raises:
        ArgumentError: The model gives no logits for these data.
    """
    check_logits(model, data.train.inputs[:2], data.classes)
    scores = _Scores(data)

    fresh = count(1)

    def told(record: Record, run: Run) -> None:
        new = next(fresh)  # records of this process; those before them are the checkpoint's
        if record.event == "resume":
            _recalled(run, scores)
            recall(run.books.records[:-new])
        listen(record)
        label = {"start": "untrained", "prepare": "before growth"}.get(record.event)
        if label and label not in scores.taken:
            run.books.note(scores.take(label, run.model, run.done), run)

    result = fit(
        model,
        (data.train.inputs, data.train.labels),
        loss=OBJECTIVE,
        tx=optimizer(training.optimizer, training.learning_rate, training.weight_decay, training.momentum),
        steps=training.steps,
        key=jax.random.key(training.key),
        batch_size=training.batch_size,
        validation=(data.validation.inputs, data.validation.labels),
        every=training.eval_every,
        metrics={"accuracy": accuracy},  # `fit` gives it the targets, as OBJECTIVE's criterion gets them
        growth=tamiyo,
        policy=policy,
        callbacks=[*callbacks, told],
        on_step=lambda run: watch(run.done),
        name=name,
        updates=updates,
        draw=draw,
        checkpoints=checkpoints,
        resume=resume,
    )
    return _scored(result, scores, name, listen)


@lru_cache(maxsize=32)
def optimizer(kind: str, learning_rate: float, weight_decay: float, momentum: float) -> optax.GradientTransformation:
    """The optimiser of that name; cached, so that equal settings are the same object, hence the same compiled step."""
    decay = optax.add_decayed_weights(weight_decay)
    if kind == "adamw":
        return optax.adamw(learning_rate, weight_decay=weight_decay)
    if kind == "adam":
        return optax.chain(decay, optax.adam(learning_rate))
    return optax.chain(decay, optax.sgd(learning_rate, momentum=momentum))


@dataclass
class _Scores:
    """The test part, and what was scored on it so far."""

    data: Dataset
    taken: dict[str, Score] = field(default_factory=dict)

    def take(self, label: str, model: MorphableModel, step: int) -> Record:
        """Measures on the test part; for the report only."""
        test = self.data.test.stacked(1)
        found = evaluate(OBJECTIVE, METRICS, model, (test.inputs, test.labels))
        right = float(np.mean(found.metrics["accuracy"]))
        parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
        score = Score(label, step, float(np.mean(found.losses)), right, len(self.data.test), parameters)
        self.taken[label] = score
        figures: Figures = {"test_loss": score.loss, "test_accuracy": score.accuracy, "parameters": parameters}
        figures["examples"] = score.examples
        return Record(step, "score", label, figures=figures)

    def remember(self, records: Iterable[Record]) -> None:
        """What these records hold was measured when they were made."""
        for record in records:
            if record.event == "score":
                found = {name: float(value) for name, value in record.figures.items()}
                parameters, examples = int(found["parameters"]), int(found["examples"])
                loss, right = found["test_loss"], found["test_accuracy"]
                self.taken[record.reason] = Score(record.reason, record.step, loss, right, examples, parameters)


def _recalled(run: Run, scores: _Scores) -> None:
    """What a run that goes on from a checkpoint has behind it; one that was given up does not train on."""
    scores.remember(run.books.records)
    given_up = next((record for record in run.books.records if record.event == "give_up"), None)
    if given_up:
        run.stop(f"given up: {given_up.reason}")


def _scored(result: FitResult, scores: _Scores, name: str, listen: Listen) -> Result:
    """The result with its last score."""
    with counting_compiles() as counter:
        record = scores.take("end", result.model, result.checkpoint.done)
        last = Record(**{**asdict(record), "run": name, "compiles": len(counter.take())})
    listen(last)
    return Result(result.model, result.opt_state, (*result.records, last), scores.taken, result.gains, result.ledger)
