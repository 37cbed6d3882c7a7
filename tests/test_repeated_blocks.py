"""Equal blocks of a network: found in its Program, traced once, and in no way different for that."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import esper
from esper.jax_backend import evaluate
from esper.lifecycle import SeedLifecycleState as State
from esper.parity import compare, tolerance

KEY = jax.random.key(0)
WIDTH, DEPTH = 8, 4
X = jax.random.normal(KEY, (5, WIDTH))


class Block(nn.Module):
    def __init__(self, wide=2, p=0.1, slope=0.0):
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.up = nn.Linear(WIDTH, wide * WIDTH)
        self.act = nn.LeakyReLU(slope)
        self.down = nn.Linear(wide * WIDTH, WIDTH)
        self.drop = nn.Dropout(p)

    def forward(self, x):
        return x + self.drop(self.down(self.act(self.up(self.norm(x)))))


class Stack(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def stack(*blocks):
    torch.manual_seed(0)
    return Stack(blocks or [Block() for _ in range(DEPTH)]).train()


def program_of(module, x=X):
    """Of training mode."""
    model = esper.wrap(module)
    jax.eval_shape(lambda: model.apply(x, train=True, key=KEY)[0])
    return model.structure.source.programs[0]


def found(module, x=X):
    return [occurrence.scope for occurrence in program_of(module, x).repeated]


def stepped(model, x=X, key=KEY):
    """Loss and buffers of a training step, and its gradients."""

    def loss_fn(params):
        y, moved = model.replace(params=params).apply(x, train=True, key=key)
        return jnp.sum(y**2), moved.buffers

    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def block_functions(model, x=X):
    """Functions in the text of a training step that are blocks, and the calls of them."""
    text = stepped(model, x).lower(model.params).as_text()
    name = r"@_repeated_block\w*"
    return len(re.findall(rf"func.func private {name}", text)), len(re.findall(rf"call {name}", text))


def agree(actual, expected):
    assert compare(np.asarray(actual), expected.detach().numpy()).scaled <= tolerance(actual.dtype.name)


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


# ---- which blocks are equal -----------------------------------------------------------------------------


def test_layers_of_a_list_are():
    assert found(stack()) == [f"blocks.{index}" for index in range(DEPTH)]


@pytest.mark.parametrize(
    "other", [{"wide": 3}, {"slope": -0.0}, {"slope": 0.5}, {"p": 0.2}], ids=["shape", "sign of zero", "value", "p"]
)
def test_no_other_argument_or_shape_is_the_same(other):
    assert found(stack(Block(), Block(**other))) == []
    assert found(stack(Block(), Block(**other), Block())) == ["blocks.0", "blocks.2"]


def test_nor_is_another_dtype():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)]) for _ in range(2))
            self.second.to(torch.bfloat16)

        def forward(self, x):
            return self.second(self.first(x).to(torch.bfloat16))

    assert found(Mixed(), jnp.ones((2, 4))) == []


def test_of_nested_ones_the_outermost_is_taken():
    pair = [nn.Sequential(Block(), Block()) for _ in range(2)]
    assert found(stack(*pair)) == ["blocks.0", "blocks.1"]
    assert found(stack(nn.Sequential(Block(), Block()), Block(wide=3))) == ["blocks.0.0", "blocks.0.1"]


def test_a_module_under_two_names_may_stand_in_both_places():
    shared = Block()
    module = stack(shared, Block(), shared, Block())
    assert {"blocks.1", "blocks.3"} <= set(found(module))
    one, other = (esper.wrap(module, share_blocks=share) for share in (True, False))
    close(stepped(one)(one.params), stepped(other)(other.params))  # gradients of tied weights add up in another order


def test_calls_under_one_name_that_stand_apart_are_left_as_they_are():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.other = Block(), Block()

        def forward(self, x):
            return self.block(self.other(self.block(x)))

    module = Again().train()
    assert found(module) == []
    one, other = (esper.wrap(module, share_blocks=share) for share in (True, False))
    equal(stepped(one)(one.params), stepped(other)(other.params))


def test_a_block_knows_what_goes_in_and_out():
    first, second = program_of(stack(Block(), Block())).repeated
    assert first.block is second.block and first.block.scope == "blocks.0"
    assert len(first.reads) == len(second.reads) and set(first.reads).isdisjoint(set(second.reads) - set(first.makes))
    assert set(first.makes) <= {name for node in first.block.nodes for name in node.outputs}
    assert first.layers == {"blocks.0.up", "blocks.0.down"} and second.layers == {"blocks.1.up", "blocks.1.down"}


# ---- what it saves --------------------------------------------------------------------------------------


def test_they_are_traced_differentiated_and_lowered_once():
    functions, calls = block_functions(esper.wrap(stack()))
    # The first block's input has no gradient, so its forward and backward are others than those of the rest.
    assert (functions, calls) == (4, 2 * DEPTH)
    deeper = block_functions(esper.wrap(stack(*(Block() for _ in range(3 * DEPTH)))))
    assert deeper == (4, 6 * DEPTH)


def test_their_rules_run_once(monkeypatch):
    ran, run = [], evaluate._run
    monkeypatch.setattr(evaluate, "_run", lambda node, *rest, **how: (ran.append(node.scope), run(node, *rest, **how)))
    model = esper.wrap(stack())
    jax.make_jaxpr(lambda x: model(x))(X)
    assert {scope.split(".")[1] for scope in ran if scope.startswith("blocks")} == {"0"}
    ran.clear()
    bare = esper.wrap(stack(), share_blocks=False)
    jax.make_jaxpr(lambda x: bare(x))(X)
    assert {scope.split(".")[1] for scope in ran if scope.startswith("blocks")} == set(map(str, range(DEPTH)))


def test_it_can_be_left():
    model = esper.wrap(stack(), share_blocks=False)
    assert block_functions(model) == (0, 0)
    assert model.structure != esper.wrap(stack()).structure


# ---- what it changes: nothing ---------------------------------------------------------------------------


def test_values_gradients_and_buffers_are_those_of_torch():
    module = stack(*(Block(p=0.0) for _ in range(DEPTH)))
    model = esper.wrap(module)
    (loss, buffers), grads = stepped(model)(model.params)
    expected = (module(torch.tensor(np.asarray(X))) ** 2).sum()
    expected.backward()
    agree(loss, expected)
    for name, parameter in module.named_parameters():
        agree(grads["host"][name], parameter.grad)
    for name, buffer in module.named_buffers():
        agree(buffers[name], buffer)


def test_nothing_depends_on_it_random_numbers_included():
    shared, bare = (esper.wrap(stack(), share_blocks=share) for share in (True, False))
    equal(stepped(shared)(shared.params), stepped(bare)(bare.params))
    equal(shared(X), bare(X))
    masks = [np.asarray(shared.apply(X, train=True, key=jax.random.key(turn))[0]) for turn in range(2)]
    assert not np.array_equal(*masks)


def test_every_block_draws_numbers_of_its_own():
    class Noise(nn.Module):
        def forward(self, x):
            return x * torch.rand_like(x) + torch.rand_like(x)

    class Drawn(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([Noise(), Noise()])

        def forward(self, x):
            return [part(x) for part in self.parts]

    model = esper.wrap(Drawn())
    one, other = model(X, key=KEY)
    assert len(model.structure.source.programs[0].repeated) == 2 and not np.array_equal(one, other)


def test_sizes_may_be_symbolic():
    class Flat(nn.Module):
        def forward(self, x):
            return x.reshape(x.shape[0] * x.shape[1]).cumsum(0).reshape(x.shape[0], x.shape[1]) / x.shape[0]

    model = esper.wrap(nn.Sequential(*[nn.Sequential(Flat(), nn.Tanh()) for _ in range(3)]), example_inputs=(X,))
    # The first also works out the sizes that the others read.
    assert [found.scope for found in model.structure.source.programs[0].repeated] == ["1", "2"]
    for rows in (5, 3):
        x = jax.random.normal(KEY, (rows, WIDTH))
        expected = x
        for _ in range(3):
            expected = jnp.tanh(jnp.cumsum(expected.reshape(-1)).reshape(expected.shape) / rows)
        np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
    symbolic = jax.export.symbolic_shape("n, 8")
    text = jax.export.export(jax.jit(lambda x: model(x)))(jax.ShapeDtypeStruct(symbolic, "float32")).mlir_module()
    assert "_repeated_block" in text


def test_under_vmap_and_twice_differentiated():
    shared, bare = (esper.wrap(stack().eval(), share_blocks=share) for share in (True, False))
    batches = jax.random.normal(KEY, (3, 5, WIDTH))
    equal(*(jax.vmap(lambda x, m=m: m(x))(batches) for m in (shared, bare)))
    hessians = [jax.jit(jax.hessian(lambda x, m=m: jnp.sum(m(x) ** 2)))(X[:1]) for m in (shared, bare)]
    np.testing.assert_allclose(*hessians, rtol=1e-5, atol=1e-6)


def test_operations_keep_the_names_of_their_own_modules():
    model = esper.wrap(stack())
    text = stepped(model).lower(model.params).compile().as_text()
    assert all(f"blocks.{index}" in text for index in range(DEPTH))


def test_a_refusal_names_the_module():
    class Uneven(nn.Module):
        def forward(self, x):
            for _ in range(3):
                x = x + 1
            return nn.functional.fractional_max_pool2d(x, 2, output_size=(1, 1)).expand_as(x) + x

    model = esper.wrap(nn.Sequential(nn.Sequential(Uneven()), nn.Sequential(Uneven())))
    with pytest.raises(esper.errors.MissingKeyError, match=r"0\.0"):
        model(jnp.ones((1, 1, 4, 4)))


# ---- growth ---------------------------------------------------------------------------------------------


def test_a_block_with_a_kernel_is_its_own_and_a_dead_kernel_changes_nothing():
    model = esper.wrap(stack(), target_layers=nn.Linear)
    grown, _ = esper.germinate(model, None, layer="blocks.2.up", blueprint="low_rank", key=KEY)
    assert block_functions(model)[1] == 2 * DEPTH and block_functions(grown)[1] == 2 * (DEPTH - 1)
    (loss, buffers), grads = stepped(model)(model.params)
    (grown_loss, grown_buffers), grown_grads = stepped(grown)(grown.params)
    equal((loss, buffers, grads["host"]), (grown_loss, grown_buffers, grown_grads["host"]))


def test_what_grew_is_used():
    model, _ = esper.germinate(
        esper.wrap(stack().eval(), target_layers=nn.Linear), None, layer="blocks.2.up", blueprint="low_rank", key=KEY
    )
    on = esper.set_alpha(
        esper.transition(model, layer="blocks.2.up", seed=0, to=State.GRAFTING), layer="blocks.2.up", alpha=1.0
    )
    kernel = jax.tree.map(jnp.ones_like, on.params["kernels"]["blocks.2.up"][0])
    on = on.replace(params={**on.params, "kernels": {"blocks.2.up": {0: kernel}}})
    assert not np.allclose(on(X), model(X))
