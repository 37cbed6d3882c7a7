"""What a call costs besides its arrays: no Python in a compiled one, nothing that grows with the network in another."""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import esper
from esper.lifecycle import SeedLifecycleState as S
from esper.train.compiles import counting_compiles
from esper.train.objective import Objective, OnTargets, cross_entropy
from esper.train.step import Learner, train_step, with_kernels

KEY = jax.random.key(0)


def stack(depth=2, width=4):
    torch.manual_seed(0)
    parts = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.1))]
    return esper.wrap(nn.Sequential(*parts), target_layers=nn.Linear, seeds_per_layer=2)


def grown(model):
    for layer in ("0", "3"):
        model, _ = esper.germinate(model, None, layer=layer, seed=1, blueprint="low_rank", key=KEY)
    return model


def python_calls(function):
    """The Python functions that a call of `function` enters."""
    entered = []
    sys.setprofile(lambda frame, event, _: entered.append(frame.f_code.co_name) if event == "call" else None)
    try:
        function()
    finally:
        sys.setprofile(None)
    return entered[1:]


# ---- a compiled call ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepare", [lambda model: model, grown], ids=["plain", "grown"])
def test_a_compiled_call_runs_no_python_but_to_make_its_result(prepare):
    model, x = prepare(stack()), jnp.ones((3, 4))
    read, move = jax.jit(lambda model, x: model(x)), jax.jit(lambda model, x: model.apply(x, train=True, key=KEY)[1])
    moved = move(model, x)
    read(moved, x), move(moved, x)
    for given in (model, moved):
        assert python_calls(lambda given=given: read(given, x)) == []
        assert python_calls(lambda given=given: move(given, x)) == ["__init__"] * 2  # the model's, and its seeds'


class Counted:
    """Stands for a kernel, and counts how often it is hashed and compared."""

    hashed = compared = 0

    def __hash__(self):
        Counted.hashed += 1
        return 0

    def __eq__(self, other):
        Counted.compared += 1
        return isinstance(other, Counted)


def test_a_structure_is_hashed_once_and_known_by_identity():
    structure = replace(stack().structure, kernels=(Counted(), Counted()))
    other = replace(structure, kernels=(Counted(), Counted()))
    assert {hash(structure) for _ in range(5)} == {hash(structure)} and Counted.hashed == 2
    assert structure == structure and Counted.compared == 0
    assert structure == other and hash(structure) == hash(other)
    assert structure != replace(structure, kernels=()) and structure != replace(structure, shadow=True)


# ---- a call outside of jit ------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [jnp.asarray, np.asarray, lambda x: torch.tensor(np.asarray(x))])
@pytest.mark.parametrize("train", [False, True])
def test_a_batch_size_is_traced_and_compiled_once(convert, train):
    model = grown(stack())
    batches = [convert(jax.random.normal(KEY, (size, 4))) for size in (5, 3)]
    for batch in batches:
        model.apply(batch, train=train, key=KEY)
    traces = model.structure.source.traces
    keys = [jax.random.key(turn) for turn in range(4)]  # in a long process JAX may compile this anew
    with counting_compiles() as counter:
        for batch, key in zip(batches * 2, keys, strict=True):
            _, model = model.apply(batch, train=train, key=key)
        assert counter.take().programs == ()
    assert model.structure.source.traces == traces == 1


def test_its_cost_does_not_grow_with_the_network():
    x, spent = jnp.ones((3, 4)), []
    for depth in (2, 12):
        model = stack(depth)
        model(x)
        spent.append(len(python_calls(lambda model=model: model(x))))
    assert spent[0] == spent[1]


def test_what_a_forward_leaves_alone_stays_the_same_object():
    model, x = grown(stack()), jnp.ones((3, 4))
    assert model.apply(x)[1] is model
    moved = model.apply(x, train=True, key=KEY)[1]
    assert moved.params is model.params and moved.buffers.keys() == model.buffers.keys()
    assert int(moved.buffers["1.num_batches_tracked"]) == 1 and int(moved.layers["0"].seeds.age[1]) == 1


# ---- a train step ---------------------------------------------------------------------------------------


def test_a_train_step_compiles_for_structures_and_shapes_alone():
    learner = Learner(Objective(OnTargets(cross_entropy)), with_kernels(optax.adamw(0.01), 0), blend_steps=4)
    state = learner.begin(grown(stack()), KEY)
    compiled = []

    def step(size):
        nonlocal state
        batch = (jax.random.normal(KEY, (size, 4)), jnp.arange(size) % 4)
        with counting_compiles() as counter:
            state = train_step(learner, state, batch)
            compiled.append(counter.take().programs)

    step(6)
    state = learner.resumed(replace(state, key=jax.random.key(3)))
    step(6)
    for to in (S.GRAFTING, S.ACTIVE, S.FOSSILIZED):
        state = replace(state, model=esper.transition(state.model, layer="0", seed=1, to=to))
        step(6)
    state = replace(state, model=esper.transition(state.model, layer="3", seed=1, to=S.GRAFTING))
    state = replace(state, model=esper.set_alpha(state.model, layer="3", seed=1, alpha=0.3))
    step(6)
    state = replace(state, model=esper.transition(state.model, layer="3", seed=1, to=S.CULLED))
    step(5)
    state = state.rewound()
    step(6)
    step(5)
    assert [("jit(train_step)" in programs) for programs in compiled] == [True, *[False] * 5, True, False, False]
    assert compiled[-1] == compiled[-2] == ()
