"""Random draws inside forward: shapes, dtypes and buffers are compared, values are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import distributions, nn

from parity.case import Call
from parity.semantics.table import case, floats, given, integers

DRAWN = {"drawn": True, "train": True}


@case("draws: dropout of every kind", floats(2, 4, 3, 3), **DRAWN)
class Dropouts(nn.Module):
    def __init__(self):
        super().__init__()
        self.kinds = nn.ModuleList([nn.Dropout(0.2), nn.Dropout2d(), nn.AlphaDropout(0.3), nn.FeatureAlphaDropout()])

    def forward(self, x):
        return [kind(x) for kind in self.kinds], F.dropout1d(x[0]), F.dropout3d(x[None])


@case("draws: dropout in eval draws nothing")
def _dropout_eval():
    return Call(nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.AlphaDropout()), (floats(2, 3)(),))


@case("draws: dropout with p=0 and p=1", floats(2, 3), train=True)
class Extremes(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.0), F.dropout(x, 1.0), F.dropout(x * 2, 0.5, training=False)


@case("draws: functional dropout that stays on in eval", floats(4, 3), drawn=True)
class MonteCarlo(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True), F.dropout(x * 2, 0.5, inplace=True)


@case("draws: dropout between the layers of an LSTM", floats(5, 2, 3), **DRAWN)
class LSTMDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, dropout=0.5)

    def forward(self, x):
        return self.lstm(x)


@case("draws: dropout inside attention and a Transformer layer", floats(5, 2, 4), **DRAWN)
class AttentionDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.layer = nn.MultiheadAttention(4, 2, dropout=0.2), nn.TransformerEncoderLayer(4, 2, 8)

    def forward(self, x):
        return self.attention(x, x, x), self.layer(x), F.scaled_dot_product_attention(x, x, x, dropout_p=0.1)


@case("draws: rand, randn, rand_like, randn_like and their dtypes", floats(2, 3, dtype=torch.bfloat16), **DRAWN)
class Likes(nn.Module):
    def forward(self, x):
        drawn = torch.rand(2, 3), torch.randn(3, dtype=torch.float16), torch.rand_like(x), torch.randn_like(x)
        return drawn, x + torch.randn_like(x, dtype=torch.float32), torch.randn(*x.shape[1:], 2), torch.rand(0, 2)


@case("draws: complex normals", floats(3, dtype=torch.complex64), **DRAWN)
class ComplexNormals(nn.Module):
    def forward(self, z):
        return torch.randn_like(z), torch.randn(2, dtype=torch.complex64) * z[:2]


@case("draws: bernoulli of probabilities, of a number, in place", floats(2, 3), **DRAWN)
class Bernoullis(nn.Module):
    def forward(self, x):
        p = x.sigmoid()
        hard = torch.bernoulli(p)
        return (
            hard + p - p.detach(),
            torch.bernoulli(x, 0.3),
            torch.empty(3, dtype=torch.bool).bernoulli_(0.5),
            x.clone().bernoulli_(p),
        )


@case("draws: bernoulli of 0 and 1 is certain", given(0.0, 1.0, 1.0, 0.0, grad=False))
class Certain(nn.Module):
    def forward(self, p):
        return torch.bernoulli(p), p.clone().uniform_(2.0, 2.0), torch.normal(p, torch.zeros(4))


@case("draws: multinomial with and without replacement", floats(2, 5), **DRAWN)
class Multinomial(nn.Module):
    def forward(self, x):
        weights = x.softmax(-1)
        return weights.multinomial(2), weights.multinomial(8, replacement=True), weights[0].multinomial(1)


@case("draws: multinomial without replacement of everything is a permutation", given(0.2, 0.3, 0.5))
class Exhausted(nn.Module):
    def forward(self, weights):
        return weights.multinomial(3).sort().values, weights.gather(0, weights.multinomial(3)).sum()


@case("draws: gumbel_softmax, soft and hard", floats(2, 5), **DRAWN)
class Gumbel(nn.Module):
    def forward(self, x):
        return F.gumbel_softmax(x, tau=0.5), F.gumbel_softmax(x, hard=True), F.gumbel_softmax(x, hard=True, dim=0)


@case("draws: rrelu in train", floats(2, 3), **DRAWN)
class TrainedRReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.activation = nn.RReLU(0.1, 0.4)

    def forward(self, x):
        return self.activation(x), F.rrelu(x, training=True), F.rrelu_(x * 2, training=True)


@case("draws: rrelu in eval is a leaky relu", floats(2, 3))
class FixedRReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.activation = nn.RReLU(0.1, 0.4)

    def forward(self, x):
        return self.activation(x), F.rrelu(x)


@case("draws: normal_, uniform_, exponential_ and others in place", floats(2, 3), **DRAWN)
class InPlace(nn.Module):
    def forward(self, x):
        noise = torch.empty_like(x).normal_(0, 0.1), torch.empty(3).uniform_(-1, 1), x.new_empty(2).exponential_(2.0)
        return x + noise[0], noise[1] * x, noise[2], torch.empty(3).log_normal_(), torch.empty(3).cauchy_()


@case("draws: geometric_ in place", floats(2, 3), **DRAWN)
class Geometric(nn.Module):
    def forward(self, x):
        return torch.empty(3).geometric_(0.5), x.new_empty(2).geometric_(0.1)


@case("draws: random_ with two bounds, one, none", floats(2, 3), **DRAWN)
class RandomInts(nn.Module):
    def forward(self, x):
        bounded = torch.empty(3, dtype=torch.int64).random_(0, 10)
        return bounded, x.new_empty(2).random_(5), torch.zeros(2, dtype=torch.uint8).random_()


@case("draws: random_ to the end of each dtype stays within it, and spreads", floats(2, 3), train=True)
class RandomToTheEnd(nn.Module):
    def forward(self, x):
        kinds = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16, torch.float32)
        draws = [torch.empty(400, dtype=kind).random_().to(torch.float32) for kind in kinds]
        ends = [256, 2**7, 2**15, 2**31, 2**11 + 1, 2**8 + 1, 2**24 + 1]
        within = [(draw >= 0).all() & (draw < end).all() for draw, end in zip(draws, ends, strict=True)]
        spread = [(draw > 0.9 * end).any() & (draw < 0.1 * end).any() for draw, end in zip(draws, ends, strict=True)]
        late = torch.empty(3, dtype=torch.int32).random_(2**31 - 1, None)
        flags = torch.zeros(400, dtype=torch.bool).random_()
        return x.sin(), within, spread, late, flags.any() & ~flags.all(), (torch.empty(9).random_(to=2) < 2).all()


@case("draws: random_ to the end of int64 and of float64", floats(2, 3), train=True, wide=True)
class RandomWide(nn.Module):
    def forward(self, x):
        ints, floats64 = torch.empty(400, dtype=torch.int64).random_(), torch.empty(400, dtype=torch.float64).random_()
        odd = (ints % 2 == 1).any() & (ints % 2 == 0).any()
        large = (ints > 2**62).any() & (ints < 2**62).any() & (ints >= 0).all()
        late = torch.empty(2, dtype=torch.int64).random_(2**63 - 1, None)
        return x.sin(), odd, large, late, (floats64 > 2**52).any() & (floats64 <= 2**53).all()


@case("draws: random_ over part of a tensor cuts its gradient there", floats(3, 2), train=True)
class RandomRow(nn.Module):
    def forward(self, x):
        y = x * 2
        y[1].random_(5, 6)
        return y.exp()


@case("draws: a write of noise into a slice", floats(4, 3), **DRAWN)
class NoisySlice(nn.Module):
    def forward(self, x):
        y = x.clone()
        y[1:3].normal_()
        y[:, 0].uniform_()
        return y


@case("draws: randint, randint_like and randperm", integers(5, 4), **DRAWN)
class Integers(nn.Module):
    def forward(self, n):
        shuffled = n[torch.randperm(n.shape[0])]
        return (
            shuffled,
            torch.randint(3, (2, 2)),
            torch.randint_like(n, 7),
            torch.randint(-2, 2, (3,), dtype=torch.int32),
        )


@case("draws: a permutation holds every number once", integers(5, 4))
class Permutation(nn.Module):
    def forward(self, n):
        return torch.randperm(6).sort().values, n[torch.randperm(4)].sum(), torch.randint(3, 4, (5,))


@case("draws: normal and poisson with tensor parameters", floats(2, 3), **DRAWN)
class Parameters(nn.Module):
    def forward(self, x):
        return torch.normal(x, x.exp()), torch.normal(x, 0.5), torch.normal(0.0, x.exp()), torch.poisson(x.exp())


@case("draws: rsample of Normal, Laplace, Gumbel and Uniform", floats(2, 3), **DRAWN)
class Reparametrised(nn.Module):
    def forward(self, x):
        made = [
            distributions.Normal(x, x.exp(), validate_args=False).rsample(),
            distributions.Laplace(x, 1.0, validate_args=False).rsample((4,)),
            distributions.Gumbel(x, 2.0, validate_args=False).rsample(),
            distributions.Uniform(x, x + 1, validate_args=False).rsample(),
        ]
        return made


@case("draws: samples of Categorical, Bernoulli and a mixture with their log_prob", floats(2, 4), **DRAWN)
class Discrete(nn.Module):
    def forward(self, x):
        pick = distributions.Categorical(logits=x, validate_args=False)
        flip = distributions.Bernoulli(logits=x, validate_args=False)
        action, coin = pick.sample(), flip.sample()
        return action, pick.log_prob(action), pick.entropy(), coin, flip.log_prob(coin)


@case("draws: rsample of Gamma, Beta and Dirichlet", floats(2, 3), **DRAWN)
class Gammas(nn.Module):
    def forward(self, x):
        rate = x.exp()
        beta = distributions.Beta(rate, rate, validate_args=False).rsample()
        gamma = distributions.Gamma(rate, rate, validate_args=False).rsample()
        return gamma, beta, distributions.Dirichlet(rate, validate_args=False).rsample()


@case("draws: log_prob, entropy and kl of distributions need no draw", floats(2, 3))
class Densities(nn.Module):
    def forward(self, x):
        first, second = distributions.Normal(x, 1.5), distributions.Normal(0.0, x.exp())
        return first.log_prob(x + 1), second.entropy(), distributions.kl_divergence(first, second), second.cdf(x)


@case("draws: noise scaled by a parameter, a variational layer", floats(4, 3), **DRAWN)
class Variational(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.zeros(3, 2))

    def forward(self, x):
        weight = self.mean + self.log_scale.exp() * torch.randn_like(self.mean)
        return x @ weight


@case("draws: buffers of a norm after dropout keep their shapes", floats(4, 3), **DRAWN)
class DropThenNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.norm = nn.Dropout(), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.drop(x))


@case("draws: stochastic depth, one draw for a sample", floats(4, 3, 2), **DRAWN)
class StochasticDepth(nn.Module):
    def forward(self, x):
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.8)
        return x + x.tanh() * keep.div_(0.8)


@case("draws: log_prob and entropy without validation", floats(2, 3))
class Unvalidated(nn.Module):
    def forward(self, x):
        normal = distributions.Normal(x, x.exp(), validate_args=False)
        return normal.log_prob(x + 1), normal.entropy(), normal.mean, normal.variance, normal.icdf(x.sigmoid())


# A seed in forward makes the draw the same at every call, which bits of another generator cannot repeat.
@case("draws: torch.manual_seed before a draw", floats(2, 3), train=True, refuses="manual_seed")
class Seeded(nn.Module):
    def forward(self, x):
        torch.manual_seed(3)
        return x + torch.randn(3)


@case("draws: a generator of one's own", floats(2, 3), train=True, refuses="draws come from the call's `key`")
class Generated(nn.Module):
    def forward(self, x):
        return x + torch.randn(3, generator=torch.Generator().manual_seed(3))
