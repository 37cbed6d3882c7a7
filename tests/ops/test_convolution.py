"""Convolutions against eager torch."""

import pytest
import torch
from parity_checks import check
from torch import nn
from torch.nn import functional as F

MODULES = {
    (1, False): nn.Conv1d,
    (2, False): nn.Conv2d,
    (3, False): nn.Conv3d,
    (1, True): nn.ConvTranspose1d,
    (2, True): nn.ConvTranspose2d,
    (3, True): nn.ConvTranspose3d,
}
SPACE = {1: (7,), 2: (6, 7), 3: (4, 5, 6)}

PLAIN = [
    ("plain", {}),
    ("no-bias", {"bias": False}),
    ("stride", {"stride": 2}),
    ("padding", {"padding": 1}),
    ("dilation", {"dilation": 2, "kernel_size": 2}),
    ("everything", {"stride": 2, "padding": 2, "dilation": 2, "kernel_size": 2}),
    ("pointwise", {"kernel_size": 1}),
    ("pointwise-stride", {"kernel_size": 1, "stride": 2}),
    ("groups", {"groups": 2}),
    ("depthwise", {"groups": 4, "padding": 1}),
    ("depthwise-stride", {"groups": 4, "stride": 2}),
    ("depthwise-multiplied", {"groups": 4, "out_channels": 8}),
    ("same", {"padding": "same", "kernel_size": 2}),
    ("same-dilated", {"padding": "same", "dilation": 3, "kernel_size": 2}),
    ("valid", {"padding": "valid"}),
]
TRANSPOSED = [
    ("plain", {}),
    ("no-bias", {"bias": False}),
    ("stride", {"stride": 2}),
    ("padding", {"padding": 1}),
    ("dilation", {"dilation": 2, "kernel_size": 2}),
    ("output-padding", {"stride": 2, "output_padding": 1}),
    ("everything", {"stride": 3, "padding": 2, "dilation": 2, "kernel_size": 2, "output_padding": 1, "groups": 2}),
    ("blocks", {"kernel_size": 2, "stride": 2}),
    ("far-padding", {"kernel_size": 2, "padding": 2}),
    ("groups", {"groups": 2, "out_channels": 6}),
    ("depthwise", {"groups": 4, "stride": 2}),
]
CASES = [
    pytest.param(rank, transposed, options, id=f"{'transposed-' * transposed}{rank}d-{name}")
    for transposed, rows in ((False, PLAIN), (True, TRANSPOSED))
    for rank in (1, 2, 3)
    for name, options in rows
]


def build(rank, transposed, **options):
    torch.manual_seed(0)
    return MODULES[rank, transposed](4, **{"out_channels": 4, "kernel_size": 3, **options})


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("rank", "transposed", "options"), CASES)
def test_convolution(rank, transposed, options):
    check(build(rank, transposed, **options), image(2, 4, *SPACE[rank]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"groups": 4}, {"kernel_size": 1}], ids=["plain", "depthwise", "pointwise"])
@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_16_bit(transposed, options, dtype):
    check(build(2, transposed, **options).to(dtype), image(2, 4, 5, 5).to(dtype))


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unbatched(rank, transposed):
    check(build(rank, transposed), image(4, *SPACE[rank]))


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_padding_mode(rank, mode):
    check(build(rank, False, padding=1, padding_mode=mode), image(2, 4, *SPACE[rank]))


def test_uneven_arguments():
    check(build(2, False, kernel_size=(3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)), image(2, 4, 6, 5))
    check(build(2, True, kernel_size=(3, 2), stride=(1, 2), padding=(2, 0), output_padding=(0, 1)), image(2, 4, 6, 5))


@pytest.mark.parametrize("size", [1, 2])
def test_weight_larger_than_map(size):
    check(build(2, False, padding=1), image(2, 4, size, size))


def test_empty_batch():
    check(build(2, False), image(0, 4, 5, 5))


def test_sequence_of_one():
    check(lambda x, w: F.conv2d(x, w, stride=[2], padding=[1]), image(2, 4, 5, 5), image(3, 4, 3, 3))


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
def test_general_operator(transposed):
    def run(x, w, b):
        return torch.convolution(x, w, b, [2, 1], [1, 0], [1, 2], transposed, [0, 0], 2)

    check(run, image(2, 4, 6, 6), image(4, 4 if transposed else 2, 3, 2), image(8 if transposed else 4))


@pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_complex(transposed):
    check(build(1, transposed).to(torch.complex64), torch.complex(image(2, 4, 7), image(2, 4, 7).flip(0)))
