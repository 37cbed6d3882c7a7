"""A model as a field of an Equinox module: its transformations, training, and the way back."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import esper
from esper.interop import trainable
from esper.lifecycle import SeedLifecycleState as State

KEY = jax.random.key(4)
X = jnp.cos(jnp.arange(5 * 3 * 36.0)).reshape(5, 3, 6, 6)


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.full((4,), 0.5), requires_grad=False)

    def forward(self, x):
        return self.out(torch.tanh(self.norm(self.conv(x))).mean((2, 3))) * self.scale


def wrapped():
    torch.manual_seed(0)
    model, _ = esper.germinate(esper.wrap(CNN()), None, layer="out", blueprint="mlp", key=KEY)
    return esper.set_alpha(esper.transition(model, layer="out", to=State.GRAFTING), layer="out", alpha=0.5)


def net():
    class Net(eqx.Module):
        backbone: esper.MorphableModel
        head: eqx.nn.Linear

        def __call__(self, x):
            return jax.vmap(self.head)(self.backbone(x))

        def loss(self, x):
            made, backbone = self.backbone.apply(x, train=True)
            return jnp.square(jax.vmap(self.head)(made) - 1).mean(), backbone

    return Net(wrapped(), eqx.nn.Linear(4, 2, key=KEY))


def agree(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-6)


def test_it_trains_as_by_itself():
    tx, whole, model = optax.adamw(1e-2, weight_decay=0.1), net(), wrapped()
    params = {"model": model.params, "head": (whole.head.weight, whole.head.bias)}
    state, of_params = tx.init(eqx.filter(whole, trainable(whole))), tx.init(params)

    @eqx.filter_jit
    def step(whole, state):
        trained, rest = eqx.partition(whole, trainable(whole))

        def loss(trained):
            return eqx.combine(trained, rest).loss(X)

        (value, backbone), slopes = eqx.filter_value_and_grad(loss, has_aux=True)(trained)
        updates, state = tx.update(slopes, state, trained)
        whole = eqx.tree_at(lambda net: net.backbone, whole, backbone)
        return eqx.apply_updates(whole, updates), state, value

    @jax.jit
    def by_itself(model, params, state):
        def loss(params):
            made, moved = model.replace(params=params["model"]).apply(X, train=True)
            weight, bias = params["head"]
            return jnp.square(made @ weight.T + bias - 1).mean(), moved

        (value, moved), slopes = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(slopes, state, params)
        return moved, optax.apply_updates(params, updates), state, value

    for _ in range(5):
        whole, state, found = step(whole, state)
        model, params, of_params, wanted = by_itself(model, params, of_params)
        agree(found, wanted)
    agree((whole.backbone.params, whole.head.weight), (params["model"], params["head"][0]))
    agree((whole.backbone.buffers, whole.backbone.seeds), (model.buffers, model.seeds))
    back = esper.unwrap(whole.backbone, probe=torch.from_numpy(np.array(X)))
    assert back.out.grown[0].alpha == 0.5 and back.scale.tolist() == [0.5] * 4


def test_only_parameters_are_trainable():
    whole = net()
    marked = trainable(whole)
    assert jax.tree.structure(marked) == jax.tree.structure(whole)
    assert all(jax.tree.leaves((marked.backbone.params, marked.head)))
    assert not any(jax.tree.leaves((marked.backbone.buffers, marked.backbone.seeds, marked.backbone.constants)))
    assert trainable({"steps": jnp.zeros(2, int), "rate": 0.1, "w": jnp.zeros(2)}) == {
        "steps": False,
        "rate": False,
        "w": True,
    }


def test_filtered_transformations_go_through_it():
    whole = net()
    wanted = whole(X)
    agree(eqx.filter_jit(whole)(X), wanted)
    trained, rest = eqx.partition(whole, trainable(whole))
    agree(eqx.combine(trained, rest)(X), wanted)
    slopes = eqx.filter_grad(lambda net: jnp.square(net(X)).sum())(whole)
    assert all(bool(leaf.any()) for leaf in jax.tree.leaves(slopes.backbone.params["kernels"]["out"][0]["2.weight"]))
    assert not slopes.backbone.seeds.alpha.any()
    one_by_one = eqx.filter_vmap(lambda net, x: net(x[None])[0], in_axes=(None, 0))(whole, X)
    agree(one_by_one, wanted)
    assert eqx.filter_eval_shape(whole, X).shape == (5, 2)


def test_parts_of_it_can_be_printed():
    for part in (
        *eqx.partition(net(), eqx.is_inexact_array),
        trainable(net()),
        jax.eval_shape(lambda whole: whole, net()),
    ):
        assert "mlp" in repr(part.backbone) and "backbone" in eqx.tree_pformat(part)


def test_the_page_on_leaving_runs():
    page = (Path(__file__).parent.parent / "docs/leaving.md").read_text()
    (block,) = re.findall(r"^```py\n(.*?)^```", page, re.M | re.S)
    inputs = nn.Sequential(nn.Flatten(), nn.Linear(108, 10)), torch.randn(4, 3, 6, 6)
    scope = {"esper": esper, "jax": jax, "jnp": jnp, "optax": optax, "net": inputs[0], "x": inputs[1]}
    exec(compile(block, "docs/leaving.md", "exec", dont_inherit=True), scope)
    assert float(scope["value"]) > 0


def test_its_leaves_are_saved_and_read(tmp_path):
    whole = net()
    eqx.tree_serialise_leaves(tmp_path / "net.eqx", whole)
    other = jax.tree.map(jnp.zeros_like, whole)
    agree(eqx.tree_deserialise_leaves(tmp_path / "net.eqx", other)(X), whole(X))
