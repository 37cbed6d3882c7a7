"""What a growth policy sees, what it may do, and how that is done: plain frozen data and one pure function.

A policy is `policy(observation, memory) -> (actions, memory)`, pure: the same observation and memory give
the same actions. `esper.growth.tamiyo` holds the one that is built in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

from esper.growth.credit import Gain
from esper.growth.initialisers import initialiser
from esper.growth.loading import load_kernel
from esper.growth.scores import FirstOrder
from esper.growth.verbs import cull, germinate, set_alpha, transition
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState

State = TypeVar("State")
M = TypeVar("M")
Place = tuple[str, int]
"""A layer's name and which of its seeds."""

MEASURED = (SeedLifecycleState.TRAINING, SeedLifecycleState.GRAFTING, SeedLifecycleState.ACTIVE)
GROWING = (SeedLifecycleState.LOADING, *MEASURED, SeedLifecycleState.ERROR_RECOVERY)


@dataclass(frozen=True)
class Plan:
    """What would germinate in a layer, or be loaded from the library.

    Attributes:
        blueprint: Name of the recipe.
        options: Its options, those left out at their defaults.
        parameters: How many parameters the kernel would have.
        flops: Floating-point operations of its forward for one example.
        bytes: Memory of its parameters.
        blend: How it would join the layer.
        init: Name of the initialiser of its parameters (`esper.growth.initialisers`).
        artifact: Digest of a trained kernel that would be loaded; empty: a new one would germinate.
    """

    blueprint: str
    options: tuple[tuple[str, Any], ...]
    parameters: int
    flops: int = 0
    bytes: int = 0
    blend: str = "add"
    init: str = "zero_output"
    artifact: str = ""

    @property
    def name(self) -> str:
        """What tells it from the layer's other plans."""
        return self.artifact or self.blueprint

    def germinate(self, place: Place, reason: str) -> Germinate | Load:
        """The action that carries it out at a seed."""
        if self.artifact:
            return Load(*place, self.artifact, reason, self.blueprint)
        return Germinate(*place, self.blueprint, self.options, reason, self.blend, self.init)


@dataclass(frozen=True)
class SeedView:
    """One seed, as observed.

    Attributes:
        layer: Name of its layer.
        seed: Its place in the layer.
        state: Its state; LOADING: its germination was decided and is being compiled.
        since: Training steps since it entered that state.
        alpha: Weight of its kernel.
        parameters: Parameters of its kernel; 0: it holds none.
        gain: Held-out gain of its kernel, all else as it is; None: not measured now.
        flops: Floating-point operations of its kernel's forward for one example.
        bytes: Memory of its kernel's parameters.
        errors: How often its kernel failed.
        blueprint: Its kernel's recipe; empty: it holds none.
        credit: Its kernel's share (Shapley value) of the gain of all kernels that were asked for together; None: not
            measured now.
    """

    layer: str
    seed: int
    state: SeedLifecycleState
    since: int = 0
    alpha: float = 0.0
    parameters: int = 0
    gain: Gain | None = None
    flops: int = 0
    bytes: int = 0
    errors: int = 0
    blueprint: str = ""
    credit: Gain | None = None

    @property
    def place(self) -> Place:
        """Its layer and its place there."""
        return self.layer, self.seed


@dataclass(frozen=True)
class LayerView:
    """One layer that can grow, as observed.

    Attributes:
        name: Dotted path in the user's model.
        kind: torch's name of its class, such as "Linear".
        pull: Root-mean-square norm of the training loss's gradient in the layer's own parameters, over the
            steps since the last evaluation. Its square is, to first order, how fast the loss would fall by
            changing this layer alone: a cheap stand-in for what a kernel beside it could do.
        seeds: Its seeds.
        plans: What could germinate here, in order of preference; none: nothing fits this kind of layer.
        score: What the best linear kernel here would gain, to first order; None: not measured now.
    """

    name: str
    kind: str
    pull: float
    seeds: tuple[SeedView, ...]
    plans: tuple[Plan, ...] = ()
    score: FirstOrder | None = None

    @property
    def plan(self) -> Plan | None:
        """The first of `plans`."""
        return self.plans[0] if self.plans else None

    @property
    def growing(self) -> tuple[SeedView, ...]:
        """Seeds whose kernels are on their way: arriving, training, blending, on trial, or failed."""
        return tuple(seed for seed in self.seeds if seed.state in GROWING)


@dataclass(frozen=True)
class Observation:
    """All that a policy decides on, taken at an evaluation.

    Attributes:
        step: Training steps so far.
        total_steps: Training steps of the whole run.
        every: Steps between evaluations.
        losses: Held-out loss at every evaluation so far, the latest last.
        layers: The layers that can grow.
        train_loss: Mean training loss since the last evaluation; NaN: unknown.
        metrics: Other held-out figures by name.
    """

    step: int
    total_steps: int
    every: int
    losses: tuple[float, ...]
    layers: tuple[LayerView, ...]
    train_loss: float = math.nan
    metrics: tuple[tuple[str, float], ...] = ()

    def seeds(self) -> Iterator[SeedView]:
        """Every seed of every layer."""
        for layer in self.layers:
            yield from layer.seeds


@dataclass(frozen=True)
class Asks:
    """What a policy wants measured before it decides.

    Attributes:
        gains: Kernels whose gain it will read; a gain is two held-out passes.
        credits: Kernels that share their common gain; up to 4 are 2^n passes.
        scores: Layers whose first-order gain it will read; together one pass with a backward.
    """

    gains: tuple[Place, ...] = ()
    credits: tuple[Place, ...] = ()
    scores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Germinate:
    """Put a new kernel into a DORMANT seed; the structure changes."""

    layer: str
    seed: int
    blueprint: str
    options: tuple[tuple[str, Any], ...]
    reason: str
    blend: str = "add"
    init: str = "zero_output"


@dataclass(frozen=True)
class Load:
    """Put a trained kernel into a DORMANT seed, where it starts TRAINING, as a new one; the structure changes."""

    layer: str
    seed: int
    artifact: str
    reason: str
    blueprint: str = ""


@dataclass(frozen=True)
class Transition:
    """Move a seed to another state; data only."""

    layer: str
    seed: int
    to: SeedLifecycleState
    reason: str


@dataclass(frozen=True)
class SetAlpha:
    """Set a seed's alpha; data only. The alpha of GRAFTING seeds follows the schedule instead."""

    layer: str
    seed: int
    alpha: float
    reason: str


@dataclass(frozen=True)
class Cull:
    """Remove a seed's kernel and its arrays; the structure changes."""

    layer: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Hold:
    """Do nothing, and say why."""

    reason: str


@dataclass(frozen=True)
class Note:
    """Do nothing, and have an event in the run's history.

    Attributes:
        event: Its name.
        reason: What happened.
        waited: Seconds that training waited for it.
    """

    event: str
    reason: str
    waited: float = 0.0


Action = Germinate | Load | Transition | SetAlpha | Cull | Hold | Note
ARRIVING = (Germinate, Load)
STRUCTURAL = (*ARRIVING, Cull)


class Policy(Protocol[M]):
    """When and where a network grows; it may keep a memory, immutable, between observations."""

    def start(self) -> M:
        """The memory to begin with."""
        ...

    def __call__(self, observation: Observation, memory: M) -> tuple[tuple[Action, ...], M]:
        """What to do now, in order, and what to remember."""
        ...


@runtime_checkable
class Asking(Protocol):
    """A policy that says what it will read, so that nothing else is measured."""

    def asks(self, observation: Observation, memory: Any) -> Asks:
        """What to measure; the observation is the one to be decided on, with nothing measured in it."""
        ...


@runtime_checkable
class Witness(Protocol):
    """A policy that keeps up where another decides, so that it can take over at any time."""

    def witness(self, observation: Observation, actions: tuple[Action, ...], memory: Any) -> Any:
        """What to remember where these actions are done instead of its own."""
        ...


def witnessed(policy: Policy[M], observation: Observation, actions: tuple[Action, ...], memory: M) -> M:
    """What a policy remembers where another has decided; one that is no witness believes that it was heeded."""
    if isinstance(policy, Witness):
        return policy.witness(observation, actions, memory)
    return policy(observation, memory)[1]


def forgives(policy: Policy[Any] | None) -> bool:
    """Whether an action of the policy that turns out impossible is noted as "rejected" instead of ending the run.

    For policies that are told what to do from outside, which have a true attribute `forgiving`.
    """
    return bool(getattr(policy, "forgiving", False))


def asked(policy: Policy[M], observation: Observation, memory: M) -> Asks:
    """What to measure for a policy; for one that does not say, the gain of every kernel that grows."""
    if isinstance(policy, Asking):
        return policy.asks(observation, memory)
    return Asks(gains=tuple(seed.place for seed in observation.seeds() if seed.state in MEASURED))


def act(model: MorphableModel, opt_state: State, action: Action, *, key: jax.Array) -> tuple[MorphableModel, State]:
    """The model and the optimiser state after an action.

    Args:
        model: The model.
        opt_state: An optax state for `model.params`, or None.
        action: What to do.
        key: What a new kernel's parameters are drawn from.

    Raises:
        SeedError: The action is not possible; an illegal move is an IllegalTransitionError.
        LibraryError: The kernel to load is in a library that cannot be read.
        ArgumentError: A germination whose initialiser looks at data: `fit` gives it those, or `conceive(init=...)`.
    """
    match action:
        case Germinate(layer, seed, blueprint, options, _, blend, init):
            recipe = {"blueprint": blueprint, "options": dict(options), "blend": blend, "init": initialiser(init)}
            return germinate(model, opt_state, layer=layer, seed=seed, key=key, **recipe)
        case Load(layer, seed, artifact):
            training = SeedLifecycleState.TRAINING
            return load_kernel(model, opt_state, layer=layer, seed=seed, artifact=artifact, to=training)
        case Cull(layer, seed):
            return cull(model, opt_state, layer=layer, seed=seed)
        case Transition(layer, seed, to):
            return transition(model, layer=layer, seed=seed, to=to), opt_state
        case SetAlpha(layer, seed, alpha):
            return set_alpha(model, layer=layer, seed=seed, alpha=alpha), opt_state
    return model, opt_state
