"""Policies to compare with: growth as written down, and growth at a random time and place.

Both take their stages' durations and budgets from the settings that Tamiyo goes by. What germinates is kept as it
comes, whatever it does, unless `Random` is told to judge it as Tamiyo would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from esper.configs import TamiyoSettings
from esper.errors import ArgumentError, UnknownLayerError
from esper.growth import budgets
from esper.growth.gates import evidence, judge
from esper.growth.policy import (
    Action,
    Asks,
    Germinate,
    Hold,
    LayerView,
    Observation,
    Place,
    Plan,
    SeedView,
)
from esper.growth.where import clearing
from esper.lifecycle import SeedLifecycleState as S

_FREE = (S.DORMANT, S.CULLED)


@dataclass(frozen=True)
class Planting:
    """One germination, written down.

    Attributes:
        step: At the first evaluation from this step on.
        layer: Where.
        blueprint: By which recipe.
        options: Its options.
        seed: Which of the layer's seeds.
        blend: How it joins the layer.
    """

    step: int
    layer: str
    blueprint: str
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = 0
    blend: str = "add"


@dataclass(frozen=True)
class Scheduled:
    """Grows as written down, and keeps it; the memory is what is still to be planted.

    Attributes:
        settings: Durations of the stages; nothing is judged.
        plantings: What germinates when and where.

    Example:
        >>> policy = Scheduled(TamiyoSettings(), (Planting(200, "0", "low_rank", (("rank", 8),)),))
    """

    settings: TamiyoSettings
    plantings: tuple[Planting, ...]

    def start(self) -> tuple[Planting, ...]:
        """All of it."""
        return self.plantings

    def asks(self, observation: Observation, memory: tuple[Planting, ...]) -> Asks:
        """Nothing."""
        return Asks()

    def __call__(
        self, observation: Observation, memory: tuple[Planting, ...]
    ) -> tuple[tuple[Action, ...], tuple[Planting, ...]]:
        """Moves kernels on, and germinates what is due.

        Raises:
            UnknownLayerError: There is no such layer.
            ArgumentError: The layer has no such seed.
        """
        due = tuple(planting for planting in memory if planting.step <= observation.step)
        chosen: dict[Place, SeedView] = {}
        planted: tuple[Action, ...] = ()
        for planting in due:
            seed = _seed(observation, planting)
            free = seed.state in _FREE and seed.place not in chosen
            planted += (_planted(seed, planting) if free else _left_out(seed),)
            chosen |= {seed.place: seed} if free else {}
        moved = judge(observation, self.settings, gated=False)
        cleared = tuple(clearing(observation, list(chosen.values()))) if chosen else ()
        return moved + cleared + planted, tuple(planting for planting in memory if planting not in due)


@dataclass(frozen=True)
class Dice:
    """What `Random` remembers.

    Attributes:
        due: Steps at which something is still to germinate; None: not drawn yet.
    """

    due: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Random:
    """Grows at random times, in random layers, by random blueprints of those planned there.

    Times are drawn at the first observation, uniformly from the steps that leave a kernel its whole life. What cannot
    germinate at its time, since `grafts` others grow or the budgets are used up, waits until it can, or is left out.

    Attributes:
        settings: Durations, budgets, `start_step`, `stop_fraction`, and the gates if there are any.
        kernels: How many germinate.
        key: What is drawn depends on this and on the step, and on nothing else.
        gated: Whether they are judged as Tamiyo does.
    """

    settings: TamiyoSettings
    kernels: int
    key: int = 0
    gated: bool = False

    def start(self) -> Dice:
        """Nothing drawn."""
        return Dice()

    def asks(self, observation: Observation, memory: Dice) -> Asks:
        """What the gates read, if there are any."""
        return evidence(observation, self.settings) if self.gated else Asks()

    def __call__(self, observation: Observation, memory: Dice) -> tuple[tuple[Action, ...], Dice]:
        """Moves kernels on, and germinates one if the time that was drawn has come."""
        due = self._drawn(observation) if memory.due is None else memory.due
        actions = judge(observation, self.settings, gated=self.gated)
        spots = self._spots(observation) if due and due[0] <= observation.step else []
        if not spots:
            return actions, replace(memory, due=due)
        draw = self._generator(observation.step)
        layer, seeds, plans = spots[draw.integers(len(spots))]
        seed, plan = seeds[0], plans[draw.integers(len(plans))]
        reason = f"drawn: step {due[0]}, this layer of {len(spots)}, this blueprint of {len(plans)}"
        planted = plan.germinate((layer.name, seed.seed), reason)
        return (*actions, *clearing(observation, [seed]), planted), replace(memory, due=due[1:])

    def _drawn(self, observation: Observation) -> tuple[int, ...]:
        last = observation.total_steps - budgets.lifetime(self.settings, observation.every)
        last = min(last, int(self.settings.stop_fraction * observation.total_steps))
        first = max(self.settings.start_step, observation.step)
        if last < first:
            return ()
        return tuple(sorted(int(step) for step in self._generator(-1).integers(first, last + 1, self.kernels)))

    def _generator(self, step: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.key, step + 1]))

    def _spots(self, observation: Observation) -> list[tuple[LayerView, list[SeedView], tuple[Plan, ...]]]:
        growing = sum(bool(layer.growing) for layer in observation.layers)
        if growing >= self.settings.grafts or budgets.held(observation) >= self.settings.max_kernels:
            return []
        left = observation.total_steps - observation.step
        if left < budgets.lifetime(self.settings, observation.every):
            return []
        room = budgets.rooms(observation, self.settings)
        found = [
            (
                layer,
                [seed for seed in layer.seeds if seed.state in _FREE],
                tuple(plan for plan in layer.plans if budgets.affordable([plan], room, 1)),
            )
            for layer in observation.layers
            if not layer.growing
        ]
        return [spot for spot in found if spot[1] and spot[2]]


def _seed(observation: Observation, planting: Planting) -> SeedView:
    names = {layer.name: layer for layer in observation.layers}
    if planting.layer not in names:
        raise UnknownLayerError(planting.layer, list(names))
    seeds = names[planting.layer].seeds
    if not 0 <= planting.seed < len(seeds):
        raise ArgumentError(
            f"layer {planting.layer!r} has {len(seeds)} seeds, and {planting} names seed {planting.seed}"
        )
    return seeds[planting.seed]


def _planted(seed: SeedView, planting: Planting) -> Action:
    reason = f"written down for step {planting.step}"
    return Germinate(*seed.place, planting.blueprint, planting.options, reason, planting.blend)


def _left_out(seed: SeedView) -> Action:
    return Hold(f"layer {seed.layer!r}, seed {seed.seed} is not free: what was due there is left out")
