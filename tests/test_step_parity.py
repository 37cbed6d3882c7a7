"""Twenty training steps of a wrapped model are twenty training steps of eager torch."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from models import build
from torch.nn import functional as F

import esper
from esper.parity import compare

STEPS = 20
OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), optax.sgd(0.05, momentum=0.9)),
    "adamw": (
        lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.01),
        optax.adamw(1e-3, weight_decay=0.01),
    ),
}


def batches(name):
    torch.manual_seed(1)
    for _ in range(STEPS):
        _, x = build(name, key=int(torch.randint(1 << 30, ())))
        labels = torch.randint(0, 4, x.shape[:1] if name != "gpt" else x.shape)
        yield x, labels


def torch_steps(model, make_optimizer, name):
    optimizer = make_optimizer(model.parameters())
    model.train()
    losses = []
    for x, labels in batches(name):
        logits = model(x)
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def esper_steps(model, tx, name):
    @jax.jit
    def step(model, opt_state, x, labels):
        def loss_fn(params):
            logits, moved = model.replace(params=params).apply(x, train=True, key=jax.random.key(0))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), moved

        (loss, moved), grads = jax.value_and_grad(loss_fn, has_aux=True)(model.params)
        updates, opt_state = tx.update(grads, opt_state, model.params)
        return moved.replace(params=optax.apply_updates(model.params, updates)), opt_state, loss

    opt_state, losses = tx.init(model.params), []
    for x, labels in batches(name):
        model, opt_state, loss = step(model, opt_state, jnp.asarray(x.numpy()), jnp.asarray(labels.numpy()))
        losses.append(float(loss))
    assert step._cache_size() == 1, "the step compiled more than once"
    return model, losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "gru", "vit", "gpt"])
def test_twenty_steps(name, optimizer):
    host, _ = build(name)
    model = esper.wrap(host, seeds_per_layer=1)
    reference = copy.deepcopy(host)
    make_optimizer, tx = OPTIMIZERS[optimizer]
    wanted = torch_steps(reference, make_optimizer, name)
    model, losses = esper_steps(model, tx, name)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    trained = esper.unwrap(model)
    if optimizer == "sgd":
        for key, parameter in reference.named_parameters():
            gap = compare(trained.get_parameter(key).detach(), parameter.detach())
            assert gap.scaled <= 1e-3, f"{key}: {gap}"
    for key, buffer in reference.named_buffers():
        assert compare(trained.get_buffer(key), buffer).scaled <= 1e-5, key
