"""A host with statistics behind a layer that grows trains as if the kernel were not there."""

import jax
import numpy as np
import optax
import pytest
import torch
from compiling import compiled
from torch import nn

import esper
from esper.growth.isolation import isolated_loss
from esper.growth.optimizer import per_kernel

CASES = {
    "batch norm": (nn.BatchNorm2d(4), "conv"),
    "batch norm, any layer's kernel": (nn.BatchNorm2d(4), "mlp"),
    "group norm": (nn.GroupNorm(2, 4), "conv"),
}


@pytest.mark.parametrize(("norm", "blueprint"), CASES.values(), ids=CASES)
def test_statistics_behind_a_training_seed(norm, blueprint):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 81, 3))
    alone = esper.wrap(net, target_layers=["0"])
    inputs = jax.random.normal(jax.random.key(0), (16, 1, 9, 9))
    labels = jax.random.randint(jax.random.key(1), (16,), 0, 3)
    alone(inputs)
    beside, _ = esper.germinate(alone, None, layer="0", blueprint=blueprint, key=jax.random.key(2))
    hosts = [_trained(model, inputs, labels) for model in (alone, beside)]
    assert {name for name in hosts[0] if not np.array_equal(hosts[0][name], hosts[1][name])} == set()


def _trained(model, inputs, labels):
    """The host's parameters and buffers after three steps."""
    tx = per_kernel(optax.adamw(1e-2))

    def step(model, opt_state):
        def loss(model):
            logits, moved = model.apply(inputs, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), moved

        def of(params):
            return isolated_loss(loss, model.replace(params=params))

        grads, moved = jax.grad(of, has_aux=True)(model.params)
        updates, opt_state = tx.update(grads, opt_state, model.params)
        return moved.replace(params=optax.apply_updates(model.params, updates)), opt_state

    # Bits are promised for the default optimisation; the other tests run with less.
    run = compiled(step)
    opt_state = tx.init(model.params)
    for _ in range(3):
        model, opt_state = run(model, opt_state)
    return {**model.params["host"], **model.buffers}
