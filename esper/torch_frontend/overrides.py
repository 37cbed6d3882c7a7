"""Functions that capture cannot see through, said in a way it can, while a forward is traced.

Some look at values, to check them or for a size; some have no kernel for abstract tensors. Each is replaced
by a formulation with the same values and gradients.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from esper.errors import RefusedError
from esper.torch_frontend import packed
from esper.torch_frontend.checks import goes_on
from esper.torch_frontend.derivatives import autograd_grad
from esper.torch_frontend.draws import random_
from esper.torch_frontend.known import follow, known_values
from esper.torch_frontend.places import user_line

_VF: Any = torch._C._VariableFunctions  # pyright: ignore[reportAttributeAccessIssue]
_DATA: Any = torch.Tensor.data
_READ_DATA, _SET_DATA = _DATA.__get__, _DATA.__set__


class Overrides(TorchFunctionMode):
    """While entered, the functions of the tables below run as their replacements."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        replacement = _FUNCTIONS.get(func)
        if replacement is None and func in _RECURRENT and _is_packed(args):
            replacement = _RECURRENT[func]
        if func in _ASKS and args[0].dtype is torch.bool and known_values(args[0]) is None:
            passing = goes_on(sys._getframe(1))
            if passing is not None:
                return passing
        if replacement is None:
            return follow(func, args, given)
        with self:  # what a replacement calls is looked at as well
            return replacement(*args, **given)


_ASKS = (torch.Tensor.__bool__, torch.Tensor.item)


def _is_packed(args: tuple[Any, ...]) -> bool:
    """Whether a recurrent function got (data, batch_sizes, hx, weights, ...)."""
    return isinstance(args[1], torch.Tensor) and args[1].dtype is torch.int64 and len(args) > 3


def _detached(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    """`tensor.data`: `detach`, unlike it, survives in the graph."""
    return tensor.detach()


def _set_data(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """`buffer.data = value` is a write; of anything else a graph cannot say it."""
    same = tensor.shape == value.shape and tensor.dtype == value.dtype
    if same and tensor.is_leaf and not tensor.requires_grad:
        tensor.copy_(value.detach())
        return
    raise RefusedError(
        f"`.data` of a tensor is assigned at {user_line()}: a graph cannot say that. "
        "Write `tensor.data.copy_(value)` under torch.no_grad(), or use a new name."
    )


def _ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: Any = "mean",
    zero_infinity: bool = False,
) -> torch.Tensor:
    """`F.ctc_loss` and `torch.ctc_loss`."""
    batched = log_probs.dim() == 3
    given = log_probs if batched else log_probs.unsqueeze(1)
    labels = _packed_to_the_left(targets) if batched else targets.unsqueeze(0) if targets.dim() == 1 else targets
    lengths = [torch.as_tensor(value, dtype=torch.int64).reshape(-1) for value in (input_lengths, target_lengths)]
    losses = torch.ops.esper.ctc_loss(given, labels, *lengths, blank)
    if zero_infinity:
        losses = torch.where(losses == torch.inf, 0.0, losses)
    if reduction in ("mean", 1):
        return (losses / lengths[1].clamp(min=1).to(losses.dtype)).mean()
    if reduction in ("sum", 2):
        return losses.sum()
    return losses if batched else losses.squeeze(0)


@torch.library.custom_op("esper::ctc_loss", mutates_args=())
def ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
) -> torch.Tensor:
    """The loss of each sequence of a batch: log_probs [time, batch, classes], as `F.ctc_loss` has it."""
    return F.ctc_loss(log_probs, targets, input_lengths, target_lengths, blank, "none")


ctc_loss.register_fake(lambda log_probs, *_: log_probs.new_empty(log_probs.shape[1]))


def _masked_select(input: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`torch.masked_select`, whose size depends on data; what it selects from is noted (see `_packed_to_the_left`)."""
    selected = torch.ops.aten.masked_select.default(input, mask)
    selected._esper_selected = (input, mask)  # pyright: ignore[reportAttributeAccessIssue]
    return selected


def _packed_to_the_left(tensor: torch.Tensor) -> torch.Tensor:
    """A selection by a mask with what it left out after it: its size depends on no data, and nobody reads the rest."""
    input, mask = getattr(tensor, "_esper_selected", (None, None))
    if input is None or mask is None:
        return tensor
    values, chosen = (whole.reshape(-1) for whole in torch.broadcast_tensors(input, mask))
    return values[torch.argsort((~chosen).to(torch.int32), stable=True)]


def _gaussian_nll_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    var: torch.Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> torch.Tensor:
    """`F.gaussian_nll_loss` without its check that no variance is negative."""
    if not isinstance(var, torch.Tensor):
        var = var * torch.ones_like(input)
    if var.shape != input.shape and input.shape[:-1] == var.shape:
        var = var.unsqueeze(-1)
    with torch.no_grad():
        added = (eps - var).clamp(min=0)  # the clamp at eps lets gradients pass
    held = var + added
    loss = 0.5 * (torch.log(held) + (input - target) ** 2 / held)
    if full:
        loss = loss + 0.9189385332046727  # log(2 pi) / 2
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


def _combinations(input: torch.Tensor, r: int = 2, with_replacement: bool = False) -> torch.Tensor:
    """`torch.combinations`, whose size depends on no data."""
    choose = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    chosen = list(choose(range(input.shape[0]), r))
    return input[torch.tensor(chosen, dtype=torch.int64).reshape(-1, r)] if r else input.new_empty(0)


def _cov(
    input: torch.Tensor,
    *,
    correction: int = 1,
    fweights: torch.Tensor | None = None,
    aweights: torch.Tensor | None = None,
) -> torch.Tensor:
    """`torch.cov` without its checks of the weights' values."""
    rows = input.reshape(1, -1) if input.dim() < 2 else input
    weights = fweights if aweights is None else aweights if fweights is None else fweights * aweights
    if weights is None:
        total = torch.full((), float(rows.shape[1]), dtype=torch.float64).to(rows.real.dtype)
        mean = rows.sum(1, keepdim=True) / rows.shape[1]
    else:
        total = weights.sum()
        mean = (rows * weights).sum(1, keepdim=True) / total
    if weights is None or correction == 0 or aweights is None:
        norm = total - correction
    else:
        norm = total - correction * (weights * aweights).sum() / total
    centred = rows - mean
    scaled = centred if weights is None else centred * weights
    return ((scaled @ centred.mH) / norm.clamp(min=0)).squeeze()


def _corrcoef(input: torch.Tensor) -> torch.Tensor:
    """`torch.corrcoef`, by way of `_cov`."""
    found = _cov(input)
    if found.dim() == 0:
        return found / found
    deviation = found.diagonal().real.sqrt() if found.is_complex() else found.diagonal().sqrt()
    scaled = found / deviation.unsqueeze(1) / deviation.unsqueeze(0)
    if not scaled.is_complex():
        return scaled.clamp(-1, 1)
    return torch.complex(scaled.real.clamp(-1, 1), scaled.imag.clamp(-1, 1))


def _narrow(input: torch.Tensor, dim: int, start: Any, length: int) -> torch.Tensor:
    """`torch.narrow`, where the start is a tensor."""
    if not isinstance(start, torch.Tensor) or known_values(start) is not None:
        return torch.ops.aten.narrow.default(input, dim, int(start), length)
    first = torch.where(start < 0, start + input.shape[dim], start)
    return input.index_select(dim, first + torch.arange(length))


def _lstsq(
    A: torch.Tensor, B: torch.Tensor, rcond: float | None = None, *, driver: str | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`torch.linalg.lstsq`: the pseudoinverse gives the solution, and torch's gradient."""
    vector = A.dim() - 1 == B.dim() and B.shape == A.shape[:-1]
    right = B.unsqueeze(-1) if vector else B
    cut = max(A.shape[-2:]) * torch.finfo(A.dtype).eps if rcond is None else rcond
    full = driver == "gels"
    inverse = torch.linalg.pinv(A, rtol=0.0 if full else cut)
    solution = inverse @ right
    rows, columns = A.shape[-2:]
    rank = torch.empty((0,), dtype=torch.int64) if full else torch.linalg.matrix_rank(A, rtol=cut)
    residuals = A.new_empty((0,))
    if rows > columns and driver in ("gels", "gelsd", "gelss"):
        residuals = (A @ solution.detach() - right).abs().square().sum(-2)
        if not full:  # below full rank torch returns none, a shape that depends on data
            residuals = torch.where((rank == columns).unsqueeze(-1), residuals, torch.nan)
    values = torch.linalg.svdvals(A).detach() if driver in ("gelsd", "gelss") else A.new_empty((0,))
    return _Lstsq((solution.squeeze(-1) if vector else solution, residuals.real, rank, values.real))


_Lstsq: Any = torch.return_types.linalg_lstsq  # pyright: ignore[reportAttributeAccessIssue]


def _istft(
    input: torch.Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: torch.Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> torch.Tensor:
    """`torch.istft` without its check that the windows overlap enough."""
    hop = n_fft // 4 if hop_length is None else hop_length
    width = n_fft if win_length is None else win_length
    one_sided = input.shape[-2] != n_fft if onesided is None else onesided
    dtype = input.dtype if return_complex else input.real.dtype
    shaped = torch.ones(width, dtype=input.real.dtype) if window is None else window
    before = (n_fft - width) // 2
    shaped = F.pad(shaped, (before, n_fft - width - before))
    batched = input if input.dim() == 3 else input.unsqueeze(0)
    norm = "ortho" if normalized else None
    spectrum = batched.transpose(1, 2)
    frames = torch.fft.ifft(spectrum, norm=norm) if return_complex else None
    if frames is None:
        half = spectrum if one_sided else spectrum[..., : n_fft // 2 + 1]
        frames = torch.fft.irfft(half, n_fft, norm=norm)
    joined = _overlapped(frames * shaped, hop)
    envelope = _overlapped((shaped * shaped).expand_as(frames), hop)
    total = joined.shape[-1]
    start = n_fft // 2 if center else 0
    end = start + length if length is not None else total - (n_fft // 2 if center else 0)
    kept = slice(start, min(end, total))  # outside of it the envelope may be zero
    made = joined[:, kept] / envelope[:, kept]
    if end > total:
        made = F.pad(made, (0, end - total))
    return (made if input.dim() == 3 else made.squeeze(0)).to(dtype)


def _overlapped(frames: torch.Tensor, hop: int) -> torch.Tensor:
    """The sum of frames [batch, count, width] laid `hop` apart."""
    batch, count, width = frames.shape
    total = width + hop * (count - 1)
    places = (torch.arange(count).unsqueeze(1) * hop + torch.arange(width)).reshape(-1)
    return frames.new_zeros((batch, total)).index_add(1, places, frames.reshape(batch, -1))


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    _READ_DATA: _detached,
    _SET_DATA: _set_data,
    F.ctc_loss: _ctc_loss,
    F.gaussian_nll_loss: _gaussian_nll_loss,
    torch.Tensor.corrcoef: _corrcoef,
    torch.Tensor.cov: _cov,
    torch.Tensor.istft: _istft,
    torch.Tensor.masked_select: _masked_select,
    torch.Tensor.narrow: _narrow,
    torch.Tensor.random_: random_,
    torch.autograd.grad: autograd_grad,
    torch.combinations: _combinations,
    torch.corrcoef: _corrcoef,
    torch.cov: _cov,
    torch.ctc_loss: _ctc_loss,
    torch.istft: _istft,
    torch.linalg.lstsq: _lstsq,
    torch.masked_select: _masked_select,
    torch.narrow: _narrow,
    _VF._pack_padded_sequence: packed.pack,
    _VF._pad_packed_sequence: packed.pad,
}
_RECURRENT: dict[Any, Callable[..., Any]] = {
    rnn: packed.recurrent(rnn) for rnn in (_VF.gru, _VF.lstm, _VF.rnn_relu, _VF.rnn_tanh)
}


@contextmanager
def cumulative_batch_norm() -> Iterator[None]:
    """While open, BatchNorm with `momentum=None` computes its average without reading its counter."""
    forward = _BatchNorm.forward

    def run(self: Any, input: torch.Tensor) -> torch.Tensor:
        if self.momentum is not None or not (self.training and self.track_running_stats):
            return forward(self, input)
        self._check_input_dim(input)
        self.num_batches_tracked.add_(1)
        dims: Sequence[int] = [dim for dim in range(input.dim()) if dim != 1]
        count = input.numel() // input.shape[1]
        variance, mean = torch.var_mean(input.detach(), dims, correction=0)
        factor = 1.0 / self.num_batches_tracked.to(mean.dtype)
        self.running_mean.copy_(self.running_mean + factor * (mean - self.running_mean))
        unbiased = variance * (count / (count - 1))
        self.running_var.copy_(self.running_var + factor * (unbiased - self.running_var))
        return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)

    with patch.object(_BatchNorm, "forward", run):
        yield
