"""Tamiyo, the built-in policy: when to grow, where, by what, and what stays.

It reads from the top: judge what grows (`gates.py`); if nothing more may grow beside it, wait; else see whether it is
time (`triggers.py`), choose a layer (`where.py`), and let one blueprint or a race of several germinate there, or a
kernel of the library be loaded, within budgets (`budgets.py`). Every decision says what was observed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from esper.configs import TamiyoSettings
from esper.growth.gates import evidence, judge
from esper.growth.memory import Culled, Memory
from esper.growth.policy import ARRIVING, GROWING, Action, Asks, Germinate, Hold, Load, Observation, Place, Transition
from esper.growth.triggers import NAMES, triggered
from esper.growth.where import clearing, figures, rank, spots
from esper.lifecycle import SeedLifecycleState as S


@dataclass(frozen=True)
class Tamiyo:
    """The built-in policy.

    Attributes:
        settings: Trigger, durations, thresholds and budgets.
    """

    settings: TamiyoSettings

    def updated(self, **changes: Any) -> Tamiyo:
        """The policy with some of its settings changed; what it remembers stays good."""
        return Tamiyo(TamiyoSettings.model_validate({**self.settings.model_dump(), **changes}))

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
            places, obstacle = spots(observation, memory, self.settings) if reason else ([], "")
            # Culls come before scores, so that only the layers with fewest are compared.
            fewest = min((memory.culls(spot.layer.name) for spot in places), default=0)
            layers = [] if obstacle else [s.layer.name for s in places if memory.culls(s.layer.name) == fewest]
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

    def witness(self, observation: Observation, actions: tuple[Action, ...], memory: Memory) -> Memory:
        """What it remembers where another has decided, and `actions` are done; of its own, what a call remembers."""
        if self.settings.policy == "none":
            return memory
        memory = self._without_lost(observation, memory)
        reason = ""
        if not judge(observation, self.settings):
            reason, memory = self._time(observation, memory)
        if _germinates(actions):
            memory = replace(memory, stale=0, seen=0, held="")
        elif reason:
            own, after = self._germinate(observation, memory, reason)
            memory = memory if _germinates(own) else after
        return self._after(actions, observation, memory)

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
            seed.place: known.get(seed.place) or seed.blueprint for seed in observation.seeds() if seed.state in GROWING
        }
        verdicts = [a for a in actions if isinstance(a, Transition) and a.to in (S.FOSSILIZED, S.CULLED)]
        places = [(a.layer, a.seed) for a in verdicts if a.to is S.CULLED]
        culled = [(place, growing.get(place, "")) for place in places]
        for action in actions:
            if isinstance(action, Germinate | Load):
                growing[action.layer, action.seed] = getattr(action, "artifact", action.blueprint)
        for action in verdicts:
            growing.pop((action.layer, action.seed), None)
        won = {a.layer for a in actions if isinstance(a, Transition) and a.to is S.GRAFTING}
        memory = replace(self._rested(memory, culled, observation, won), tended=tuple(growing.items()))
        return memory.changed(observation.losses[-1]) if verdicts else memory

    def _germinate(self, observation: Observation, memory: Memory, why: str) -> tuple[tuple[Action, ...], Memory]:
        places, obstacle = spots(observation, memory, self.settings)
        if obstacle:
            obstacle = f"{NAMES[self.settings.trigger]}, but {obstacle}"
            return () if obstacle == memory.held else (Hold(obstacle),), replace(memory, held=obstacle)
        spot = max(places, key=lambda spot: rank(spot.layer, memory))
        reason = (
            f"{why}; layers with a free seed: {len(places)}, of which this one comes first by "
            f"{figures(spot.layer, memory)}"
        )
        if spot.plans[0].artifact:
            reason += (
                f"; {spot.plans[0].blueprint} {spot.plans[0].artifact[:19]}... of the library, which gained elsewhere"
            )
        if len(spot.plans) > 1:
            reason += f"; a race of {', '.join(plan.blueprint for plan in spot.plans)}"
        chosen = list(zip(spot.free, spot.plans, strict=False))
        actions = (
            *clearing(observation, [seed for seed, _ in chosen]),
            *(plan.germinate(seed.place, reason) for seed, plan in chosen),
        )
        return actions, replace(memory, stale=0, seen=0, held="")


def _germinates(actions: tuple[Action, ...]) -> bool:
    return any(isinstance(action, ARRIVING) for action in actions)
