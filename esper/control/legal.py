"""Which actions, and which measurements, an observation allows: what comes from outside is held against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from esper.growth.policy import (
    ARRIVING,
    MEASURED,
    Action,
    Asks,
    Cull,
    Germinate,
    Hold,
    Load,
    Note,
    Observation,
    Plan,
    SetAlpha,
    Transition,
)
from esper.lifecycle import LEGAL
from esper.lifecycle import SeedLifecycleState as S

_EMPTY = (S.DORMANT, S.CULLED)
_REASON = 4000
_HOLDS = 16  # in an answer
_ACTIONS, _OF_A_SEED = 16, 4  # in an answer, at most: so many, and so many more for every seed


def obstacle(observation: Observation, actions: Sequence[Action]) -> str:
    """Why the actions, in their order, are impossible where this was observed; empty: they are possible.

    A germination, or what is loaded, has to be one of the layer's plans: what may grow in a run is the run's to say.
    """
    if reason := _too_many(observation, actions):
        return reason
    plans = {seed.place: layer.plans for layer in observation.layers for seed in layer.seeds}
    states = {seed.place: seed.state for seed in observation.seeds()}
    held = {seed.place for seed in observation.seeds() if seed.blueprint}
    for action in actions:
        if isinstance(action, Note) or len(action.reason) > _REASON or not action.reason.isprintable():
            return f"an action has to have a reason, a line of at most {_REASON} printable characters"
        if isinstance(action, Hold):
            continue
        place = action.layer, action.seed
        if place not in states:
            return f"there is no seed {action.seed} in a layer {action.layer!r}"
        refused = _refused(action, states[place], plans[place], held=place in held)
        if refused:
            return f"{action.layer or '(root)'}[{action.seed}] is {states[place].name}: {refused}"
        states[place] = _after(action, states[place])
        held = held | {place} if isinstance(action, ARRIVING) else held
        held = held - {place} if isinstance(action, Cull) else held
    return ""


def _too_many(observation: Observation, actions: Sequence[Action]) -> str:
    """Why nobody would decide so much at once, each of which is carried out and recorded; empty: somebody would."""
    most = _ACTIONS + _OF_A_SEED * sum(1 for _ in observation.seeds())
    if len(actions) > most:
        return f"{len(actions)} actions, and here at most {most} are decided at once"
    if sum(isinstance(action, Hold) for action in actions) > _HOLDS:
        return f"more than {_HOLDS} reasons for not growing"
    alphas = Counter((action.layer, action.seed) for action in actions if isinstance(action, SetAlpha))
    return next(
        (f"alpha of {layer or '(root)'}[{seed}] is set {n} times" for (layer, seed), n in alphas.items() if n > 1), ""
    )


def _refused(action: Action, state: S, plans: Sequence[Plan], *, held: bool) -> str:
    """Why a seed in this state, which holds a kernel or does not, cannot do this; empty: it can."""
    match action:
        case Germinate() | Load():
            if state is not S.DORMANT:
                return "only a DORMANT seed germinates"
            place, reason = (action.layer, action.seed), action.reason
            is_planned = any(plan.germinate(place, reason) == action for plan in plans)
            return "" if is_planned else f"{action.blueprint!r} as it is asked for is none of the layer's plans"
        case Transition(to=to):
            if to is S.LOADING or to not in LEGAL[state]:
                return f"it cannot become {to.name}"
            return "" if held or to in _EMPTY else f"it holds no kernel, so it cannot become {to.name}"
        case Cull():
            return "" if state is S.CULLED or S.CULLED in LEGAL[state] else "it cannot be culled"
        case SetAlpha(alpha=alpha):
            return "" if 0 <= alpha <= 1 and state is not S.FOSSILIZED else "alpha is in [0, 1], and changes until then"
    return f"{type(action).__name__} is nothing to be asked for"


def _after(action: Action, state: S) -> S:
    match action:
        case Germinate() | Load():
            return S.TRAINING
        case Transition(to=to):
            return to
        case Cull():
            return S.CULLED
    return state


def unmeasurable(observation: Observation, asks: Asks) -> str:
    """Why what is asked for cannot be measured where this was observed; empty: it can."""
    growing = {seed.place for seed in observation.seeds() if seed.state in MEASURED}
    layers = {layer.name for layer in observation.layers}
    odd = [*({*asks.gains, *asks.credits} - growing), *({*asks.scores} - layers)]
    repeated = any(len({*asked}) < len(asked) for asked in (asks.gains, asks.credits, asks.scores))
    if odd or repeated:
        return f"nothing that can be measured, or the same twice: {sorted(odd, key=repr)[:3]}"
    return ""
