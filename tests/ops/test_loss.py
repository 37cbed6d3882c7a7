"""Losses and distances against eager torch."""

import pytest
import torch
from parity_checks import check
from torch.nn import functional as F

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
REDUCTIONS = ("none", "mean", "sum")


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def labels(*shape, classes=5):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(3))


def with_ignored(target, ignored=-100):
    target = target.clone()
    target.view(-1)[::2] = ignored
    return target


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.5])
CLASSES = [
    ("plain", (4, 5), labels(4), {}),
    ("one-row", (5,), labels(), {}),
    ("map", (2, 5, 3, 2), labels(2, 3, 2), {}),
    ("sequence", (2, 5, 3), labels(2, 3), {}),
    ("ignored", (4, 5), with_ignored(labels(4)), {}),
    ("own-ignored", (4, 5), with_ignored(labels(4), 1), {"ignore_index": 1}),
    ("weighted", (4, 5), with_ignored(labels(4)), {"weight": WEIGHT}),
    ("weighted-map", (2, 5, 3, 2), labels(2, 3, 2), {"weight": WEIGHT}),
]
OF_CROSS_ENTROPY = [
    ("smoothed", (4, 5), with_ignored(labels(4)), {"label_smoothing": 0.2}),
    ("smoothed-weighted", (4, 5), with_ignored(labels(4)), {"label_smoothing": 0.2, "weight": WEIGHT}),
    ("smoothed-map", (2, 5, 3), labels(2, 3), {"label_smoothing": 0.2}),
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("shape", "target", "options"),
    [c[1:] for c in CLASSES + OF_CROSS_ENTROPY],
    ids=[c[0] for c in CLASSES + OF_CROSS_ENTROPY],
)
def test_cross_entropy(shape, target, options, reduction):
    check(lambda x, t: F.cross_entropy(x, t, reduction=reduction, **options), rand(*shape), target)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("shape", "target", "options"), [c[1:] for c in CLASSES], ids=[c[0] for c in CLASSES])
def test_nll(shape, target, options, reduction):
    check(lambda x, t: F.nll_loss(x, t, reduction=reduction, **options), rand(*shape), target)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"weight": WEIGHT}], ids=["", "smoothed", "weighted"]
)
@pytest.mark.parametrize("shape", [(4, 5), (5,), (2, 5, 3)], ids=str)
def test_cross_entropy_with_probabilities(shape, options, reduction):
    target = rand(*shape, seed=1).softmax(-len(shape) + 1 if len(shape) > 1 else 0)
    check(lambda x, t: F.cross_entropy(x, t, reduction=reduction, **options), rand(*shape), target)


def test_nothing_but_ignored_targets():
    for reduction in REDUCTIONS:
        check(lambda x, t, r=reduction: F.cross_entropy(x, t, reduction=r), rand(2, 5), torch.full((2,), -100))


def test_infinite_logits():
    x = rand(2, 5)
    x[:, 4] = -torch.inf
    check(F.cross_entropy, x, torch.tensor([0, 3]))


ELEMENTWISE = [
    ("bce", lambda x, y, r: F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), reduction=r)),
    ("bce-weight", lambda x, y, r: F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), WEIGHT[:4], reduction=r)),
    ("bce-logits", lambda x, y, r: F.binary_cross_entropy_with_logits(x, y, reduction=r)),
    (
        "bce-logits-weights",
        lambda x, y, r: F.binary_cross_entropy_with_logits(x, y, WEIGHT[:4], reduction=r, pos_weight=WEIGHT[1:]),
    ),
    ("huber", lambda x, y, r: F.huber_loss(x, y, reduction=r, delta=0.7)),
    ("kl", lambda x, y, r: F.kl_div(x, y.sigmoid(), reduction=r)),
    ("kl-log", lambda x, y, r: F.kl_div(x, y, reduction=r, log_target=True)),
    ("l1", lambda x, y, r: F.l1_loss(x, y, reduction=r)),
    ("mse", lambda x, y, r: F.mse_loss(x, y, reduction=r)),
    ("multilabel-soft-margin", lambda x, y, r: F.multilabel_soft_margin_loss(x, y, reduction=r)),
    ("poisson", lambda x, y, r: F.poisson_nll_loss(x, y.exp(), reduction=r)),
    ("poisson-full", lambda x, y, r: F.poisson_nll_loss(x.exp(), y.exp() + 1, False, True, reduction=r)),
    ("smooth-l1", lambda x, y, r: F.smooth_l1_loss(x, y, reduction=r)),
    ("smooth-l1-beta", lambda x, y, r: F.smooth_l1_loss(x, y, reduction=r, beta=0.5)),
    ("smooth-l1-zero", lambda x, y, r: F.smooth_l1_loss(x, y, reduction=r, beta=0.0)),
    ("soft-margin", lambda x, y, r: F.soft_margin_loss(x, y.sign().detach(), reduction=r)),
]


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("function", [e[1] for e in ELEMENTWISE], ids=[e[0] for e in ELEMENTWISE])
def test_elementwise(function, reduction):
    check(lambda x, y: function(x, y, reduction), rand(3, 4), rand(3, 4, seed=1))


def test_batch_mean():
    check(lambda x, y: F.kl_div(x, y, reduction="batchmean"), rand(3, 4).log_softmax(1), rand(3, 4, seed=1).softmax(1))


def test_equal_arguments():
    x = rand(3, 4)
    for loss in (F.l1_loss, F.mse_loss, F.huber_loss, F.smooth_l1_loss):
        check(loss, x, x.clone())


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_broadcast_and_promotion():
    check(F.mse_loss, rand(3, 1), rand(1, 4))
    check(F.l1_loss, rand(3, 4), rand(3, 4, dtype=torch.bfloat16))


def test_saturated_probabilities():
    check(F.binary_cross_entropy, torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0, 0.0]))
    check(F.binary_cross_entropy_with_logits, torch.tensor([90.0, -90.0, 0.0]), torch.tensor([0.0, 1.0, 0.5]))


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits])
def test_16_bit(loss, dtype):
    check(loss, rand(3, 4, dtype=dtype), rand(3, 4, seed=1, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS[1:], ids=str)
def test_16_bit_cross_entropy(dtype):
    check(F.cross_entropy, rand(4, 5, dtype=dtype), labels(4))


SIGNS = torch.tensor([1, -1, 1])
MARGINS = [
    ("cosine", lambda x, y, z, r: F.cosine_embedding_loss(x, y, SIGNS, 0.2, reduction=r)),
    ("hinge", lambda x, y, z, r: F.hinge_embedding_loss(x, SIGNS[:, None], 0.5, reduction=r)),
    ("multi", lambda x, y, z, r: F.multi_margin_loss(x, torch.tensor([0, 2, 3]), reduction=r)),
    ("multi-p", lambda x, y, z, r: F.multi_margin_loss(x, torch.tensor([0, 2, 3]), 2, 0.7, reduction=r)),
    ("ranking", lambda x, y, z, r: F.margin_ranking_loss(x, y, SIGNS[:, None], 0.3, reduction=r)),
    ("triplet", lambda x, y, z, r: F.triplet_margin_loss(x, y, z, reduction=r)),
    ("triplet-distance", lambda x, y, z, r: F.triplet_margin_with_distance_loss(x, y, z, reduction=r)),
    ("triplet-swap", lambda x, y, z, r: F.triplet_margin_loss(x, y, z, 2.0, 1.0, swap=True, reduction=r)),
]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("function", [m[1] for m in MARGINS], ids=[m[0] for m in MARGINS])
def test_margins(function, reduction):
    check(lambda x, y, z: function(x, y, z, reduction), rand(3, 4), rand(3, 4, seed=1), rand(3, 4, seed=2))


def test_margin_met_exactly():
    x = torch.zeros(3, 4)
    check(lambda x, y: F.margin_ranking_loss(x, y, SIGNS[:, None]), x, x.clone())
    check(lambda x: F.hinge_embedding_loss(x, -torch.ones(3, 4), 0.0), x)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_multilabel_margin(reduction):
    target = torch.tensor([[3, 0, -1, 1], [-1, 2, 2, 2], [0, 1, 2, 3]])
    check(lambda x, t: F.multilabel_margin_loss(x, t, reduction=reduction), rand(3, 4), target)
    check(lambda x, t: F.multilabel_margin_loss(x, t, reduction=reduction), rand(4), target[0])
    check(lambda x, t: F.multilabel_margin_loss(x, t, reduction=reduction), rand(4)[0], torch.tensor(0))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linear_cross_entropy_in_chunks(reduction):
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2)

    def run(x, weight, bias, t):
        return F.linear_cross_entropy(x, weight, t, linear_bias=bias, reduction=reduction, options=options)

    program = check(run, rand(5, 4), rand(3, 4, seed=1), rand(3, seed=2), torch.tensor([0, 2, 1, -100, 2]))
    assert any("chunked" in node.op for node in program.nodes)


NORMS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, float("inf"))


@pytest.mark.parametrize("p", NORMS)
def test_distances(p):
    check(lambda x, y: torch.cdist(x, y, p), rand(2, 3, 4), rand(2, 5, 4, seed=1))
    check(lambda x: F.pdist(x, p), rand(4, 3))
    check(lambda x, y: F.pairwise_distance(x, y, p, keepdim=True), rand(3, 4), rand(3, 4, seed=1))


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_distance_zero(p):
    x = rand(3, 4)
    check(lambda x, y: torch.cdist(x, y, p), x, x.clone())
    check(lambda x, y: F.pairwise_distance(x, y, p, eps=0.0), x, x.clone())


@pytest.mark.parametrize("mode", ["use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"])
def test_distance_mode(mode):
    check(lambda x, y: torch.cdist(x, y, compute_mode=mode), rand(3, 4), rand(5, 4, seed=1))


def test_many_distances():
    check(torch.cdist, rand(27, 4), rand(3, 4, seed=1))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_cosine_similarity(dtype):
    check(F.cosine_similarity, rand(3, 4, dtype=dtype), rand(3, 4, seed=1, dtype=dtype))
    check(lambda x, y: F.cosine_similarity(x, y, -1), rand(3, 1, 4, dtype=dtype), rand(1, 2, 4, seed=1, dtype=dtype))


def test_cosine_similarity_of_nothing():
    x = rand(3, 4)
    x[1] = 0
    check(F.cosine_similarity, x, rand(3, 4, seed=1))
    check(lambda x, y: F.cosine_similarity(x, y, 0), x[0, 0], x[0, 1])
    check(lambda x, y: F.cosine_similarity(x, y, eps=10.0), x, rand(3, 4, seed=1))
