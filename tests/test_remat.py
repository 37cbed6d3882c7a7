"""`wrap(remat=...)`: blocks whose insides a backward computes again: less is kept, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from test_checkpoints import BLOCKS, KEY, NOT, WIDTH, Block, Stack, agree, batch, kept, loss_of, plain, recomputations
from torch import nn
from torch.utils.checkpoint import checkpoint

import esper
from esper.errors import ArgumentError, TargetError
from esper.lifecycle import SeedLifecycleState as State
from esper.torch_frontend.repeated import find_blocks
from esper.train.objective import Objective, OnTargets, mean_squared_error
from esper.train.step import Learner, train_step, with_kernels

HIDDEN = 32 * 16 * WIDTH  # of one of the arrays that a block makes on the way


def wrapped(p=0.0, run=plain, options=None, **how):
    return esper.wrap(Stack(run, p=p, **(options or {})), **{"target_layers": [], **how})


def values(model, x, **call):
    return jax.jit(jax.value_and_grad(loss_of(model, x, **call)))(model.params["host"])


# ---- what it is for -------------------------------------------------------------------------------------


def test_the_backward_computes_again_what_it_does_not_keep():
    x = batch()
    bare, model = wrapped(), wrapped(remat=True)
    assert recomputations(bare, x) == 0 and recomputations(model, x) >= BLOCKS
    assert kept(bare, x) - kept(model, x) >= BLOCKS * HIDDEN
    agree(values(model, x), values(bare, x))


def test_a_policy_says_what_is_kept_all_the_same():
    x = batch()
    policies = "nothing_saveable", "dots_saveable", "everything_saveable"
    models = [wrapped(remat=True, remat_policy=policy) for policy in policies]
    sizes = [kept(model, x) for model in models]
    assert sizes[1] - sizes[0] >= BLOCKS * HIDDEN  # what `up` gives
    assert sizes[2] >= kept(wrapped(), x) > sizes[1]
    for model in models:
        agree(values(model, x), values(wrapped(), x))


def test_some_blocks_alone():
    x = batch()
    sizes = [kept(wrapped(remat=names), x) for names in ([], "blocks.1", ["blocks.0", "blocks.1"], Block)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert sizes[0] == kept(wrapped(), x) and sizes[3] == kept(wrapped(remat=True), x)


# ---- what it changes: nothing ---------------------------------------------------------------------------


def test_the_recomputation_draws_the_same():
    x, call = batch(), {"train": True, "key": KEY}
    bare, model = wrapped(p=0.5), wrapped(p=0.5, remat=True)
    agree(values(model, x, **call), values(bare, x, **call))
    np.testing.assert_array_equal(model(x, **call), bare(x, **call))
    assert kept(model, x, **call) < kept(bare, x, **call)


def test_kernels_grow_inside_a_block():
    x, found, sizes = batch(), [], []
    for remat in (True, False):
        model = wrapped(p=0.5, remat=remat, target_layers="blocks.1.up", seeds_per_layer=1)
        model, _ = esper.germinate(model, None, layer="blocks.1.up", blueprint="low_rank", key=KEY)
        model = esper.transition(model, layer="blocks.1.up", to=State.GRAFTING)
        model = esper.set_alpha(model, layer="blocks.1.up", alpha=0.5)
        kernels = jax.tree.map(lambda leaf: leaf + 0.1, model.params["kernels"])
        model = model.replace(params={**model.params, "kernels": kernels})

        def loss(params, model=model):
            return jnp.sum(model.replace(params=params)(x, train=True, key=KEY) ** 2)

        found.append(jax.jit(jax.value_and_grad(loss))(model.params))
        sizes.append(kept(model, x, train=True, key=KEY))
    agree(*found)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(found[0][1]["kernels"])) and sizes[0] < sizes[1]


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        # No bias before a BatchNorm: its gradient is rounding noise, which Adam turns into full steps.
        convolutions = [nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2)]
        self.body = nn.Sequential(*(nn.Sequential(layer, nn.BatchNorm2d(3), nn.ReLU()) for layer in convolutions))

    def forward(self, x):
        return self.body(x).mean((2, 3))


def test_buffers_move_and_seeds_train_inside_a_block():
    """A whole training step, of a network whose activations lie channels last and whose kernel trains by itself."""
    learner = Learner(Objective(OnTargets(mean_squared_error)), with_kernels(optax.adamw(0.01), 0), blend_steps=4)
    data = jax.random.normal(KEY, (6, 3, 8, 8)), jnp.ones((6, 3))
    states = []
    for remat in (True, False):
        model = esper.wrap(Normed(), target_layers="body.0.0", seeds_per_layer=1, remat=remat)
        model, _ = esper.germinate(model, None, layer="body.0.0", blueprint="low_rank", key=KEY)
        state = learner.begin(model, KEY)
        for _ in range(3):
            state = train_step(learner, state, data)
        states.append(state)
    again, wanted = (
        [state.model.params, state.model.buffers, state.model.seeds, state.loss, state.opt_state] for state in states
    )
    agree(again, wanted)
    assert int(states[0].model.buffers["body.1.1.num_batches_tracked"]) == 3
    assert states[0].model.structure.remat is not None and states[0].model.structure != states[1].model.structure


def test_of_a_block_and_the_users_checkpoint_the_outermost_counts():
    x = batch()
    within = wrapped(run=checkpoint, options=NOT, remat=True)
    assert kept(within, x) == kept(wrapped(remat=True), x)
    assert recomputations(within, x) == recomputations(wrapped(remat=True), x)
    agree(values(within, x), values(wrapped(), x))


def test_an_unwrapped_model_is_as_it_was():
    model = wrapped(remat=True, example_inputs=torch.ones(4, WIDTH))
    module = esper.unwrap(model)
    x = torch.randn(4, WIDTH)
    torch.testing.assert_close(module(x), Stack(plain)(x))


# ---- what is meant --------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))  # layers are no blocks
        self.layer1 = nn.Sequential(Block(0.0), Block(0.0))
        self.layer2 = nn.ModuleList([Block(0.0), nn.Identity(), Block(0.0)])
        self.rest = nn.ModuleDict({"a": Block(0.0)})


PAIR = ("layer1.0", "layer1.1", "layer2.0", "layer2.2")


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (False, ()),
        (True, PAIR),
        (Block, (*PAIR, "rest.a")),
        ("layer1", ("layer1",)),
        ("layer2", ("layer2.0", "layer2.1", "layer2.2")),
        (["layer1.*", "rest"], ("layer1.0", "layer1.1", "rest.a")),
        (["layer1", Block], ("layer1", "layer2.0", "layer2.2", "rest.a")),
        (lambda name, module: name == "layer1.0.up", ("layer1.0.up",)),
        ("", ("",)),
    ],
)
def test_blocks_by_type_name_glob_or_repetition(targets, found):
    assert find_blocks(Net(), targets) == found


def test_what_is_not_there_is_refused():
    with pytest.raises(TargetError, match=r"remat: nothing matches 'layr1'; the model has: .*Block \(5\)"):
        esper.wrap(Net(), remat="layr1")
    with pytest.raises(TargetError, match="remat=True: no block is repeated"):
        esper.wrap(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), remat=True)
    with pytest.raises(ArgumentError, match="no remat_policy 'dots'; there are: nothing_saveable, dots_saveable"):
        esper.wrap(Net(), remat=True, remat_policy="dots")
