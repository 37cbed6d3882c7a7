"""Forwards of torch's own that look at values, or are wrong, said in their own words while a user's is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

_ENCODER, _DECODER = nn.TransformerEncoder.forward, nn.TransformerDecoder.forward
_LOSS: Any = torch.nn.modules.adaptive._ASMoutput
_DECOMPOSITIONS: Any = torch._decomp.decompositions  # pyright: ignore[reportAttributeAccessIssue]
_DEFINING = ("forward", "_sa_block")  # what a layer does with `is_causal`


@contextmanager
def blind_forwards() -> Iterator[None]:
    """While open, the modules below compute what they compute without looking at values."""
    with ExitStack() as stack:
        for owner, name, run in _FORWARDS:
            stack.enter_context(patch.object(owner, name, run))
        yield


def _encode(
    self: nn.TransformerEncoder,
    src: torch.Tensor,
    mask: torch.Tensor | None = None,
    src_key_padding_mask: torch.Tensor | None = None,
    is_causal: bool | None = None,
) -> torch.Tensor:
    """The mask is applied, where torch first asks whether it is the causal one: then it takes that without reading."""
    if mask is not None and is_causal is None and _torchs_own(self.layers):
        mask, is_causal = _as_read(mask, src_key_padding_mask), False
    return _ENCODER(self, src, mask, src_key_padding_mask, is_causal)


def _decode(
    self: nn.TransformerDecoder,
    tgt: torch.Tensor,
    memory: torch.Tensor,
    tgt_mask: torch.Tensor | None = None,
    memory_mask: torch.Tensor | None = None,
    tgt_key_padding_mask: torch.Tensor | None = None,
    memory_key_padding_mask: torch.Tensor | None = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> torch.Tensor:
    """As `_encode`."""
    if tgt_mask is not None and tgt_is_causal is None and _torchs_own(self.layers):
        tgt_mask, tgt_is_causal = _as_read(tgt_mask, tgt_key_padding_mask), False
    masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
    return _DECODER(self, tgt, memory, *masks, tgt_is_causal, memory_is_causal)


def _torchs_own(layers: Iterable[nn.Module]) -> bool:
    """Whether no layer can do with `is_causal` anything but apply the causal mask."""
    return all(_is_torchs_own(layer) for layer in layers)


def _is_torchs_own(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        return False
    base = nn.TransformerEncoderLayer if isinstance(layer, nn.TransformerEncoderLayer) else nn.TransformerDecoderLayer
    same = all(getattr(type(layer), name) is getattr(base, name) and name not in vars(layer) for name in _DEFINING)
    return same and type(layer.self_attn) is nn.MultiheadAttention


def _as_read(mask: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """A mask with the gradient that torch gives it: none if it is the causal mask, which torch then does not read."""
    if padding is not None or not mask.requires_grad or mask.dim() != 2:
        return mask
    held = mask.detach()
    causal = (held == torch.full_like(held, -torch.inf).triu(1)).all()
    return torch.where(causal, held, mask)


def _adaptive_loss(self: nn.AdaptiveLogSoftmaxWithLoss, input_: torch.Tensor, target_: torch.Tensor) -> Any:
    """Every cluster for every row, where torch picks rows. A target out of range gives NaN, where torch raises."""
    batched = target_.dim() == 1
    if target_.dim() > 1 or input_.dim() != target_.dim() + 1:
        raise RuntimeError(f"a target of {target_.dim()} dimensions with an input of {input_.dim()}")
    if batched and input_.size(0) != target_.size(0):
        raise RuntimeError("Input and target should have the same size in the batch dimension.")
    rows = input_ if batched else input_.unsqueeze(0)
    target = target_ if batched else target_.unsqueeze(0)
    places, output = target.clamp(0, self.shortlist_size - 1), rows.new_zeros(target.size(0))
    for cluster, (low, high) in enumerate(pairwise(self.cutoffs)):
        inside = (target >= low) & (target < high)
        own = torch.where(inside.unsqueeze(1), rows, 0)  # what other rows make of this cluster has no gradient
        found = F.log_softmax(self.tail[cluster](own), dim=1)
        found = found.gather(1, (target - low).clamp(0, high - low - 1).unsqueeze(1)).squeeze(1)
        places = torch.where(inside, self.shortlist_size + cluster, places)
        output = torch.where(inside, found.to(output.dtype), output)
    head = F.log_softmax(self.head(rows), dim=1)
    output = (output + head.gather(1, places.unsqueeze(1)).squeeze(1)).to(output.dtype)
    output = torch.where((target >= 0) & (target < self.n_classes), output, torch.nan)
    loss = (-output).mean()
    return _LOSS(output if batched else output.squeeze(0), loss)


def _adaptive_predict(self: nn.AdaptiveLogSoftmaxWithLoss, input: torch.Tensor) -> torch.Tensor:
    """The whole distribution of every row, read for those whose likeliest class is not in the shortlist."""
    head = self.head(input)
    found = head.argmax(dim=1)
    return torch.where(found >= self.shortlist_size, self._get_full_log_prob(input, head).argmax(dim=1), found)


_FORWARDS: tuple[tuple[type[nn.Module], str, Callable[..., Any]], ...] = (
    (nn.AdaptiveLogSoftmaxWithLoss, "forward", _adaptive_loss),
    (nn.AdaptiveLogSoftmaxWithLoss, "predict", _adaptive_predict),
    (nn.TransformerDecoder, "forward", _decode),
    (nn.TransformerEncoder, "forward", _encode),
)


@contextmanager
def recurrent_layers() -> Iterator[None]:
    """While open, recurrent layers that stay whole are not walked step by step for the sake of their shapes.

    An LSTM's last states have their own shape when a graph is made, to which torch 2.12 adds a dimension.
    """
    lstm, rnn = _DECOMPOSITIONS.one_layer_lstm, _DECOMPOSITIONS.one_layer_rnn

    def run_lstm(inp: torch.Tensor, hidden: tuple[torch.Tensor, ...], *args: Any, **kwargs: Any) -> Any:
        out, last = _one_step(lstm, inp, hidden, *args, **kwargs)
        return out, tuple(state.view_as(start) for state, start in zip(last, hidden, strict=True))

    def run_rnn(inp: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return _one_step(rnn, inp, *args, **kwargs)

    with (
        patch.object(_DECOMPOSITIONS, "one_layer_lstm", run_lstm),
        patch.object(_DECOMPOSITIONS, "one_layer_rnn", run_rnn),
    ):
        yield


def _one_step(layer: Callable[..., Any], inp: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """A layer's outputs [time, batch, features] and last states; of abstract tensors, one step tells the others."""
    if get_proxy_mode() is not None or not isinstance(inp, FakeTensor) or not isinstance(inp.shape[0], int):
        return layer(inp, *args, **kwargs)
    if inp.shape[0] < 2:
        return layer(inp, *args, **kwargs)
    out, last = layer(inp[:1], *args, **kwargs)
    return out.repeat(inp.shape[0], *(1 for _ in out.shape[1:])), last
