"""Trained kernels by content: what an artifact is, what a cache keeps, kernels out of a seed and into another."""

import copy
import dataclasses
import hashlib
import pickle
import struct
import threading
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
    ArgumentError,
    ArtifactError,
    IllegalTransitionError,
    SeedError,
    UnknownBlueprintError,
    UnknownLayerError,
)
from esper.growth.optimizer import per_kernel
from esper.jax_backend.artifact import KernelArtifact, artifact_of, digest_of, verify_digest
from esper.jax_backend.cache import CacheStatistics, KernelCache
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


def made(**changes):
    """An artifact of a few numbers, or one that differs from it."""
    fields = {
        "blueprint": "mlp",
        "options": (("activation", "GELU"), ("hidden", 4)),
        "blend": "add",
        "placement": "parallel",
        "kind": "Linear",
        "attributes": (("in_features", 3), ("out_features", 5)),
        "dtype": "float32",
        "module": "Linear()",
        "params": {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros((), jnp.int8)},
    }
    return KernelArtifact(**{**fields, **changes})


def sized(size, content=0):
    """An artifact of that many bytes."""
    return made(params={"a": jnp.full(size, content, jnp.uint8)})


# ---- what an artifact is ----------------------------------------------------------------------------------------

A, B = jnp.arange(6.0).reshape(2, 3), jnp.zeros((), jnp.int8)
OTHERS = {
    "blueprint": {"blueprint": "low_rank"},
    "an option's value": {"options": (("activation", "GELU"), ("hidden", 5))},
    "an option's type": {"options": (("activation", "GELU"), ("hidden", 4.0))},
    "an option less": {"options": (("hidden", 4),)},
    "blend": {"blend": "lerp"},
    "placement": {"placement": "sequential"},
    "kind": {"kind": "Conv1d"},
    "an attribute": {"attributes": (("in_features", 3), ("out_features", 6))},
    "the layer's dtype": {"dtype": "float64"},
    "what was built": {"module": "Linear(bias)"},
    "the last bit of a value": {"params": {"a": jnp.nextafter(A, jnp.inf), "b": B}},
    "the sign of a zero": {"params": {"a": A.at[0, 0].set(-0.0), "b": B}},
    "a shape": {"params": {"a": A.T.reshape(3, 2), "b": B}},
    "a rank": {"params": {"a": A, "b": B.reshape(1)}},
    "a dtype": {"params": {"a": A, "b": B.astype(jnp.uint8)}},
    "a name": {"params": {"a": A, "c": B}},
    "names exchanged": {"params": {"b": A, "a": B}},
    "a parameter less": {"params": {"a": A}},
    "an empty parameter more": {"params": {"a": A, "b": B, "c": jnp.zeros((0, 2))}},
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_digest_shows_every_difference(what):
    other = made(**OTHERS[what])
    assert other.digest != made().digest
    assert other != made()


def test_equal_content_has_one_digest_whoever_made_it():
    reordered = made(
        options=(("hidden", 4), ("activation", "GELU")), params={"b": jnp.zeros((), jnp.int8), "a": jnp.array(A)}
    )
    assert reordered.digest == made().digest
    assert len({reordered, made()}) == 1


def test_the_encoding_is_a_format_that_stored_artifacts_rely_on():
    header = (
        b'{"attributes":{"in_features":3,"out_features":5},"blend":"add","blueprint":"mlp","dtype":"float32",'
        b'"kind":"Linear","module":"Linear()","options":{"activation":"GELU","hidden":4},'
        b'"params":{"a":["float32",[2,3]],"b":["int8",[]]},"placement":"parallel","schema":"esper.kernel/1"}'
    )
    content = struct.pack("<Q", len(header)) + header + struct.pack("<6fb", 0, 1, 2, 3, 4, 5, 0)
    assert made().digest == f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.mark.parametrize("dtype", [jnp.bool, jnp.bfloat16, jnp.float8_e4m3fn, jnp.float16, jnp.int32, jnp.complex64])
def test_bytes_are_counted_and_hashed_in_any_dtype(dtype):
    array = jnp.zeros((3, 5), dtype)
    artifact = made(params={"a": array, "b": B})
    assert artifact.nbytes == 15 * np.dtype(dtype).itemsize + 1
    assert artifact.digest != made(params={"a": array.at[2, 4].set(jnp.ones((), dtype)), "b": B}).digest


def test_an_artifact_is_plain_data_and_can_be_copied():
    for copied in (copy.deepcopy(made()), pickle.loads(pickle.dumps(made()))):
        assert copied == made()
        verify_digest(copied)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().blend = "lerp"


def test_the_digest_is_verified():
    artifact = made()
    verify_digest(artifact)
    verify_digest(artifact, made().digest)
    assert digest_of(artifact) == artifact.digest
    assert artifact.kernel_id == int(artifact.digest[7:15], 16)
    with pytest.raises(ArtifactError, match=f"{artifact.digest}, and {sized(1).digest} was expected"):
        verify_digest(artifact, sized(1).digest)
    artifact.params["a"] = artifact.params["a"].at[0, 0].set(1.0)
    with pytest.raises(ArtifactError, match="changed or damaged"):
        verify_digest(artifact)


def deleted(array):
    array = jnp.array(array)
    array.delete()
    return array


@pytest.mark.parametrize(("changes", "message"), [
    ({"options": (("activation", nn.GELU),)}, "'mlp': its options .*GELU.* cannot be written down"),
    ({"options": (("scale", float("nan")),)}, "cannot be written down"),
    ({"params": {"a": np.zeros(3)}}, "parameter 'a' is a ndarray; give a JAX array"),
    ({"params": {"a": deleted(A)}}, "parameter 'a' has been deleted by a step"),
])  # fmt: skip
def test_what_cannot_be_an_artifact_says_why(changes, message):
    with pytest.raises(ArtifactError, match=message):
        made(**changes)


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
    with pytest.raises(ArtifactError, match=r"parameter 'a' is abstract; .* not inside jax\.jit"):
        jax.eval_shape(lambda array: made(params={"a": array}).params, A)


# ---- what a cache keeps -----------------------------------------------------------------------------------------


def test_the_least_recently_used_leave_first_and_bytes_are_exact():
    held = [sized(size) for size in (10, 20, 30, 40)]
    ten, twenty, thirty, forty = (artifact.digest for artifact in held)
    kept = KernelCache(60)
    assert all(kept.put(artifact) for artifact in held[:3])
    assert kept.statistics() == CacheStatistics(0, 0, 0, 0, entries=3, bytes=60, budget=60)
    assert kept.get(ten) is held[0]
    assert kept.digests() == (twenty, thirty, ten)
    assert kept.put(held[0])
    assert kept.statistics().bytes == 60, "put twice, counted once"
    assert twenty in kept
    assert kept.digests()[0] == twenty, "asking whether it is there is no use of it"
    assert kept.put(held[3])
    assert kept.digests() == (ten, forty)
    assert kept.get(twenty) is None
    assert kept.statistics() == CacheStatistics(1, 1, 2, 0, entries=2, bytes=50, budget=60)
    kept.clear()
    assert kept.statistics() == CacheStatistics(1, 1, 2, 0, entries=0, bytes=0, budget=60)


def test_what_is_larger_than_the_budget_is_not_kept_and_pushes_nothing_out():
    kept = KernelCache(20)
    kept.put(sized(20))
    assert not kept.put(sized(21))
    assert kept.digests() == (sized(20).digest,)
    assert kept.statistics() == CacheStatistics(0, 0, 0, refusals=1, entries=1, bytes=20, budget=20)
    nothing = KernelCache(0)
    assert not nothing.put(sized(0))
    assert len(nothing) == 0
    with pytest.raises(ArgumentError, match="at least 0 bytes, not -1"):
        KernelCache(-1)


def test_an_artifact_whose_arrays_were_donated_is_not_there():
    kept, artifact = KernelCache(20), sized(8)
    kept.put(artifact)
    artifact.params["a"].delete()
    assert kept.get(artifact.digest) is None
    assert kept.statistics() == CacheStatistics(0, 1, 0, 0, entries=0, bytes=0, budget=20)


def test_threads_leave_the_accounting_exact():
    kept, artifacts = KernelCache(100), [sized(10 + size, size) for size in range(24)]
    looked_up, overfull = [0] * 8, []

    def hammer(thread):
        draw = np.random.default_rng(thread)
        for place in draw.integers(len(artifacts), size=400):
            if draw.random() < 0.5:
                kept.put(artifacts[place])
            else:
                looked_up[thread] += 1
                assert kept.get(artifacts[place].digest) in (None, artifacts[place])
            overfull.extend([kept.statistics()] if kept.statistics().bytes > 100 else [])

    threads = [threading.Thread(target=hammer, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, sizes = kept.statistics(), {artifact.digest: artifact.nbytes for artifact in artifacts}
    assert found.hits + found.misses == sum(looked_up)
    assert found.hits > 0
    assert found.evictions > 0
    assert found.bytes == sum(sizes[digest] for digest in kept.digests())
    assert found.entries == len(set(kept.digests()))
    assert not overfull


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
    "parallel": (host, "0", {"blueprint": "mlp", "options": {"width": 3}}, {}),
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
    found = jax.grad(lambda params: jnp.sum(model.replace(params=params)(X) ** 2))(model.params)
    was = awake(donor())
    wanted = jax.grad(lambda params: jnp.sum(was.replace(params=params)(X) ** 2))(was.params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert jnp.any(a != 0)


def test_a_loaded_kernel_leaves_by_unwrap():
    model = awake(wrapped().load_kernel("0", 0, artifact_of(donor(), layer="0")), alpha=1.0)
    module = esper.unwrap(model, probe=torch.tensor(np.array(X)))
    assert module.esper_certificate["max_abs"] < 1e-6
    np.testing.assert_allclose(module(torch.tensor(np.array(X))).detach().numpy(), model(X), rtol=1e-5, atol=1e-6)


# ---- the optimiser's state ---------------------------------------------------------------------------------------

ADAM = optax.adamw(1e-2)


@pytest.mark.parametrize(("tx", "given"), [
    (per_kernel(ADAM), {}),
    (ADAM, {}),
    (optax.chain(optax.ema(0.9), optax.adafactor(1e-2)), {"tx"}),
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
    (lambda a: with_param(a, "9.weight", A), "it has a parameter 9.weight, and the recipe has none"),
    (lambda a: with_param(a, "0.weight", A), r"0.weight is float32\[2, 3\], and the recipe's here is"),
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
