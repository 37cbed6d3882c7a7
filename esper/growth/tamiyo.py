"""Tamiyo, the built-in policy: when to grow, where, by what, and what stays.

It reads from the top: judge what grows (`gates.py`); if nothing more may grow beside it, wait; else see whether it is
time (`triggers.py`), choose a layer, and let one blueprint or a race of several germinate there, within budgets
(`budgets.py`). Every decision says what was observed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from esper.configs import TamiyoSettings
from esper.growth import budgets
from esper.growth.gates import evidence, judge
from esper.growth.policy import (
    GROWING,
    Action,
    Asks,
    Cull,
    Germinate,
    Hold,
    LayerView,
    Observation,
    Place,
    Plan,
    SeedView,
    Transition,
)
from esper.growth.triggers import NAMES, triggered
from esper.lifecycle import SeedLifecycleState as S


@dataclass(frozen=True)
class Culled:
    """A kernel that did not stay.

    Attributes:
        place: Its seed.
        blueprint: Its recipe.
        until: Until which step the seed rests.
        beaten: Whether it lost a race to another, so that it says nothing against the layer.
    """

    place: Place
    blueprint: str
    until: int
    beaten: bool = False


@dataclass(frozen=True)
class Memory:
    """What Tamiyo remembers between evaluations.

    Attributes:
        best: Lowest held-out loss since growth last changed something.
        stale: Evaluations since then without a loss below `best` by `min_delta`.
        seen: Evaluations since growth last changed something.
        culled: What did not stay, in order.
        tended: Seeds that should be growing, and by which blueprint.
        held: The last reason given for not growing, so that it is given once.
    """

    best: float = math.inf
    stale: int = 0
    seen: int = 0
    culled: tuple[Culled, ...] = ()
    tended: tuple[tuple[Place, str], ...] = ()
    held: str = ""

    def culls(self, layer: str) -> int:
        """How often a layer was left with nothing: a race that is lost by all counts once."""
        return len({one.until for one in self.culled if one.place[0] == layer and not one.beaten})

    def lost(self, layer: str, blueprint: str) -> int:
        """How many kernels of a blueprint did not stay in a layer."""
        return sum((one.place[0], one.blueprint) == (layer, blueprint) for one in self.culled)

    def changed(self, loss: float) -> Memory:
        """After a change the network is another one: the trigger starts anew."""
        return replace(self, best=loss, stale=0, seen=0, held="")


@dataclass(frozen=True)
class Spot:
    """A layer that something could germinate in, its free seeds, and what it could grow by, the first choice first."""

    layer: LayerView
    free: tuple[SeedView, ...]
    plans: tuple[Plan, ...]


@dataclass(frozen=True)
class Tamiyo:
    """The built-in policy.

    Attributes:
        settings: Trigger, durations, thresholds and budgets.
    """

    settings: TamiyoSettings

    def start(self) -> Memory:
        """Nothing remembered."""
        return Memory()

    def asks(self, observation: Observation, memory: Memory) -> Asks:
        """The figures of what is to be judged now; scores if something may germinate and they decide where."""
        if self.settings.policy == "none":
            return Asks()
        asks = evidence(observation, self.settings)
        memory = self._without_lost(observation, memory)
        if self.settings.where == "score" and not judge(observation, self.settings):
            reason, memory = self._time(observation, memory)
            spots, obstacle = self._spots(observation, memory) if reason else ([], "")
            # Culls come before scores, so that only the layers with fewest are compared.
            fewest = min((memory.culls(spot.layer.name) for spot in spots), default=0)
            layers = [] if obstacle else [s.layer.name for s in spots if memory.culls(s.layer.name) == fewest]
            asks = replace(asks, scores=tuple(layers) if len(layers) > 1 else ())
        return asks

    def __call__(self, observation: Observation, memory: Memory) -> tuple[tuple[Action, ...], Memory]:
        """Judges what grows, or germinates when it is time."""
        if self.settings.policy == "none":
            return (), memory
        memory = self._without_lost(observation, memory)
        actions = judge(observation, self.settings)
        if not actions:
            reason, memory = self._time(observation, memory)
            if reason:
                actions, memory = self._germinate(observation, memory, reason)
        return actions, self._after(actions, observation, memory)

    def _without_lost(self, observation: Observation, memory: Memory) -> Memory:
        """Kernels that are gone though nobody here culled them count as culled.

        Their initialiser found nothing worth having, or the run was rolled back.
        """
        gone = {seed.place for seed in observation.seeds() if seed.state in (S.DORMANT, S.CULLED)}
        lost = [tended for tended in memory.tended if tended[0] in gone]
        if not lost:
            return memory
        memory = replace(memory, tended=tuple(tended for tended in memory.tended if tended not in lost))
        return self._rested(memory, lost, observation).changed(observation.losses[-1])

    def _rested(
        self, memory: Memory, gone: list[tuple[Place, str]], observation: Observation, won: Collection[str] = ()
    ) -> Memory:
        until = observation.step + self.settings.embargo_steps
        new = (Culled(place, blueprint, until, place[0] in won) for place, blueprint in gone)
        return replace(memory, culled=(*memory.culled, *new))

    def _time(self, observation: Observation, memory: Memory) -> tuple[str, Memory]:
        """Why it is time to grow, if it is, and what was noticed of the loss."""
        if sum(bool(layer.growing) for layer in observation.layers) >= self.settings.grafts:
            return "", memory
        loss = observation.losses[-1]
        if loss < memory.best - self.settings.min_delta:
            memory = replace(memory, best=loss, stale=0, seen=memory.seen + 1, held="")
        else:
            memory = replace(memory, stale=memory.stale + 1, seen=memory.seen + 1)
        found = {"best": memory.best, "stale": memory.stale, "seen": memory.seen}
        return triggered(observation, self.settings, **found), memory

    def _after(self, actions: tuple[Action, ...], observation: Observation, memory: Memory) -> Memory:
        """What to remember of what was done."""
        known = dict(memory.tended)
        growing = {
            seed.place: seed.blueprint or known.get(seed.place, "")
            for seed in observation.seeds()
            if seed.state in GROWING
        }
        verdicts = [a for a in actions if isinstance(a, Transition) and a.to in (S.FOSSILIZED, S.CULLED)]
        culled = [(place, growing[place]) for a in verdicts if a.to is S.CULLED for place in [(a.layer, a.seed)]]
        for action in actions:
            if isinstance(action, Germinate):
                growing[action.layer, action.seed] = action.blueprint
        for action in verdicts:
            del growing[action.layer, action.seed]
        won = {a.layer for a in actions if isinstance(a, Transition) and a.to is S.GRAFTING}
        memory = replace(self._rested(memory, culled, observation, won), tended=tuple(growing.items()))
        return memory.changed(observation.losses[-1]) if verdicts else memory

    def _germinate(self, observation: Observation, memory: Memory, why: str) -> tuple[tuple[Action, ...], Memory]:
        spots, obstacle = self._spots(observation, memory)
        if obstacle:
            obstacle = f"{NAMES[self.settings.trigger]}, but {obstacle}"
            return () if obstacle == memory.held else (Hold(obstacle),), replace(memory, held=obstacle)
        spot = max(spots, key=lambda spot: self._rank(spot.layer, memory))
        reason = (
            f"{why}; layers with a free seed: {len(spots)}, of which this one comes first by "
            f"{self._figures(spot.layer, memory)}"
        )
        if len(spot.plans) > 1:
            reason += f"; a race of {', '.join(plan.blueprint for plan in spot.plans)}"
        chosen = list(zip(spot.free, spot.plans, strict=False))
        actions = (
            *clearing(observation, [seed for seed, _ in chosen]),
            *(Germinate(*seed.place, plan.blueprint, plan.options, reason, plan.blend) for seed, plan in chosen),
        )
        return actions, replace(memory, stale=0, seen=0, held="")

    def _rank(self, layer: LayerView, memory: Memory) -> tuple[float, ...]:
        """The largest comes first; a layer without a score comes after those that have one."""
        score = layer.score.gain if layer.score and not math.isnan(layer.score.gain) else -math.inf
        return (-memory.culls(layer.name), score, layer.pull)

    def _figures(self, layer: LayerView, memory: Memory) -> str:
        score = f", then by first-order gain ({layer.score}, largest first)" if layer.score else ""
        culls = f"culls so far ({memory.culls(layer.name)}, fewest first)"
        return f"{culls}{score}, then by gradient norm ({layer.pull:.3f}, largest first)"

    def _spots(self, observation: Observation, memory: Memory) -> tuple[list[Spot], str]:
        """Where something may germinate, or why nothing may."""
        settings = self.settings
        if budgets.held(observation) >= settings.max_kernels:
            return [], f"the {settings.max_kernels} kernels allowed are there"
        if observation.step > settings.stop_fraction * observation.total_steps:
            return [], f"{settings.stop_fraction:.0%} of the run are over, after which nothing germinates"
        left, needed = observation.total_steps - observation.step, budgets.lifetime(settings, observation.every)
        if left < needed:
            return [], f"a kernel takes {needed} steps to be judged and fewer are left"
        spots = list(self._free(observation, memory))
        if not spots:
            return [], "no layer has a free seed"
        room = budgets.rooms(observation, settings)
        spots = [replace(s, plans=budgets.affordable(s.plans, room, min(settings.race, len(s.free)))) for s in spots]
        fitting = [spot for spot in spots if spot.plans]
        left_over = ", ".join(f"{max(size, 0)} {budgets.UNITS[name]}" for name, size in room.items() if size < math.inf)
        return fitting, "" if fitting else f"no kernel fits into the {left_over} left"

    def _free(self, observation: Observation, memory: Memory) -> Iterator[Spot]:
        """Layers in which nothing grows, with the seeds that are free; blueprints that were culled there come last."""
        rests = {one.place: one.until for one in memory.culled}
        for layer in observation.layers:
            free = tuple(
                seed
                for seed in layer.seeds
                if seed.state in (S.DORMANT, S.CULLED) and observation.step >= rests.get(seed.place, 0)
            )
            if free and layer.plans and not layer.growing:
                ranked = sorted(layer.plans, key=lambda plan: memory.lost(layer.name, plan.blueprint))
                yield Spot(layer, free, tuple(ranked))


def clearing(observation: Observation, chosen: list[SeedView]) -> Iterator[Action]:
    """What a germination, which compiles anyway, takes along: the arrays of culled kernels go."""
    for seed in observation.seeds():
        if seed.state is S.CULLED and seed.parameters:
            yield Cull(seed.layer, seed.seed, "its arrays go with the compile that a germination means anyway")
    for seed in chosen:
        if seed.state is S.CULLED:
            yield Transition(seed.layer, seed.seed, S.DORMANT, "its rest is over")
