"""What kernels in reserve cost a training step and a forward: arrays held in dormant seeds beside a host without them.

The contenders start from the same weights and see the same batch. They take turns, so that a slow moment of the
machine meets all of them. "arrays alone" is what it takes to hand over and take back the same arrays, which no
compiled program can save. Nothing is asserted.
"""

import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import esper
from esper.growth.isolation import isolated_loss
from esper.growth.optimizer import per_kernel
from esper.growth.recovery import recovered
from esper.growth.reserve import asleep

LAYERS, WIDTH, BATCH = 12, 256, 64
TURNS, WARM_UP = 150, 5
RESERVE = {"Linear": ["low_rank", "mlp"]}
TX = per_kernel(optax.adam(1e-3))


@partial(jax.jit, donate_argnums=(0, 1))
def train_step(model, opt_state, x):
    def loss(model):
        outputs, moved = model.apply(x, train=True)
        return jnp.mean((outputs - 1) ** 2), moved

    def objective(params):
        return isolated_loss(loss, model.replace(params=params))

    (_, moved), grads = jax.value_and_grad(objective, has_aux=True)(model.params)
    moved, grads = recovered(moved, grads)
    updates, opt_state = TX.update(grads, opt_state, moved.params, asleep=asleep(moved))
    return moved.replace(params=optax.apply_updates(moved.params, updates)), opt_state


@partial(jax.jit, donate_argnums=(0, 1))
def handed_back(model, opt_state, x):
    return model.replace(seeds=model.seeds.grown_older()), opt_state


@jax.jit
def forward(model, x):
    return model(x)


def contenders():
    torch.manual_seed(0)
    net = nn.Sequential(*[part for _ in range(LAYERS) for part in (nn.Linear(WIDTH, WIDTH), nn.ReLU())])
    x = jax.random.normal(jax.random.key(0), (BATCH, WIDTH))
    for name, reserve in (("absent", None), ("in reserve", RESERVE)):
        model = esper.wrap(net, seeds_per_layer=2, example_inputs=np.asarray(x), reserve=reserve)
        for what, step in (("training step", train_step), ("arrays alone", handed_back)):
            yield what, name, moving(step, *jax.tree.map(jnp.copy, (model, TX.init(model.params))), x)
        yield "forward", name, partial(forward, model, x)


def moving(step, model, opt_state, x):
    state = [model, opt_state]

    def run():
        state[:] = step(*state, x)
        return state

    return run


def main():
    seconds = {(what, name): (run, []) for what, name, run in contenders()}
    for turn in range(WARM_UP + TURNS):
        for run, spent in seconds.values():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn >= WARM_UP:
                spent.append(1e3 * (time.perf_counter() - start))
    print(f"{LAYERS} x Linear({WIDTH}), batch {BATCH}, reserve={RESERVE}, {TURNS} turns, jax {jax.__version__}")
    for what in ("training step", "arrays alone", "forward"):
        for name in ("absent", "in reserve"):
            spent, base = (seconds[what, other][1] for other in (name, "absent"))
            low, middle = min(spent), statistics.median(spent)
            ratios = f"ratio {low / min(base):.2f} and {middle / statistics.median(base):.2f}"
            print(f"  {what:<14} {name:<11} minimum {low:7.3f} ms, median {middle:7.3f} ms  {ratios}")


if __name__ == "__main__":
    main()
