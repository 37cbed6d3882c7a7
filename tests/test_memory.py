"""What a wrapped model holds: every array once, and none in a compiled program that could be its argument."""

import gc
import resource
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
import torch
from torch import nn

import esper
from esper.train.fit import fit

SIZE = 300
TABLE = torch.randn(SIZE, SIZE)
BYTES = 4 * SIZE * SIZE
X = jnp.ones((2, SIZE))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Linear(SIZE, SIZE, bias=False) for _ in range(2))
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(SIZE))
        self.shift = torch.arange(float(SIZE))

    def forward(self, x):
        return self.second(self.first(x)) * self.scale + self.shift


class Held(nn.Module):
    """A large tensor that is no parameter and no buffer."""

    def __init__(self):
        super().__init__()
        self.head, self.table = nn.Linear(SIZE, 2), TABLE.clone()

    def forward(self, x):
        return self.head(x @ self.table)


class Closed(nn.Module):
    """One that the module does not hold at all."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(SIZE, 2)

    def forward(self, x):
        return self.head(x @ TABLE)


def live():
    """The bytes of JAX's memory that is in use; what shares memory counts once."""
    gc.collect()
    arrays = [array for array in jax.live_arrays() if not jnp.issubdtype(array.dtype, jax.dtypes.prng_key)]
    return sum({array.unsafe_buffer_pointer(): array.nbytes for array in arrays}.values())


def sizes(compiled):
    found = compiled.memory_analysis()
    return found.argument_size_in_bytes, found.generated_code_size_in_bytes, len(compiled.as_text())


def resident():
    """The bytes of this process that lie in memory; what was reserved and never written to does not."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# ---- wrap -----------------------------------------------------------------------------------------------


def test_wrap_holds_every_array_once():
    module = Tied()
    before = live()
    model = esper.wrap(module, example_inputs=X, target_layers=nn.Linear)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((model.params, model.buffers, model.constants)))
    seeds = sum(leaf.nbytes for leaf in jax.tree.leaves(model.seeds))
    assert held == BYTES + 2 * 4 * SIZE == model.stats()["bytes"] + 4 * SIZE
    assert live() - before == held + seeds


def test_wrapping_takes_memory_for_one_copy():
    module, size = nn.Linear(5000, 5000), 4 * 5000 * 5000
    before = resident()
    model = esper.wrap(module, example_inputs=jnp.ones((2, 5000)))
    jax.block_until_ready(model.params)
    assert resident() - before < 1.5 * size
    del module
    assert model.stats()["bytes"] >= size


def test_a_call_and_a_copy_of_the_structure_hold_nothing_more():
    model = esper.wrap(Held(), example_inputs=X)
    model(X)
    before = live()
    others = [model.shadow(), model.replace(seeds=model.seeds), model.apply(X, train=True)[1]]
    assert live() - before < BYTES and len(others) == 3


# ---- constants ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [Held, Closed])
def test_a_large_constant_is_an_argument(module):
    before = live()
    model = esper.wrap(module(), example_inputs=X)
    assert BYTES <= live() - before < 2 * BYTES and [a.nbytes for a in model.constants.values()].count(BYTES) == 1
    lowered = jax.jit(lambda model, x: model(x)).lower(model, X)
    arguments, code, text = sizes(lowered.compile())
    assert BYTES < arguments < 2 * BYTES and code < BYTES and text < BYTES and len(lowered.as_text()) < BYTES
    assert live() - before < 2 * BYTES


@pytest.mark.parametrize("module", [Held, Closed])
def test_it_is_one_of_a_training_step_as_well(module):
    model, taken = esper.wrap(module(), target_layers=[]), []
    examples = jnp.ones((4, SIZE)), jnp.zeros(4, jnp.int32)

    def on_step(run):
        lowered = jax.jit(lambda model, x: model(x)).lower(run.model, X)
        taken.append((len(lowered.as_text()), [a.nbytes for a in run.model.constants.values()].count(BYTES)))

    fit(model, [examples], tx=optax.sgd(0.1), steps=1, key=jax.random.key(0), on_step=on_step, governor=None)
    assert taken[0][0] < BYTES and taken[0][1] == 1
