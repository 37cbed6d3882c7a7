"""A change of structure: prepared in a thread of its own while training goes on, made at a step boundary.

The thread works on a copy of the training state. It builds the new kernels, takes the copy through the whole change,
and compiles what the new structure will run, so that making the change later compiles nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import EsperError, SeedError
from esper.growth.birth import DoNotGerminate, Init, Initialised, Newborn, Report
from esper.growth.initialisers import initialiser
from esper.growth.line_search import Trial
from esper.growth.loading import load_kernel
from esper.growth.policy import ARRIVING, STRUCTURAL, Action, Germinate, Load, Place, act
from esper.growth.statistics import Statistics, layer_statistics
from esper.growth.verbs import conceive, enter, transition
from esper.jax_backend.artifact import KernelArtifact
from esper.jax_backend.devices import mesh_of
from esper.jax_backend.loading import found
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.source import Kernel
from esper.lifecycle import SeedLifecycleState
from esper.train.compiles import CompileCounter, Compiles
from esper.train.objective import Objective
from esper.train.step import TrainState
from esper.train.stream import together
from esper.train.unobtrusive import unobtrusive

Compile = Callable[[TrainState], None]
"""Compiles all that will run on a training state of this structure; runs nothing of it."""


@dataclass(frozen=True)
class Missing:
    """A kernel that could not be had from the library, or does not fit: training goes on without it."""

    reason: str


Arrival = Newborn | DoNotGerminate | KernelArtifact | Missing | None
"""What an action brings: a new kernel or none worth having; a trained one or none to be had; None: no kernel."""
Steps = Sequence[tuple[Action, Arrival]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What initialisers look at.

    Attributes:
        loss: The objective.
        recent: Training batches, the latest last.
        check: Held-out batches, leading axes [batches, examples].
    """

    loss: Objective
    recent: Sequence[Any]
    check: Any

    @property
    def fit(self) -> Any:
        """The training batches that are of the latest one's shape, leading axes [batches, examples]."""
        shapes = [jax.tree.map(jnp.shape, batch) for batch in self.recent]
        return together([batch for batch, shape in zip(self.recent, shapes, strict=True) if shape == shapes[-1]])

    def init(self, action: Germinate, model: MorphableModel) -> Init | None:
        """The initialiser that a germination asks for, with what it has to know; one that does not fit leaves all."""
        match action.init:
            case "zero_output":
                return None
            case "pairs":
                return _lenient(initialiser(action.init))
            case "gradmax":
                return _lenient(lambda *given: initialiser("gradmax", self._statistics(action, model))(*given))
        return _lenient(initialiser(action.init, Trial(self.loss, model, self.fit, self.check)))

    def _statistics(self, action: Germinate, model: MorphableModel) -> Statistics:
        return layer_statistics(self.loss, model, self.fit, layers=[action.layer])[action.layer]


def _lenient(init: Init) -> Init:
    """`init` where it knows the kernel's form; else the parameters stay as the recipe drew them."""

    def tried(params: dict[str, jax.Array], kernel: Kernel, key: jax.Array) -> Any:
        try:
            return init(params, kernel, key)
        except SeedError as error:
            return Initialised(params, Report(f"zero_output: {error}"))

    return tried


@dataclass(frozen=True)
class Change:
    """Actions of one decision that change which kernels there are, with those that go with them.

    Attributes:
        actions: What to do, in order.
        decided: The step at which it was decided.
        due: The step at which it is made; None: as soon as it is prepared.
        key: What new kernels are drawn from.
    """

    actions: tuple[Action, ...]
    decided: int
    due: int | None
    key: jax.Array


def split(actions: Sequence[Action]) -> tuple[tuple[Action, ...], tuple[Action, ...]]:
    """The actions that are data only, and those of seeds whose kernels come or go, each in order."""
    places = {(action.layer, action.seed) for action in actions if isinstance(action, STRUCTURAL)}
    deferred = [action for action in actions if (getattr(action, "layer", None), getattr(action, "seed", 0)) in places]
    return tuple(action for action in actions if action not in deferred), tuple(deferred)


def announced(state: TrainState, change: Change) -> TrainState:
    """The state with the seeds that kernels will enter LOADING, where they are free by now."""
    model = state.model
    for action in change.actions:
        if isinstance(action, ARRIVING):
            row = model.structure.row(action.layer)
            if int(model.seeds.lifecycle[row, action.seed]) == int(SeedLifecycleState.DORMANT):
                model = transition(model, layer=action.layer, seed=action.seed, to=SeedLifecycleState.LOADING)
    return replace(state, model=model)


def withdrawn(model: MorphableModel, only: Place | None = None) -> MorphableModel:
    """The model with seeds that were announced, all of them or one, DORMANT again."""
    seeds = np.asarray(model.seeds.lifecycle)
    for row, site in enumerate(model.structure.sites):
        for seed in np.flatnonzero(seeds[row] == int(SeedLifecycleState.LOADING)):
            if only in (None, (site.name, int(seed))):
                model = transition(model, layer=site.name, seed=int(seed), to=SeedLifecycleState.DORMANT)
    return model


def told(change: Change) -> str:
    """What the change is, in a sentence."""
    named = [f"{a.blueprint} at {a.layer or '(root)'}[{a.seed}]" for a in change.actions if isinstance(a, ARRIVING)]
    what = f"new kernels: {', '.join(named)}" if named else "kernels that were culled go"
    when = "as soon as it is compiled" if change.due is None else f"at step {change.due}"
    return f"{what}; made {when}"


def planned(state: TrainState, change: Change, evidence: Evidence) -> tuple[TrainState, Steps]:
    """The state after the change, and its steps with the kernels that were conceived on the way."""
    steps: list[tuple[Action, Arrival]] = []
    for place, action in enumerate(change.actions):
        newborn: Arrival = None
        if isinstance(action, Load):
            newborn = _had(state, action, change.key)
        if isinstance(action, Germinate):
            newborn = conceive(
                state.model,
                layer=action.layer,
                seed=action.seed,
                blueprint=action.blueprint,
                key=jax.random.fold_in(change.key, place),
                options=dict(action.options),
                blend=action.blend,
                init=evidence.init(action, state.model),
            )
        state = _done(state, action, newborn, change.key)
        steps.append((action, newborn))
    return state, steps


def _had(state: TrainState, action: Load, key: jax.Array) -> KernelArtifact | Missing:
    """The kernel to load, if it can be had and fits: what is wrong with a library must not stop a run."""
    try:
        artifact = found(state.model.structure, action.artifact, f"layer {action.layer!r}, seed {action.seed}")
        _done(state, action, artifact, key)
        return artifact
    except Exception as error:  # an artifact comes from outside: whatever it brings along, the run goes on
        return Missing(str(error) if isinstance(error, EsperError) else f"{type(error).__name__}: {error}")


def made(state: TrainState, steps: Steps, key: jax.Array) -> TrainState:
    """The state after a change that was planned on an earlier state of the same structure."""
    for action, newborn in steps:
        state = _done(state, action, newborn, key)
    return state


def _done(state: TrainState, action: Action, newborn: Arrival, key: jax.Array) -> TrainState:
    if isinstance(newborn, DoNotGerminate | Missing) and isinstance(action, ARRIVING):
        return replace(state, model=withdrawn(state.model, (action.layer, action.seed)))
    if isinstance(newborn, Newborn):
        model, opt_state = enter(state.model, state.opt_state, newborn)
    elif isinstance(newborn, KernelArtifact) and isinstance(action, Load):
        at = {"layer": action.layer, "seed": action.seed, "to": SeedLifecycleState.TRAINING}
        model, opt_state = load_kernel(state.model, state.opt_state, **at, artifact=newborn)
    else:
        model, opt_state = act(state.model, state.opt_state, action, key=key)
    return replace(state, model=model, opt_state=opt_state)


@dataclass
class Preparation:
    """The thread that prepares a change. What goes wrong in it is raised where the change is made."""

    change: Change
    counter: CompileCounter
    _steps: Steps = ()
    _compiles: Compiles = field(default_factory=Compiles)
    _error: BaseException | None = None
    _thread: threading.Thread = field(init=False)

    def begin(self, state: TrainState, evidence: Evidence, compile: Compile, *, aside: bool) -> Preparation:
        """Prepares the change on a copy of the state: `aside` in a thread of its own, or here and now.

        Of a model on several devices only the compile is left to the thread: programs that two threads start there
        could wait for each other's communication for ever.
        """

        def plan() -> TrainState:
            after, self._steps = planned(state, self.change, evidence)
            return after

        if mesh_of(state.model.params) is not None:
            after = plan()
            given = (lambda: after, compile)
        else:
            given = (plan, compile)
        self._thread = threading.Thread(target=self._run_behind, args=given, name="esper-prepare")
        self._thread.start() if aside else self._run(*given)
        return self

    @property
    def ready(self) -> bool:
        """Whether making the change would not wait."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Waits until the preparation is over, whatever becomes of it."""
        if self._thread.ident is not None:
            self._thread.join()

    def finish(self, state: TrainState) -> tuple[TrainState, Steps, Compiles]:
        """The change made, waiting for its preparation if need be; its steps, and what preparing compiled."""
        self.wait()
        if self._error is not None:
            raise self._error
        return made(state, self._steps, self.change.key), self._steps, self._compiles

    def _run_behind(self, *given: Any) -> None:
        with unobtrusive():
            self._run(*given)

    def _run(self, plan: Callable[[], TrainState], compile: Compile) -> None:
        try:
            compile(plan())
        except BaseException as error:  # raised again in `finish`, in the thread that trains
            self._error = error
        finally:
            self._compiles = self.counter.take()
