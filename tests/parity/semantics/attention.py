"""Attention: masks of every kind, heads that are shared, the layers of nn.Transformer, flex_attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from parity.case import Call
from parity.judge import Function
from parity.semantics.table import case, floats

PADDING = torch.tensor([[False, False, False, True], [False, True, True, True]])
CAUSAL = torch.ones(4, 4, dtype=torch.bool).triu(1)


def _layer(name: str, make: Callable[[], nn.Module], *given: Callable[[], Any], **options: Any) -> None:
    case(f"attention: {name}")(lambda: Call(make(), tuple(give() for give in given), **options))


def _self_attention(name: str, options: dict[str, Any], **kwargs: Any) -> None:
    """A case of MultiheadAttention over one batch_first input; `kwargs` are those of its call."""

    def build() -> list[Call]:
        x = floats(2, 4, 4)()
        module = nn.MultiheadAttention(4, 2, batch_first=True, **options)
        return [
            Call(module, (x, x.detach().clone(), x.detach().clone()), kwargs, train=train) for train in (True, False)
        ]

    case(f"attention: MultiheadAttention, {name}")(build)


_self_attention("plain", {})
_self_attention("no weights wanted", {}, need_weights=False)
_self_attention("weights of every head", {}, average_attn_weights=False)
_self_attention("bool key_padding_mask", {}, key_padding_mask=PADDING)
_self_attention("float key_padding_mask", {}, key_padding_mask=PADDING * -2.0)
_self_attention("bool attn_mask", {}, attn_mask=CAUSAL)
_self_attention("float attn_mask for every head", {}, attn_mask=torch.linspace(-1, 1, 64).view(4, 4, 4))
_self_attention("both masks", {}, attn_mask=CAUSAL, key_padding_mask=PADDING, need_weights=False)
_self_attention("is_causal", {}, attn_mask=CAUSAL, is_causal=True, need_weights=False)
_self_attention("bias_kv and a zero row", {"add_bias_kv": True, "add_zero_attn": True}, key_padding_mask=PADDING)
_self_attention("without bias", {"bias": False})
_layer(
    "MultiheadAttention, kdim and vdim",
    lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
    floats(4, 2, 4),
    floats(6, 2, 3),
    floats(6, 2, 5),
)
_layer(
    "MultiheadAttention without batch", lambda: nn.MultiheadAttention(4, 2), floats(4, 4), floats(6, 4), floats(6, 4)
)


def _transformer(name: str, make: Callable[[], nn.Module], given: tuple[Any, ...], **kwargs: Any) -> None:
    """A case in train and in eval; dropout is 0."""

    def build() -> list[Call]:
        return [Call(make(), tuple(give() for give in given), kwargs, train=train) for train in (True, False)]

    case(f"attention: {name}")(build)


_OPTIONS = {"dim_feedforward": 6, "dropout": 0.0, "batch_first": True}
_SOURCE, _TARGET = floats(2, 4, 4), floats(2, 3, 4)


def _encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, **{**_OPTIONS, **options})
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(4), enable_nested_tensor=True)


_transformer("TransformerEncoderLayer", lambda: nn.TransformerEncoderLayer(4, 2, **_OPTIONS), (_SOURCE,))
_transformer(
    "TransformerEncoderLayer, norm_first, gelu, padding",
    lambda: nn.TransformerEncoderLayer(4, 2, activation="gelu", norm_first=True, **_OPTIONS),
    (_SOURCE,),
    src_key_padding_mask=PADDING,
)
_transformer("TransformerEncoder with padding", _encoder, (_SOURCE,), src_key_padding_mask=PADDING)
_transformer(
    "TransformerEncoder with padding and a causal mask",
    _encoder,
    (_SOURCE,),
    mask=CAUSAL,
    src_key_padding_mask=PADDING,
    is_causal=True,
)
_transformer(
    "TransformerEncoder, activation a callable, without bias",
    lambda: _encoder(activation=F.silu, bias=False),
    (_SOURCE,),
)
_transformer(
    "TransformerDecoderLayer with masks",
    lambda: nn.TransformerDecoderLayer(4, 2, **_OPTIONS),
    (_TARGET, _SOURCE),
    tgt_mask=CAUSAL[:3, :3],
    memory_key_padding_mask=PADDING,
    tgt_is_causal=True,
)
_transformer(
    "TransformerDecoder",
    lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, **_OPTIONS), 2),
    (_TARGET, _SOURCE),
    tgt_mask=CAUSAL[:3, :3],
)
_transformer(
    "Transformer with generated masks",
    lambda: nn.Transformer(4, 2, 1, 1, **_OPTIONS),
    (_SOURCE, _TARGET),
    tgt_mask=nn.Transformer.generate_square_subsequent_mask(3),
    src_key_padding_mask=PADDING,
)

_INFINITE = nn.Transformer.generate_square_subsequent_mask(4)
for _kind, _mask in (("the causal one", _INFINITE), ("another one", _INFINITE.nan_to_num(neginf=-2.0))):
    _transformer(
        f"TransformerEncoder with a mask that requires a gradient, {_kind}",
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, **_OPTIONS), 2),
        (_SOURCE, lambda mask=_mask: mask.clone().requires_grad_()),
    )


@case("attention: TransformerEncoder with a mask made in forward, in training", floats(2, 4, 4), train=True)
class MadeMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, **_OPTIONS), 2)
        self.register_buffer("held", _INFINITE)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.encoder(x, mask=mask), self.encoder(x, mask=self.held)


def _function(name: str, *given: Callable[[], Any], **options: Any) -> Callable[[Any], Any]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        case(f"attention: {name}")(lambda: Call(Function(function), tuple(give() for give in given), **options))
        return function

    return register


@_function("sdpa, is_causal with as many and with fewer queries", floats(2, 2, 4, 3), floats(2, 2, 2, 3))
def _causal(x, q):
    return F.scaled_dot_product_attention(x, x, x, is_causal=True), F.scaled_dot_product_attention(
        q, x, x, is_causal=True
    )


@_function("sdpa with masks of both kinds, broadcast, and a scale", floats(2, 2, 4, 3), floats(4, 4))
def _masks(x, bias):
    keep = ~PADDING[:, None, None]
    masked = F.scaled_dot_product_attention(x, x, x, keep), F.scaled_dot_product_attention(x, x, x, bias, scale=0.3)
    return masked, F.scaled_dot_product_attention(x[0], x[0], x[0], ~CAUSAL)


@_function("sdpa with grouped heads", floats(2, 4, 5, 3), floats(2, 2, 5, 3))
def _grouped(q, kv):
    return F.scaled_dot_product_attention(q, kv, kv * 2, enable_gqa=True, is_causal=True)


@_function("sdpa with values of another width", floats(2, 4, 3), floats(2, 6, 3), floats(2, 6, 5))
def _widths(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


@_function("sdpa under a chosen kernel", floats(2, 2, 4, 3))
def _chosen(x):
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return F.scaled_dot_product_attention(x, x, x)


@_function("sdpa in bfloat16", floats(2, 2, 4, 8, dtype=torch.bfloat16))
def _half(x):
    return F.scaled_dot_product_attention(x, x, x)


# Eager flex_attention refuses gradients on a CPU: values are compared here, gradients in `flex_attention.py`.
@_function("flex_attention, plain, scaled, with the logsumexp", floats(1, 2, 4, 8, grad=False))
def _flex(x):
    out, total = flex_attention(x, x, x, scale=0.5, return_lse=True)
    return flex_attention(x, x, x), out, total


@_function("flex_attention with a score_mod by position", floats(1, 2, 4, 8, grad=False))
def _flex_bias(x):
    return flex_attention(x, x, x, score_mod=lambda score, _b, h, q, k: score + (q - k) * 0.1 * (h + 1))


@_function("flex_attention with a score_mod that hides the future", floats(1, 2, 4, 8, grad=False))
def _flex_causal(x):
    return flex_attention(x, x, x, score_mod=lambda score, _b, _h, q, k: torch.where(q >= k, score, -float("inf")))


@_function("flex_attention with a block mask", floats(1, 2, 4, 8, grad=False))
def _flex_block(x):
    mask = create_block_mask(lambda _b, _h, q, k: q >= k, None, None, 4, 4, device="cpu")
    return flex_attention(x, x, x, block_mask=mask)


@_function("flex_attention with grouped heads", floats(1, 4, 4, 8, grad=False), floats(1, 2, 4, 8, grad=False))
def _flex_grouped(q, kv):
    return flex_attention(q, kv, kv, enable_gqa=True)


@case("attention: flex_attention with a table in its score_mod", floats(1, 2, 4, 8, grad=False))
class TableBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 7), requires_grad=False)

    def forward(self, x):
        return flex_attention(x, x, x, score_mod=lambda score, _b, h, q, k: score + self.table[h, q - k + 3])


@case(
    "attention: flex_attention with a block mask made in __init__, documents of one sequence",
    floats(1, 2, 6, 8, grad=False),
)
class Documents(nn.Module):
    def __init__(self):
        super().__init__()
        documents = torch.tensor([0, 0, 1, 1, 1, 2])

        def same(_batch, _head, query, key):
            return (documents[query] == documents[key]) & (query >= key)

        self.mask = create_block_mask(same, None, None, 6, 6, device="cpu")

    def forward(self, x):
        return flex_attention(x, x, x, block_mask=self.mask)
