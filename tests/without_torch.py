"""Where there is no torch: a saved model is loaded, runs, trains, grows and is saved again. Prints its losses."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import esper
from esper.lifecycle import SeedLifecycleState as State

folder = sys.argv[-1]
model, x = esper.load(folder + "/model"), jnp.asarray(np.load(folder + "/x.npy"))
np.save(folder + "/outputs.npy", model(x))
tx = optax.adam(0.01)
state = tx.init(model.params)


@jax.jit
def step(model, state, key):
    def loss(params):
        outputs, moved = model.replace(params=params).apply(x, train=True, key=key)
        return jnp.square(outputs - 1).mean(), moved

    (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(model.params)
    updates, state_ = tx.update(grads, state, model.params)
    return moved.replace(params=optax.apply_updates(moved.params, updates)), state_, value


losses = []
for number in range(10):
    model, state, loss = step(model, state, jax.random.key(number))
    losses.append(float(loss))
for layer, blueprint in (("2", "low_rank"), ("0.body.0", "conv")):
    before = model(x)
    model, state = esper.germinate(model, state, layer=layer, seed=1, blueprint=blueprint, key=jax.random.key(1), tx=tx)
    model = esper.transition(model, layer=layer, seed=1, to=State.GRAFTING)
    model = esper.set_alpha(model, layer=layer, seed=1, alpha=0.5)
    assert (model(x) == before).all()  # the identity at birth
    for number in range(3):
        model, state, loss = step(model, state, jax.random.key(number))
        losses.append(float(loss))
    assert (model(x) != before).any()
esper.save(model, folder + "/again", state=state)
np.save(folder + "/grown.npy", model(x))
assert "torch" not in sys.modules
print(json.dumps(losses))
