"""Wrapped models inside models of flax.linen and flax.nnx: they train as they do by themselves, and come back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx, serialization
from torch import nn

import esper
from esper.errors import ArgumentError, MissingKeyError, StateError, WrapError
from esper.interop import Seeds, to_linen, to_nnx
from esper.lifecycle import SeedLifecycleState as State

KEY = jax.random.key(4)
X = jnp.cos(jnp.arange(5 * 3 * 36.0)).reshape(5, 3, 6, 6)
LABELS = jnp.arange(5) % 2
STEPS = 5


class CNN(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.dropout, self.out = nn.Dropout(dropout), nn.Linear(6, 4)

    def forward(self, x):
        return self.out(self.dropout(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


class Linen(linen.Module):
    backbone: linen.Module

    @linen.compact
    def __call__(self, x, train=False):
        return linen.Dense(2, name="head")(self.backbone(x, train=train))


class Nnx(nnx.Module):
    def __init__(self, model, rngs):
        self.backbone = to_nnx(model, rngs=rngs)
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.backbone(x))


class Draw(linen.Module):
    """What a submodule of that name draws from."""

    @linen.compact
    def __call__(self):
        return self.make_rng("dropout")


class Draws(linen.Module):
    backbone: linen.Module

    def __call__(self):
        return self.backbone()


def wrapped(dropout=0.0, **options):
    torch.manual_seed(0)
    return esper.wrap(CNN(dropout), **options)


def grown(model, state=State.GRAFTING, alpha=0.5):
    model, _ = esper.germinate(model, None, layer="out", blueprint="mlp", key=KEY)
    if state is State.TRAINING:
        return model
    return esper.set_alpha(esper.transition(model, layer="out", to=state), layer="out", alpha=alpha)


def head():
    return jnp.sin(jnp.arange(8.0)).reshape(4, 2), jnp.zeros(2)


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS).mean()


def by_itself(model, tx, keys):
    """The training as esper's users write it: losses, the model and the head."""
    params = {"model": model.params, "head": head()}
    state, losses = tx.init(params), []

    @jax.jit
    def step(model, params, state, key):
        def loss(params):
            out, moved = model.replace(params=params["model"]).apply(X, train=True, key=key)
            return cross_entropy(out @ params["head"][0] + params["head"][1]), moved

        (value, moved), slopes = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = tx.update(slopes, state, params)
        return moved, optax.apply_updates(params, updates), state, value

    for key in keys:
        model, params, state, value = step(model, params, state, key)
        losses.append(float(value))
    return losses, model.replace(params=params["model"]), params["head"]


def in_linen(model, tx, keys):
    net = Linen(to_linen(model))
    variables = net.init(jax.random.key(9), X)
    variables["params"]["head"] = dict(zip(("kernel", "bias"), head(), strict=True))
    state, losses = tx.init(variables["params"]), []
    moving = [name for name in ("batch_stats", "seeds") if name in variables]

    @jax.jit
    def step(variables, state, key):
        def loss(params):
            given = {**variables, "params": params}
            logits, moved = net.apply(given, X, train=True, mutable=moving, rngs={"dropout": key})
            return cross_entropy(logits), moved

        (value, moved), slopes = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, state = tx.update(slopes, state, variables["params"])
        return {**variables, **moved, "params": optax.apply_updates(variables["params"], updates)}, state, value

    for key in keys:
        variables, state, value = step(variables, state, key)
        losses.append(float(value))
    held = variables["params"]["head"]
    return losses, net.backbone.from_variables(variables, "backbone"), (held["kernel"], held["bias"])


def in_nnx(model, tx, rngs):
    net = Nnx(model, rngs)
    net.head.kernel.set_value(head()[0])
    net.head.bias.set_value(head()[1])
    optimizer, losses = nnx.Optimizer(net, tx, wrt=nnx.Param), []

    @nnx.jit
    def step(net, optimizer):
        value, slopes = nnx.value_and_grad(lambda net: cross_entropy(net(X)))(net)
        optimizer.update(net, slopes)
        return value

    for _ in range(STEPS):
        losses.append(float(step(net, optimizer)))
    return losses, net.backbone.model, (net.head.kernel[...], net.head.bias[...])


def agree(found, wanted, tolerance=1e-6):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=tolerance, atol=tolerance)


def nnx_keys(rngs):
    stream = rngs["dropout"].fork()
    return [stream() for _ in range(STEPS)]


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", ["none", "kernel"])
@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_model_trains_in_flax_as_by_itself(framework, growth):
    model = wrapped(dropout=0.4)
    model = grown(model) if growth == "kernel" else model
    tx = optax.adamw(1e-2)
    if framework == "linen":
        streams = list(jax.random.split(KEY, STEPS))
        found = in_linen(model, tx, streams)
        # The key of a submodule is that of its name, whatever the submodule is.
        keys = [Draws(Draw(name="backbone")).apply({}, rngs={"dropout": key}) for key in streams]
    else:
        found, keys = in_nnx(model, tx, nnx.Rngs(1)), nnx_keys(nnx.Rngs(1))
    losses, after, of_head = by_itself(model, tx, keys)
    agree(found[0], losses)
    agree((found[1].params, found[1].buffers, found[2]), (after.params, after.buffers, of_head), 1e-5)
    agree(found[1].seeds.age, after.seeds.age)
    assert int(found[1].buffers["norm.num_batches_tracked"]) == STEPS


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_a_model_trains_in_flax_as_in_torch(framework):
    model, tx = wrapped(), optax.sgd(0.1)
    losses, after, of_head = (
        in_linen(model, tx, [KEY] * STEPS) if framework == "linen" else in_nnx(model, tx, nnx.Rngs(1))
    )
    net = nn.Sequential(esper.unwrap(model), nn.Linear(4, 2)).train()
    with torch.no_grad():
        net[1].weight.copy_(torch.from_numpy(np.array(head()[0].T)))
        net[1].bias.zero_()
    optimizer, x, labels = torch.optim.SGD(net.parameters(), 0.1), torch.from_numpy(np.array(X)), torch.arange(5) % 2
    for loss in losses:
        optimizer.zero_grad()
        wanted = nn.functional.cross_entropy(net(x), labels)
        wanted.backward()
        optimizer.step()
        assert abs(loss - wanted.item()) < 1e-5
    agree(of_head, (net[1].weight.detach().T.numpy(), net[1].bias.detach().numpy()), 1e-5)
    back = esper.unwrap(after, probe=x)
    assert back.esper_certificate["scaled"] < 1e-5
    for name, tensor in back.state_dict().items():
        agree(tensor.numpy(), net[0].state_dict()[name].numpy(), 1e-5)


# ---- linen --------------------------------------------------------------------------------------------------------


def test_init_gives_the_models_own_values_whatever_the_key():
    model = grown(wrapped(dropout=0.5))
    net = to_linen(model)
    variables = net.init(jax.random.key(7), X)
    assert sorted(variables) == ["batch_stats", "params", "seeds"]
    agree(variables["params"]["host"], model.params["host"], 0)
    agree(variables["params"]["kernels"]["out"]["0"], model.params["kernels"]["out"][0], 0)
    agree(variables["batch_stats"]["buffers"], model.buffers, 0)
    agree(variables["seeds"]["alpha"], model.seeds.alpha, 0)
    again = net.init({"params": KEY, "dropout": KEY}, X, train=True)  # which moves nothing
    agree(again, variables, 0)
    agree(net.apply(variables, X), model(X))
    assert sorted(to_linen(wrapped()).init(KEY, X)) == ["batch_stats", "params"]
    assert sorted(to_linen(esper.wrap(nn.Linear(36, 2))).init(KEY, X[..., 0, 0] @ jnp.ones((3, 36)))) == ["params"]


def test_a_step_that_reuses_the_variables_memory_leaves_the_model_whole():
    model = wrapped()
    net = to_linen(model)
    step = jax.jit(lambda variables: jax.tree.map(lambda leaf: leaf + 1, variables), donate_argnums=0)
    variables = step(net.init(KEY, X))
    agree(net.apply(variables, X), net.from_variables(variables)(X))
    model(X)


def test_buffers_move_only_where_the_collection_is_mutable():
    net = to_linen(wrapped())
    variables = net.init(KEY, X)
    fixed = net.apply(variables, X, train=True)
    moving, moved = net.apply(variables, X, train=True, mutable=["batch_stats"])
    agree(fixed, moving, 0)
    assert int(moved["batch_stats"]["buffers"]["norm.num_batches_tracked"]) == 1
    assert int(variables["batch_stats"]["buffers"]["norm.num_batches_tracked"]) == 0
    _, still = net.apply(variables, X, mutable=["batch_stats"])
    agree(still["batch_stats"], variables["batch_stats"], 0)


def test_a_stream_is_needed_only_where_the_forward_draws():
    model = wrapped(dropout=0.5)
    net = to_linen(model)
    variables = net.init(KEY, X)
    net.apply(variables, X)
    with pytest.raises(MissingKeyError, match=r'dropout  \(.*\n.*rngs=\{"dropout": key\}'):
        net.apply(variables, X, train=True)
    one, same, other = (
        net.apply(variables, X, train=True, rngs={"dropout": key}) for key in (KEY, KEY, jax.random.key(5))
    )
    assert bool((one == same).all()) and not bool((one == other).all())
    to_linen(wrapped()).apply(variables, X, train=True)


def test_linen_goes_back_and_forth():
    net = Linen(to_linen(wrapped()))
    variables = net.init(KEY, X)
    variables = serialization.from_bytes(variables, serialization.to_bytes(variables))
    model = net.backbone.from_variables(jax.tree.map(jnp.asarray, variables), "backbone")
    bigger = Linen(to_linen(grown(model)))
    after = bigger.backbone.into_variables(variables, "backbone")
    assert sorted(after) == ["batch_stats", "params", "seeds"] and "kernels" not in variables["params"]["backbone"]
    agree(bigger.apply(after, X), net.apply(variables, X))
    slopes = jax.grad(lambda params: bigger.apply({**after, "params": params}, X).sum())(after["params"])
    assert any(bool(leaf.any()) for leaf in jax.tree.leaves(slopes["backbone"]["kernels"]))
    back = bigger.backbone.from_variables(after, "backbone")
    assert esper.unwrap(back, probe=torch.from_numpy(np.array(X))).out.grown[0].alpha == 0.5
    smaller, _ = esper.cull(back, None, layer="out")
    assert "seeds" not in to_linen(smaller).into_variables(after, "backbone")


def test_variables_of_another_model_are_refused():
    net = Linen(to_linen(wrapped()))
    variables = net.init(KEY, X)
    with pytest.raises(StateError, match=r"params/host: give all.*names on the way"):
        net.backbone.from_variables(variables)
    with pytest.raises(StateError, match="no variables batch_stats/backbone/buffers"):  # which would be stale
        net.backbone.from_variables({"params": variables["params"]}, "backbone")
    bigger = Linen(to_linen(grown(net.backbone.from_variables(variables, "backbone"))))
    with pytest.raises(StateError, match=r"(?s)out/0/0\.weight.*to_linen\(grown\)"):
        bigger.apply(
            {**bigger.backbone.into_variables(variables, "backbone"), "params": _without(bigger, variables)}, X
        )
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    with pytest.raises(StateError, match=r"conv.weight: bfloat16\[6, 3, 3, 3\], where the model has float32"):
        net.apply({**variables, "params": narrow}, X)
    with pytest.raises(WrapError, match=r"esper\.wrap"):
        to_linen(CNN())


def _without(net, variables):
    params = net.backbone.into_variables(variables, "backbone")["params"]
    return {**params, "backbone": {**params["backbone"], "kernels": {"out": {"0": {}}}}}


def test_parameters_that_a_forward_writes_into_must_be_mutable_in_training():
    torch.manual_seed(0)
    net = to_linen(esper.wrap(nn.Embedding(5, 3, max_norm=0.5), target_layers=[]))
    tokens = jnp.asarray([0, 3])
    variables = net.init(KEY, tokens)
    with pytest.raises(ArgumentError, match=r"\['weight'\].*mutable"):
        net.apply(variables, tokens, train=True)
    _, moved = net.apply(variables, tokens, train=True, mutable=["params"])
    norms = jnp.linalg.norm(moved["params"]["host"]["weight"], axis=-1)
    assert float(norms[0]) < 0.501 and float(norms[1]) > 0.501


# ---- nnx ----------------------------------------------------------------------------------------------------------


def test_variables_are_of_the_usual_types():
    model = grown(wrapped())
    net = to_nnx(model)
    graph, params, stats, seeds = nnx.split(net, nnx.Param, nnx.BatchStat, Seeds)
    assert {type(held) for held in nnx.to_flat_state(params).leaves} == {nnx.Param}
    assert ("kernels", "out", "0", "0.weight") in nnx.to_flat_state(params).paths
    assert ("buffers", "norm.running_mean") in nnx.to_flat_state(stats).paths
    net.eval()
    agree(nnx.merge(graph, params, stats, seeds)(X, train=False), net(X), 0)
    agree(net(X), model(X))


def test_modes_are_set_as_for_any_module():
    net = Nnx(wrapped(dropout=0.5), nnx.Rngs(0))
    net.eval()
    still, buffers = net(X), net.backbone.model.buffers
    agree(still, net(X), 0)
    agree(net.backbone.model.buffers, buffers, 0)
    net.train()
    assert not bool((net(X) == net(X)).all())
    assert int(net.backbone.model.buffers["norm.num_batches_tracked"]) == 2
    viewed = nnx.view(net, deterministic=True, use_running_average=True)
    agree(viewed(X), viewed(X), 0)
    assert net.backbone.deterministic is False
    net.set_attributes(use_running_average=True)
    with pytest.raises(ArgumentError, match="one mode"):
        net(X)
    agree(net.backbone(X, train=False), net.backbone.model(X), 0)


def test_what_draws_needs_a_stream():
    net = to_nnx(wrapped(dropout=0.5))
    with pytest.raises(MissingKeyError, match=r"rngs=nnx\.Rngs"):
        net(X)
    one, same = (net(X, rngs=nnx.Rngs(3)) for _ in range(2))
    agree(one, same, 0)
    to_nnx(wrapped())(X)
    with pytest.raises(WrapError, match=r"esper\.wrap"):
        to_nnx(CNN())


def test_what_grows_in_nnx_is_put_back_and_unwrapped():
    model = wrapped()
    net = Nnx(model, nnx.Rngs(0))
    kept = vars(net.backbone.host)["conv.weight"]
    net.eval()
    before = net(X)
    net.backbone.replace_model(grown(net.backbone.model, State.TRAINING))
    agree(net(X), before, 0)
    assert vars(net.backbone.host)["conv.weight"] is kept

    @nnx.jit
    def slopes(net):
        def loss(net):
            own = cross_entropy(net(X))
            return own + cross_entropy(net.backbone.model.shadow()(X))  # isolation: the host is frozen there

        return nnx.grad(loss)(net)

    found = slopes(net)["backbone"]["kernels"]["out"]["0"]
    assert any(bool(leaf.any()) for leaf in jax.tree.leaves(found))
    model = esper.transition(net.backbone.model, layer="out", to=State.GRAFTING)
    net.backbone.replace_model(esper.set_alpha(model, layer="out", alpha=1.0))
    module = esper.unwrap(net.backbone.model, probe=torch.from_numpy(np.array(X)))
    assert module.out.grown[0].alpha == 1.0 and module.esper_certificate["calls"] == 1
    net.backbone.replace_model(esper.cull(net.backbone.model, None, layer="out")[0])
    agree(net(X), before, 0)


def test_data_alone_compiles_nothing_anew():
    model = wrapped(reserve={"out": "mlp"})
    net, calls = to_nnx(model), []

    @nnx.jit
    def forward(net, x):
        calls.append(1)
        return net(x)

    forward(net, X)
    model = esper.germinate(net.model, None, layer="out", blueprint="mlp", key=KEY)[0]
    net.replace_model(esper.transition(model, layer="out", to=State.GRAFTING))
    forward(net, X)
    assert len(calls) == 1 and int(net.model.seeds.age.max()) == 1
