"""Pooling against eager torch: values, indices, and where the gradient goes."""

import jax
import pytest
import torch
from parity_checks import check
from torch import nn
from torch.nn import functional as F

SPACE = {1: (9,), 2: (7, 8), 3: (4, 5, 6)}
MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
ADAPTIVE_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
ADAPTIVE_AVG = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}

COMMON = [
    ("plain", {"kernel_size": 2}),
    ("stride", {"kernel_size": 3, "stride": 2}),
    ("padding", {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("ceil", {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
    ("ceil-padding", {"kernel_size": 3, "stride": 3, "padding": 1, "ceil_mode": True}),
    ("overlap", {"kernel_size": 3, "stride": 1}),
]
OF_MAX = [
    ("dilation", {"kernel_size": 2, "stride": 1, "dilation": 2}),
    ("everything", {"kernel_size": 2, "stride": 2, "padding": 1, "dilation": 2, "ceil_mode": True}),
]
OF_AVG = [
    ("own-padding", {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
    ("own-padding-ceil", {"kernel_size": 3, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
]


def cases(rows):
    return [pytest.param(rank, options, id=f"{rank}d-{name}") for rank in (1, 2, 3) for name, options in rows]


def image(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize(("rank", "options"), cases(COMMON + OF_MAX))
def test_max(rank, options):
    x = image(2, 3, *SPACE[rank])
    check(lambda x: MAX[rank](x, **options), x)
    check(lambda x: MAX[rank](x, **options, return_indices=True), x)


@pytest.mark.parametrize(("rank", "options"), cases(COMMON + OF_MAX))
def test_first_of_equal_maxima_gets_the_gradient(rank, options):
    x = torch.randint(0, 3, (2, 3, *SPACE[rank]), generator=torch.Generator().manual_seed(2)).float()
    check(lambda x: MAX[rank](x, **options, return_indices=True), x)


@pytest.mark.parametrize("fill", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("options", [{"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2}])
def test_max_of_non_finite(fill, options):
    x = image(1, 2, 6, 6)
    x[0, 0, 1:4, 2:5] = fill
    x[0, 1] = fill
    check(lambda x: F.max_pool2d(x, **options, return_indices=True), x)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8], ids=str)
def test_max_of_integers(dtype):
    x = (50 * image(2, 3, 6, 6)).to(dtype)
    check(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), x)


@pytest.mark.parametrize(("rank", "options"), cases(COMMON + OF_AVG))
def test_avg(rank, options):
    check(lambda x: AVG[rank](x, **options), image(2, 3, *SPACE[rank]))


def test_avg_divisor():
    check(lambda x: F.avg_pool2d(x, 2, divisor_override=3), image(2, 3, 5, 5))
    check(lambda x: F.avg_pool3d(x, 2, divisor_override=3), image(2, 3, 4, 4, 4))


def test_avg_of_integers():
    check(lambda x: F.avg_pool2d(x, 3, 2, 1), (50 * image(2, 3, 6, 6)).to(torch.int64))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_adaptive(rank, size):
    x = image(2, 3, *SPACE[rank])
    check(lambda x: ADAPTIVE_AVG[rank](x, size), x)
    check(lambda x: ADAPTIVE_MAX[rank](x, size, return_indices=True), x)


def test_adaptive_max_of_equals():
    x = torch.zeros(1, 2, 5, 7)
    check(lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True), x)


def test_adaptive_sizes():
    check(nn.AdaptiveAvgPool2d((None, 3)), image(2, 3, 4, 7))
    check(nn.AdaptiveAvgPool2d((2, 1)), image(2, 3, 4, 7))
    check(lambda x: F.adaptive_avg_pool2d(x, 3), image(2, 3, 0, 6)[:, :, :0].new_ones(2, 3, 6, 6))


MODULES = [
    ("adaptive-avg", nn.AdaptiveAvgPool2d(3)),
    ("adaptive-max", nn.AdaptiveMaxPool2d(3)),
    ("avg", nn.AvgPool2d(3, 2, 1)),
    ("lp", nn.LPPool2d(2, 2)),
    ("max", nn.MaxPool2d(3, 2, 1)),
]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("module", [m[1] for m in MODULES], ids=[m[0] for m in MODULES])
def test_16_bit(module, dtype):
    check(module, image(2, 3, 6, 7).abs().to(dtype))


@pytest.mark.parametrize("module", [m[1] for m in MODULES], ids=[m[0] for m in MODULES])
def test_unbatched(module):
    check(module, image(3, 6, 7).abs())


@pytest.mark.parametrize("module", [m[1] for m in MODULES if m[0] != "lp"], ids=[m[0] for m in MODULES if m[0] != "lp"])
def test_empty_batch(module):
    check(module, image(0, 3, 6, 7))


def test_uneven_arguments():
    check(lambda x: F.max_pool2d(x, (3, 2), (1, 2), (1, 0), (2, 1)), image(2, 3, 7, 6))
    check(lambda x: F.avg_pool2d(x, (3, 2), (1, 2), (1, 0)), image(2, 3, 7, 6))


def test_sequence_of_one():
    check(lambda x: F.max_pool2d(x, [2], [2]), image(2, 3, 7, 6))
    check(lambda x: F.avg_pool2d(x, [2], [2]), image(2, 3, 7, 6))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_max_unpool(rank):
    unpool = {1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d}[rank]

    def run(x):
        return unpool(*MAX[rank](x, 2, return_indices=True), 2)

    check(run, image(2, 3, *[4] * rank))


def test_max_unpool_of_equal_places():
    places = torch.tensor([[[0, 3, 3], [2, 2, 2]]])
    check(lambda x: F.max_unpool1d(x, places, 2, output_size=(6,)), image(1, 2, 3))


@pytest.mark.parametrize("rank", [2, 3])
def test_fractional_max_pool(rank):
    pool = {2: F.fractional_max_pool2d, 3: F.fractional_max_pool3d}[rank]
    samples = torch.rand(2, 3, rank, generator=torch.Generator().manual_seed(0))
    options = {"output_size": (3, 2, 4)[:rank], "return_indices": True}
    x = image(2, 3, *(8, 7, 9)[:rank])
    check(lambda x: pool(x, (2, 3, 2)[:rank], _random_samples=samples, **options), x)
    check(lambda x: pool(x, 3, _random_samples=samples[:1], **options | {"output_size": 1}), x[0])
    check(lambda x: pool(x, (7, 6, 8)[:rank], output_size=1), x, key=jax.random.key(0))  # whatever is drawn
