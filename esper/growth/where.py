"""Where to grow, and by what: the places that are free, what fits into them, and which comes first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from esper.configs import TamiyoSettings
from esper.growth import budgets
from esper.growth.memory import Memory
from esper.growth.policy import Action, Cull, LayerView, Observation, Plan, SeedView, Transition
from esper.lifecycle import SeedLifecycleState as S


@dataclass(frozen=True)
class Spot:
    """A layer that something could germinate in, its free seeds, and what it could grow by, the first choice first."""

    layer: LayerView
    free: tuple[SeedView, ...]
    plans: tuple[Plan, ...]


def spots(observation: Observation, memory: Memory, settings: TamiyoSettings) -> tuple[list[Spot], str]:
    """Where something may germinate, or why nothing may."""
    if budgets.held(observation) >= settings.max_kernels:
        return [], f"the {settings.max_kernels} kernels allowed are there"
    if observation.step > settings.stop_fraction * observation.total_steps:
        return [], f"{settings.stop_fraction:.0%} of the run are over, after which nothing germinates"
    left, needed = observation.total_steps - observation.step, budgets.lifetime(settings, observation.every)
    if left < needed:
        return [], f"a kernel takes {needed} steps to be judged and fewer are left"
    found = list(_free(observation, memory))
    if not found:
        return [], "no layer has a free seed"
    room = budgets.rooms(observation, settings)
    found = [replace(s, plans=_choice(s.plans, room, min(settings.race, len(s.free)))) for s in found]
    fitting = [spot for spot in found if spot.plans]
    left_over = ", ".join(f"{max(size, 0)} {budgets.UNITS[name]}" for name, size in room.items() if size < math.inf)
    return fitting, "" if fitting else f"no kernel fits into the {left_over} left"


def _choice(plans: tuple[Plan, ...], room: dict[str, float], most: int) -> tuple[Plan, ...]:
    """What is tried now: a kernel of the library, which is trained and so races with none; or new ones."""
    first = budgets.affordable(plans, room, 1)
    if first and first[0].artifact:
        return first
    return budgets.affordable([plan for plan in plans if not plan.artifact], room, most)


def rank(layer: LayerView, memory: Memory) -> tuple[float, ...]:
    """The largest comes first; a layer without a score comes after those that have one."""
    score = layer.score.gain if layer.score and not math.isnan(layer.score.gain) else -math.inf
    return (-memory.culls(layer.name), score, layer.pull)


def figures(layer: LayerView, memory: Memory) -> str:
    """What `rank` goes by, in words."""
    score = f", then by first-order gain ({layer.score}, largest first)" if layer.score else ""
    culls = f"culls so far ({memory.culls(layer.name)}, fewest first)"
    return f"{culls}{score}, then by gradient norm ({layer.pull:.3f}, largest first)"


def clearing(observation: Observation, chosen: list[SeedView]) -> Iterator[Action]:
    """What a germination, which compiles anyway, takes along: the arrays of culled kernels go."""
    for seed in observation.seeds():
        if seed.state is S.CULLED and seed.parameters:
            yield Cull(seed.layer, seed.seed, "its arrays go with the compile that a germination means anyway")
    for seed in chosen:
        if seed.state is S.CULLED:
            yield Transition(seed.layer, seed.seed, S.DORMANT, "its rest is over")


def _free(observation: Observation, memory: Memory) -> Iterator[Spot]:
    """Layers in which nothing grows, with the seeds that are free; blueprints that were culled there come last."""
    rests = {one.place: one.until for one in memory.culled}
    for layer in observation.layers:
        free = tuple(
            seed
            for seed in layer.seeds
            if seed.state in (S.DORMANT, S.CULLED) and observation.step >= rests.get(seed.place, 0)
        )
        if free and layer.plans and not layer.growing:
            ranked = sorted(layer.plans, key=lambda plan: memory.lost(layer.name, plan.name))
            yield Spot(layer, free, tuple(ranked))
