"""A run's optimiser goes from PyTorch to optax, half-way, and back; the run goes on as it would have."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from growing import trained
from torch import nn, optim
from torch.nn import functional as F

import esper
from esper.errors import OptimizerStateError
from esper.growth.optimizer import per_kernel
from esper.optim import from_torch, into_torch

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 4, (16,), generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 4))


OPTIMIZERS = {
    "sgd": lambda params: optim.SGD(params, 0.1, weight_decay=0.01),
    "sgd, momentum": lambda params: optim.SGD(params, 0.1, momentum=0.9, weight_decay=0.01),
    "sgd, nesterov": lambda params: optim.SGD(params, 0.05, momentum=0.9, nesterov=True),
    "sgd, dampened": lambda params: optim.SGD(params, 0.1, momentum=0.9, dampening=0.3),
    "sgd, rising": lambda params: optim.SGD(params, 0.01, momentum=0.5, weight_decay=0.1, maximize=True),
    "adam": lambda params: optim.Adam(params, 0.01, (0.8, 0.99), 1e-6),
    "adam, coupled decay": lambda params: optim.Adam(params, 0.01, weight_decay=0.1),
    "adam, amsgrad": lambda params: optim.Adam(params, 0.01, (0.5, 0.6), amsgrad=True),
    "adamw": lambda params: optim.AdamW(params, 0.01, weight_decay=0.1),
    "adamw, amsgrad, tensors": lambda params: optim.AdamW(params, torch.tensor(0.01), (0.5, 0.6), amsgrad=True),
    "rmsprop": lambda params: optim.RMSprop(params, 0.01, 0.9, 1e-4, weight_decay=0.01),
    "rmsprop, centered, momentum": lambda params: optim.RMSprop(params, 0.003, momentum=0.9, centered=True, eps=1e-3),
    "adagrad": lambda params: optim.Adagrad(params, 0.1, lr_decay=0.1, weight_decay=0.01),
    "adagrad, not from zero": lambda params: optim.Adagrad(params, 0.1, initial_accumulator_value=0.5, eps=1e-3),
}


def in_torch(module, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(X), LABELS).backward()
        optimizer.step()


def on_xla(model, tx, state, steps):
    x, labels = jnp.asarray(X.numpy()), jnp.asarray(LABELS.numpy())

    @jax.jit
    def step(model, state):
        def loss(params):
            logits = model.replace(params=params)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = tx.update(jax.grad(loss)(model.params), state, model.params)
        return model.replace(params=optax.apply_updates(model.params, updates)), state

    for _ in range(steps):
        model, state = step(model, state)
    assert step._cache_size() == min(steps, 1)
    return model, state


def agree(state, module, tolerance=1e-4):
    for key, value in module.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("before", [0, 7])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_on_the_same_trajectory_there_and_back(name, before):
    module = net()
    optimizer = OPTIMIZERS[name](module.parameters())
    in_torch(module, optimizer, before)
    model = esper.wrap(module)
    tx, state = from_torch(optimizer, module)
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(model.params))
    model, state = on_xla(model, tx, state, 20)
    in_torch(module, optimizer, 20)
    agree(model.state_dict(), module)

    back = esper.unwrap(model)
    other = OPTIMIZERS[name](back.parameters())
    into_torch(state, other, back)
    for ours, theirs in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert {k for k, v in ours.items() if v is not None} == {k for k, v in theirs.items() if v is not None}
        assert "sgd" in name or "rmsprop" in name or ours["step"] == theirs["step"] == before + 20
    in_torch(back, other, 10)
    in_torch(module, optimizer, 10)
    agree(back.state_dict(), module, 2e-4)


def test_groups_keep_their_options_and_what_no_group_has_rests():
    module = net()
    groups = [{"params": module[0].parameters(), "lr": 0.1, "weight_decay": 0.2}, {"params": module[3].parameters()}]
    optimizer = optim.AdamW(groups, 0.01)
    in_torch(module, optimizer, 3)
    model = esper.wrap(module)
    tx, state = from_torch(optimizer, module)
    model, state = on_xla(model, tx, state, 20)
    before = module[2].weight.detach().clone()
    in_torch(module, optimizer, 20)
    agree(model.state_dict(), module)
    assert torch.equal(model.state_dict()["2.weight"], before)


def test_parameters_that_have_made_fewer_steps_keep_their_count():
    module = net()
    optimizer = optim.Adam(module.parameters(), 0.05)
    module[0].requires_grad_(False)
    in_torch(module, optimizer, 5)
    module[0].requires_grad_(True)
    with pytest.warns(UserWarning, match=r"rest: 0\.weight, 0\.bias"):
        from_torch(optimizer, module)
    in_torch(module, optimizer, 2)
    model = esper.wrap(module)
    tx, state = from_torch(optimizer, module)
    model, _ = on_xla(model, tx, state, 20)
    in_torch(module, optimizer, 20)
    agree(model.state_dict(), module)


def test_names_may_come_with_the_optimiser():
    module = net()
    optimizer = optim.SGD(module.named_parameters(), 0.1, momentum=0.9)
    in_torch(module, optimizer, 3)
    tx, state = from_torch(optimizer)
    model, _ = on_xla(esper.wrap(module), tx, state, 5)
    in_torch(module, optimizer, 5)
    agree(model.state_dict(), module)
    with pytest.raises(OptimizerStateError, match="give the module"):
        from_torch(optim.SGD(module.parameters(), 0.1))


def test_tied_and_frozen_parameters_are_the_models():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.mid = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 4)
            self.b.weight = self.a.weight
            self.mid.bias.requires_grad_(False)

        def forward(self, x):
            return self.mid(torch.tanh(self.b(torch.tanh(self.a(x)))))

    torch.manual_seed(0)
    module = Tied()
    optimizer = optim.Adam(module.parameters(), 0.02)
    in_torch(module, optimizer, 3)
    tx, state = from_torch(optimizer, module)
    model, _ = on_xla(esper.wrap(module), tx, state, 20)
    in_torch(module, optimizer, 20)
    agree(model.state_dict(), module)


def test_what_grows_later_follows_its_layers_group_and_goes_back_with_the_rest():
    module = net()
    optimizer = optim.AdamW(
        [{"params": module[0].parameters(), "lr": 0.0}, {"params": [*module[2].parameters(), *module[3].parameters()]}],
        0.01,
    )
    in_torch(module, optimizer, 3)
    tx, state = from_torch(optimizer, module)
    model = esper.wrap(module)
    model(X)
    for layer in ("0", "3"):
        key = jax.random.key(0)
        model, state = esper.germinate(model, state, layer=layer, blueprint="low_rank", key=key, tx=tx)
        model = esper.transition(model, layer=layer, to=esper.SeedLifecycleState.GRAFTING)
        model = esper.set_alpha(model, layer=layer, alpha=1.0)
    before = model.params["kernels"]
    model, state = on_xla(model, tx, state, 5)
    moved = jax.tree.map(lambda one, other: bool(jnp.any(one != other)), before, model.params["kernels"])
    assert not any(moved["0"][0].values()) and all(moved["3"][0].values())

    back = esper.unwrap(model, probe=X)
    mine = optim.AdamW(
        [{"params": back[0].parameters(), "lr": 0.0}, {"params": [*back[2].parameters(), *back[3].parameters()]}], 0.01
    )
    into_torch(state, mine, back)
    assert len(mine.state) == len(list(back.parameters()))
    model, _ = on_xla(model, tx, state, 10)
    in_torch(back, mine, 10)
    agree(model.state_dict(), back)


def test_optaxs_own_optimisers_go_to_torch():
    model = esper.wrap(net())
    tx = optax.adamw(0.01, weight_decay=0.1)
    model, state = on_xla(model, tx, tx.init(model.params), 5)
    back = esper.unwrap(model)
    optimizer = optim.AdamW(back.parameters(), 0.01, weight_decay=0.1)
    into_torch(state, optimizer, back)
    model, _ = on_xla(model, tx, state, 10)
    in_torch(back, optimizer, 10)
    agree(model.state_dict(), back)


def test_what_does_not_fit_is_refused_and_changes_nothing():
    module = net()
    model = esper.wrap(module)
    with pytest.raises(OptimizerStateError, match="a Adadelta is not mapped to optax; there are: SGD, Adam"):
        from_torch(optim.Adadelta(module.parameters()), module)

    class Own(optim.SGD):
        pass

    with pytest.raises(OptimizerStateError, match="a Own is not mapped"):
        from_torch(Own(module.parameters(), 0.1), module)
    optimizer = optim.Adam(module.parameters(), 0.01)
    in_torch(module, optimizer, 2)
    held = copy.deepcopy(optimizer.state_dict())
    tx = optax.sgd(0.1, momentum=0.9)
    for state, words in (
        (tx.init(model.params), "none of the optimiser's parameters"),
        (optax.scale_by_rms().init(model.params), r"\['exp_avg_sq'\], and a Adam"),
        (per_kernel(optax.adam(0.1)).init(model.params), "per_kernel"),
        (optax.adam(0.1).init(esper.wrap(nn.Linear(6, 8)).params), "none of the optimiser's parameters"),
    ):
        with pytest.raises(OptimizerStateError, match=words):
            into_torch(state, optimizer, module)
    now = optimizer.state_dict()["state"]
    assert all(torch.equal(now[n][own], held["state"][n][own]) for n in now for own in now[n])


def test_a_state_for_a_folded_module_is_refused():
    model = trained(
        esper.wrap(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5)), target_layers=[nn.Sequential]),
        "",
        "widen",
        X[:, :5],
    )
    tx = optax.adam(0.1)
    folded = esper.unwrap(model, probe=X[:, :5], fold=True)
    with pytest.raises(OptimizerStateError, match="has the layer been folded"):
        into_torch(tx.init(model.params), optim.Adam(folded.parameters()), folded)


def test_halves_keep_their_moments():
    module = net().to(torch.bfloat16)
    optimizer = optim.AdamW(module.parameters(), 0.01)
    module(X.to(torch.bfloat16)).float().square().mean().backward()
    optimizer.step()
    tx, state = from_torch(optimizer, module)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert {str(leaf.dtype) for leaf in moments} == {"bfloat16"} and any(np.asarray(m).any() for m in moments)
    other = optim.AdamW(module.parameters(), 0.01)
    into_torch(state, other, module)
    for ours, theirs in zip(other.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(ours[own], theirs[own]) and ours[own].dtype == theirs[own].dtype for own in theirs)
    del tx
