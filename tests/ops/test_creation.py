"""New tensors, and random ones: what can be checked without equal bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity_checks import Function, check, lower
from torch import nn

from esper.jax_backend.evaluate import evaluate

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
CREATED = {
    "arange": lambda x: torch.arange(5),
    "arange_start": lambda x: torch.arange(2, 7, dtype=torch.float32),
    "arange_step": lambda x: torch.arange(0, 1, 0.1),
    "arange_negative": lambda x: torch.arange(7, -3, -2),
    "arange_float": lambda x: torch.arange(2.5),
    "arange_of_size": lambda x: torch.arange(x.shape[0], device=x.device) + x[:, 0],
    "eye": lambda x: torch.eye(3),
    "eye_m": lambda x: torch.eye(2, 3, dtype=torch.int64),
    "fill": lambda x: x.clone().fill_(3),
    "fill_tensor": lambda x: torch.fill(x, x.sum()),
    "full": lambda x: (torch.full((2,), 1.5), torch.full((2,), 3), torch.full((), True)),
    "full_dtype": lambda x: torch.full((2, 2), 7, dtype=torch.bfloat16),
    "full_like": lambda x: (torch.full_like(x, 2), torch.full_like(x, 2.5, dtype=torch.int64)),
    "linspace": lambda x: torch.linspace(-1, 1, 7),
    "linspace_one": lambda x: torch.linspace(3, 5, 1),
    "linspace_int": lambda x: torch.linspace(0, 10, 5, dtype=torch.int64),
    "logspace": lambda x: torch.logspace(0, 2, 5) + torch.logspace(0, 1, 5, base=2),
    "new_full": lambda x: x.new_full((2,), 4),
    "new_ones": lambda x: x.new_ones(2, 3) + x.new_ones(3, dtype=torch.int64),
    "new_tensor": lambda x: x.new_tensor([1.0, 2.0, 3.0]) + x,
    "new_zeros": lambda x: x.new_zeros(x.shape[0], 2),
    "ones": lambda x: torch.ones(2, 3) + torch.ones((), dtype=torch.float16),
    "ones_like": lambda x: torch.ones_like(x) + torch.ones_like(x, dtype=torch.int32),
    "scalar_tensor": lambda x: torch.scalar_tensor(2.0) + torch.tensor(3) + x,
    "tensor": lambda x: torch.tensor([[1, 2], [3, 4]]),
    "tril_indices": lambda x: torch.tril_indices(3, 4, 1),
    "triu_indices": lambda x: torch.triu_indices(3, 4, -1),
    "zeros": lambda x: torch.zeros(2, 3, dtype=torch.bool),
    "zeros_like": lambda x: torch.zeros_like(x, dtype=torch.int64),
}


@pytest.mark.parametrize("name", CREATED)
def test_created(name):
    check(CREATED[name], X)


def drawn(function, *inputs, train=False, seed=0):
    """The outputs of one run, as numpy arrays."""
    module = function if isinstance(function, nn.Module) else Function(function)
    program, params, buffers, arrays, constants = lower(module, inputs, train)
    run = jax.jit(lambda key: evaluate(program, params, buffers, arrays, key, constants=constants)[0])
    return [np.asarray(out) for out in run(jax.random.key(seed))]


WIDE = torch.full((200, 100), 2.0)
# name: (function, mean, standard deviation)
DISTRIBUTIONS = {
    "bernoulli": (lambda x: torch.bernoulli(x * 0.15), 0.3, 0.458),
    "bernoulli_p": (lambda x: torch.empty_like(x).bernoulli_(0.3), 0.3, 0.458),
    "exponential": (lambda x: torch.empty_like(x).exponential_(0.5), 2.0, 2.0),
    "geometric": (lambda x: torch.empty_like(x).geometric_(0.5), 2.0, 1.414),
    "normal": (lambda x: torch.normal(x, 3.0), 2.0, 3.0),
    "normal_": (lambda x: torch.empty_like(x).normal_(1.0, 0.5), 1.0, 0.5),
    "normal_tensors": (lambda x: torch.normal(x, x / 2), 2.0, 1.0),
    "poisson": (lambda x: torch.poisson(x), 2.0, 1.414),
    "rand": (lambda x: torch.rand(x.shape), 0.5, 0.2887),
    "rand_like": (torch.rand_like, 0.5, 0.2887),
    "randint": (lambda x: torch.randint(0, 10, x.shape), 4.5, 2.872),
    "randint_like": (lambda x: torch.randint_like(x, 1, 5), 2.5, 1.118),
    "randn": (lambda x: torch.randn(x.shape), 0.0, 1.0),
    "randn_like": (torch.randn_like, 0.0, 1.0),
    "uniform": (lambda x: torch.empty_like(x).uniform_(-1, 3), 1.0, 1.1547),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution(name):
    function, mean, deviation = DISTRIBUTIONS[name]
    (found,) = drawn(function, WIDE)
    expected = function(WIDE)
    assert found.shape == tuple(expected.shape)
    assert found.dtype == np.dtype(str(jax.dtypes.canonicalize_dtype(str(expected.dtype).removeprefix("torch."))))
    assert abs(found.mean() - mean) < 5 * deviation / np.sqrt(found.size)
    assert abs(found.std() - deviation) < 0.05 * deviation


def test_randperm_is_a_permutation():
    (found,) = drawn(lambda x: torch.randperm(50) + x.sum().long() * 0, X)
    assert sorted(found) == list(range(50))
    assert list(found) != list(range(50))


def test_multinomial_follows_the_weights():
    weights = torch.tensor([0.0, 1.0, 3.0])
    (found,) = drawn(lambda w: torch.multinomial(w, 4000, replacement=True), weights)
    assert (found == 0).sum() == 0
    assert abs((found == 2).mean() - 0.75) < 0.05
    (distinct,) = drawn(lambda w: torch.multinomial(w + 1, 3), weights)
    assert sorted(distinct) == [0, 1, 2]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_dropout_keeps_the_mean(p):
    (found,) = drawn(nn.Dropout(p), WIDE, train=True)
    kept = found != 0
    np.testing.assert_allclose(found[kept], 2 / (1 - p), rtol=1e-6)
    assert abs(kept.mean() - (1 - p)) < 0.02


def test_dropout_masks_differ_between_nodes_and_keys():
    twice = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    (once,), (again,) = (drawn(nn.Dropout(0.5), WIDE, train=True, seed=seed) for seed in (0, 1))
    assert 0.2 < ((once != 0) == (again != 0)).mean() < 0.8
    (both,) = drawn(twice, WIDE, train=True)
    assert abs((both != 0).mean() - 0.25) < 0.02


@pytest.mark.parametrize("module", [nn.Dropout2d(0.5), nn.FeatureAlphaDropout(0.5)])
def test_feature_dropout_drops_whole_channels(module):
    (found,) = drawn(module, torch.ones(20, 30, 4, 4), train=True)
    assert (np.ptp(found.reshape(20, 30, 16), axis=-1) == 0).all()
    assert 0.3 < (found[..., 0, 0] == found.max()).mean() < 0.7


@pytest.mark.parametrize("module", [nn.Dropout(0.0), nn.Dropout(1.0), nn.Dropout2d(0.0), nn.AlphaDropout(0.0)])
def test_dropout_at_its_ends(module):
    check(module, torch.ones(2, 3, 4, 4), train=True, key=jax.random.key(0))


@pytest.mark.parametrize("module", [nn.Dropout(0.5), nn.Dropout3d(0.3), nn.AlphaDropout(0.2), nn.RReLU()])
def test_evaluation_draws_nothing(module):
    check(module, torch.linspace(-1, 1, 16).reshape(2, 2, 2, 2))


def test_gradient_of_dropout_is_its_mask():
    program, _, _, arrays, _ = lower(nn.Dropout(0.25), (X,), train=True)
    run = lambda x: evaluate(program, {}, {}, [x], jax.random.key(3))[0][0]  # noqa: E731
    gradient = jax.grad(lambda x: run(x).sum())(arrays[0])
    np.testing.assert_allclose(gradient * arrays[0], run(arrays[0]), rtol=1e-6)
    assert gradient.dtype == jnp.float32
