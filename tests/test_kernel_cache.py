"""Trained kernels by content: what an artifact is, and what a cache keeps of them."""

import copy
import dataclasses
import hashlib
import pickle
import struct
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch import nn

from esper.errors import ArgumentError, ArtifactError
from esper.jax_backend.artifact import KernelArtifact, digest_of, verify_digest
from esper.jax_backend.cache import CacheStatistics, KernelCache


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


def test_an_artifact_is_made_of_values():
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
