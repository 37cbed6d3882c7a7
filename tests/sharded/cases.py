"""Small networks, and training of them that is the same on any number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from models import CNN, GPT
from scripted import Script
from torch import nn

import esper
from esper.configs import TamiyoSettings
from esper.growth.policy import Germinate, Transition
from esper.lifecycle import SeedLifecycleState as S
from esper.parity import compare
from esper.sharding import data_parallel, fsdp, place_state, tensor_parallel

STEPS, BATCH = 6, 16
MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8)),
    "cnn": lambda: CNN(channels=8, classes=8),
    "transformer": lambda: GPT(width=16, vocabulary=16),
}
# Where a kernel grows, and how it is called.
LAYERS = {"mlp": ("2", "mlp"), "cnn": ("body.4", "conv"), "transformer": ("blocks.0.up", "low_rank")}
TENSOR = tensor_parallel(
    "model", column=["0", "body.0", "qkv", "up"], row=["2", "head", "proj", "down"], embedding=["token"]
)
RULES = {
    "data": data_parallel(("data", "model")),
    "fsdp": fsdp(("data", "model"), min_elements=64),
    "tensor": TENSOR,
    "data+tensor": [data_parallel("data"), TENSOR],
    "fsdp+tensor": [fsdp("data", min_elements=64), TENSOR],
}


def wrapped(name):
    torch.manual_seed(0)
    return esper.wrap(MODELS[name](), seeds_per_layer=1)


def batches(name, steps=STEPS):
    rng = np.random.default_rng(0)
    for _ in range(steps):
        shape = {"mlp": (BATCH, 8), "cnn": (BATCH, 3, 8, 8), "transformer": (BATCH, 6)}[name]
        labels = rng.integers(0, 8, shape if name == "transformer" else shape[:1])
        inputs = rng.integers(0, 16, shape) if name == "transformer" else rng.standard_normal(shape)
        yield inputs.astype(np.int32 if name == "transformer" else np.float32), labels.astype(np.int32)


def stepper(tx):
    @partial(jax.jit, donate_argnums=(0, 1))
    def step(model, opt_state, x, labels):
        def loss_fn(params):
            logits, moved = model.replace(params=params).apply(x, train=True, key=jax.random.key(0))
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            shadow = model.replace(params=params).shadow()(x, train=True, key=jax.random.key(0))
            return loss + optax.softmax_cross_entropy_with_integer_labels(shadow, labels).mean(), (loss, moved)

        (_, (loss, moved)), grads = jax.value_and_grad(loss_fn, has_aux=True)(model.params)
        updates, opt_state = tx.update(grads, opt_state, model.params)
        return moved.replace(params=optax.apply_updates(model.params, updates)), opt_state, loss

    return step


def trained(model, name, tx, step, opt_state=None, feed=lambda batch, model: batch):
    if opt_state is None:
        opt_state = tx.init(model.params)
        opt_state = opt_state if model.structure.placement is None else place_state(opt_state, model)
    losses = []
    for batch in batches(name):
        model, opt_state, loss = step(model, opt_state, *feed(batch, model))
        losses.append(float(loss))
    return model, opt_state, losses


def grown(model, name, tx, **how):
    """Six steps each without a kernel, with one that trains, blended in, and culled; the model where it is for good."""
    layer, blueprint = LAYERS[name]
    step, found = stepper(tx), []
    model, opt_state, losses = trained(model, name, tx, step, **how)
    found += losses
    model, opt_state = esper.germinate(model, opt_state, layer=layer, blueprint=blueprint, key=jax.random.key(1), tx=tx)
    model, opt_state, losses = trained(model, name, tx, step, opt_state, **how)
    found += losses
    model = esper.transition(model, layer=layer, to=S.GRAFTING)
    model = esper.set_alpha(model, layer=layer, alpha=0.5)
    model, opt_state, losses = trained(model, name, tx, step, opt_state, **how)
    found += losses
    culled, culled_state = esper.cull(model, opt_state, layer=layer, tx=tx)
    copies = jax.tree.map(jnp.copy, (culled, culled_state))
    found += trained(copies[0], name, tx, step, copies[1], **how)[2]
    assert step._cache_size() == 2, "each structure compiles once, and one that comes back not at all"
    model = esper.set_alpha(model, layer=layer, alpha=1.0)
    model = esper.transition(model, layer=layer, to=S.ACTIVE)
    model = esper.transition(model, layer=layer, to=S.FOSSILIZED)
    return model, opt_state, found


def check_equal(found, wanted, rtol=1e-4):
    (model, losses), (one, wanted_losses) = found, wanted
    np.testing.assert_allclose(losses, wanted_losses, rtol=rtol)
    ours, theirs = esper.unwrap(model), _unwrapped(one)
    for name, tensor in theirs.state_dict().items():
        gap = compare(ours.state_dict()[name], tensor)
        assert gap.scaled <= 1e-3, f"{name}: {gap}"


_UNWRAPPED: dict[int, tuple] = {}


def _unwrapped(model):
    """Once for each model, which is kept with it: one is compared with several."""
    if id(model) not in _UNWRAPPED:
        _UNWRAPPED[id(model)] = model, esper.unwrap(model)
    return _UNWRAPPED[id(model)][1]


LIFE = (
    (Germinate("0", 0, "mlp", (("width", 8),), "by the script"),),
    (Transition("0", 0, S.GRAFTING, "by the script"),),
    (Transition("0", 0, S.ACTIVE, "by the script"),),
    (Transition("0", 0, S.FOSSILIZED, "by the script"),),
)


def fitted(split, life=LIFE, **changes):
    """A run of `esper.fit` in which a kernel grows for good, dropout draws, and examples are shuffled."""
    torch.manual_seed(0)
    model = split(esper.wrap(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 8))))
    inputs = jax.random.normal(jax.random.key(5), (96, 8))
    labels = (inputs @ jax.random.normal(jax.random.key(6), (8, 8))).argmax(-1)
    how = {
        "tx": optax.sgd(0.1, momentum=0.9),
        "steps": 24,
        "key": jax.random.key(7),
        "batch_size": 16,
        "every": 4,
        "validation": (inputs, labels),
        "policy": Script(life),
        "growth": TamiyoSettings(blend_steps=4, kernel_warmup_steps=2),
    }
    return esper.fit(model, (inputs, labels), **{**how, **changes})
