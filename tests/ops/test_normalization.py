"""Normalisation against eager torch: outputs, running statistics, gradients."""

import pytest
import torch
from parity_checks import check
from torch import nn

SPACE = {1: (5,), 2: (4, 5), 3: (2, 3, 4)}
BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
OPTIONS = [
    ("plain", {}),
    ("not-affine", {"affine": False}),
    ("untracked", {"track_running_stats": False}),
    ("tracked", {"track_running_stats": True}),
    ("momentum", {"momentum": 0.3, "eps": 1e-3}),
]


def image(*shape, dtype=torch.float32):
    return (3 + 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))).to(dtype)


def shaken(module):
    """Parameters and statistics away from their initial ones and zeros."""
    torch.manual_seed(0)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.uniform_(0.5, 1.5)
    return module


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", [o[1] for o in OPTIONS], ids=[o[0] for o in OPTIONS])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_batch_norm(rank, options, train):
    check(shaken(BATCH[rank](4, **options)), image(3, 4, *SPACE[rank]), train=train)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_batch_norm_of_vectors(train):
    check(shaken(nn.BatchNorm1d(4)), image(5, 4), train=train)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("statistics", [torch.float32, None], ids=["mixed", "uniform"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_batch_norm_16_bit(dtype, statistics, train):
    check(shaken(nn.BatchNorm2d(4)).to(statistics or dtype), image(3, 4, 4, 5, dtype=dtype), train=train)


def test_batch_norm_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = shaken(nn.BatchNorm1d(4))

        def forward(self, x):
            return self.norm(self.norm(x) * 2 + 1)

    check(Twice(), image(5, 4), train=True)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("options", [{"affine": False}, {"affine": True, "eps": 1e-3}], ids=["plain", "affine"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_instance_norm(rank, options, train):
    check(shaken(INSTANCE[rank](4, **options)), image(3, 4, *SPACE[rank]), train=train)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_instance_norm_with_running_statistics(rank):
    check(shaken(INSTANCE[rank](4, affine=True, track_running_stats=True)), image(3, 4, *SPACE[rank]))


def test_instance_norm_moves_running_statistics():
    check(shaken(nn.InstanceNorm2d(4, track_running_stats=True)), image(3, 4, 4, 5), train=True)


FREE = [
    ("group", nn.GroupNorm(2, 4), (3, 4, 5)),
    ("group-2d", nn.GroupNorm(2, 4), (3, 4, 2, 5)),
    ("group-not-affine", nn.GroupNorm(4, 4, affine=False), (3, 4, 2, 5)),
    ("group-vectors", nn.GroupNorm(2, 8), (3, 8)),
    ("layer", nn.LayerNorm(4), (3, 4)),
    ("layer-1d", nn.LayerNorm(4), (4,)),
    ("layer-dims", nn.LayerNorm((5, 4)), (2, 3, 5, 4)),
    ("layer-no-bias", nn.LayerNorm(4, bias=False, eps=1e-2), (3, 5, 4)),
    ("layer-not-affine", nn.LayerNorm(4, elementwise_affine=False), (3, 5, 4)),
    ("rms", nn.RMSNorm(4), (3, 4)),
    ("rms-dims", nn.RMSNorm((5, 4), eps=1e-2), (2, 5, 4)),
    ("rms-not-affine", nn.RMSNorm(4, elementwise_affine=False), (3, 5, 4)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("module", "shape"), [f[1:] for f in FREE], ids=[f[0] for f in FREE])
def test_free_of_batch(module, shape, dtype):
    check(shaken(module).to(dtype), image(*shape, dtype=dtype))


@pytest.mark.parametrize("module", [nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(2, 4)], ids=["layer", "rms", "group"])
def test_empty_batch(module):
    check(shaken(module), image(0, 4))


@pytest.mark.parametrize("module", [nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(1, 4)], ids=["layer", "rms", "group"])
def test_constant_rows(module):
    check(shaken(module), torch.zeros(2, 4))


def test_large_mean():
    check(nn.LayerNorm(8), 100 + image(3, 8))


@pytest.mark.parametrize("size", [2, 3])
def test_local_response(size):
    check(nn.LocalResponseNorm(size, alpha=0.1, k=2.0), image(2, 5, 3, 3))


STATISTICS = [
    ("group", lambda x: torch.native_group_norm(x, None, None, 3, 4, 5, 2, 1e-5)),
    ("layer", lambda x: torch.native_layer_norm(x, [5], None, None, 1e-5)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [s[1] for s in STATISTICS], ids=[s[0] for s in STATISTICS])
def test_statistics(function, dtype):
    check(function, image(3, 4, 5, dtype=dtype))
