"""Resizing and grid sampling against eager torch."""

import pytest
import torch
from parity_checks import check
from torch import nn
from torch.nn import functional as F

SPACE = {1: (5,), 2: (4, 5), 3: (3, 4, 5)}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
TARGETS = [
    ("double", {"scale_factor": 2}),
    ("same", {"scale_factor": 1.0}),
    ("fraction", {"scale_factor": 1.7}),
    ("half", {"scale_factor": 0.5}),
    ("recomputed", {"scale_factor": 1.7, "recompute_scale_factor": True}),
    ("size", {"size": 7}),
    ("one", {"size": 1}),
]
MODES = [
    *((rank, mode, {}) for rank in SPACE for mode in ("nearest", "nearest-exact")),
    *((rank, LINEAR[rank], {"align_corners": corners}) for rank in SPACE for corners in (False, True)),
    *((2, "bicubic", {"align_corners": corners}) for corners in (False, True)),
    (2, "area", {}),
]
IDS = [f"{rank}d-{mode}{'-corners' * options.get('align_corners', False)}" for rank, mode, options in MODES]


def image(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("target", [t[1] for t in TARGETS], ids=[t[0] for t in TARGETS])
@pytest.mark.parametrize(("rank", "mode", "options"), MODES, ids=IDS)
def test_interpolate(rank, mode, options, target):
    check(lambda x: F.interpolate(x, mode=mode, **options, **target), image(2, 3, *SPACE[rank]))


@pytest.mark.parametrize("target", [*(t[1] for t in TARGETS), {"size": (2, 11)}, {"scale_factor": 0.3}], ids=str)
@pytest.mark.parametrize(
    ("mode", "corners"),
    [("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True), ("lanczos", False)],
)
def test_antialias(mode, corners, target):
    check(lambda x: F.interpolate(x, mode=mode, antialias=True, align_corners=corners, **target), image(2, 3, 8, 9))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_16_bit(mode, dtype):
    check(nn.Upsample(scale_factor=2, mode=mode), image(2, 3, 4, 5, dtype=dtype))


def test_uneven_scales():
    check(lambda x: F.interpolate(x, scale_factor=(2, 1.5), mode="nearest"), image(2, 3, 4, 5))
    check(lambda x: F.interpolate(x, size=(3, 9), mode="bilinear"), image(2, 3, 4, 5))


def test_nearest_of_integers():
    check(lambda x: F.interpolate(x, scale_factor=2), torch.arange(24, dtype=torch.uint8).reshape(1, 2, 3, 4))


@pytest.mark.parametrize("size", range(1, 24))
def test_nearest_picks_the_same_neighbour(size):
    check(lambda x: F.interpolate(x, size=size, mode="nearest"), image(1, 1, 11), gradients=False)
    check(lambda x: F.interpolate(x, size=size, mode="nearest-exact"), image(1, 1, 11), gradients=False)


def test_operators_without_vec():
    check(lambda x: torch.ops.aten.upsample_nearest2d.default(x, [8, 9], None, 1.8), image(2, 3, 4, 5))
    check(lambda x: torch.ops.aten.upsample_bilinear2d.default(x, [8, 9], False, 2.0), image(2, 3, 4, 5))
    check(lambda x: torch.ops.aten._upsample_bicubic2d_aa.default(x, [3, 9], False, 0.7), image(2, 3, 4, 5))


@pytest.mark.parametrize("corners", [False, True], ids=["", "corners"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample(mode, padding, corners):
    def run(x, grid):
        return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=corners)

    check(run, image(2, 3, 4, 5), 1.5 * image(2, 3, 6, 2))


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_grid_sample_3d(mode, padding):
    def run(x, grid):
        return F.grid_sample(x, grid, mode=mode, padding_mode=padding, align_corners=False)

    check(run, image(2, 3, 3, 4, 5), 1.5 * image(2, 2, 3, 2, 3))


def test_grid_on_the_border():
    grid = torch.tensor([[[[-1.0, -1.0], [1.0, 1.0], [0.0, -1.0], [1.0, 0.5]]]])
    check(lambda x, g: F.grid_sample(x, g, align_corners=True), image(1, 2, 3, 4), grid)
    check(lambda x, g: F.grid_sample(x, g, padding_mode="border", align_corners=True), image(1, 2, 3, 4), grid)


@pytest.mark.parametrize("corners", [False, True], ids=["", "corners"])
def test_affine_grid(corners):
    check(lambda t: F.affine_grid(t, (2, 3, 4, 5), align_corners=corners), image(2, 2, 3))
    check(lambda t: F.affine_grid(t, (2, 3, 2, 4, 5), align_corners=corners), image(2, 3, 4))
