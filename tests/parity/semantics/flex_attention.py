"""flex_attention in training: masks and scores of the user's, what they close over, and the gradients of it all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    and_masks,
    create_block_mask,
    flex_attention,
    or_masks,
)
from torch.utils.checkpoint import checkpoint

from parity.case import Call
from parity.judge import Function
from parity.semantics.table import case, floats, integers

_API: Any = importlib.import_module("torch.nn.attention.flex_attention")
_OPTIONS = _API._apply_kernel_options


def _eagerly(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Lets the forward run eagerly: torch has the backward for a CPU and the largest scores, and refuses them there."""

    def options(*args: Any) -> Any:
        return _OPTIONS(*args[:5])

    @wraps(forward)
    def run(*args: Any) -> Any:
        with ExitStack() as stack:
            if not torch.compiler.is_exporting():
                stack.enter_context(patch.object(_API, "_validate_device", lambda *_: None))
                stack.enter_context(patch.object(_API, "_apply_kernel_options", options))
            return forward(*args)

    return run


def _function(name: str, *given: Callable[[], Any], **options: Any) -> Callable[[Any], Any]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        make = lambda: Call(Function(_eagerly(function)), tuple(give() for give in given), **options)  # noqa: E731
        case(f"flex_attention: {name}")(make)
        return function

    return register


def _causal(_batch, _head, query, key):
    return query >= key


def _mask(function, queries, keys, batch=None, heads=None):
    return create_block_mask(function, batch, heads, queries, keys, device="cpu")


_X = floats(3, 2, 4, 8)


@_function("query, key and value, unmasked", _X, _X, _X)
def _plain(q, k, v):
    return flex_attention(q, k, v), flex_attention(q, k, v, scale=0.7, kernel_options={"BLOCK_M": 32})


@_function("a causal block mask", _X, _X, _X)
def _block(q, k, v):
    return flex_attention(q, k, v, block_mask=_mask(_causal, 4, 4))


@_function("a block mask with nothing but its blocks", _X)
def _blocks(x):
    mask = BlockMask.from_kv_blocks(
        torch.ones(1, 1, 1, dtype=torch.int32), torch.zeros(1, 1, 1, 1, dtype=torch.int32), seq_lengths=(4, 4)
    )
    return flex_attention(x, x, x, block_mask=mask)


@_function("masks joined", _X)
def _joined(x):
    near = lambda _b, _h, q, k: q - k < 2  # noqa: E731
    first = lambda b, h, q, k: (k == 0) & (h == 1) & (b != 1)  # noqa: E731
    return flex_attention(x, x, x, block_mask=_mask(or_masks(and_masks(_causal, near), first), 4, 4, 3, 2))


@_function("rows without a key, with the statistics", _X, _X)
def _empty(q, k):
    mask = _mask(lambda _b, _h, q, k: q > k, 4, 4)
    out, aux = flex_attention(q, k, k, block_mask=mask, return_aux=AuxRequest(lse=True, max_scores=True))
    assert aux.lse is not None
    return out, aux.max_scores, torch.where(torch.isinf(aux.lse), 0.0, aux.lse)


@_function("rows that the score_mod empties", _X)
def _emptied(x):
    def after(score, _b, _h, q, k):
        return torch.where(q > k, score, -float("inf"))

    return flex_attention(x, x, x, score_mod=after)


@_function("the log-sum-exp alone is used", _X, _X)
def _lse(q, k):
    return flex_attention(q, k, k, return_lse=True)[1]


@_function(
    "more keys than queries, values of another width", floats(2, 2, 3, 8), floats(2, 2, 6, 8), floats(2, 2, 6, 5)
)
def _lengths(q, k, v):
    return flex_attention(q, k, v, score_mod=lambda s, _b, h, i, j: s * (h + 1) - (i - j).abs())


@_function("grouped heads", floats(3, 4, 4, 8), floats(3, 2, 4, 8), floats(3, 2, 4, 8))
def _grouped(q, k, v):
    mask = _mask(lambda _b, h, i, j: (i >= j) | (h == 3), 4, 4, None, 4)
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)


@_function("one key and value for a whole batch", _X, floats(1, 2, 4, 8), floats(1, 2, 4, 8))
def _shared(q, k, v):
    return flex_attention(q, k, v, block_mask=_mask(_causal, 4, 4, 3))


@_function("a score_mod whose slope is infinite where the mask hides it", _X)
def _infinite(x):
    def root(score, _b, _h, q, k):
        return score + torch.sqrt((q - k) * (1 + 0 * score))

    return flex_attention(x, x, x, score_mod=root, block_mask=_mask(_causal, 4, 4))


@_function("soft-capped scores and constant tensors", _X)
def _capped(x):
    def cap(score, _b, _h, q, k):
        return torch.where(q >= k, 2 * torch.tanh(score / 2), torch.tensor(-1e9)) + torch.tensor([0, 0.5])[k % 2]

    allowed = _mask(lambda _b, _h, q, k: q >= k - torch.tensor(1), 4, 4)
    return flex_attention(x, x, x, score_mod=cap, block_mask=allowed)


for _dtype in (torch.bfloat16, torch.float16, torch.float64):
    _wide = _dtype is torch.float64
    _given = floats(2, 2, 4, 8, dtype=_dtype)

    @_function(f"{str(_dtype)[6:]}", _given, _given, _given, floats(2, 4, 4, dtype=_dtype), wide=_wide)
    def _typed(q, k, v, bias):
        def add(score, _b, h, i, j):
            return torch.where(i != j, score * 1.1, 0.3) + bias[h, i, j]

        return flex_attention(q, k, v, score_mod=add, block_mask=_mask(_causal, 4, 4), return_lse=True)


@_function("a score that is made narrower by its score_mod", floats(2, 2, 4, 8, dtype=torch.bfloat16))
def _narrowed(x):
    return flex_attention(x, x, x, score_mod=lambda s, _b, _h, _q, _k: s.to(torch.bfloat16) * 1.1, return_lse=True)


@_function("under autocast", _X)
def _autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attended = flex_attention(x, x, x, score_mod=lambda s, _b, _h, q, k: s - (q - k).abs())
        with torch.no_grad():
            fixed = flex_attention(x, x, x) @ x.transpose(-1, -2)
        return attended, x @ x.transpose(-1, -2) * fixed


@_function("under no_grad, and detached after", _X)
def _constant(x):
    with torch.no_grad():
        fixed = flex_attention(x, x, x)
    return fixed * x + flex_attention(x, x, x).detach() * x.sin()


@_function("in a checkpoint", _X)
def _checkpointed(x):
    attend = _eagerly(lambda y: flex_attention(y, y, y, block_mask=_mask(_causal, 4, 4)))
    return checkpoint(attend, x.sin(), use_reentrant=False)


@_function("a bias computed from the input", _X)
def _computed(x):
    bias = x.sum(-1)[..., None] * x.mean(-1)[..., None, :]
    return flex_attention(x, x, x, score_mod=lambda score, b, h, q, k: score + bias[b, h, q, k])


@_function("a mask over the sizes of the input", _X)
def _sizes(x):
    batch, length = x.shape[0], x.shape[2]
    last = lambda b, _h, q, k: (b < batch - 1) | (q >= k)  # noqa: E731
    return flex_attention(x, x, x, block_mask=_mask(last, length, length, batch))


@_function("documents given by the caller", _X, integers(2, 3, 4))
def _documents(x, documents):
    same = lambda b, _h, q, k: (documents[b, q] == documents[b, k]) & (q >= k)  # noqa: E731
    return flex_attention(x, x, x, block_mask=_mask(same, 4, 4, 3))


_compiled = torch.compile(flex_attention, backend="eager")


@_function("compiled by the model", floats(3, 2, 4, 8, grad=False))
def _by_model(x):
    return _compiled(x, x, x, score_mod=lambda score, _b, _h, q, k: score - (q - k))


class _Heads(nn.Module):
    """Self-attention of two heads over (batch, 4, 8)."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Linear(8, 24)

    def attend(self, x, **options):
        parts = self.projection(x).view(x.shape[0], x.shape[1], 3, 2, 4).permute(2, 0, 3, 1, 4)
        return flex_attention(*parts, **options).transpose(1, 2).flatten(2)


@case("flex_attention: a learned bias by distance", floats(3, 4, 8))
class Learned(_Heads):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 7))
        self.mask = _mask(_causal, 4, 4)

    @_eagerly
    def forward(self, x):
        return self.attend(x, score_mod=lambda s, _b, h, q, k: s + self.table[h, q - k + 3], block_mask=self.mask)


@case("flex_attention: slopes and documents from buffers, the mask made in __init__", floats(3, 4, 8))
class Buffered(_Heads):
    slopes: torch.Tensor
    documents: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("slopes", torch.tensor([0.5, 0.25]))
        self.register_buffer("documents", torch.tensor([0, 0, 1, 1]))
        self.mask = _mask(lambda _b, _h, q, k: self.documents[q] == self.documents[k], 4, 4)

    @_eagerly
    def forward(self, x):
        return self.attend(x, score_mod=lambda s, _b, h, q, k: s + self.slopes[h] * (k - q), block_mask=self.mask)


@case("flex_attention: windows of two lengths, sequences of two lengths", floats(3, 4, 8))
class Windows(_Heads):
    @_eagerly
    def forward(self, x):
        for width in (3, 2):
            x = self.attend(x, block_mask=_window(width, x.shape[1]))
        return self.attend(x[:, :3], block_mask=_window(1, 3))


def _window(width, length):
    return _mask(lambda _b, _h, q, k: (q - k).abs() < width, length, length)
