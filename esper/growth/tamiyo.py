"""Tamiyo, the built-in policy: grow at a plateau, keep what measurably helps on held-out data.

One kernel at a time: while one is TRAINING, GRAFTING or ACTIVE, nothing germinates. A kernel is kept only
if its held-out gain exceeds `min_gain` by more than `z` standard errors, twice: after training in
isolation, and again once it has been part of the network for a while.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from esper.configs import TamiyoSettings
from esper.growth.policy import Action, Cull, Germinate, Hold, LayerView, Observation, Plan, SeedView, Transition
from esper.lifecycle import SeedLifecycleState as S

_GROWING = (S.LOADING, S.TRAINING, S.GRAFTING, S.ACTIVE, S.ERROR_RECOVERY)
_HELD = (*_GROWING, S.FOSSILIZED)
_BUDGETS = {"parameters": "parameters", "flops": "floating-point operations", "bytes": "bytes"}


@dataclass(frozen=True)
class Memory:
    """What Tamiyo remembers between evaluations.

    Attributes:
        best: Lowest held-out loss since growth last changed something.
        stale: Evaluations since then without a loss below `best` by `min_delta`.
        rest: For each cull, in order: the seed, and until which step it rests.
        held: The last reason given for not growing, so that it is given once.
    """

    best: float = math.inf
    stale: int = 0
    rest: tuple[tuple[tuple[str, int], int], ...] = ()
    held: str = ""

    def culls(self, layer: str) -> int:
        """How many kernels of a layer were culled so far."""
        return sum(name == layer for (name, _), _ in self.rest)


@dataclass(frozen=True)
class Tamiyo:
    """The plateau policy.

    Attributes:
        settings: Patience, durations, thresholds and budgets.
        z: How many standard errors a gain must exceed `min_gain` by; 1.64 is one-sided 95 %.
    """

    settings: TamiyoSettings
    z: float = 1.64

    def start(self) -> Memory:
        """Nothing remembered."""
        return Memory()

    def __call__(self, observation: Observation, memory: Memory) -> tuple[tuple[Action, ...], Memory]:
        """Judges the kernel that is growing, or germinates one at a plateau."""
        if self.settings.policy == "none":
            return (), memory
        growing = [seed for seed in observation.seeds() if seed.state in _GROWING]
        if growing:
            actions = tuple(action for seed in growing for action in self._judge(seed))
            return actions, self._after(actions, observation, memory)
        memory = self._noticed(observation, memory)
        return self._germinate(observation, memory) if memory.stale >= self.settings.patience else ((), memory)

    def _noticed(self, observation: Observation, memory: Memory) -> Memory:
        loss = observation.losses[-1]
        if loss < memory.best - self.settings.min_delta:
            return replace(memory, best=loss, stale=0, held="")
        return replace(memory, stale=memory.stale + 1)

    def _after(self, actions: tuple[Action, ...], observation: Observation, memory: Memory) -> Memory:
        """After a verdict the network is another one: the plateau is sought anew."""
        for action in actions:
            if isinstance(action, Transition) and action.to in (S.FOSSILIZED, S.CULLED):
                memory = replace(memory, best=observation.losses[-1], stale=0, held="")
                if action.to is S.CULLED:
                    until = observation.step + self.settings.embargo_steps
                    memory = replace(memory, rest=(*memory.rest, ((action.layer, action.seed), until)))
        return memory

    def _judge(self, seed: SeedView) -> Iterator[Action]:
        settings = self.settings
        if seed.state is S.ERROR_RECOVERY:
            retried = seed.errors <= settings.max_retries
            reason = (
                f"the kernel gave something that is not finite, {seed.errors} times so far, {settings.max_retries} "
            )
            reason += "are forgiven"
            yield Transition(seed.layer, seed.seed, S.TRAINING if retried else S.CULLED, reason)
        elif seed.state is S.TRAINING and seed.since >= settings.train_steps:
            yield self._verdict(seed, S.GRAFTING)
        elif seed.state is S.GRAFTING and seed.since >= settings.blend_steps:
            reason = f"alpha has risen to {seed.alpha:.2f} over {seed.since} steps"
            yield Transition(seed.layer, seed.seed, S.ACTIVE, reason)
        elif seed.state is S.ACTIVE and seed.since >= settings.hold_steps:
            yield self._verdict(seed, S.FOSSILIZED)

    def _verdict(self, seed: SeedView, reward: S) -> Action:
        gain = seed.gain
        if gain is None:
            return Hold(f"layer {seed.layer!r}, seed {seed.seed}: its gain was not measured")
        # A single batch has no standard error, and a kernel that diverged no gain: neither is evidence.
        kept = gain.mean - self.z * gain.stderr > self.settings.min_gain
        reason = (
            f"after {seed.since} steps {seed.state.name}, held-out loss {gain.without:.4f} without it and "
            f"{gain.having:.4f} with it: gain {gain} over {gain.batches} batches "
            f"{'exceeds' if kept else 'does not exceed'} {self.settings.min_gain:g} by {self.z:g} standard errors"
        )
        return Transition(seed.layer, seed.seed, reward if kept else S.CULLED, reason)

    def _germinate(self, observation: Observation, memory: Memory) -> tuple[tuple[Action, ...], Memory]:
        places = list(self._places(observation, memory))
        obstacle = self._obstacle(observation, places)
        if obstacle:
            held = () if obstacle == memory.held else (Hold(obstacle),)
            return held, replace(memory, held=obstacle)
        layer, seed, plan = max(places, key=lambda place: (-memory.culls(place[0].name), place[0].pull))
        reason = (
            f"held-out loss has not improved on {memory.best:.4f} by {self.settings.min_delta:g} in {memory.stale} "
            f"evaluations; layers with a free seed: {len(places)}, of which this one comes first by culls so far "
            f"({memory.culls(layer.name)}, fewest first), then by gradient norm ({layer.pull:.3f}, largest first)"
        )
        actions = (
            *_clearing(observation, seed),
            Germinate(layer.name, seed.seed, plan.blueprint, plan.options, reason, plan.blend),
        )
        return actions, replace(memory, stale=0, held="")

    def _places(self, observation: Observation, memory: Memory) -> Iterator[tuple[LayerView, SeedView, Plan]]:
        """The first free seed of every layer that has one."""
        rest = dict(memory.rest)
        for layer in observation.layers:
            for seed in layer.seeds:
                rested = observation.step >= rest.get((layer.name, seed.seed), 0)
                if layer.plan and (seed.state is S.DORMANT or (seed.state is S.CULLED and rested)):
                    yield layer, seed, layer.plan
                    break

    def _obstacle(self, observation: Observation, places: list[tuple[LayerView, SeedView, Plan]]) -> str:
        """Why nothing may germinate; empty if something may. Too costly places are removed from `places`."""
        settings = self.settings
        held = [seed for seed in observation.seeds() if seed.state in _HELD]
        if len(held) >= settings.max_kernels:
            return f"a plateau, but the {settings.max_kernels} kernels allowed are there"
        left, needed = observation.total_steps - observation.step, self._lifetime(observation.every)
        if left < needed:
            return f"a plateau, but a kernel takes {needed} steps to be judged and fewer are left"
        if not places:
            return "a plateau, but no layer has a free seed"
        for name, unit in _BUDGETS.items():
            limit = getattr(settings, f"max_{name}")
            if limit is None:
                continue
            room = limit - sum(getattr(seed, name) for seed in held)
            places[:] = [place for place in places if getattr(place[2], name) <= room]
            if not places:
                return f"a plateau, but no kernel fits into the {max(room, 0)} {unit} left"
        return ""

    def _lifetime(self, every: int) -> int:
        """Steps from germination to the last verdict, each stage ending at an evaluation."""
        stages = (self.settings.train_steps, self.settings.blend_steps, self.settings.hold_steps)
        return sum(math.ceil(stage / every) * every for stage in stages)


def _clearing(observation: Observation, chosen: SeedView) -> Iterator[Action]:
    """What a germination, which compiles anyway, takes along: the arrays of culled kernels go."""
    for seed in observation.seeds():
        if seed.state is S.CULLED and seed.parameters:
            yield Cull(seed.layer, seed.seed, "its arrays go with the compile that a germination means anyway")
    if chosen.state is S.CULLED:
        yield Transition(chosen.layer, chosen.seed, S.DORMANT, "its rest is over")
