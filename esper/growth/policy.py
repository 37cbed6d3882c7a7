"""What a growth policy sees, what it may do, and how that is done: plain frozen data and one pure function.

A policy is `policy(observation, memory) -> (actions, memory)`, pure: the same observation and memory give
the same actions. `esper.growth.tamiyo` holds the one that is built in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax

from esper.growth.credit import Gain
from esper.growth.verbs import cull, germinate, set_alpha, transition
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState

State = TypeVar("State")
M = TypeVar("M")


@dataclass(frozen=True)
class Plan:
    """What would germinate in a layer.

    Attributes:
        blueprint: Name of the recipe.
        options: Its options, those left out at their defaults.
        parameters: How many parameters the kernel would have.
        flops: Floating-point operations of its forward for one example.
        bytes: Memory of its parameters.
        blend: How it would join the layer.
    """

    blueprint: str
    options: tuple[tuple[str, Any], ...]
    parameters: int
    flops: int = 0
    bytes: int = 0
    blend: str = "add"


@dataclass(frozen=True)
class SeedView:
    """One seed, as observed.

    Attributes:
        layer: Name of its layer.
        seed: Its place in the layer.
        state: Its state.
        since: Training steps since it entered that state.
        alpha: Weight of its kernel.
        parameters: Parameters of its kernel; 0: it holds none.
        gain: Held-out gain of its kernel, if measured at this step.
        flops: Floating-point operations of its kernel's forward for one example.
        bytes: Memory of its kernel's parameters.
        errors: How often its kernel failed.
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
        plan: What would germinate here; None: nothing fits this kind of layer.
    """

    name: str
    kind: str
    pull: float
    seeds: tuple[SeedView, ...]
    plan: Plan | None


@dataclass(frozen=True)
class Observation:
    """All that a policy decides on, taken at an evaluation.

    Attributes:
        step: Training steps so far.
        total_steps: Training steps of the whole run.
        every: Steps between evaluations.
        losses: Held-out loss at every evaluation so far, the latest last.
        layers: The layers that can grow.
    """

    step: int
    total_steps: int
    every: int
    losses: tuple[float, ...]
    layers: tuple[LayerView, ...]

    def seeds(self) -> Iterator[SeedView]:
        """Every seed of every layer."""
        for layer in self.layers:
            yield from layer.seeds


@dataclass(frozen=True)
class Germinate:
    """Put a new kernel into a DORMANT seed; the structure changes."""

    layer: str
    seed: int
    blueprint: str
    options: tuple[tuple[str, Any], ...]
    reason: str
    blend: str = "add"


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


Action = Germinate | Transition | SetAlpha | Cull | Hold
STRUCTURAL = (Germinate, Cull)


class Policy(Protocol[M]):
    """When and where a network grows; it may keep a memory, immutable, between observations."""

    def start(self) -> M:
        """The memory to begin with."""
        ...

    def __call__(self, observation: Observation, memory: M) -> tuple[tuple[Action, ...], M]:
        """What to do now, in order, and what to remember."""
        ...


def act(model: MorphableModel, opt_state: State, action: Action, *, key: jax.Array) -> tuple[MorphableModel, State]:
    """The model and the optimiser state after an action.

    Args:
        model: The model.
        opt_state: An optax state for `model.params`, or None.
        action: What to do.
        key: What a new kernel's parameters are drawn from.

    Raises:
        SeedError: The action is not possible; an illegal move is an IllegalTransitionError.
    """
    match action:
        case Germinate(layer, seed, blueprint, options, _, blend):
            recipe = {"blueprint": blueprint, "options": dict(options), "blend": blend}
            return germinate(model, opt_state, layer=layer, seed=seed, key=key, **recipe)
        case Cull(layer, seed):
            return cull(model, opt_state, layer=layer, seed=seed)
        case Transition(layer, seed, to):
            return transition(model, layer=layer, seed=seed, to=to), opt_state
        case SetAlpha(layer, seed, alpha):
            return set_alpha(model, layer=layer, seed=seed, alpha=alpha), opt_state
    return model, opt_state
