"""One SGD step of an MLP and of a small CNN: esper beside eager torch and, for the MLP, hand-written JAX.

All contenders start from the same weights and see the same batch. They take turns in short runs, so that
a slow moment of the machine meets all of them; the first step of each run is not
timed. The first capture of a process also imports the exporter. Nothing is asserted.
"""

import copy
import statistics
import time

import jax
import jax.numpy as jnp
import optax
import torch
from torch import nn

import esper

BATCH, RATE = 128, 0.05
WARM_UP, RUNS, STEPS_PER_RUN = 3, 6, 4
TORCH, ESPER, JAX = "eager torch", "esper", "hand-written JAX"


def mlp():
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)), torch.randn(BATCH, 784)


def cnn():
    def block(channels, width):
        return nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)

    layers = *block(1, 16), *block(16, 32), nn.Flatten(), nn.Linear(32 * 7 * 7, 10)
    return nn.Sequential(*layers), torch.randn(BATCH, 1, 28, 28)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def descend(params, grads):
    return jax.tree.map(lambda p, g: p - RATE * g, params, grads)


def torch_contender(module, x, labels):
    module = copy.deepcopy(module).train()
    optimizer = torch.optim.SGD(module.parameters(), RATE)

    def step():
        loss = nn.functional.cross_entropy(module(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def esper_contender(module, x, labels):
    """The step, and the seconds that the parts of its first call took."""
    model, x, labels = esper.wrap(module.train()), jnp.array(x.numpy()), jnp.array(labels.numpy())

    def sgd(model, x, labels):
        def loss(params):
            logits, moved = model.replace(params=params).apply(x, train=True)
            return cross_entropy(logits, labels), moved

        (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(model.params)
        return moved.replace(params=descend(model.params, grads)), value

    # The first abstract evaluation is where the module is captured; later ones find the Program.
    _, capture = timed(lambda: jax.eval_shape(lambda m, x: m.apply(x, train=True)[0], model, x))
    lowered, trace = timed(lambda: jax.jit(sgd, donate_argnums=0).lower(model, x, labels))
    compiled, compile_ = timed(lowered.compile)
    return jax_step(compiled, model, x, labels), {"capture": capture, "trace": trace, "compile": compile_}


def jax_contender(module, x, labels):
    """The MLP as one would write it in JAX, from the same weights."""
    x, labels = jnp.array(x.numpy()), jnp.array(labels.numpy())
    params = [(jnp.array(m.weight.detach().numpy().T), jnp.array(m.bias.detach().numpy())) for m in module[::2]]

    def loss(params, x, labels):
        (w1, b1), (w2, b2) = params
        return cross_entropy(jax.nn.relu(x @ w1 + b1) @ w2 + b2, labels)

    def sgd(params, x, labels):
        value, grads = jax.value_and_grad(loss)(params, x, labels)
        return descend(params, grads), value

    return jax_step(jax.jit(sgd, donate_argnums=0).lower(params, x, labels).compile(), params, x, labels)


def jax_step(compiled, state, x, labels):
    def step():
        nonlocal state
        state, loss = jax.block_until_ready(compiled(state, x, labels))
        return float(loss)

    return step


def timed(function):
    start = time.perf_counter()
    made = function()
    return made, time.perf_counter() - start


def measure(steps):
    """Seconds of each timed step, and the last loss, by contender."""
    seconds, losses = {name: [] for name in steps}, {}
    for step in list(steps.values()) * WARM_UP:
        step()
    for _ in range(RUNS):
        for name, step in steps.items():
            step()
            for _ in range(STEPS_PER_RUN):
                losses[name], spent = timed(step)
                seconds[name].append(spent)
    return seconds, losses


def report(title, steps, first_call):
    seconds, losses = measure(steps)
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    print(f"\n{title}, batch {BATCH}, SGD: median of {RUNS * STEPS_PER_RUN} steps")
    for name, spent in seconds.items():
        low, middle, high = (1e3 * quartile for quartile in statistics.quantiles(spent, n=4))
        print(f"  {name:<17}{middle:8.2f} ms  (quartiles {low:.2f} to {high:.2f})", end="")
        print(f"  esper / this: {medians[ESPER] / medians[name]:.2f}  loss {losses[name]:.5f}")
    print("  first call of esper: " + ", ".join(f"{part} {spent:.2f} s" for part, spent in first_call.items()))


def main():
    torch.manual_seed(0)
    print(
        f"torch {torch.__version__} ({torch.get_num_threads()} threads), jax {jax.__version__}", jax.default_backend()
    )
    for title, build in (("MLP 784-512-10", mlp), ("CNN, two convolutions of 16 and 32 channels", cnn)):
        (module, x), labels = build(), torch.randint(0, 10, (BATCH,))
        wrapped, first_call = esper_contender(module, x, labels)
        steps = {ESPER: wrapped, TORCH: torch_contender(module, x, labels)}
        if build is mlp:
            steps[JAX] = jax_contender(module, x, labels)
        report(title, steps, first_call)


if __name__ == "__main__":
    main()
