"""Where to grow: first-order gains against derivatives, initialisers, noise and truth."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch import manual_seed, nn

import esper
from esper.errors import ArgumentError, UnknownLayerError
from esper.growth.fits import best_linear, expected
from esper.growth.initialisers import initialise, initialiser
from esper.growth.scores import first_order_gains
from esper.growth.statistics import layer_statistics

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 3)
X = jax.random.normal(KEYS[0], (8, 32, 6))
TRUTH = jax.random.normal(KEYS[1], (6, 2))
NOISE = jax.random.normal(KEYS[2], (8, 32, 2))


@cache
def model():
    manual_seed(1)
    host = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 2))
    return esper.wrap(host, [nn.Linear, nn.LayerNorm])


def squared(model, batch):
    return jnp.mean(jnp.sum((model(batch[0]) - batch[1]) ** 2, axis=-1))


def scores(batches, layers=("0", "3"), rank=2, loss=squared, of=model):
    return first_order_gains(loss, of(), batches, layers=layers, rank=rank)


@pytest.mark.parametrize("layer", ["0", "3"])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_gain_is_the_derivative_along_the_best_map_on_batches_it_has_not_seen(layer, rank):
    batches = (X, X @ TRUTH)
    found = scores(batches, (layer,), rank)[layer]
    folds = [jax.tree.map(lambda leaf, k=k: leaf[2 * k : 2 * k + 2], batches) for k in range(4)]
    wanted = []
    for k, check in enumerate(folds):
        rest = jax.tree.map(lambda *parts: jnp.concatenate(parts), *[fold for j, fold in enumerate(folds) if j != k])
        seen = layer_statistics(squared, model(), rest, layers=[layer])[layer]
        reads, writes = best_linear(*expected(seen, ones=True)).factors(rank)
        step = writes @ reads  # beside a linear layer: a change of its weight and its bias
        host = model().params["host"]
        moved = {f"{layer}.weight": step[:, :-1], f"{layer}.bias": step[:, -1]}
        tangent = {name: jnp.asarray(moved.get(name, np.zeros(leaf.shape)), leaf.dtype) for name, leaf in host.items()}

        def loss(host, check=check):
            grown = model().replace(params={**model().params, "host": host})
            return jax.vmap(lambda batch: squared(grown, batch))(check).mean()

        wanted.append(-jax.jvp(loss, (host,), (tangent,))[1])
    assert found.gain == pytest.approx(np.mean(wanted), rel=1e-3)
    assert found.stderr == pytest.approx(np.std(wanted, ddof=1) / 2, rel=1e-2)
    assert (found.rank, found.parameters) == (rank, rank * {"0": 11, "3": 7}[layer])


def test_on_a_single_batch_it_is_what_tiny_reports():
    batches = (X[:1], (X @ TRUTH)[:1])
    found = scores(batches, ("3",))["3"]
    seen = layer_statistics(squared, model(), batches, layers=["3"])["3"]
    values = best_linear(*expected(seen, ones=True)).values
    assert found.gain == pytest.approx(float(np.sum(values[:2] ** 2)), rel=1e-4)
    assert found.stderr is None and str(found) == f"{found.gain:+.4g}"
    init = initialiser("tiny", seen)
    grown, _ = esper.germinate(model(), None, layer="3", blueprint="mlp", options={"width": 4}, key=KEY)
    _, outcome = initialise(grown, layer="3", init=init, key=KEY)
    assert outcome.report.gain == pytest.approx(found.gain, rel=1e-4)


@cache
def wide():
    """What a linear kernel can do, it can do at layer 1; layer 0 reads nothing but noise, and much of it."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.noise, self.signal = nn.Linear(40, 2), nn.Linear(6, 2)

        def forward(self, x, noise):
            return self.signal(x) + self.noise(noise)

    manual_seed(2)
    return esper.wrap(Sum(), [nn.Linear])


def summed(model, batch):
    x, noise, y = batch
    return jnp.mean(jnp.sum((model(x, noise) - y) ** 2, axis=-1))


def test_noise_is_no_gain():
    """On the batches it was fitted to, a wide layer of pure noise seems worth growing; on others it is not."""
    noise = jax.random.normal(jax.random.key(5), (8, 32, 40))
    truth = 0.3 * X @ TRUTH + NOISE
    host = {name: jnp.zeros_like(leaf) for name, leaf in wide().params["host"].items()}
    bare = wide().replace(params={**wide().params, "host": host})
    batches = (X, noise, truth)
    found = first_order_gains(summed, bare, batches, layers=["noise", "signal"], rank=2)
    assert found["signal"].gain > 3 * found["signal"].stderr
    assert found["noise"].gain < 2 * found["noise"].stderr
    seen = layer_statistics(summed, bare, batches, layers=["noise"])["noise"]
    fooled = np.sum(best_linear(*expected(seen, ones=True)).values ** 2)
    assert fooled > found["noise"].gain + 5 * found["noise"].stderr


def convolved(model, batch):
    return jnp.mean(jnp.sum((model(batch[0]) - batch[1][:, :, None]) ** 2, axis=(1, 2)))


@cache
def convolution():
    manual_seed(3)
    return esper.wrap(nn.Sequential(nn.Conv1d(1, 2, 3, padding=1)), [nn.Conv1d])


def test_a_convolution_is_scored_by_its_patches():
    (score,) = scores((X[:, :, None, :], NOISE), ("0",), 1, convolved, convolution).values()
    assert score.parameters == 3 + 2 and math.isfinite(score.gain)


def test_layers_that_cannot_be_scored_say_why_and_the_others_are_scored():
    found = scores((X, X @ TRUTH), ("1", "0"))
    assert list(found) == ["1", "0"]
    assert math.isnan(found["1"].gain) and "LayerNorm" in str(found["1"]) and found["0"].reason == ""
    apart = scores((X, X @ TRUTH), ("open", "shut"), of=half_detached)
    assert math.isnan(apart["shut"].gain) and "no gradient" in apart["shut"].reason
    assert apart["open"].gain > 0


@cache
def half_detached():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.open, self.shut = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            return self.open(x) + self.shut(x).detach()

    manual_seed(4)
    return esper.wrap(Detached(), [nn.Linear])


@pytest.mark.parametrize(
    ("layers", "rank", "error"), [(("0",), 0, ArgumentError), (("0", "nowhere"), 1, UnknownLayerError)]
)
def test_what_makes_no_sense_is_refused(layers, rank, error):
    with pytest.raises(error):
        scores((X, X @ TRUTH), layers, rank)
