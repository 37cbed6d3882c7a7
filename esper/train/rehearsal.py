"""A dress rehearsal of a seed's life on a scratch model, before the first step.

Reading and writing a seed's fields are small eager operations, which JAX compiles at their first use. Done
once here, they are not met for the first time in the middle of training: transitions then compile nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from esper.growth.policy import Plan
from esper.growth.verbs import cull, germinate, set_alpha, transition
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState as S

_LIFE = (S.GRAFTING, S.ACTIVE, S.CULLED)


def rehearse(model: MorphableModel, plans: Mapping[str, Sequence[Plan]]) -> None:
    """Takes a kernel of a scratch copy of the model through its life, and forgets it.

    Args:
        model: The model; nothing of it changes.
        plans: What could germinate in each layer. The first that has a free seed 0 will do: the operations are those
            of any other.
    """
    states = np.asarray(model.seeds.lifecycle)
    new = {layer: [plan for plan in held if not plan.artifact] for layer, held in plans.items()}
    free = [layer for layer, held in new.items() if held and states[model.structure.row(layer), 0] == int(S.DORMANT)]
    if not free:
        return
    layer, plan = free[0], new[free[0]][0]
    key = jax.random.fold_in(jax.random.key(0), 0)
    options = dict(plan.options)
    recipe = {"blueprint": plan.blueprint, "options": options, "blend": plan.blend}
    scratch = transition(model, layer=layer, seed=0, to=S.LOADING)
    scratch, _ = germinate(scratch, None, layer=layer, seed=0, key=key, **recipe)
    scratch = set_alpha(scratch, layer=layer, seed=0, alpha=0.5)
    scratch = scratch.replace(seeds=scratch.seeds.set(0, 0, health=0.5))
    for state in _LIFE:
        scratch = transition(scratch, layer=layer, seed=0, to=state)
    emptied, _ = cull(scratch, None, layer=layer, seed=0)
    emptied.seeds.row(0)
    transition(emptied, layer=layer, seed=0, to=S.DORMANT)
