"""Models with a kernel that has been trained, for tests of what becomes of it."""

import jax
import jax.numpy as jnp
import optax

import esper
from esper.lifecycle import SeedLifecycleState as State

KEY = jax.random.key(2)


def trained(model, layer, recipe, x, *, blend="add", steps=5, **options):
    """Grown, grafted at alpha 0.75, and trained for some steps with the host."""
    model(x)
    grown, _ = esper.germinate(model, None, layer=layer, blueprint=recipe, key=KEY, blend=blend, options=options)
    grown = esper.transition(grown, layer=layer, to=State.GRAFTING)
    return fitted(esper.set_alpha(grown, layer=layer, alpha=0.75), x, steps)


def fitted(model, x, steps=5):
    tx = optax.adam(0.02)

    @jax.jit
    def step(model, state, x):
        def loss(params):
            return jnp.square(model.replace(params=params)(x) - 1).mean()

        updates, state = tx.update(jax.grad(loss)(model.params), state)
        return model.replace(params=optax.apply_updates(model.params, updates)), state

    x, state = jnp.asarray(x.numpy()), tx.init(model.params)
    for _ in range(steps):
        model, state = step(model, state, x)
    return model


def is_ordinary(module):
    """Whether every part is of a class of torch's or of the user's own."""
    return not any("esper" in base.__module__ for part in module.modules() for base in type(part).__mro__)
