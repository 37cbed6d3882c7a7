"""Artifacts of models with kernels of Flax's, and sizes at which an operator does something else."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

import esper
from esper.errors import ArgumentError, ExportError, SeedError, StateError
from esper.interop import flax_blueprint, to_linen, to_nnx
from esper.jax_backend.artifact import artifact_of
from esper.lifecycle import SeedLifecycleState as State

KEY = jax.random.key(0)


class Drop(nnx.Module):
    def __init__(self, features, rngs):
        self.drop, self.out = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(features, features, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(x))


@flax_blueprint("draws in training", kinds=("Linear",))
def drawing(site, *, rngs):
    return Drop(site.features_out, rngs)


class Asks(linen.Module):
    """Drops only where there is a stream for it."""

    @linen.compact
    def __call__(self, x, train=False):
        if train and self.has_rng("dropout"):
            x = x * jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape)
        return linen.Dense(x.shape[-1])(x)


@flax_blueprint("asks for a stream", kinds=("Linear",))
def asking(site):
    return Asks()


@flax_blueprint("decides by its batch", kinds=("Linear",))
def deciding(site, *, rngs):
    inner = nnx.Linear(site.features_in, site.features_out, rngs=rngs)
    return nnx.Sequential(inner, lambda y: y if y.shape[0] == 1 else y - y.mean(0))


@flax_blueprint("holds an array", kinds=("Linear",))
def holding(site, *, rngs):
    held = jax.random.normal(rngs.params(), (site.features_in, site.features_out))
    return nnx.Sequential(lambda x: jnp.tanh(x @ held), nnx.Linear(site.features_out, site.features_out, rngs=rngs))


def grown(blueprint, module=None, key=KEY):
    torch.manual_seed(0)
    module = module or nn.Sequential(nn.Linear(3, 3))
    model = esper.wrap(module, example_inputs=torch.ones(4, 3, dtype=next(module.parameters()).dtype))
    model, _ = esper.germinate(model, None, layer="0", blueprint=blueprint, key=key)
    model = esper.transition(model, layer="0", to=State.GRAFTING)
    model = esper.set_alpha(model, layer="0", alpha=0.5)
    kernels = jax.tree.map(lambda leaf: leaf + 0.3, model.params["kernels"])
    return model.replace(params={**model.params, "kernels": kernels})


class Squeezing(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.linear, self.way = nn.Linear(3, 3), forward

    def forward(self, x):
        return self.way(self.linear(x))


@pytest.mark.parametrize(
    "way",
    [lambda y: y.squeeze(0).mean(0), lambda y: y.squeeze(0).softmax(0).sum(-1), lambda y: y.squeeze().sum(-1)],
    ids=["mean", "softmax", "all"],
)
@pytest.mark.parametrize("example", [1, 4])
def test_a_squeeze_is_another_operator_at_a_batch_of_one(way, example):
    model = esper.wrap(Squeezing(way))
    artifact = esper.export(model, example_inputs=torch.ones(example, 3), platforms=("cpu",))
    for batch in (1, 2, 5):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((batch, 3)), jnp.float32)
        try:
            found = artifact.call(x)
        except ValueError:
            assert batch != example  # refused, where it would be another
            continue
        np.testing.assert_allclose(found, model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("blueprint", ["draws in training", "asks for a stream"])
def test_a_kernel_that_draws_makes_the_artifact_take_a_key(blueprint):
    model, x = grown(blueprint), jnp.ones((4, 3))
    one, other = (model.apply(x, train=True, key=jax.random.key(n))[0] for n in range(2))
    assert (one != other).any()
    if blueprint == "draws in training":
        artifact = esper.export(model, example_inputs=torch.ones(4, 3), train=True, platforms=("cpu",))
        np.testing.assert_allclose(artifact.call(x, key=jax.random.key_data(KEY)), one, rtol=1e-6)
    artifact = esper.export(model, example_inputs=torch.ones(4, 3), platforms=("cpu",))
    np.testing.assert_allclose(artifact.call(x), model(x), rtol=1e-6)


def test_a_kernel_of_flaxs_is_not_served_a_batch_of_one():
    model = grown("decides by its batch")
    artifact = esper.export(model, example_inputs=torch.ones(4, 3), platforms=("cpu",))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    np.testing.assert_allclose(artifact.call(x), model(x), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError):
        artifact.call(x[:1])
    fixed = esper.export(model, example_inputs=torch.ones(1, 3), sizes="fixed", platforms=("cpu",))
    np.testing.assert_allclose(fixed.call(x[:1]), model(x[:1]), rtol=1e-6, atol=1e-6)


def test_arrays_that_are_no_parameters_are_part_of_what_a_kernel_is(tmp_path):
    model, other = grown("holds an array"), grown("holds an array", key=jax.random.key(1))
    other = other.replace(params={**other.params, "kernels": model.params["kernels"]})
    assert artifact_of(model, layer="0") != artifact_of(other, layer="0")
    with pytest.raises(StateError, match="builds"):
        esper.load(esper.save(model, tmp_path))


def test_a_kernel_of_flaxs_is_saved_and_found_again(tmp_path):
    model, x = grown("asks for a stream"), jnp.ones((5, 3))
    loaded = esper.load(esper.save(model, tmp_path))
    assert (loaded(x) == model(x)).all()
    assert (esper.load(tmp_path, module=nn.Sequential(nn.Linear(3, 3)))(x) == model(x)).all()


def test_a_twin_has_the_dtype_of_its_layer():
    @flax_blueprint("a twin of float32", kinds=("Linear",), torch=lambda site, tensors: twin(tensors))
    def made(site, *, rngs):
        return nnx.Linear(site.features_in, site.features_out, rngs=rngs)

    def twin(tensors):
        linear = nn.Linear(3, 3)
        linear.load_state_dict({"weight": tensors["kernel"].T.float(), "bias": tensors["bias"].float()})
        return linear

    model = grown("a twin of float32", nn.Sequential(nn.Linear(3, 3)).bfloat16())
    assert esper.unwrap(model)[0].grown[0].kernel.weight.dtype is torch.bfloat16


@pytest.mark.parametrize(
    "twin",
    [lambda site, tensors: nn.Linear(9, 3), lambda site, tensors: tensors["w"], lambda site, tensors: nn.LSTM(3, 3)],
    ids=["size", "name", "tuple"],
)
def test_a_twin_that_fails_is_said_by_name(twin, request):
    name = f"fails: {request.node.name}"

    @flax_blueprint(name, kinds=("Linear",), torch=twin)
    def made(site, *, rngs):
        return nnx.Linear(site.features_in, site.features_out, rngs=rngs)

    with pytest.raises(SeedError, match="the twin of blueprint"):
        esper.unwrap(grown(name))


@pytest.mark.parametrize(
    "wrong",
    [{"platforms": 5}, {"platforms": [["cpu"]]}, {"constraints": 5}, {"constraints": [5]}, {"constraints": "b >= 2"}],
    ids=str,
)
def test_arguments_of_other_types_are_refused(wrong):
    with pytest.raises(ArgumentError):
        esper.export(esper.wrap(nn.Linear(3, 3)), example_inputs=torch.ones(4, 3), **wrong)


def test_an_input_named_key_is_in_the_way_of_the_key():
    class Keyed(nn.Module):
        def forward(self, key):
            return nn.functional.dropout(key, 0.5, self.training)

    model = esper.wrap(Keyed())
    with pytest.raises(ExportError, match="an input of that name"):
        esper.export(model, example_inputs={"key": torch.ones(4, 3)}, train=True)


def test_evaluating_leaves_the_dropout_stream_of_a_grown_model_alone():
    model, x = grown("draws in training", nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))), jnp.ones((4, 3))
    one, other = (to_nnx(model, rngs=nnx.Rngs(0)) for _ in range(2))
    one(x, train=False)
    assert (one(x, train=True) == other(x, train=True)).all()


def test_linen_says_which_variables_are_missing():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model, x = esper.wrap(module), jnp.ones((4, 3))
    variables = to_linen(model).init(KEY, x)
    with pytest.raises(StateError, match="no variables batch_stats/buffers"):
        to_linen(model).apply({"params": variables["params"]}, x)
    with pytest.raises(StateError, match="no variables batch_stats/buffers"):
        to_linen(model).apply({"params": variables["params"]}, x, mutable=["batch_stats"])
    with pytest.raises(StateError, match="params/kernels"):
        to_linen(grown("low_rank", module)).apply(variables, x)
