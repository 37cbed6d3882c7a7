"""What a parity case is, and what is found of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

PASS, WRONG, REFUSED, SKIP, NONE = "pass", "wrong", "refused", "skip", "none"
DOCUMENTED = "documented"  # refused, as it should be


@dataclass(frozen=True)
class Call:
    """One call of one module, in eager torch and on XLA.

    Attributes:
        module: Every run works on a copy of its own.
        args: Tensors among them that require a gradient have it compared.
        kwargs: Likewise.
        train: Mode of the run.
        own_modes: Keep the modes of the submodules as they are instead of setting `train`.
        drawn: Outputs are random: shapes and dtypes are compared, values are not.
        gradients: Compare gradients.
        wide: Run with JAX's 64-bit mode on.
        through: The dtype that gradients pass through on their way, where it is coarser than their own (autocast):
            they are as exact as it is, in eager torch too.
    """

    module: nn.Module
    args: Sequence[Any] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    train: bool = False
    own_modes: bool = False
    drawn: bool = False
    gradients: bool = True
    wide: bool = False
    through: str = ""


@dataclass(frozen=True)
class Case:
    """A named case.

    Attributes:
        name: Unique in its suite.
        build: Makes the case's calls.
        joined: Makes one call of several, which are then tried together first.
        skip: Why the case is not run.
        refuses: Words of the refusal that is documented for it: any other outcome is wrong.
    """

    name: str
    build: Callable[[], Sequence[Call]]
    joined: Callable[[Sequence[Call]], Call] | None = None
    skip: str = ""
    refuses: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was found of a case.

    "pass", "wrong", "refused" (an error), "documented" (refused, as it should be), "skip", or "none" (nothing to
    compare).
    """

    values: str
    gradients: str
    reason: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain data, for the results file."""
        return asdict(self)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for several calls of a case."""
    order = (WRONG, REFUSED, PASS, DOCUMENTED, SKIP, NONE)
    values = min((v.values for v in verdicts), key=order.index, default=NONE)
    gradients = min((v.gradients for v in verdicts), key=order.index, default=NONE)
    reasons = dict.fromkeys(v.reason for v in verdicts if v.reason)
    return Verdict(values, gradients, "; ".join(reasons))
