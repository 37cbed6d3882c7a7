"""What an initialiser is: it gives a kernel's parameters before it enters, or finds that none are worth having."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax

from esper.errors import SeedError
from esper.growth.credit import Gain
from esper.jax_backend.source import Kernel

Params = dict[str, jax.Array]


@dataclass(frozen=True)
class Report:
    """What an initialiser did and expects.

    Attributes:
        initialiser: Its name.
        gain: Decrease of the mean loss to first order. For a kernel that is zero at birth: of a gradient step on its
            incoming weights, for each unit of learning rate. For one that is not: of having it at alpha 1. NaN for
            those that look at no data.
        singular_values: Those of the directions that were used, the largest first.
        scale: What the fitted output was multiplied by.
        check: The gain on held-out data at that scale; None without a line search.
    """

    initialiser: str
    gain: float = math.nan
    singular_values: tuple[float, ...] = ()
    scale: float = 1.0
    check: Gain | None = None

    @property
    def rank(self) -> int:
        """How many directions were used."""
        return len(self.singular_values)


@dataclass(frozen=True, eq=False)
class Initialised:
    """A kernel's parameters at birth.

    Attributes:
        params: By torch name, with the shapes and dtypes of those the blueprint drew.
        report: None for an initialiser that gives none.
    """

    params: Params
    report: Report | None = None


@dataclass(frozen=True, eq=False)
class Newborn:
    """A kernel that has been built and waits to enter its seed.

    Attributes:
        kernel: Its place and recipe.
        params: Its parameters by torch name.
        kernel_id: 32 bits that name it.
        report: What its initialiser did; None without one.
    """

    kernel: Kernel
    params: Params
    kernel_id: int
    report: Report | None = None


@dataclass(frozen=True)
class DoNotGerminate:
    """No scale of the fitted kernel's output is better than none on held-out data."""

    report: Report


Outcome = Initialised | DoNotGerminate
Init = Callable[[Params, Kernel, jax.Array], Outcome | Params]
"""From the parameters as drawn, the kernel's place and recipe, and a key, to those it is born with."""


def at_birth(init: Init | None, drawn: Params, kernel: Kernel, key: jax.Array) -> Outcome:
    """What `init` makes of the drawn parameters; None leaves them.

    Raises:
        SeedError: It returns other names, shapes or dtypes.
    """
    if init is None:
        return Initialised(drawn)
    # The key itself is what the parameters were drawn from.
    made = init(drawn, kernel, jax.random.fold_in(key, 1))
    if isinstance(made, DoNotGerminate):
        return made
    outcome = made if isinstance(made, Initialised) else Initialised(made)
    _check(outcome.params, drawn, kernel)
    return outcome


def _check(made: Params, drawn: Params, kernel: Kernel) -> None:
    place = f"kernel {kernel.blueprint!r} at layer {kernel.layer!r}, seed {kernel.seed}"
    if made.keys() != drawn.keys():
        raise SeedError(
            f"{place}: the initialiser returns the parameters {sorted(made)}, and the kernel has {sorted(drawn)}; "
            "return every one of them, changed or as it was given"
        )
    for name, array in drawn.items():
        if (made[name].shape, made[name].dtype) != (array.shape, array.dtype):
            raise SeedError(
                f"{place}: the initialiser returns {name} as {made[name].dtype}{list(made[name].shape)}, and the "
                f"kernel's is {array.dtype}{list(array.shape)}; keep its shape and dtype"
            )
