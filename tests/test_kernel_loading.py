"""Trained kernels out of a seed and into another: what they do there, what follows them, what is refused."""

import copy
import dataclasses
import pickle
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import esper
from esper.errors import (
    ArtifactError,
    IllegalTransitionError,
    OptimizerStateError,
    SeedError,
    UnknownBlueprintError,
    UnknownLayerError,
)
from esper.growth.optimizer import per_kernel
from esper.jax_backend.artifact import artifact_of, verify_digest
from esper.jax_backend.cache import KernelCache
from esper.lifecycle import SeedLifecycleState as State

KEY = jax.random.key(5)
X = jnp.cos(jnp.arange(12.0)).reshape(4, 3)


def host(*, seed=0, inputs=3, hidden=5, activation=nn.Tanh):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, 2))


def wrapped(module=None, **options):
    return esper.wrap(module or host(), **{"seeds_per_layer": 2, **options})


def trained(model, layer="0", seed=0, blueprint="mlp", state=None, **options):
    """The model with a kernel whose every parameter is other than at birth."""
    grown, _ = esper.germinate(model, None, layer=layer, seed=seed, blueprint=blueprint, key=KEY, **options)
    arrays = grown.params["kernels"][layer][seed]
    arrays = {
        name: array + 0.3 * jnp.sin(1.0 + jnp.arange(array.size)).reshape(array.shape) for name, array in arrays.items()
    }
    held = {**grown.params["kernels"], layer: {**grown.params["kernels"][layer], seed: arrays}}
    grown = grown.replace(params={**grown.params, "kernels": held})
    return esper.transition(grown, layer=layer, seed=seed, to=state) if state else grown


def awake(model, layer="0", seed=0, alpha=0.75):
    """A GRAFTING kernel at work."""
    return esper.set_alpha(model, layer=layer, seed=seed, alpha=alpha)


@cache
def donor():
    return trained(wrapped(), state=State.GRAFTING)


# ---- the artifact of a kernel in a model --------------------------------------------------------------------------


def test_an_artifact_shares_the_models_arrays():
    model = donor()
    artifact = artifact_of(model, layer="0")
    assert artifact.params.keys() == model.params["kernels"]["0"][0].keys()
    assert all(artifact.params[name] is array for name, array in model.params["kernels"]["0"][0].items())
    assert (artifact.blueprint, artifact.kind, artifact.dtype) == ("mlp", "Linear", "float32")
    assert dict(artifact.attributes) == {"in_features": 3, "out_features": 5}
    assert artifact.nbytes == sum(array.nbytes for array in model.params["kernels"]["0"][0].values())


def test_an_artifact_is_made_between_steps():
    verbs = (lambda model: artifact_of(model, layer="0").params, lambda model: model.unload_kernel("0", 0))
    for verb in verbs:
        with pytest.raises(SeedError, match=r"not inside jax\.jit"):
            jax.eval_shape(verb, donor())


# ---- the model's cache ------------------------------------------------------------------------------------------


def test_one_cache_for_a_wrapped_model_and_all_that_it_becomes():
    model = wrapped(cache_size_mb=3)
    grown = trained(model)
    assert grown.structure.cache is model.structure.cache
    assert wrapped().structure.cache is not model.structure.cache
    assert grown.shadow().structure.cache is model.structure.cache
    emptied = grown.unload_kernel("0", 0)
    stats = emptied.stats()
    assert stats["cache_size_mb"] == 3
    assert stats["kernel_cache"] == {
        "hits": 0, "misses": 0, "evictions": 0, "refusals": 0, "entries": 1,
        "bytes": artifact_of(grown, layer="0").nbytes, "budget": 3 << 20,
    }  # fmt: skip


def test_a_cache_is_no_part_of_what_a_structure_is():
    structure = wrapped().structure
    other = dataclasses.replace(structure, cache=KernelCache(0))
    assert other == structure
    assert hash(other) == hash(structure)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_has_a_cache_of_its_own(copied):
    model = trained(wrapped()).unload_kernel("0", 0)
    other = copied(model)
    assert other.structure.cache.digests() == model.structure.cache.digests()
    other.structure.cache.clear()
    assert len(model.structure.cache) == 1


def test_culled_kernels_are_not_kept():
    emptied, _ = esper.cull(trained(wrapped()), None, layer="0")
    assert emptied.stats()["kernel_cache"]["entries"] == 0


# ---- out of a seed and into another -----------------------------------------------------------------------------


def same(left, right):
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(jax.tree.leaves, (left, right)), strict=True))


class Block(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(3, 5), activation(), nn.Linear(5, 3)), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.block(x))


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x):
        return self.conv(x.reshape(-1, 3, 2, 2).repeat(1, 1, 2, 2)).flatten(1)


TRIPS = {
    "sequential": (host, "0", {"blueprint": "scale_shift"}, {}),
    "gate": (host, "2", {"blueprint": "low_rank", "blend": "gate"}, {}),
    "lerp": (host, "0", {"blueprint": "low_rank", "blend": "lerp"}, {}),
    "conv": (Image, "conv", {"blueprint": "conv"}, {}),
    "copied from the host": (lambda: Block(nn.Tanh), "block", {"blueprint": "copy"}, {"target_layers": ["block"]}),
    "made after the host": (lambda: Block(nn.Tanh), "block", {"blueprint": "widen"}, {"target_layers": ["block"]}),
}


@pytest.mark.parametrize("name", TRIPS)
def test_a_kernel_does_elsewhere_what_it_did_where_it_was_trained(name):
    build, layer, options, targets = TRIPS[name]
    torch.manual_seed(1)
    module = build()
    model = wrapped(module, **targets)
    model(X)
    grown = trained(model, layer, 1, state=State.GRAFTING, **options)
    wanted = awake(grown, layer, 1)(X)
    emptied, _, artifact = esper.unload_kernel(grown, None, layer=layer, seed=1)
    assert same(emptied(X), model(X))
    assert emptied.layers[layer].seeds.lifecycle[1] == State.CULLED
    assert emptied.layers[layer].seeds.kernel_id[1] == 0
    assert emptied.structure.cache.get(artifact.digest) is artifact
    other = wrapped(module, **targets)
    other(X)
    held, nothing = esper.load_kernel(other, None, layer=layer, artifact=artifact)
    assert nothing is None
    assert same(held(X), model(X)), "a kernel that has just arrived has alpha 0"
    np.testing.assert_allclose(awake(held, layer)(X), wanted, rtol=1e-6, atol=1e-6)
    assert not np.allclose(wanted, model(X), atol=1e-3)
    assert artifact_of(held, layer=layer) == artifact, "a round trip changes no bit"


def test_a_loaded_kernel_starts_grafting_from_nothing():
    model = wrapped()
    older = model.replace(seeds=model.seeds.set(0, 0, age=7, error_count=2, health=1.0, alpha=0.5, target=0.0))
    artifact = artifact_of(donor(), layer="0")
    held = older.load_kernel("0", 0, artifact)
    found = {name: getattr(held.layers["0"].seeds, name)[0].item() for name in vars(held.seeds)}
    assert np.isnan(found.pop("health"))
    assert found == {
        "lifecycle": State.GRAFTING, "alpha": 0.0, "kernel_id": artifact.kernel_id, "age": 0, "last_update": 0,
        "error_count": 0, "origin": 0.0, "target": 1.0,
    }  # fmt: skip
    assert same(jax.tree.map(lambda leaf: leaf[:, 1], held.seeds), jax.tree.map(lambda leaf: leaf[:, 1], older.seeds))
    assert all(
        a.dtype == b.dtype and not a.weak_type for a, b in zip(*map(jax.tree.leaves, (held, donor())), strict=True)
    )


def test_a_kernel_comes_back_to_its_own_seed_by_its_digest():
    emptied, _, artifact = esper.unload_kernel(donor(), None, layer="0")
    free = esper.transition(emptied, layer="0", to=State.DORMANT)
    before = free.structure.cache.statistics()
    again, _ = esper.load_kernel(free, None, layer="0", artifact=artifact.digest)
    after = free.structure.cache.statistics()
    assert (after.hits, after.misses, after.entries) == (before.hits + 1, before.misses, before.entries)
    assert again.structure == donor().structure
    assert same(again.params, donor().params)


def test_a_seed_announced_as_loading_takes_a_kernel():
    announced = esper.transition(wrapped(), layer="0", to=State.LOADING)
    assert announced.load_kernel("0", 0, artifact_of(donor(), layer="0")).structure.kernels


def test_the_cache_counts_kernels_that_come_and_come_again():
    model, artifact = wrapped(), artifact_of(donor(), layer="0")
    model.load_kernel("0", 0, artifact).load_kernel("0", 1, artifact)
    model.load_kernel("0", 1, artifact.digest)
    found = model.structure.cache.statistics()
    assert (found.hits, found.misses, found.entries, found.bytes) == (2, 1, 1, artifact.nbytes)


def test_a_step_that_is_given_the_models_arrays_leaves_the_cache_whole():
    model, _ = esper.load_kernel(wrapped(), None, layer="0", artifact=artifact_of(donor(), layer="0"))
    artifact = artifact_of(donor(), layer="0")
    jax.tree.map(lambda leaf: leaf.delete(), model.params["kernels"])
    assert model.structure.cache.get(artifact.digest) == artifact
    verify_digest(model.structure.cache.get(artifact.digest))


def test_gradients_reach_a_loaded_kernel_and_the_host():
    model = awake(wrapped().load_kernel("0", 1, artifact_of(donor(), layer="0")), seed=1)
    gradients = jax.jit(lambda model: jax.grad(lambda p: jnp.sum(model.replace(params=p)(X) ** 2))(model.params))
    found, wanted = gradients(model), gradients(awake(donor()))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert jnp.any(a != 0)


def test_a_loaded_kernel_leaves_by_unwrap():
    model = awake(wrapped().load_kernel("0", 0, artifact_of(donor(), layer="0")), alpha=1.0)
    module = esper.unwrap(model, probe=torch.tensor(np.array(X)))
    assert module.esper_certificate["max_abs"] < 1e-6
    np.testing.assert_allclose(module(torch.tensor(np.array(X))).detach().numpy(), model(X), rtol=1e-5, atol=1e-6)


# ---- the optimiser's state ---------------------------------------------------------------------------------------

ADAM, RMS = optax.adamw(1e-2), optax.rmsprop(1e-2, initial_scale=0.5)


@pytest.mark.parametrize(("tx", "given"), [
    (per_kernel(ADAM), {}),
    (ADAM, {}),
    (RMS, {"tx"}),
], ids=["per_kernel", "adamw", "by its transformation"])  # fmt: skip
def test_the_optimisers_state_follows(tx, given):
    options = {"tx": tx} if given else {}
    model = trained(wrapped(), "2", 1, "low_rank")
    opt_state = tx.init(model.params)
    grads = jax.tree.map(jnp.ones_like, model.params)
    updates, opt_state = tx.update(grads, opt_state, model.params)
    model = model.replace(params=optax.apply_updates(model.params, updates))
    held, held_state = esper.load_kernel(
        model, opt_state, layer="0", artifact=artifact_of(donor(), layer="0"), **options
    )
    assert jax.tree.structure(held_state) == jax.tree.structure(tx.init(held.params))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, held.params), held_state, held.params)
    assert jax.tree.structure(updates) == jax.tree.structure(held.params)
    emptied, emptied_state, artifact = esper.unload_kernel(held, held_state, layer="0", **options)
    assert artifact == artifact_of(donor(), layer="0")
    assert same(emptied.params, model.params)
    assert same(emptied_state, opt_state)


def test_a_state_that_does_not_show_how_a_kernel_starts_needs_its_tx():
    model = wrapped()
    with pytest.raises(OptimizerStateError, match="ScaleByRmsState"):
        esper.load_kernel(model, RMS.init(model.params), layer="0", artifact=artifact_of(donor(), layer="0"))


# ---- compiles ----------------------------------------------------------------------------------------------------


def test_a_model_with_a_loaded_kernel_compiles_once_and_equal_models_share_the_program():
    step = jax.jit(lambda model, x: jax.grad(lambda p: jnp.sum(model.replace(params=p)(x) ** 2))(model.params))
    model, artifact = wrapped(), artifact_of(donor(), layer="0")
    first = model.load_kernel("0", 0, artifact)
    step(first, X)
    step(awake(first), X)
    moved = first.unload_kernel("0", 0)
    step(esper.transition(moved, layer="0", to=State.DORMANT).load_kernel("0", 0, artifact.digest), X)
    doubled = dataclasses.replace(artifact, params=jax.tree.map(lambda leaf: 2 * leaf, artifact.params))
    step(model.load_kernel("0", 0, doubled), X)
    assert step._cache_size() == 1


# ---- refusals ----------------------------------------------------------------------------------------------------


@cache
def refused():
    return wrapped(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3), nn.LayerNorm(3)), target_layers=["*"])


def other_dtype():
    torch.manual_seed(0)
    return wrapped(host().to(torch.bfloat16))


def without(artifact, name):
    return dataclasses.replace(artifact, params={n: a for n, a in artifact.params.items() if n != name})


def with_param(artifact, name, array):
    return dataclasses.replace(artifact, params={**artifact.params, name: array})


MISFITS = {
    "kind": (refused, "3", {}, "built for a Linear, and the layer is a LayerNorm"),
    "shape": (refused, "2", {}, "in_features 3, and the layer has 5; .*out_features 5, and the layer has 3"),
    "dtype of the layer": (other_dtype, "0", {}, "built for float32, and the layer has bfloat16"),
    "placement": (wrapped, "0", {"placement": "sequential"}, "it was sequential, and the recipe is parallel"),
    "blend": (wrapped, "0", {"blend": "xor"}, "there is no blend 'xor'"),
    "recipe": (wrapped, "0", {"module": "Linear()"}, r"the recipe built Linear\(\) then, and Sequential"),
    "option": (wrapped, "0", {"options": (("width", 7),)}, r"its 0.weight is float32\[32, 3\], .* float32\[7, 3\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_a_kernel_that_does_not_fit_is_refused_with_the_reason(name):
    build, layer, changes, message = MISFITS[name]
    model, artifact = build(), dataclasses.replace(artifact_of(donor(), layer="0"), **changes)
    with pytest.raises(ArtifactError, match=f"layer '{layer}', seed 0: .*{message}"):
        model.load_kernel(layer, 0, artifact)
    assert artifact.digest not in model.structure.cache


@pytest.mark.parametrize(("change", "message"), [
    (lambda a: without(a, "0.weight"), "has a parameter 0.weight here, and it has none"),
    (lambda a: with_param(a, "9.weight", X), "it has a parameter 9.weight, and the recipe has none"),
    (lambda a: with_param(a, "0.weight", X), r"0.weight is float32\[4, 3\], and the recipe's here is"),
    (lambda a: with_param(a, "0.weight", a.params["0.weight"].astype(jnp.bfloat16)), r"0.weight is bfloat16\["),
])  # fmt: skip
def test_parameters_are_checked_by_name_shape_and_dtype(change, message):
    with pytest.raises(ArtifactError, match=message):
        wrapped().load_kernel("0", 0, change(artifact_of(donor(), layer="0")))


def test_a_recipe_that_read_another_layer_is_refused():
    models = [
        wrapped(Block(act), target_layers=["block"], example_inputs=torch.ones(2, 3)) for act in (nn.Tanh, nn.ReLU)
    ]
    artifact = artifact_of(trained(models[0], "block", blueprint="widen"), layer="block")
    with pytest.raises(ArtifactError, match=r"(?s)the recipe built .*Tanh\(\).* then, and .*ReLU\(\).* here"):
        models[1].load_kernel("block", 0, artifact)


def test_an_unknown_kernel_is_refused():
    model, artifact = wrapped(), artifact_of(donor(), layer="0")
    with pytest.raises(
        ArtifactError, match=f"layer '0', seed 0: {artifact.digest} is not in the model's cache, which holds nothing"
    ):
        model.load_kernel("0", 0, artifact.digest)
    with pytest.raises(ArtifactError, match="a int is neither a KernelArtifact nor the digest of one"):
        model.load_kernel("0", 0, 7)
    with pytest.raises(UnknownBlueprintError, match="no blueprint 'mpl'"):
        model.load_kernel("0", 0, dataclasses.replace(artifact, blueprint="mpl"))
    with pytest.raises(UnknownLayerError, match="'9'"):
        model.load_kernel("9", 0, artifact)
    with pytest.raises(SeedError, match="has seeds 0 to 1, not 2"):
        model.load_kernel("0", 2, artifact)


def test_an_occupied_seed_takes_no_kernel():
    artifact = artifact_of(donor(), layer="0")
    for state in (None, State.GRAFTING, State.CULLED):
        with pytest.raises(IllegalTransitionError, match="layer '0', seed 0: a seed cannot go from"):
            trained(wrapped(), state=state).load_kernel("0", 0, artifact)


def test_a_kernel_leaves_only_a_seed_that_may_let_it_go():
    permanent = esper.transition(esper.transition(donor(), layer="0", to=State.ACTIVE), layer="0", to=State.FOSSILIZED)
    with pytest.raises(IllegalTransitionError, match=r"cannot go from FOSSILIZED to CULLED.*terminal"):
        permanent.unload_kernel("0", 0)
    with pytest.raises(IllegalTransitionError, match="cannot go from DORMANT to CULLED"):
        donor().unload_kernel("0", 1)
    off = esper.transition(trained(wrapped()), layer="0", to=State.CULLED)
    emptied = off.unload_kernel("0", 0)
    assert emptied.structure.kernels == ()
    with pytest.raises(SeedError, match="holds no kernel to take out"):
        emptied.unload_kernel("0", 0)


def test_a_kernel_that_the_cache_has_no_room_for_is_not_lost():
    model = trained(wrapped(cache_size_mb=0))
    with pytest.raises(ArtifactError, match=r"its kernel takes \d+ bytes, and the model's cache keeps at most 0"):
        model.unload_kernel("0", 0)
    emptied, _, artifact = esper.unload_kernel(model, None, layer="0")
    assert emptied.stats()["kernel_cache"]["refusals"] == 1
    free = esper.transition(emptied, layer="0", to=State.DORMANT)
    assert free.load_kernel("0", 0, artifact).structure.kernels
    assert free.stats()["kernel_cache"]["entries"] == 0
