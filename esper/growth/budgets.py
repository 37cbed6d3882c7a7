"""What kernels may cost together. Of a race at most one is kept, so that it counts as one kernel, its largest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from esper.configs import TamiyoSettings
from esper.growth.policy import LayerView, Observation, Plan
from esper.lifecycle import SeedLifecycleState as S

UNITS = {"parameters": "parameters", "flops": "floating-point operations", "bytes": "bytes"}


def held(observation: Observation) -> int:
    """How many kernels there are."""
    return _permanent(observation) + sum(bool(layer.growing) for layer in observation.layers)


def rooms(observation: Observation, settings: TamiyoSettings) -> dict[str, float]:
    """What is left of each budget; infinite where there is none."""
    return {name: _room(observation, name, getattr(settings, f"max_{name}")) for name in UNITS}


def affordable(plans: Iterable[Plan], room: dict[str, float], most: int) -> tuple[Plan, ...]:
    """The first plans, as many as asked for, that fit into the room as one race."""
    chosen: list[Plan] = []
    for plan in plans:
        if len(chosen) < most and all(_used([*chosen, plan], name) <= room[name] for name in UNITS):
            chosen.append(plan)
    return tuple(chosen)


def lifetime(settings: TamiyoSettings, every: int) -> int:
    """Steps from a germination to the last verdict, each stage ending at an evaluation."""
    stages = (settings.train_steps, settings.blend_steps, settings.hold_steps)
    return sum(math.ceil(stage / every) * every for stage in stages)


def _room(observation: Observation, name: str, limit: int | None) -> float:
    return math.inf if limit is None else limit - sum(_held(layer, name) for layer in observation.layers)


def _held(layer: LayerView, name: str) -> int:
    permanent = sum(getattr(seed, name) for seed in layer.seeds if seed.state is S.FOSSILIZED)
    return permanent + _used(layer.growing, name)


def _used(racers: Sequence[object], name: str) -> int:
    """Memory is taken by all at once; parameters and operations are what the network would have to keep."""
    costs = [getattr(racer, name) for racer in racers]
    return sum(costs) if name == "bytes" else max(costs, default=0)


def _permanent(observation: Observation) -> int:
    return sum(seed.state is S.FOSSILIZED for seed in observation.seeds())
