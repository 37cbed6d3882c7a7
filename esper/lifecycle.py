"""The life of a seed: its states, the moves between them that are legal, and the events that tell of them."""

from __future__ import annotations

from enum import IntEnum

from esper.errors import IllegalTransitionError


class SeedLifecycleState(IntEnum):
    """States of a seed; the first five are part of the contract.

    A seed's kernel takes part in the forward while the state is GRAFTING, ACTIVE or FOSSILIZED, scaled by
    the seed's alpha; in every other state the layer's output is the host's, bit for bit.
    """

    DORMANT = 0
    LOADING = 1
    ACTIVE = 2
    ERROR_RECOVERY = 3
    FOSSILIZED = 4
    TRAINING = 5
    GRAFTING = 6
    CULLED = 7


_S = SeedLifecycleState

LEGAL: dict[SeedLifecycleState, tuple[SeedLifecycleState, ...]] = {
    _S.DORMANT: (_S.LOADING,),
    _S.LOADING: (_S.TRAINING, _S.GRAFTING, _S.DORMANT, _S.ERROR_RECOVERY),
    _S.TRAINING: (_S.GRAFTING, _S.CULLED, _S.ERROR_RECOVERY),
    _S.GRAFTING: (_S.ACTIVE, _S.CULLED, _S.ERROR_RECOVERY),
    _S.ACTIVE: (_S.FOSSILIZED, _S.GRAFTING, _S.CULLED, _S.ERROR_RECOVERY),
    _S.ERROR_RECOVERY: (_S.TRAINING, _S.CULLED),
    _S.CULLED: (_S.DORMANT,),
    _S.FOSSILIZED: (),
}
BLENDED = (_S.GRAFTING, _S.ACTIVE, _S.FOSSILIZED)

LEADS_TO: dict[str, SeedLifecycleState] = {
    **{state.name.lower(): state for state in SeedLifecycleState},
    "germinate": _S.TRAINING,
    "load": _S.TRAINING,
    "declined": _S.DORMANT,
    "remove": _S.CULLED,
}
"""The state that a seed is in after an event of a run's history; a transition's is named after the state.

A seed whose kernel is removed rests as one that was CULLED, until it is made DORMANT.
"""


def check_transition(source: SeedLifecycleState, target: SeedLifecycleState, place: str = "") -> None:
    """Raises IllegalTransitionError, with the legal moves, unless `source` may become `target`."""
    if target not in LEGAL[source]:
        raise IllegalTransitionError(source.name, target.name, [state.name for state in LEGAL[source]], place)
