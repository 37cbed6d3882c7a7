"""Attention against eager torch, masked rows and grouped queries included."""

import jax
import pytest
import torch
from parity_checks import check, lower
from torch import nn
from torch.nn import functional as F

from esper.jax_backend.evaluate import evaluate

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(q=(2, 4, 3, 8), k=(2, 4, 5, 8), v=None, dtype=torch.float32):
    return [rand(*shape, seed=i, dtype=dtype) for i, shape in enumerate((q, k, v or k))]


def bools(*shape):
    return rand(*shape, seed=7) > 0


SHAPES = [
    ("plain", {}, qkv()),
    ("three-dims", {}, qkv((4, 3, 8), (4, 5, 8))),
    ("two-dims", {}, qkv((3, 8), (5, 8))),
    ("value-size", {}, qkv(v=(2, 4, 5, 6))),
    ("broadcast", {}, qkv((2, 4, 3, 8), (2, 1, 5, 8))),
    ("causal", {"is_causal": True}, qkv()),
    ("causal-tall", {"is_causal": True}, qkv((2, 4, 6, 8), (2, 4, 3, 8))),
    ("scale", {"scale": 0.3}, qkv()),
    ("grouped", {"enable_gqa": True}, qkv(k=(2, 2, 5, 8))),
    ("grouped-causal", {"enable_gqa": True, "is_causal": True}, qkv(k=(2, 2, 3, 8))),
    ("one-head", {"enable_gqa": True}, qkv(k=(2, 1, 5, 8))),
    ("empty-batch", {}, qkv((0, 4, 3, 8), (0, 4, 5, 8))),
]


@pytest.mark.parametrize(("options", "inputs"), [s[1:] for s in SHAPES], ids=[s[0] for s in SHAPES])
def test_shapes(options, inputs):
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options), *inputs)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"enable_gqa": True}], ids=["plain", "causal", "grouped"])
def test_dtypes(options, dtype):
    k = (2, 2, 5, 8) if "enable_gqa" in options else (2, 4, 5, 8)
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options), *qkv(k=k, dtype=dtype))


MASKS = [
    ("bool", bools(3, 5)),
    ("bool-by-head", bools(2, 4, 3, 5)),
    ("bool-keys", bools(2, 1, 1, 5)),
    ("float", rand(3, 5)),
    ("float-by-batch", rand(2, 1, 3, 5)),
]


@pytest.mark.parametrize("mask", [m[1] for m in MASKS], ids=[m[0] for m in MASKS])
def test_masks(mask):
    check(F.scaled_dot_product_attention, *qkv(), mask)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_rows_without_keys_give_zeros(kind):
    mask = bools(3, 5)
    mask[1] = False
    mask = mask if kind == "bool" else torch.zeros(3, 5).masked_fill(~mask, -torch.inf)
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask), *qkv())


def test_large_logits():
    q, k, v = qkv()
    check(F.scaled_dot_product_attention, 100 * q, 100 * k, v)


def test_grouped_mask():
    mask = bools(2, 4, 3, 5)
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True), *qkv(k=(2, 2, 5, 8)))


def test_flash_operator():
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    check(lambda q, k, v: op(q, k, v, 0.0, True), *qkv(k=(2, 4, 3, 8)), gradients=False)


def test_safe_softmax():
    x = rand(3, 5)
    x[1] = -torch.inf
    x[2, :2] = -torch.inf
    check(lambda x: torch.ops.aten._safe_softmax.default(x, -1), x, gradients=False)


def dropped(p):
    """Attention over equal weights: each output is the share of keys that were kept, times 1 / (1 - p)."""
    q, k, v = torch.zeros(1, 1, 64, 4), torch.zeros(1, 1, 64, 4), torch.ones(1, 1, 64, 4)

    class Attention(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=p)

    program, *_, inputs, _ = lower(Attention(), (q, k, v))
    (first,), _ = evaluate(program, {}, {}, inputs, jax.random.key(0))
    (second,), _ = evaluate(program, {}, {}, inputs, jax.random.key(1))
    return first, second


def test_dropout_draws_and_keeps_the_mean():
    first, second = dropped(0.25)
    assert abs(float(first.mean()) - 1) < 0.05
    assert float(first.std()) > 0.01
    assert not (first == second).all()


def test_dropout_of_everything():
    assert (dropped(1.0)[0] == 0).all()


HEADS = [
    ("self", {}, {}),
    ("weights", {}, {"need_weights": True}),
    ("weights-by-head", {}, {"need_weights": True, "average_attn_weights": False}),
    ("no-bias", {"bias": False}, {}),
    ("bias-kv", {"add_bias_kv": True, "add_zero_attn": True}, {}),
    ("batch-first", {"batch_first": True}, {}),
    ("causal", {}, {"is_causal": True, "attn_mask": torch.ones(3, 3, dtype=torch.bool).triu(1)}),
    ("mask", {}, {"attn_mask": rand(3, 3)}),
    ("padding", {"batch_first": True}, {"key_padding_mask": torch.tensor([[0, 0, 1], [0, 1, 1]]).bool()}),
]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("options", "call"), [h[1:] for h in HEADS], ids=[h[0] for h in HEADS])
def test_multi_head(options, call, train):
    torch.manual_seed(0)

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.MultiheadAttention(8, 2, **options)

        def forward(self, x):
            return self.heads(x, x, x, **{"need_weights": False, **call})

    check(Heads(), rand(*((2, 3, 8) if options.get("batch_first") else (3, 2, 8))), train=train)


def test_multi_head_cross():
    torch.manual_seed(0)
    check(nn.MultiheadAttention(8, 2, kdim=6, vdim=5), rand(3, 2, 8), rand(4, 2, 6), rand(4, 2, 5))
    check(nn.MultiheadAttention(8, 2), rand(3, 8), rand(4, 8), rand(4, 8))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_and_decoder_layers(norm_first, train):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "norm_first": norm_first, "batch_first": True}
    check(nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", **options), rand(2, 3, 8), train=train)
    check(nn.TransformerDecoderLayer(8, 2, 16, **options), rand(2, 3, 8), rand(2, 4, 8, seed=1), train=train)


def test_transformer():
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 2, 1, 16, dropout=0.0, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    check(model, rand(2, 3, 8), rand(2, 4, 8, seed=1), train=True)

    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, source, target):
            return self.model(source, target, tgt_mask=mask, tgt_is_causal=True)

    check(Causal(), rand(2, 3, 8), rand(2, 4, 8, seed=1))
