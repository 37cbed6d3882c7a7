"""Layers and functions whose arguments change what they mean: convolution, pooling, embedding, losses, sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from parity.case import Call
from parity.judge import Function
from parity.semantics.table import case, floats, given, integers


def _function(name: str, *given: Callable[[], Any], **options: Any) -> Callable[[Any], Any]:
    """Registers a function of tensors as a case."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        case(f"layers: {name}")(lambda: Call(Function(function), tuple(give() for give in given), **options))
        return function

    return register


def _layer(name: str, make: Callable[[], nn.Module], *given: Callable[[], Any], **options: Any) -> None:
    """Registers a layer as a case."""
    case(f"layers: {name}")(lambda: Call(make(), tuple(give() for give in given), **options))


@_function("linalg.solve with square right sides", floats(3, 3), floats(3, 3), floats(3))
def _solve(a, b, v):
    return torch.linalg.solve(a, b), torch.linalg.solve(a, v), torch.linalg.solve(a, b, left=False)


@_function("linalg.solve of a batch: vectors or matrices by shape", floats(3, 3, 3), floats(3, 3), floats(3, 3, 3))
def _solve_batch(a, v, b):
    return (
        torch.linalg.solve(a, v),
        torch.linalg.solve(a, b),
        torch.linalg.solve(a[:2], v[:2]),
        torch.linalg.solve(a, v[None]),
    )


@_function("eigh reads one triangle", floats(3, 3))
def _eigh(a):
    a = a + 3 * torch.diag(torch.arange(3.0))
    lower, upper = torch.linalg.eigh(a), torch.linalg.eigh(a, UPLO="U")
    return lower.eigenvalues, upper.eigenvalues, lower.eigenvectors.abs(), torch.linalg.eigvalsh(a, UPLO="U")


@_function("cholesky and its solves read one triangle", floats(3, 3), floats(3, 2))
def _cholesky(a, b):
    a = a @ a.T + torch.eye(3)
    factor = torch.linalg.cholesky(a)
    solved = torch.cholesky_solve(b, factor), torch.linalg.solve_triangular(factor + 1, b, upper=False)
    return factor, torch.linalg.cholesky(a, upper=True), solved, torch.cholesky_inverse(factor)


@_function("linalg: inverses, least squares, powers and ranks", floats(4, 3), floats(4, 2))
def _linalg(a, b):
    square = a.T @ a + torch.eye(3)
    return (
        torch.linalg.inv(square),
        torch.linalg.lstsq(a, b).solution,
        torch.linalg.matrix_power(square, -2),
        torch.linalg.pinv(a),
    )


for _rank, _shape in ((1, (5,)), (2, (4, 3)), (3, (3, 3, 2))):
    _layer(
        f"ConvTranspose{_rank}d with groups, output_padding and dilation",
        lambda r=_rank: getattr(nn, f"ConvTranspose{r}d")(
            4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2
        ),
        floats(2, 4, *_shape),
    )
    _layer(
        f"Conv{_rank}d with groups, reflect padding and no batch",
        lambda r=_rank: getattr(nn, f"Conv{r}d")(
            4, 6, 2, padding=1, groups=2, padding_mode="reflect" if r < 3 else "zeros"
        ),
        floats(4, *_shape),
    )


_layer(
    "Conv2d with padding=same, an even kernel and dilation",
    lambda: nn.Conv2d(2, 3, (4, 3), padding="same", dilation=(1, 2)),
    floats(2, 2, 5, 6),
)
_layer(
    "Conv2d with circular padding, depthwise",
    lambda: nn.Conv2d(3, 6, 3, padding=(1, 2), padding_mode="circular", groups=3),
    floats(2, 3, 5, 5),
)
_layer(
    "ConvTranspose2d with output_size",
    lambda: nn.ConvTranspose2d(2, 3, 3, stride=2),
    floats(2, 2, 3, 3),
    kwargs={"output_size": [8, 7]},
)
_layer("Embedding with scale_grad_by_freq", lambda: nn.Embedding(5, 3, scale_grad_by_freq=True), given(1, 1, 2, 1, 4))
_layer("Embedding with padding_idx and max_norm off", lambda: nn.Embedding(5, 3, padding_idx=1), given(1, 1, 2, 1, 4))
_layer("Embedding with padding_idx from the end", lambda: nn.Embedding(5, 3, padding_idx=-1), integers(5, 2, 4))
_layer("Embedding with max_norm", lambda: nn.Embedding(5, 3, max_norm=0.5), given(1, 1, 2))
_layer("Embedding with max_norm by another norm", lambda: nn.Embedding(5, 3, max_norm=0.9, norm_type=1.0), given(1, 4))
_layer("EmbeddingBag with max_norm", lambda: nn.EmbeddingBag(5, 3, max_norm=0.5), integers(5, 2, 4))
_layer(
    "EmbeddingBag, mean, with offsets and an empty bag",
    lambda: nn.EmbeddingBag(5, 3),
    given(1, 2, 4, 4),
    given(0, 2, 2),
)
_layer("EmbeddingBag, max, rows of a matrix", lambda: nn.EmbeddingBag(5, 3, mode="max"), integers(5, 3, 4))
_layer(
    "EmbeddingBag, sum, with per_sample_weights and padding",
    lambda: nn.EmbeddingBag(5, 3, mode="sum", padding_idx=2),
    integers(5, 3, 4),
    lambda: None,
    floats(3, 4),
)
_layer(
    "EmbeddingBag with include_last_offset",
    lambda: nn.EmbeddingBag(5, 3, mode="sum", include_last_offset=True),
    given(1, 2, 4, 4),
    given(0, 1, 4),
)


@_function("pools with ceil_mode, dilation and count_include_pad", floats(2, 3, 7, 6))
def _pools(x):
    averages = [
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=c, count_include_pad=p) for c in (True, False) for p in (True, False)
    ]
    maxima = F.max_pool2d(x, 3, 2, 1, dilation=2, ceil_mode=True), F.max_pool2d(x, 2, ceil_mode=True)
    return averages, maxima, F.avg_pool2d(x, 2, divisor_override=3), F.lp_pool2d(x, 2.0, 3, ceil_mode=True)


@_function("pools of one and three dimensions with ceil_mode", floats(2, 7), floats(1, 2, 5, 4, 4))
def _pools_1d_3d(x, y):
    y_pools = F.max_pool3d(y, 2, ceil_mode=True), F.avg_pool3d(y, 3, 2, 1, ceil_mode=True, count_include_pad=False)
    return F.max_pool1d(x, 3, 2, 1, ceil_mode=True), F.avg_pool1d(x, 3, 2, 1, ceil_mode=True), y_pools


@_function("adaptive pools of uneven sizes", floats(2, 3, 7, 5))
def _adaptive(x):
    picked = F.adaptive_max_pool2d(x, (3, None), return_indices=True)
    return F.adaptive_avg_pool2d(x, (4, 2)), picked, F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool1d(x[0], 3)


@_function("max_unpool of indices, with an output size", floats(2, 3, 6, 7))
def _unpool(x):
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    line, spots = F.max_pool1d(x[0], 3, return_indices=True)
    return F.max_unpool2d(pooled, places, 2, output_size=x.shape), F.max_unpool1d(line, spots, 3), places


@_function("fractional max pooling with given samples", floats(2, 3, 7, 7), lambda: torch.rand(2, 3, 2))
def _fractional(x, samples):
    return F.fractional_max_pool2d(x, 2, output_size=(3, 4), _random_samples=samples, return_indices=True)


@_function("pixel shuffles and channel shuffles", floats(2, 8, 4, 4))
def _shuffles(x):
    return F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2), F.channel_shuffle(x, 4), nn.ChannelShuffle(2)(x)


@_function("unfold and fold are each other's gradient", floats(2, 3, 5, 6))
def _unfold(x):
    columns = F.unfold(x, (2, 3), dilation=2, padding=1, stride=(1, 2))
    return (
        columns,
        F.fold(columns, (5, 6), (2, 3), dilation=2, padding=1, stride=(1, 2)),
        x.unfold(2, 3, 2).unfold(3, 2, 1),
    )


@_function("grid_sample in two dimensions, every mode", floats(2, 3, 4, 5), floats(2, 3, 3, 2))
def _grid_sample(x, grid):
    modes = [(m, p) for m in ("bilinear", "nearest", "bicubic") for p in ("zeros", "border", "reflection")]
    return [F.grid_sample(x, grid, m, p, align_corners=a) for m, p in modes for a in (False, True)]


@_function("grid_sample in three dimensions", floats(1, 2, 3, 4, 3), floats(1, 2, 3, 2, 3))
def _grid_sample_3d(x, grid):
    return [
        F.grid_sample(x, grid, m, p, align_corners=False)
        for m in ("bilinear", "nearest")
        for p in ("zeros", "border", "reflection")
    ]


@_function("affine_grid", floats(2, 2, 3))
def _affine_grid(theta):
    return F.affine_grid(theta, (2, 1, 3, 4), align_corners=False), F.affine_grid(
        theta, (2, 1, 3, 4), align_corners=True
    )


@_function("interpolate by size and by factor, corners aligned or not", floats(1, 2, 4, 5))
def _interpolate(x):
    nearest = [F.interpolate(x, scale_factor=1.7, mode=m) for m in ("nearest", "nearest-exact", "area")]
    smooth = [F.interpolate(x, (7, 3), mode=m, align_corners=a) for m in ("bilinear", "bicubic") for a in (True, False)]
    return nearest, smooth, F.interpolate(x, scale_factor=(0.6, 1.5), mode="bilinear", recompute_scale_factor=True)


@_function("interpolate with antialias, down and up", floats(1, 2, 8, 9))
def _antialias(x):
    sizes = (3, 4), (11, 5)
    return [F.interpolate(x, s, mode=m, antialias=True) for s in sizes for m in ("bilinear", "bicubic")]


@_function("interpolate in one and three dimensions", floats(2, 2, 5), floats(1, 2, 3, 4, 2))
def _interpolate_1d_3d(x, y):
    return F.interpolate(x, 7, mode="linear"), F.interpolate(y, scale_factor=2, mode="trilinear", align_corners=True)


@_function("norms: local response, group, rms, instance", floats(2, 4, 3, 3))
def _norms(x):
    rms = F.rms_norm(x, (3, 3), torch.full((3, 3), 2.0)), F.rms_norm(x, (3,), eps=0.1)
    return F.local_response_norm(x, 3, 0.1, 0.5, 2.0), F.group_norm(x, 2, torch.ones(4) * 2), rms, F.instance_norm(x)


_layer(
    "InstanceNorm2d with running statistics, train",
    lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    floats(2, 3, 4, 4),
    train=True,
)
_layer(
    "BatchNorm2d with momentum None, train", lambda: nn.BatchNorm2d(3, momentum=None), floats(2, 3, 4, 4), train=True
)
_layer(
    "BatchNorm1d without running statistics, eval", lambda: nn.BatchNorm1d(3, track_running_stats=False), floats(4, 3)
)
_layer("Softmax2d", nn.Softmax2d, floats(2, 3, 2, 2))
_layer("Bilinear", lambda: nn.Bilinear(3, 4, 2), floats(5, 3), floats(5, 4))
_layer("PReLU with a slope for each channel", lambda: nn.PReLU(3), floats(2, 3, 4))


@_function("einsum variants", floats(2, 3, 4), floats(2, 4, 5), floats(4))
def _einsum(a, b, v):
    made = [torch.einsum("bij,bjk->bik", a, b), torch.einsum("bij,bjk,j", a, b, v), torch.einsum("...ij->...ji", a)]
    return made, torch.einsum("bij->j", a), torch.einsum(a, [0, 1, 2], v, [2], [1]), torch.einsum("i,i->", v, v)


@_function("einsum with diagonals, broadcasting and repeated letters", floats(3, 3), floats(1, 3))
def _einsum_diagonals(a, b):
    return (
        torch.einsum("ii", a),
        torch.einsum("ii->i", a),
        torch.einsum("...i,...i->...", a, b),
        torch.einsum("ij,kj", a, b),
    )


@_function("stft and istft", floats(2, 32))
def _stft(x):
    window = torch.hann_window(8)
    spectrum = torch.stft(x, 8, 4, window=window, return_complex=True)
    return torch.view_as_real(spectrum), torch.istft(spectrum, 8, 4, window=window)
