"""What Tamiyo remembers between evaluations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from esper.growth.policy import Place


@dataclass(frozen=True)
class Culled:
    """A kernel that did not stay.

    Attributes:
        place: Its seed.
        blueprint: Its recipe; of one that came from the library, its digest.
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
        tended: Seeds that should be growing, and by which blueprint, or which kernel of the library.
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
