"""Losses: reductions, weights, ignored targets, soft targets, CTC, adaptive softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parity.case import Call
from parity.judge import Function
from parity.semantics.table import case, floats, given, integers

REDUCTIONS = ("none", "mean", "sum")


def _function(name: str, *given: Callable[[], Any], **options: Any) -> Callable[[Any], Any]:
    """Registers a function of tensors as a case."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        case(f"losses: {name}")(lambda: Call(Function(function), tuple(give() for give in given), **options))
        return function

    return register


def _layer(name: str, make: Callable[[], nn.Module], *given: Callable[[], Any], **options: Any) -> None:
    """Registers a layer as a case."""
    case(f"losses: {name}")(lambda: Call(make(), tuple(give() for give in given), **options))


@_function("cross entropy with weights, smoothing and ignored targets", floats(4, 3), given(0, 2, -100, 1))
def _cross_entropy(x, y):
    weight = torch.tensor([1.0, 0.5, 2.0])
    return [F.cross_entropy(x, y, weight, reduction=r, label_smoothing=s) for r in REDUCTIONS for s in (0.0, 0.2)]


@_function(
    "cross entropy with probabilities, and over an image",
    floats(2, 3),
    floats(2, 3),
    floats(2, 3, 2, 2),
    integers(3, 2, 2, 2),
)
def _soft_targets(x, p, image, labels):
    soft = F.cross_entropy(x, p.softmax(1), torch.tensor([1.0, 0.5, 2.0]), label_smoothing=0.1)
    return (
        soft,
        F.cross_entropy(image, labels, ignore_index=1),
        F.nll_loss(image.log_softmax(1), labels, reduction="none"),
    )


@_function("cross entropy without batch", floats(3), given(1))
def _unbatched(x, y):
    return F.cross_entropy(x, y[0]), F.nll_loss(x.log_softmax(0), y[0])


CTC = {"targets": torch.tensor([[1, 2, 2], [3, 1, 0]]), "lengths": torch.tensor([3, 2])}


@_function("CTC, lengths as tensors, every reduction", floats(6, 2, 4), given(6, 5), given(3, 2))
def _ctc(x, input_lengths, target_lengths):
    x = x.log_softmax(2)
    return [F.ctc_loss(x, CTC["targets"], input_lengths, target_lengths, reduction=r) for r in REDUCTIONS]


@_function("CTC, lengths as tuples, targets joined", floats(6, 2, 4), given(1, 2, 2, 3, 1))
def _ctc_tuples(x, joined):
    return F.ctc_loss(x.log_softmax(2), joined, (6, 5), (3, 2)), F.ctc_loss(
        x.log_softmax(2), CTC["targets"], (6, 6), (3, 2)
    )


@_function("CTC with zero_infinity where no path exists", floats(3, 2, 4), floats(3, 2, 4))
def _ctc_impossible(x, y):
    x, y = x.log_softmax(2), y.log_softmax(2)
    options = {"zero_infinity": True, "reduction": "none"}
    return F.ctc_loss(x, CTC["targets"], (3, 3), (3, 2), **options), F.ctc_loss(
        y, CTC["targets"], (3, 3), (3, 2), reduction="none"
    )


@_function("CTC with another blank and an empty target", floats(4, 2, 4))
def _ctc_blank(x):
    targets = torch.tensor([[0, 1], [2, 1]])
    return F.ctc_loss(x.log_softmax(2), targets, torch.tensor([4, 4]), torch.tensor([2, 0]), blank=3, reduction="sum")


_layer(
    "CTCLoss as a layer, unbatched",
    nn.CTCLoss,
    lambda: floats(5, 4)().log_softmax(1).detach().requires_grad_(),
    given(1, 2),
    lambda: torch.tensor(5),
    lambda: torch.tensor(2),
)


@_function("Gaussian and Poisson likelihoods", floats(2, 3), floats(2, 3), floats(2, 3))
def _likelihoods(x, y, v):
    variance = v.exp()
    gaussian = [F.gaussian_nll_loss(x, y, variance, full=f, reduction=r) for f in (True, False) for r in REDUCTIONS]
    small = F.gaussian_nll_loss(x, y, variance[:, :1], eps=0.5), F.gaussian_nll_loss(x, y, 0.7)
    return (
        gaussian,
        small,
        F.poisson_nll_loss(x, y.abs() * 3, full=True),
        F.poisson_nll_loss(x.exp(), y.abs(), log_input=False),
    )


@_function("embedding losses: cosine, triplet, hinge", floats(4, 3), floats(4, 3), floats(4, 3), given(1, -1, 1, -1))
def _embeddings(x, y, z, sign):
    cosine = [F.cosine_embedding_loss(x, y, sign, margin=0.2, reduction=r) for r in REDUCTIONS]
    triplet = (
        F.triplet_margin_loss(x, y, z, swap=True),
        F.triplet_margin_loss(x, y, z, p=1.0, eps=1e-3, reduction="none"),
    )
    return (
        cosine,
        triplet,
        F.hinge_embedding_loss(x[:, 0], sign),
        F.margin_ranking_loss(x, y, sign[:, None], margin=0.1),
    )


@_function("a triplet loss with a distance of one's own", floats(4, 3), floats(4, 3), floats(4, 3))
def _triplet_distance(x, y, z):
    return F.triplet_margin_with_distance_loss(
        x, y, z, distance_function=lambda a, b: 1 - F.cosine_similarity(a, b), swap=True
    )


@_function(
    "margin losses of many classes", floats(3, 4), given(1, 3, 0), given((3, 0, -1, 1), (0, 1, -1, -1), (1, 2, 3, 0))
)
def _margins(x, y, many):
    soft = F.multilabel_soft_margin_loss(x, many.clamp(0, 1).float()), F.soft_margin_loss(x, many.sign() * 2 + 1)
    return F.multi_margin_loss(x, y, p=2, margin=0.5, weight=torch.arange(4.0)), F.multilabel_margin_loss(x, many), soft


@_function("binary losses with weights", floats(2, 3), floats(2, 3))
def _binary(x, y):
    y = y.sigmoid()
    weight, positive = torch.tensor([1.0, 0.5, 2.0]), torch.tensor([2.0, 1.0, 3.0])
    with_logits = F.binary_cross_entropy_with_logits(x, y, weight, pos_weight=positive)
    return with_logits, F.binary_cross_entropy(x.sigmoid(), y.detach(), weight), F.mse_loss(x, y, reduction="sum")


@_function("regression losses: delta, beta, broadcast, weights", floats(2, 3), floats(2, 3))
def _regression(x, y):
    huber = F.huber_loss(x, y, delta=0.3), F.smooth_l1_loss(x, y, beta=0.3), F.smooth_l1_loss(x, y, beta=0.0)
    return huber, F.l1_loss(x, y, reduction="none"), F.mse_loss(x, y[:1]), F.mse_loss(x, y, weight=y.detach().abs())


@_function("KL divergence of both kinds of target", floats(2, 3), floats(2, 3))
def _divergence(x, y):
    x, y = x.log_softmax(1), y.softmax(1)
    return [F.kl_div(x, y, reduction=r) for r in (*REDUCTIONS, "batchmean")], F.kl_div(x, y.log(), log_target=True)


_layer(
    "AdaptiveLogSoftmaxWithLoss",
    lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 10, [3, 6]),
    floats(5, 4),
    given(0, 2, 4, 8, 9),
)


def _adaptive() -> nn.Module:
    return nn.AdaptiveLogSoftmaxWithLoss(4, 10, [3, 6], head_bias=True)


_layer("AdaptiveLogSoftmaxWithLoss, one row alone", _adaptive, floats(4), lambda: torch.tensor(7))
_layer("AdaptiveLogSoftmaxWithLoss, all in the shortlist", _adaptive, floats(3, 4), given(0, 2, 1))
_layer("AdaptiveLogSoftmaxWithLoss, a batch of one", _adaptive, floats(1, 4), given(4))
_layer(
    "AdaptiveLogSoftmaxWithLoss, a row that is infinite for clusters it is not in",
    _adaptive,
    lambda: torch.tensor([[1e38, 1e38, -1e38, 1e38], [0.1, 0.2, 0.3, 0.4]]).requires_grad_(),
    given(1, 8),
)


@case("losses: AdaptiveLogSoftmaxWithLoss, log_prob and predict", floats(5, 4))
class AdaptiveProbabilities(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.AdaptiveLogSoftmaxWithLoss(4, 10, [3, 6], div_value=2.0, head_bias=True)

    def forward(self, x):
        return self.head.log_prob(x), self.head.predict(x)
