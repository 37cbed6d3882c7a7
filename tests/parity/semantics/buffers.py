"""Buffers that a forward moves: normalisation statistics, averages, counters, rings."""

from __future__ import annotations

import torch
from torch import nn

from parity.case import Call
from parity.semantics.table import case, floats, integers


def buffered(**buffers):
    """A module with these buffers."""
    module = nn.Module()
    for name, value in buffers.items():
        module.register_buffer(name, value)
    return module


def norm_case(name, norm, *shape, **options):
    @case(f"buffers: {name}")
    def _():
        return Call(norm(), (floats(*shape)(),), **{"train": True, **options})


norm_case("BatchNorm1d in training", lambda: nn.BatchNorm1d(4), 6, 4)
norm_case("BatchNorm1d of sequences in training", lambda: nn.BatchNorm1d(4), 3, 4, 5)
norm_case("BatchNorm2d in training", lambda: nn.BatchNorm2d(3), 2, 3, 4, 4)
norm_case("BatchNorm3d in training", lambda: nn.BatchNorm3d(2), 2, 2, 3, 3, 2)
norm_case("BatchNorm1d with a cumulative average", lambda: nn.BatchNorm1d(4, momentum=None), 6, 4)
norm_case("BatchNorm2d with momentum 1 and another eps", lambda: nn.BatchNorm2d(3, eps=0.1, momentum=1.0), 2, 3, 4, 4)
norm_case("BatchNorm1d without tracking, training", lambda: nn.BatchNorm1d(4, track_running_stats=False), 6, 4)
norm_case("BatchNorm1d without tracking, eval", lambda: nn.BatchNorm1d(4, track_running_stats=False), 6, 4, train=False)
norm_case("BatchNorm2d without affine", lambda: nn.BatchNorm2d(3, affine=False), 2, 3, 4, 4)
norm_case("BatchNorm1d in eval mode moves nothing", lambda: nn.BatchNorm1d(4), 6, 4, train=False)
norm_case("InstanceNorm1d that tracks, training", lambda: nn.InstanceNorm1d(3, track_running_stats=True), 2, 3, 5)
norm_case(
    "InstanceNorm2d that tracks, affine, training",
    lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
    *(2, 3, 4, 4),
)
norm_case(
    "InstanceNorm2d that tracks, eval",
    lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    *(2, 3, 4, 4),
    train=False,
)


@case("buffers: one BatchNorm called three times in one forward", floats(6, 4), train=True)
class SharedNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        y = self.norm(x)
        return self.norm(y * 2 + 1) + self.norm(x.sin())


@case("buffers: a cumulative average that is called twice", floats(6, 4), train=True)
class SharedCumulative(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4, momentum=None)

    def forward(self, x):
        return self.norm(self.norm(x) + x)


@case("buffers: a BatchNorm in eval mode inside a model in training", floats(6, 4), own_modes=True, train=True)
class FrozenNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.moving, self.frozen = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.frozen.running_mean += 0.5
        self.frozen.eval()

    def forward(self, x):
        return self.frozen(self.moving(x))


@case("buffers: modes are set inside forward", floats(6, 4), train=True)
class SetsModes(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        self.norm.train()
        y = self.norm(x)
        self.norm.eval()
        return y + self.norm(x)


@case("buffers: functional batch_norm moves the buffers it is given", floats(6, 4), train=True)
class FunctionalNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.statistics = buffered(mean=torch.zeros(4), variance=torch.ones(4))

    def forward(self, x):
        own = self.statistics
        return nn.functional.batch_norm(x, own.mean, own.variance, training=self.training, momentum=0.3)


@case("buffers: a mean over all that was seen, moved under no_grad", floats(6, 4), train=True)
class OwnStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x):
        batch = x.mean(0)
        if self.training:
            with torch.no_grad():
                self.seen += 1
                self.mean += (batch - self.mean) / self.seen
        return x - self.mean + batch


class Averages(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.ones(4))


@case("buffers: an average by copy_", floats(6, 4), train=True)
class ByCopy(Averages):
    def forward(self, x):
        self.average.copy_(0.9 * self.average + 0.1 * x.detach().mean(0))
        return x * self.average


@case("buffers: an average by lerp_", floats(6, 4), train=True)
class ByLerp(Averages):
    def forward(self, x):
        self.average.lerp_(x.detach().mean(0), 0.1)
        return x / self.average


@case("buffers: an average by mul_().add_()", floats(6, 4), train=True)
class ByMulAdd(Averages):
    def forward(self, x):
        before = self.average.clone()
        self.average.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x * self.average.clone() - before


@case("buffers: an average by .data", floats(6, 4), train=True)
class ByData(Averages):
    def forward(self, x):
        self.average.data = self.average.data * 0.5 + x.data.amax(0) * 0.5
        return x * self.average


@case("buffers: an average by .data in place", floats(6, 4), train=True)
class ByDataInPlace(Averages):
    def forward(self, x):
        self.average.data.mul_(0.5).add_(x.data.amax(0), alpha=0.5)
        return x * self.average


@case("buffers: a buffer that is assigned anew", floats(6, 4), train=True)
class Reassigned(Averages):
    def forward(self, x):
        self.average = self.average * 0.9 + x.detach().mean(0) * 0.1
        return x + self.average


@case("buffers: a buffer of a submodule that is assigned anew by its parent", floats(6, 4), train=True)
class ReassignedByParent(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Averages()

    def forward(self, x):
        self.inner.average = x.detach().mean(0)
        return x + self.inner.average


@case("buffers: a buffer that starts as None", floats(6, 4), train=True)
class StartsAsNone(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", None)

    def forward(self, x):
        return x + 1 if self.seen is None else x


@case("buffers: a counter that goes up and is read", floats(3, 4), train=True)
class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        self.count += 1
        scale = 1.0 / self.count
        self.count += 1
        return x * scale, self.count + 0


@case("buffers: a counter that is moved in eval mode too, and returned", floats(3, 4))
class CounterInEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int32))

    def forward(self, x):
        self.count.add_(2)
        return x, self.count


@case("buffers: a ring that is written at a moving place", floats(2, 4), train=True)
class Ring(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("ring", torch.zeros(5, 4))
        self.register_buffer("place", torch.tensor(4))

    def forward(self, x):
        where = (self.place + torch.arange(2)) % 5
        self.ring[where] = x.detach()
        self.place.copy_((self.place + 2) % 5)
        return x @ self.ring.clone().t()


@case("buffers: a queue that is shifted", floats(2, 4), train=True)
class Queue(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.randn(6, 4))

    @torch.no_grad()
    def enqueue(self, keys):
        self.queue[:-2] = self.queue[2:].clone()
        self.queue[-2:] = keys

    def forward(self, x):
        logits = x @ self.queue.clone().detach().t()
        self.enqueue(x)
        return logits


@case("buffers: buffers that are not persistent", floats(3, 4), train=True)
class NotPersistent(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)
        self.register_buffer("last", torch.zeros(3, 4), persistent=False)

    def forward(self, x):
        self.last.copy_(x.detach() * self.scale)
        return x * self.scale + self.last


@case("buffers: counts of codes by one-hot sums and index_add_", integers(5, 3, 4), train=True)
class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 2)
        self.register_buffer("counts", torch.zeros(5))
        self.register_buffer("hits", torch.zeros(5, dtype=torch.int64))

    def forward(self, codes):
        one_hot = nn.functional.one_hot(codes.flatten(), 5)
        self.counts.mul_(0.9).add_(one_hot.sum(0), alpha=0.1)
        self.hits.index_add_(0, codes.flatten(), torch.ones_like(codes.flatten()))
        return self.embedding(codes) / (1 + self.counts[codes])[..., None]


@case("buffers: a boolean flag switches once", floats(3, 4), train=True)
class Flag(nn.Module):
    """Initialised from the first batch, without a branch in Python."""

    def __init__(self):
        super().__init__()
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x):
        self.shift.copy_(torch.where(self.ready, self.shift, x.detach().mean(0)))
        self.ready.fill_(True)
        return x - self.shift


@case("buffers: a weight average of parameters beside them", floats(3, 4), train=True)
class WeightAverage(nn.Module):
    def __init__(self):
        super().__init__()
        self.online, self.target = nn.Linear(4, 4), nn.Linear(4, 4)
        for parameter in self.target.parameters():
            parameter.requires_grad_(False)
        self.register_buffer("shadow", self.online.weight.detach().clone())

    def forward(self, x):
        self.shadow.lerp_(self.online.weight.detach(), 0.5)
        with torch.no_grad():
            aim = self.target(x)
        return (nn.functional.linear(self.online(x), self.shadow) - aim).square().mean()
