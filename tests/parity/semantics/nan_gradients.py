"""Gradients at special points: kinks, ties, zeros, infinities, where torch made a choice of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parity.case import Call
from parity.judge import opened
from parity.semantics.table import case, floats, given

INF, NAN = float("inf"), float("nan")


class Apart(nn.Module):
    """Each output from inputs of its own, so that the NaN of one gradient hides no other."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, copies):
        return [opened(self.function(*copy))[place] for place, copy in enumerate(copies)]


def _at(name: str, *given: Callable[[], Any]) -> Callable[[Any], Any]:
    """Registers a function of tensors as a case."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def build() -> Call:
            inputs = [give() for give in given]
            copies = [_copies(inputs) for _ in opened(function(*inputs))]
            return Call(Apart(function), (copies,))

        case(f"nan gradients: {name}")(build)
        return function

    return register


def _copies(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]


@_at("where that hides a sqrt of a negative", given(-1.0, 0.0, 4.0))
def _where_sqrt(x):
    safe = torch.where(x > 0, x, torch.ones_like(x))
    return torch.where(x > 0, safe.sqrt(), 0.0), torch.where(x > 0, x.clamp(min=1e-3).sqrt(), x)


@_at("where that does not hide the NaN of a sqrt", given(-1.0, 0.0, 4.0))
def _where_unsafe(x):
    return torch.where(x > 0, x.sqrt(), 0.0)


@_at("where that hides 0/0 and log 0, unsafely", given(0.0, 2.0))
def _where_divide(x):
    return torch.where(x != 0, x.sin() / x, 1.0), torch.where(x > 0, x.log(), 0.0)


@_at("masked_fill of x/0", given(1.0, 0.0, -2.0), given(0.0, 0.0, 4.0))
def _masked_division(x, y):
    return (x / y).masked_fill(y == 0, 0.0), torch.nan_to_num(x / y)


@_at("2-norm of a zero vector", given((0.0, 0.0), (3.0, 4.0)))
def _norm_zero(x):
    return x.norm(), x.norm(dim=1), torch.linalg.vector_norm(x, dim=1, keepdim=True)


@_at("norms of order 1, 3, inf, -inf, 0 and 0.5 at zeros and ties", given((0.0, 0.0, 0.0), (2.0, -2.0, 0.0)))
def _norm_orders(x):
    return [torch.linalg.vector_norm(x, order, dim=1) for order in (1, 3, INF, -INF, 0)]


@_at("matrix norms at zero", given((0.0, 0.0), (0.0, 0.0)))
def _matrix_norms(x):
    return torch.linalg.matrix_norm(x), torch.linalg.matrix_norm(x, 1), torch.linalg.matrix_norm(x, INF)


@_at("std and var of equal elements", given((2.0, 2.0, 2.0), (1.0, 2.0, 3.0)))
def _std_equal(x):
    return x.std(1), x.var(1), x.var(1, unbiased=False), torch.std_mean(x, dim=1)


@_at("std and var of one element", given((2.0,), (1.0,)))
def _std_single(x):
    return x.std(1), x.var(1), x.std(1, unbiased=False), x.var(1, correction=0)


@_at("pow with a base of zero", given(0.0, 0.0, 0.0, 2.0), given(0.0, 1.0, 2.0, 0.0))
def _pow_zero(x, y):
    return x**y, x**0, x**1, x**2, x**3, 0.0**y


@_at("pow with a base of zero and an exponent below one", given(0.0, 2.0))
def _pow_root(x):
    return x**0.5, x**1.5, x ** (-1.0)


@_at("pow with a negative base", given(-2.0, -2.0, -0.5), given(2.0, 3.0, -2.0))
def _pow_negative(x, y):
    return x**y, x**2.0, x ** (-3), torch.float_power(x, 2)


@_at("sqrt, rsqrt and cube root by pow at 0", given(0.0, 4.0))
def _sqrt_zero(x):
    return x.sqrt(), x.rsqrt(), x.pow(1 / 3)


@_at("max, min, amax, amin and median with ties", given((1.0, 3.0, 3.0), (2.0, 2.0, 2.0)))
def _ties(x):
    return x.max(), x.min(), x.amax(1), x.amin(1), x.max(1).values, x.min(0).values, x.median(1).values, x.aminmax()


@_at("maximum, minimum, fmax and fmin of equal tensors", given(1.0, 0.0, 2.0), given(1.0, -0.0, 3.0))
def _equal_pairs(x, y):
    return torch.maximum(x, y), torch.minimum(x, y), torch.fmax(x, y), torch.fmin(x, y)


@_at("maximum and fmax with NaN", given(NAN, 1.0, NAN), given(1.0, NAN, NAN))
def _nan_pairs(x, y):
    return torch.maximum(x, y), torch.fmax(x, y), torch.fmin(x, y)


@_at("abs, sign and relu at 0 and -0", given(0.0, -0.0, 1.0, -1.0))
def _abs_zero(x):
    return x.abs(), x.sign() * x, x.relu(), F.leaky_relu(x), x.abs().sqrt().nan_to_num(), torch.copysign(x, x)


@_at("clamp at its bounds, with tensors and with min above max", given(-1.0, 0.0, 1.0, 2.0))
def _clamp_bounds(x):
    low, high = torch.tensor(-1.0), torch.tensor(1.0)
    return x.clamp(-1, 1), x.clamp(low, high), x.clamp(min=0), x.clip(max=2.0), x.clamp(1, -1), F.relu6(x * 6)


@_at("clamp whose bounds have gradients", given(-1.0, 0.5, 1.0), given(-1.0, 0.0, 2.0), given(1.0, 0.5, 1.0))
def _clamp_tensors(x, low, high):
    return x.clamp(low, high), torch.clamp(x, max=high)


@_at("sort, topk and kthvalue with ties", given((1.0, 1.0, 0.0), (2.0, 2.0, 2.0)))
def _sort_ties(x):
    return x.sort(stable=True), x.sort(descending=True, stable=True).values, x.topk(2).values, x.cummax(1).values


@_at("softmax of a row that is all -inf", given((0.0, 1.0), (2.0, 3.0)))
def _masked_softmax(x):
    mask = torch.tensor([[True, False], [True, True]])
    return x.masked_fill(mask, -INF).softmax(1), x.masked_fill(mask, -INF).log_softmax(1)


@_at("masked softmax that is repaired afterwards", given((0.0, 1.0), (2.0, 3.0)))
def _repaired_softmax(x):
    mask = torch.tensor([[True, False], [True, True]])
    return x.masked_fill(mask, -INF).softmax(1).masked_fill(mask, 0.0), x.masked_fill(mask, -1e9).softmax(1)


@_at("logsumexp, logaddexp and logcumsumexp of -inf", given((-INF, -INF), (0.0, -INF)))
def _logsumexp(x):
    return x.logsumexp(1), torch.logaddexp(x[0], x[1]), x.logcumsumexp(1)


@_at("logsumexp of +inf", given((INF, 0.0), (INF, INF)))
def _logsumexp_inf(x):
    return x.logsumexp(1), x.softmax(1)


@_at("cdist and pairwise distance at coincident points", given((0.0, 1.0), (2.0, 2.0)), given((0.0, 1.0), (3.0, 1.0)))
def _coincident(x, y):
    return torch.cdist(x, y), torch.cdist(x, x), F.pairwise_distance(x, y), torch.dist(x[0], y[0]), F.pdist(x)


@_at("cdist of order 1, 3 and inf at coincident points", given((0.0, 1.0), (2.0, 2.0)), given((0.0, 1.0), (3.0, 1.0)))
def _coincident_orders(x, y):
    return torch.cdist(x, y, 1.0), torch.cdist(x, y, 3.0), torch.cdist(x, y, INF), torch.cdist(x, y, 0.0)


@_at("prod and cumprod with one zero, two zeros", given((0.0, 2.0, 3.0), (0.0, 0.0, 3.0), (1.0, 2.0, 3.0)))
def _prod_zeros(x):
    return x.prod(1), x.cumprod(1), x[2].prod(), x.prod()


@_at("atan2 and hypot at the origin", given(0.0, 0.0, 1.0), given(0.0, -1.0, 0.0))
def _origin(x, y):
    return torch.atan2(x, y), torch.hypot(x, y)


@_at("complex abs and angle of zero", lambda: torch.tensor([0j, 1 + 1j]).requires_grad_())
def _complex_zero(z):
    return z.abs(), z.angle(), z.sgn()


@_at("sinc, xlogy, entr and log1p at their edges", given(0.0, 1.0, 0.5), given(0.0, 0.0, 2.0))
def _edges(x, y):
    return torch.sinc(x), torch.xlogy(x, y), torch.special.entr(x), torch.special.xlog1py(x, y), torch.log1p(-x + 1e-3)


@_at("asin, acos, atanh and erfinv at 1", given(1.0, -1.0, 0.5))
def _inverse_edges(x):
    return x.asin(), x.acos(), x.atanh(), x.erfinv(), (x.abs()).acosh()


@_at("relu and its kin at their kinks", given(-3.0, -1.0, 0.0, 1.0, 3.0, 6.0, -0.5, 0.5))
def _kinks(x):
    kinked = F.hardtanh(x), F.hardswish(x), F.hardsigmoid(x), F.relu6(x), F.elu(x), F.selu(x), F.celu(x)
    return kinked, F.hardshrink(x), F.softshrink(x), F.threshold(x, 1.0, 5.0), F.prelu(x, torch.tensor([0.25]))


@_at("losses at their kinks", given(0.0, 1.0, -1.0, 2.0), given(0.0, 0.0, 0.0, 2.0))
def _loss_kinks(x, y):
    margin = F.margin_ranking_loss(x, y, torch.ones(4)), F.hinge_embedding_loss(x, torch.tensor([1, -1, -1, 1]))
    return F.l1_loss(x, y), F.smooth_l1_loss(x, y), F.huber_loss(x, y), margin


@_at("log_softmax and cross entropy of large values", given((1e4, -1e4, 0.0), (88.0, 89.0, -1e30)))
def _large(x):
    return x.log_softmax(1), F.cross_entropy(x, torch.tensor([1, 0])), F.softplus(x), F.logsigmoid(x), x.sigmoid()


@_at("binary cross entropy at 0 and 1", given(0.0, 1.0, 0.5), given(0.0, 1.0, 1.0, grad=False))
def _binary(p, y):
    return F.binary_cross_entropy(p, y), F.binary_cross_entropy(p, 1 - y, reduction="none")


@_at("KL divergence with zero targets", given((0.2, 0.8), (0.5, 0.5)), given((0.0, 1.0), (0.5, 0.5)))
def _kl_zero(p, target):
    return F.kl_div(p.log(), target, reduction="sum"), F.kl_div(p.log(), target, reduction="none")


@_at("cosine similarity and normalize of zero vectors", given((0.0, 0.0), (1.0, 2.0)), given((1.0, 0.0), (0.0, 0.0)))
def _zero_vectors(x, y):
    return (
        F.cosine_similarity(x, y),
        F.normalize(x),
        F.normalize(x, p=1.0),
        F.cosine_embedding_loss(x, y, torch.ones(2)),
    )


@_at("layer, group and batch norm of constant input", lambda: torch.full((4, 6), 2.0).requires_grad_())
def _constant_norms(y):
    return (
        F.layer_norm(y, (6,)),
        F.group_norm(y, 2),
        F.batch_norm(y, None, None, training=True),
        F.rms_norm(y * 0, (6,)),
    )


@_at("cross entropy whose every target is ignored", floats(2, 3))
def _all_ignored(x):
    target = torch.full((2,), -100)
    return F.cross_entropy(x, target), F.cross_entropy(x, target, reduction="sum")


@case("nan gradients: MultiheadAttention with a fully masked row", floats(2, 3, 4))
class MaskedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        padding = torch.tensor([[False, False, True], [True, True, True]])
        out, weights = self.attention(x, x, x, key_padding_mask=padding)
        return out.nan_to_num(), weights


@_at("scaled_dot_product_attention with a fully masked row", floats(2, 3, 4))
def _masked_sdpa(x):
    mask = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@_at("svd, eigh and qr of matrices with repeated values, through invariant functions", given((2.0, 0.0), (0.0, 2.0)))
def _repeated(x):
    return torch.linalg.eigvalsh(x), torch.linalg.svdvals(x), torch.linalg.qr(x).R, torch.linalg.det(x)


@_at("det and slogdet of a singular matrix", given((1.0, 2.0), (2.0, 4.0)))
def _singular(x):
    return torch.linalg.det(x), torch.linalg.slogdet(x + torch.eye(2)), torch.linalg.pinv(x)


@_at("fmod, remainder, floor and frac at integers", given(2.0, -2.0, 0.0, 1.5))
def _steps(x):
    return torch.fmod(x, 2), torch.remainder(x, 2), x.floor() * x, x.frac(), x.round(), x.trunc()
