"""Branches on data that only check it, and parameters that a forward writes into."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from parity.semantics.table import case, floats, integers


@case("checks: an if that raises, on labels", floats(4, 3), integers(3, 4))
class LabelsChecked(nn.Module):
    def forward(self, x, labels=None):
        if labels is not None and labels.max() >= x.shape[-1]:
            raise ValueError(f"label {labels.max()} is too large")
        return F.cross_entropy(x, labels)


@case("checks: assert, also of a negation and a conjunction", floats(4, 3))
class Asserted(nn.Module):
    def forward(self, x):
        assert torch.isfinite(x).all(), "x is not finite"
        assert not torch.isnan(x).any()
        assert (x < 1e6).all() and not (x > 1e6).any()
        return x.exp()


@case("checks: if not all, with a message made first", floats(4, 3))
class Messaged(nn.Module):
    def forward(self, x):
        if not torch.isfinite(x).all():
            message = "not finite"
            raise ValueError(message)
        return x * 2


@case("checks: a number read and compared", floats(4, 3))
class ReadAndCompared(nn.Module):
    def forward(self, x):
        if x.abs().max().item() > 1e6 or x.sum().item() != x.sum().item():
            raise ValueError("out of range")
        return x.sin()


@case("checks: one that only warns, and one in the else branch", floats(4, 3))
class Warned(nn.Module):
    def forward(self, x):
        if bool((x > 1e6).any()):
            warnings.warn("large", stacklevel=1)
        if (x < 1e6).all():
            return x * 3
        else:
            raise ValueError("too large")


@case("checks: ctc of labels selected by a mask", floats(5, 2, 4), integers(3, 2, 3), integers(2, 2, 3))
class Selected(nn.Module):
    def forward(self, x, labels, chosen):
        mask = chosen > 0
        lengths = torch.full((2,), 5)
        targets = (labels + 1).masked_select(mask)
        return F.ctc_loss(x.log_softmax(-1), targets, lengths, mask.sum(-1), reduction="sum", zero_infinity=True)


class _Rescaled(nn.Module):
    """Divides a weight in the first evaluation, and notes that it did."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.divided = nn.Linear(3, 3), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and not self.divided:
            with torch.no_grad():
                self.linear.weight.div_(2)
            self.divided = True
        return self.linear(x)


@case("checks: a weight rescaled once, noted in a flag", floats(2, 3))
class Rescaled(_Rescaled):
    pass


@case("checks: a weight written in every forward", floats(2, 3), train=True)
class Clipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        with torch.no_grad():
            self.linear.weight.clamp_(-0.2, 0.2)
        return self.linear(x)


@case(
    "checks: a scale set from the first batch",
    floats(4, 3),
    train=True,
    refuses="call the module once before wrapping it",
)
class ActNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.ready = nn.Parameter(torch.ones(3)), False

    def forward(self, x):
        if not self.ready:
            with torch.no_grad():
                self.scale.copy_(1 / x.std(0))
            self.ready = True
        return x * self.scale
