"""Run by `tests/test_shard.py` in a process with 8 devices: a sharded model is the same model."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sharded.cases import (
    BATCH,
    LAYERS,
    LIFE,
    MODELS,
    RULES,
    batches,
    check_equal,
    fitted,
    grown,
    stepper,
    trained,
    wrapped,
)
from torch import nn

import esper
from esper.errors import ShardingError
from esper.growth.optimizer import per_kernel
from esper.growth.policy import Germinate
from esper.lifecycle import SeedLifecycleState as S
from esper.parity import compare, tolerance
from esper.sharding import data_parallel, fsdp, place_batch, place_local_batch, place_state, tensor_parallel

SGD = optax.sgd(0.05, momentum=0.9)


@pytest.fixture(scope="module")
def mesh():
    assert jax.device_count() == 8
    return jax.make_mesh((2, 4), ("data", "model"))


@cache
def on_one_device(name):
    model, _, losses = grown(wrapped(name), name, SGD)
    return model, losses


def specs(tree):
    return jax.tree.map(lambda array: array.sharding.spec, tree)


def held_by_each(array):
    """The shapes of what the devices hold of an array."""
    return {shard.data.shape for shard in array.addressable_shards}


# ---- the same numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", MODELS)
def test_training_with_growth_is_that_of_one_device(name, rules, mesh):
    model, opt_state, losses = grown(esper.shard(wrapped(name), mesh, RULES[rules]), name, SGD)
    check_equal((model, losses), on_one_device(name))
    layer, _ = LAYERS[name]
    placement = model.structure.placement
    assert specs(model.params) == jax.tree.map(lambda s: s.spec, placement.shardings(model).params)
    assert specs(opt_state[0].trace) == specs(model.params)
    assert specs(model.buffers) == {name: placement.decide(name, a.shape).spec for name, a in model.buffers.items()}
    assert list(model.params["kernels"]) == [layer]


@pytest.mark.parametrize("batch", [5, 16])
def test_a_call_gives_what_one_device_gives(batch, mesh):
    model = wrapped("cnn")
    split = esper.shard(model, mesh, RULES["fsdp"])
    x = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(split(x), model(x), rtol=1e-5, atol=1e-5)
    output = jax.jit(lambda model, x: model(x))(split, x.numpy())
    assert output.sharding.spec[0] == (None if batch == 5 else ("data", "model")), (
        "8 does not divide 5: it is not split"
    )


def test_convolutions_are_split_by_examples_alone(mesh):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, padding=2, groups=32), nn.Conv2d(32, 16, 1), nn.GELU()]
    layers += [nn.Conv2d(16, 16, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8)]
    model = esper.wrap(nn.Sequential(*layers), seeds_per_layer=0)
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((16, 3, 16, 16)).astype(np.float32), rng.integers(0, 8, 16).astype(np.int32)

    @jax.jit
    def grads(model, x, labels):
        def loss_fn(params):
            logits = model.replace(params=params)(x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        return jax.value_and_grad(loss_fn)(model.params)

    split = esper.shard(model, mesh, data_parallel(("data", "model")))
    compiled = grads.lower(split, x, labels).compile().as_text()
    moves = set(re.findall(r"(all-gather|all-to-all|collective-permute|all-reduce)\(", compiled))
    assert moves == {"all-reduce"}, "sums of statistics and gradients are all that the devices tell each other"
    (found, of_split), (wanted, of_one) = grads(split, x, labels), grads(model, x, labels)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for name, gradient in of_one["host"].items():
        gap = compare(np.asarray(of_split["host"][name]), np.asarray(gradient))
        assert gap.scaled <= tolerance("float32"), f"{name}: {gap}"


# ---- what lies where ------------------------------------------------------------------------------------


def test_no_device_holds_a_whole_array_that_is_split(mesh):
    model = esper.shard(wrapped("mlp"), mesh, fsdp(("data", "model"), min_elements=64))
    tx = optax.adam(1e-3)
    opt_state = tx.init(model.params)
    for _ in range(2):
        for of in (model.params, opt_state[0].mu, opt_state[0].nu):
            assert held_by_each(of["host"]["0.weight"]) == {(4, 8)}
            assert held_by_each(of["host"]["2.weight"]) == {(16, 4)}
            assert held_by_each(of["host"]["4.weight"]) == {(8, 2)}
            assert held_by_each(of["host"]["0.bias"]) == {(32,)}
        opt_state = place_state(opt_state, model)
        model, opt_state, _ = stepper(tx)(model, opt_state, *next(batches("mlp")))


def test_the_model_that_was_sharded_is_left_alone(mesh):
    model = wrapped("mlp")
    x, labels = next(batches("mlp"))
    before = model(x)
    for rules in (RULES["data"], RULES["fsdp"]):
        split = esper.shard(model, mesh, rules)
        again = esper.shard(split, mesh, RULES["tensor"])
        stepped = stepper(SGD)(split, place_state(SGD.init(split.params), split), x, labels)
        assert split.params["host"]["0.weight"].is_deleted(), "the step consumes what it is given"
        np.testing.assert_allclose(again(x), before, rtol=1e-5, atol=1e-6)
        assert stepped[0].structure == split.structure
    assert model.structure.placement is None
    np.testing.assert_array_equal(model(x), before)


def test_an_optimiser_state_from_elsewhere_is_placed(mesh):
    model = esper.shard(wrapped("mlp"), mesh, RULES["fsdp+tensor"])
    model, _ = esper.germinate(model, None, layer="2", blueprint="mlp", key=jax.random.key(0))
    for tx in (optax.adam(1e-3), per_kernel(optax.adam(1e-3)), optax.adafactor(1e-3)):
        state = jax.jit(tx.init)(model.params)
        placed = place_state(state, model)
        assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(placed)} == {8}
        assert jax.tree.structure(placed) == jax.tree.structure(state)
    moments = place_state(jax.jit(optax.adam(1e-3).init)(model.params), model)[0].mu
    assert specs(moments) == specs(model.params)
    kernel = place_state(jax.jit(per_kernel(optax.adam(1e-3)).init)(model.params), model).kernels["2"][0]
    assert specs(kernel.inner[0].mu) == specs(model.params["kernels"]["2"][0])


def test_kernels_are_placed_by_the_rules(mesh):
    rules = [fsdp("data", min_elements=256), (r"^2\.grown\.0\.0\.weight$", P("model"))]
    model = esper.shard(wrapped("mlp"), mesh, rules)
    how = {"layer": "2", "blueprint": "mlp", "options": {"width": 64}, "key": jax.random.key(0)}
    tx = per_kernel(optax.adam(1e-3))
    grown, state = esper.germinate(model, tx.init(model.params), **how)
    held = grown.params["kernels"]["2"][0]
    assert specs(held) == {"0.weight": P("model"), "0.bias": P(), "2.weight": P(None, "data"), "2.bias": P()}
    assert specs(state.kernels["2"][0].inner[0].mu) == specs(held)
    assert state.kernels["2"][0].steps.sharding.is_fully_replicated
    reserved, _ = esper.reserve(model, None, layer="2", blueprint="mlp", options={"width": 64})
    ready, _ = esper.germinate(reserved, None, **how)
    assert ready.structure == reserved.structure and specs(ready.params) == specs(grown.params)
    culled, state = esper.cull(grown, state, layer="2")
    assert culled.params["kernels"] == {} and state.kernels == {}


def test_a_kernel_that_a_pattern_does_not_fit_is_left_whole(mesh):
    model = esper.shard(wrapped("mlp"), mesh, [(r"^2\..*weight$", P(("data", "model")))])
    model, _ = esper.germinate(model, None, layer="2", blueprint="low_rank", options={"rank": 3}, key=jax.random.key(0))
    report = esper.explain_sharding(model)
    (fell,) = report.fallbacks
    assert fell.name.startswith("2.grown.0.") and fell.spec == P()
    assert "3 is not divisible by the 8 of ('data', 'model')" in str(report)


def test_batches_are_placed(mesh):
    model = esper.shard(wrapped("mlp"), mesh, RULES["data"])
    x, labels = place_batch(next(batches("mlp")), model)
    assert held_by_each(x) == {(BATCH // 8, 8)} and held_by_each(labels) == {(BATCH // 8,)}
    np.testing.assert_array_equal(place_local_batch(np.asarray(x), model), x)
    assert place_batch(np.ones((5, 8)), model).sharding.is_fully_replicated
    with pytest.raises(ShardingError, match=r"part of shape \[5, 8\] cannot be split"):
        place_local_batch(np.ones((5, 8)), model)
    with pytest.raises(ShardingError, match="inputs are not split"):
        place_local_batch(x, esper.shard(wrapped("mlp"), mesh, RULES["tensor"]))


def test_inputs_are_split_over_what_is_said(mesh):
    x = next(batches("mlp"))[0]
    for batch, shape in (("data", (8, 8)), ([], (16, 8)), (["data", "model"], (2, 8))):
        model = esper.shard(wrapped("mlp"), mesh, {}, batch=batch)
        assert held_by_each(jax.jit(lambda model, x: model(x))(model, x)) == {shape}


# ---- fit ------------------------------------------------------------------------------------------------


def test_fit_trains_and_grows_as_on_one_device(mesh):
    wanted, found = fitted(lambda model: model), fitted(lambda model: esper.shard(model, mesh, RULES["fsdp+tensor"]))
    check_equal((found.model, found.losses), (wanted.model, wanted.losses))
    np.testing.assert_allclose(found.gains[("0", 0)].mean, wanted.gains[("0", 0)].mean, rtol=1e-3, atol=1e-5)
    assert [record.event for record in found.records] == [record.event for record in wanted.records]
    compiled = {record.event for record in found.records if "jit(train_step)" in record.programs}
    assert compiled == {"evaluate", "germinate"}, "the first steps compile one, the change of structure another"
    assert sum("jit(train_step)" in record.programs for record in found.records) == 2
    half = fitted(lambda model: esper.shard(model, mesh, RULES["fsdp+tensor"]), steps=8)
    rest = fitted(lambda model: half.model, resume=half.checkpoint)
    assert rest.losses == found.losses


def test_initialisers_look_at_sharded_models(mesh):
    life = ((Germinate("0", 0, "mlp", (("width", 8),), "by the script", init="least_squares"),), *LIFE[1:])
    wanted = fitted(lambda model: model, life)
    found = fitted(lambda model: esper.shard(model, mesh, RULES["fsdp"]), life)
    np.testing.assert_allclose(found.losses, wanted.losses, rtol=1e-3)
    assert any("least_squares" in str(record.figures.get("init")) for record in found.records)


# ---- what it says ---------------------------------------------------------------------------------------


def test_the_table(mesh):
    net = torch.nn.Sequential(*MODELS["mlp"](), torch.nn.Linear(8, 5))
    tensor = tensor_parallel("model", column=["0"], row=["2"])
    rules = [(r"^4\.weight$", P("model")), tensor, fsdp("data", min_elements=16)]
    model = esper.shard(esper.wrap(net, seeds_per_layer=0), mesh, rules)
    wanted = """
mesh data=2 x model=4, inputs split over data
name      shape  spec         rule                          bytes per device
0.bias    32     model        tensor_parallel column        32                fsdp: no dimension left that 2 divides
0.weight  32x8   model, data  tensor_parallel column, fsdp  128
2.bias    16     data         fsdp                          32
2.weight  16x32  data, model  tensor_parallel row, fsdp     256
4.bias    8      whole        -                             32
4.weight  8x16   model        '^4\\\\.weight$'                128
5.bias    5      whole        -                             20
5.weight  5x8    -, data      fsdp                          80
each of 8 devices holds 708 of 3,988 bytes (18%); 1 array(s) fell back
"""
    assert str(esper.explain_sharding(model)) == wanted.strip()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (data_parallel("batch"), "no axis 'batch'; its axes are data, model"),
        ({"weight": P("tensor")}, "no axis 'tensor'"),
        ({r"^7\.": P()}, r"'\^7.*' is found in no name; there are 0\.weight, 0\.bias"),
        ({r"0\.bias": P(None, "data")}, r"0\.bias \[32\] by .*has 2 dimensions, and the array 1"),
        ({r"4\.weight": P(("data", "model"), "model")}, "names 'model' twice"),
        ({"0": P("data"), "weight": P(None, "model", "data")}, r"2 problem\(s\)(.|\n)*2\.weight(.|\n)*4\.weight"),
        ({"(": P()}, "no regular expression"),
        ({"weight": "data"}, "a regular expression and a PartitionSpec"),
        ("fsdp", "rules are a preset"),
        ([3], "rules are a preset"),
    ],
)
def test_rules_that_do_not_fit_are_refused(rules, message, mesh):
    with pytest.raises(ShardingError, match=message):
        esper.shard(wrapped("mlp"), mesh, rules)


def test_a_dimension_that_is_not_divisible_is_named(mesh):
    message = r"weight \[10, 6\] by 'weight': 10 is not divisible by the 4 of 'model'"
    with pytest.raises(ShardingError, match=message):
        esper.shard(esper.wrap(torch.nn.Linear(6, 10)), mesh, {"weight": P("model")})


def test_what_else_is_refused(mesh):
    model = wrapped("mlp")
    with pytest.raises(ShardingError, match="not sharded"):
        esper.explain_sharding(model)
    with pytest.raises(ShardingError, match=r"takes a jax\.sharding\.Mesh"):
        esper.shard(model, jax.devices(), RULES["data"])
    with pytest.raises(ShardingError, match=r"not inside jax\.jit"):
        jax.jit(lambda model: esper.shard(model, mesh, RULES["data"]))(model)
    split = esper.shard(model, mesh, RULES["data"])
    with jax.set_mesh(mesh), pytest.raises(ShardingError, match="Explicit axes"):
        split(jnp.ones((8, 8)))
    automatic = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(automatic):
        x = jax.device_put(jnp.ones((8, 8)), NamedSharding(automatic, P("data")))
        np.testing.assert_allclose(split(x), model(np.ones((8, 8), np.float32)), rtol=1e-5, atol=1e-6)


def test_states_of_seeds_stay_readable(mesh):
    model = esper.shard(wrapped("mlp"), mesh, RULES["data+tensor"])
    model, state = esper.germinate(model, None, layer="2", blueprint="mlp", key=jax.random.key(0))
    model, _, _ = trained(model, "mlp", SGD, stepper(SGD), state)
    assert model.layers["2"].seeds.age.tolist() == [6]
    model = esper.transition(model, layer="2", to=S.CULLED)
    assert model.stats()["seeds"] == {"CULLED": 1, "DORMANT": 2}
