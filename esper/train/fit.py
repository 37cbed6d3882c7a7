"""`fit`: the loop most people want. Everything it does is there as pure functions too.

A step is `train.step.train_step`, an evaluation `evaluate`, what a policy sees `train.observe`, what it decides
`growth.policy.act`, a change of structure `train.change`, going back `train.governor`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from esper.configs import TamiyoSettings
from esper.errors import ArgumentError, EsperError
from esper.growth.credit import Gain
from esper.growth.kernel_states import Optimizer
from esper.growth.plans import plans
from esper.growth.policy import Plan, Policy
from esper.growth.schedule import schedule
from esper.growth.shelf import with_drawn
from esper.growth.tamiyo import Tamiyo
from esper.growth.verbs import cull
from esper.jax_backend.devices import is_spread
from esper.jax_backend.interchange import constants
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState
from esper.train.books import Books, Callback
from esper.train.change import withdrawn
from esper.train.checkpoint import Checkpoint
from esper.train.compiles import counting_compiles
from esper.train.governor import Governor
from esper.train.history import Figures, Record
from esper.train.keeping import Checkpoints, Found, Keeper, last_whole
from esper.train.ledger import Ledger
from esper.train.objective import Criterion, Objective, OnTargets, objective
from esper.train.observe import gains, growing, with_health
from esper.train.progress import progress_bar
from esper.train.rehearsal import rehearse
from esper.train.run import Course, OnStep, Run
from esper.train.step import Learner, with_kernels
from esper.train.stopping import EarlyStopping
from esper.train.stored import read
from esper.train.stream import Epochs, Shuffled, Stream, held_out, is_examples, own
from esper.train.updates import Updates

Metrics = Mapping[str, Criterion]
"""By name, functions whose mean is reported: of (outputs, targets), or, beside an Objective, of (outputs, batch)."""

_NOTHING = TamiyoSettings(policy="none")


@dataclass(frozen=True, eq=False)
class FitResult:
    """What a run gave.

    Attributes:
        model: The trained model; kernels that were culled are gone.
        opt_state: The optimiser's state for it, one of `per_kernel`.
        records: What happened, in order.
        losses: Held-out loss at every evaluation (without held-out data: the training loss since the last one).
        gains: Held-out gain of each kernel that stayed.
        ledger: What it cost.
        checkpoint: The run at its end, to go on from with more `steps`.
        stopped: Why it ended before its last step; empty: it did not.
    """

    model: MorphableModel
    opt_state: Any
    records: tuple[Record, ...]
    losses: tuple[float, ...]
    gains: dict[tuple[str, int], Gain]
    ledger: Ledger
    checkpoint: Checkpoint
    stopped: str


def fit(
    model: MorphableModel,
    data: Any,
    *,
    tx: Optimizer,
    steps: int,
    key: jax.Array,
    loss: str | Criterion | Objective = "cross_entropy",
    batch_size: int = 64,
    validation: Any = None,
    every: int = 50,
    metrics: Metrics | None = None,
    growth: TamiyoSettings | None = None,
    policy: Policy[Any] | None = None,
    governor: Governor | None = Governor(),  # noqa: B008  frozen
    early_stopping: EarlyStopping | None = None,
    callbacks: Sequence[Callback] = (),
    on_step: OnStep = lambda run: None,
    progress: bool = False,
    name: str = "growth",
    checkpoints: str | os.PathLike[str] | Checkpoints | None = None,
    resume: str | os.PathLike[str] | Checkpoint | None = None,
    updates: str | os.PathLike[str] | None = None,
    draw: int = 0,
) -> FitResult:
    """Trains a model, and grows it where a policy says so.

    Args:
        model: A wrapped model; it is left as it is.
        data: Batches (inputs, ..., targets) of numpy, torch or JAX arrays: any iterable that can be gone through once
            an epoch, such as a list or a data loader, or a function from an epoch's number to one. Or all examples: a
            tuple or dict of arrays, which are shuffled each epoch and cut into batches of `batch_size`.
        tx: An optax optimiser; every kernel gets a state of its own (`esper.growth.optimizer.per_kernel`). The same
            object in another call finds the compiled step again.
        steps: Optimiser steps.
        key: What everything random is drawn from: the same key, and the same data, give the same run.
        loss: "cross_entropy", "mean_squared_error", a function of (outputs, targets), or an `Objective`, for batches of
            another form.
        batch_size: For `data` that are examples.
        validation: Held-out data, for evaluations and every decision: examples, or batches of one size.
        every: Steps between evaluations.
        metrics: What evaluations report besides the loss.
        growth: When and where to grow, and how long a seed's stages last; None: nothing grows. It goes to the built-in
            policy.
        policy: Another policy.
        governor: What watches over the run and goes back when it fails; None: nobody.
        early_stopping: When to stop before the last step; None: never.
        callbacks: Called with every record and the run, as it is made.
        on_step: Called with the run after every step, without waiting for the device.
        progress: Whether to show a bar, in terminals.
        name: Of the run, in its records.
        checkpoints: A folder to keep checkpoints of the run in, or `Checkpoints` with how often and how many; what a
            run loses that is killed is what it has done since the last evaluation that is kept. None: nowhere.
        resume: A checkpoint of the same run, with the same other arguments but `steps`: goes on from there. Or the
            folder of one, or that of `checkpoints`, whose newest it is, without those that are damaged; where there is
            none, the run begins.
        updates: A folder of the run's own in which `esper config set` asks for changes of settings; None: nobody can.
        draw: How many kernels of the model's library are tried beside one layer, the best first, before new ones
            germinate there. A library that cannot be read is a record, and training goes on without it.

    Returns:
        The trained model, and all about how it came to be.

    Raises:
        ArgumentError: Arguments that do not go together, or data that are no batches.
        EsperError: What the model's capture raises.

    Example:
        >>> import esper, jax, optax, torch
        >>> inputs = jax.random.normal(jax.random.key(0), (256, 4))
        >>> labels = (inputs.sum(1) > 0).astype(int)
        >>> model = esper.wrap(torch.nn.Linear(4, 2))
        >>> result = esper.fit(
        ...     model, (inputs, labels), tx=optax.adam(0.05), steps=50, key=jax.random.key(1)
        ... )
        >>> result.losses[-1] < 0.3
        True
    """
    growth, minimised = growth or _NOTHING, objective(loss)
    _check(steps, every, growth, policy, validation)
    if growth.swap == "ready" and is_spread(model.params):
        raise ArgumentError(
            "swap='ready' changes the model when its compile is done, which is another step in every process: give "
            "swap='evaluation' or a number of steps"
        )
    if updates is not None and jax.process_count() > 1:
        raise ArgumentError("updates: several processes would meet a change at different steps; begin another run")
    asked = None if updates is None else Updates(updates, resumed=resume is not None)
    source = model.structure.source
    shuffled = is_examples(data)
    epochs: Epochs = (
        Shuffled(own(source, data, "data"), batch_size, jax.random.fold_in(key, 2**32 - 1)) if shuffled else data
    )
    held = None if validation is None else held_out(source, validation)
    learner = Learner(
        minimised,
        with_kernels(tx, growth.kernel_warmup_steps),
        growth.blend_steps,
        schedule(growth.schedule),
        growth.race,
    )
    chosen = policy or (Tamiyo(growth) if growth.policy != "none" else None)
    there = None if resume is None or isinstance(resume, Checkpoint) else last_whole(Path(resume))
    resume = _point(there or (resume if isinstance(resume, Checkpoint) else None), steps, model, learner, chosen)
    keeper = _keeper(checkpoints, chosen, there)
    with ExitStack() as stack:
        counter = stack.enter_context(counting_compiles())
        tick = stack.enter_context(progress_bar(steps - (resume.done if resume else 0), shown=progress))
        model = resume.state.model if resume else model
        stream = Stream(epochs, source, *((resume.epoch, resume.index) if resume else ()))
        _check_batch(minimised, model, stream.peek(), held)
        # What its captures close over: an argument of every step, where it was a part of each.
        model = model.replace(constants={**constants(source), **model.constants})
        planned = plans(model, growth.blueprints, growth.rank, growth.blend, growth.init) if chosen else {}
        planned, said = _drawn(model, planned, draw)
        course = Course(
            learner=learner,
            steps=steps,
            every=every,
            swap=_swap(growth, every),
            metrics=_metrics(metrics, minimised),
            policy=chosen,
            plans=planned,
            rank=growth.rank,
            governor=governor,
            stopping=early_stopping,
            on_step=lambda run: (tick(), on_step(run))[1],
            updates=asked,
        )
        books = Books(counter, learner, name, (*callbacks, *([keeper] if keeper else [])), resume)
        state = learner.resumed(replace(resume.state, model=model)) if resume else learner.begin(model, key)
        run = Run(course, state, stream, held, books)
        stack.callback(run.close)
        if keeper:
            stack.callback(keeper.wait)
        books.sized(run.done, state.model)
        if course.plans:
            rehearse(model, course.plans)
        if said:
            books.note(Record(run.done, "library", said), run)
        began = _began(resume)
        course_figures: Figures = {"steps": steps, "every": every}
        if chosen:
            course_figures |= {"blend_steps": growth.blend_steps, "schedule": growth.schedule}
        books.note(replace(began, figures=course_figures | began.figures), run)
        if resume:
            run.resume(resume)
        run.go()
        if keeper:
            keeper.keep(run)
            keeper.close()
        return _finished(run, minimised, held)


def _began(resume: Checkpoint | None) -> Record:
    """What is told first; of a checkpoint, what tells events that it holds from those of a future that is lost."""
    told = "small operations compiled"
    if resume is None:
        return Record(0, "start", told)
    rollbacks = sum(record.event in ("rollback", "give_up") for record in resume.records)
    return Record(
        resume.done, "resume", told, figures={"rollbacks": rollbacks, "undecided": resume.undecided is not None}
    )


def _drawn(
    model: MorphableModel, planned: Mapping[str, tuple[Plan, ...]], draw: int
) -> tuple[Mapping[str, tuple[Plan, ...]], str]:
    """The plans with those that the model's library has; and what is to be said of that."""
    library: Any = model.structure.library
    if not draw or library is None or not planned:
        return planned, ""
    try:
        found = with_drawn(model, library, planned, draw)
    except Exception as error:  # whatever is wrong with a library, a run goes on without it
        said = str(error) if isinstance(error, EsperError) else f"{type(error).__name__}: {error}"
        return planned, f"nothing is drawn from the library: {said}"
    count = sum(bool(plan.artifact) for plans in found.values() for plan in plans)
    return found, f"{count} validated kernels of the library fit, and are tried before new ones germinate"


def _finished(run: Run, minimised: Objective, held: Any) -> FitResult:
    """Removes what was culled and closes the books; the checkpoint is of the run as it was."""
    checkpoint = run.checkpoint()
    model, opt_state = withdrawn(checkpoint.state.model), checkpoint.state.opt_state
    states = jax.device_get(model.seeds.lifecycle)
    for kernel in model.structure.kernels:
        if states[model.structure.row(kernel.layer), kernel.seed] == int(SeedLifecycleState.CULLED):
            model, opt_state = cull(model, opt_state, layer=kernel.layer, seed=kernel.seed)
    found = {} if held is None else gains(minimised, model, held, growing(model, fossilised=True))
    model = with_health(model, found)
    run.books.settle(model)
    run.books.note(Record(run.done, "end", run.stopped or "the last step is done"), run)
    return FitResult(
        model, opt_state, tuple(run.books.records), tuple(run.losses), found, run.books.ledger, checkpoint, run.stopped
    )


def _metrics(metrics: Metrics | None, minimised: Objective) -> tuple[tuple[str, Any], ...]:
    """By name, as functions of (outputs, batch)."""
    wrapped = type(minimised.criterion)
    return tuple(
        (name, OnTargets(metric) if wrapped is OnTargets else metric) for name, metric in (metrics or {}).items()
    )


def _swap(growth: TamiyoSettings, every: int) -> int | None:
    match growth.swap:
        case "ready":
            return None
        case "evaluation":
            return every
        case int(steps):
            return steps


def _point(
    resume: Found | Checkpoint | None,
    steps: int,
    model: MorphableModel,
    learner: Learner,
    policy: Policy[Any] | None,
) -> Checkpoint | None:
    """Where to go on from; None: from the beginning."""
    if isinstance(resume, Found):
        return read(resume.path, resume.parts, model, learner, policy)
    if resume is not None and resume.done >= steps:
        raise ArgumentError(f"the checkpoint is at step {resume.done}, and the run has {steps}: give more `steps`")
    return resume


def _keeper(
    checkpoints: str | os.PathLike[str] | Checkpoints | None, policy: Policy[Any] | None, resumed: Found | None
) -> Keeper | None:
    if checkpoints is None:
        return None
    where = checkpoints if isinstance(checkpoints, Checkpoints) else Checkpoints(checkpoints)
    return Keeper(where, policy, resumed)


def _check(steps: int, every: int, growth: TamiyoSettings, policy: Any, validation: Any) -> None:
    for what, value in (("steps", steps), ("every", every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError(f"{what} is a whole number of at least 1, not {value!r}")
    if validation is None and (policy is not None or growth.policy != "none"):
        raise ArgumentError("growth is decided on held-out data: give them as `validation`")


def _check_batch(minimised: Objective, model: MorphableModel, batch: Any, held: Any) -> None:
    """Captures the model, in both modes, and meets what is wrong with the loss before anything runs."""
    for what, given in (
        ("a batch", batch),
        ("a held-out batch", None if held is None else jax.tree.map(lambda a: a[0], held)),
    ):
        if given is None:
            continue
        try:
            jax.eval_shape(minimised, model, given)
            jax.eval_shape(minimised.evaluation, model, given)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise ArgumentError(f"the loss of {what} {jax.tree.map(_shape, given)} fails: {error}") from error


def _shape(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
