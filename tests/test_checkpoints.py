"""`torch.utils.checkpoint` saves memory here as well: its function is computed again in the backward."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity_checks import lower
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import esper
from esper.errors import ProgramError
from esper.lifecycle import SeedLifecycleState as State
from esper.parity import compare, tolerance
from esper.program import Program, dumps, loads, verify

KEY = jax.random.key(7)
WIDTH, BLOCKS = 8, 3


def plain(function, *args, **_):
    return function(*args)


class Block(nn.Module):
    """Wide inside: what it makes on the way is most of what a backward keeps."""

    def __init__(self, p):
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(WIDTH, 16 * WIDTH), nn.Dropout(p), nn.Linear(16 * WIDTH, WIDTH)

    def forward(self, x):
        return x + self.down(self.drop(self.up(x).tanh().exp()))


class Stack(nn.Module):
    def __init__(self, run=checkpoint, p=0.0, **options):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(p) for _ in range(BLOCKS)])
        self.run, self.options = run, options

    def forward(self, x):
        for block in self.blocks:
            x = self.run(block, x, **self.options)
        return x


class Sequential(Stack):
    def forward(self, x):
        return checkpoint_sequential(self.blocks, BLOCKS, x, use_reentrant=False)


class Nested(Stack):
    def both(self, x):
        return super().forward(x)

    def forward(self, x):
        return checkpoint(self.both, x, use_reentrant=False)


REENTRANT, NOT = {"use_reentrant": True}, {"use_reentrant": False}


def batch():
    return jnp.asarray(np.random.default_rng(0).normal(size=(32, WIDTH)), jnp.float32)


def loss_of(model, x, **call):
    def loss(host):
        changed = model.replace(params={**model.params, "host": host})
        return jnp.sum(changed(x, **call) ** 2)

    return loss


def kept(model, x, **call):
    """How many numbers the backward keeps besides parameters."""
    host = model.params["host"]
    _, pull = jax.vjp(loss_of(model, x, **call), host)
    held = {id(leaf) for leaf in jax.tree.leaves(host)}
    return sum(leaf.size for leaf in jax.tree.leaves(pull) if id(leaf) not in held)


def recomputations(model, x):
    text = str(jax.make_jaxpr(jax.grad(loss_of(model, x)))(model.params["host"]))
    return len(re.findall(r"= (?:checkpoint|remat)\w*\[", text))


def agree(found, wanted):
    for leaf, want in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert compare(np.asarray(leaf), np.asarray(want)).scaled <= tolerance("float32", gradient=True)


@pytest.mark.parametrize(
    ("module", "regions"),
    [
        (lambda: Stack(**NOT), BLOCKS),
        (lambda: Stack(**REENTRANT), BLOCKS),
        (lambda: Sequential(), BLOCKS - 1),  # the last segment is not checkpointed, as in torch
        (lambda: Nested(**NOT), 1),
    ],
)
def test_the_backward_computes_again_what_it_does_not_keep(module, regions):
    x = batch()
    model, bare = (esper.wrap(m, example_inputs=(x,)) for m in (module(), Stack(plain)))
    (program,) = model.structure.source.programs
    found = Counter(node.region for node in program.nodes)
    assert {region for region in found if region} == {f"checkpoint_{i}" for i in range(regions)}
    assert recomputations(bare, x) == 0
    assert recomputations(model, x) >= regions
    hidden = x.shape[0] * 16 * WIDTH
    assert kept(bare, x) - kept(model, x) >= regions * hidden


def test_the_recomputation_draws_the_same():
    x = batch()
    models = [esper.wrap(Stack(run, p=0.5, **NOT)) for run in (checkpoint, plain)]
    found = [
        jax.jit(jax.value_and_grad(loss_of(model, x, train=True, key=KEY)))(model.params["host"]) for model in models
    ]
    agree(*found)
    assert kept(models[0], x, train=True, key=KEY) < kept(models[1], x, train=True, key=KEY)


def test_kernels_join_inside_a_region():
    x = batch()
    grown = []
    for run in (checkpoint, plain):
        model = esper.wrap(Stack(run, p=0.5, **NOT), target_layers=["blocks.1.up"], seeds_per_layer=1)
        model, _ = esper.germinate(model, None, layer="blocks.1.up", blueprint="low_rank", key=KEY)
        model = esper.transition(model, layer="blocks.1.up", to=State.GRAFTING)
        model = esper.set_alpha(model, layer="blocks.1.up", alpha=0.5)
        kernels = jax.tree.map(lambda leaf: leaf + 0.1, model.params["kernels"])
        grown.append(model.replace(params={**model.params, "kernels": kernels}))

    def gradients(model):
        def loss(params):
            return jnp.sum(model.replace(params=params)(x, train=True, key=KEY) ** 2)

        return jax.jit(jax.value_and_grad(loss))(model.params)

    found = gradients(grown[0])
    agree(found, gradients(grown[1]))
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(found[1]["kernels"]))
    (program,) = grown[0].structure.source.programs
    assert [node.region for node in program.nodes if node.op == "esper.graft.default"] == ["checkpoint_1"]
    assert kept(grown[0], x, train=True, key=KEY) < kept(grown[1], x, train=True, key=KEY)


def test_regions_are_part_of_the_program():
    program = lower(Stack(**NOT), (torch.randn(4, WIDTH),))[0]
    again = loads(dumps(program))
    assert [node.region for node in again.nodes] == [node.region for node in program.nodes]
    assert "blocks.1.up, checkpoint_1" in str(program)
    torn = (*program.nodes[:1], *program.nodes[-1:], *program.nodes[1:-1])
    with pytest.raises(ProgramError, match="region 'checkpoint_2' is interrupted"):
        verify(Program(program.inputs, torn, program.outputs, program.out_tree))
