"""What callers give is checked before anything is written or looked up; part of the contract, as `contract.py` is."""

from datetime import UTC, datetime
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from library.places import artifact

from esper.errors import ArgumentError
from esper.library import Measured, Origin

NAN, INF = float("nan"), float("inf")
HALF, NUL = "\ud800", "a\0b"


@pytest.mark.parametrize(
    "about",
    [
        {"tags": ["two words"]}, {"tags": [""]}, {"tags": "ab"}, {"tags": ["x" * 101]}, {"tags": [HALF]},
        {"tags": [NUL]}, {"tags": None}, {"tags": 5}, {"tags": [["a"]]}, {"tags": ["a", 5]}, {"lifecycle": "old"},
        {"lifecycle": ["candidate"]}, {"parent": "sha256:12"}, {"parent": None}, {"run": "a\nb"}, {"run": HALF},
        {"run": NUL}, {"model": 5}, {"data": "x" * 501}, {"flops": 2**70}, {"flops": -3}, {"flops": 1.5},
        {"flops": True}, {"flops": np.float32(3)}, {"key": NAN}, {"key": "a"}, {"key": True}, {"key": 10**400},
        {"gain": 0.5}, {"gain": SimpleNamespace(mean=NAN, stderr=0.1, batches=3)},
        {"gain": SimpleNamespace(mean=0.1, stderr="x", batches=3)},
        {"gain": SimpleNamespace(mean=0.1, stderr=0.1, batches=2.5)}, {"gain": Measured(0.1, None, 2), "flops": "x"},
    ],
    ids=ascii,
)  # fmt: skip
def test_what_is_told_of_a_kernel_is_checked(library, about):
    with pytest.raises(ArgumentError):
        library.put(artifact(), **about)
    assert library.find() == [] and library.verify().orphans == ()


@pytest.mark.parametrize(
    "about",
    [
        {"kind": HALF}, {"kind": NUL}, {"blueprint": HALF}, {"blend": NUL}, {"attributes": ((HALF, 1),)},
        {"attributes": ((NUL, 1),)},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_kernel_that_no_catalogue_can_name_is_refused_before_it_is_written(library, about):
    with pytest.raises(ArgumentError, match="without NUL"):
        library.put(artifact(**about))
    assert library.find() == [] and library.verify().orphans == ()
    with pytest.raises(ArgumentError, match="a KernelArtifact is put into a library"):
        library.put("a kernel")


def test_numbers_of_numpy_and_jax_are_taken_as_numbers(library):
    measured = Measured(np.float32(0.5), jnp.float32(0.25), np.int64(4))
    assert measured == Measured(0.5, 0.25, 4)
    assert [type(value) for value in (measured.mean, measured.stderr, measured.n)] == [float, float, int]
    digest = library.put(artifact(), gain=measured, flops=np.int64(5), key=jnp.uint32(7))
    other = library.put(artifact(1), gain=SimpleNamespace(mean=jnp.float32(0.25), stderr=NAN, batches=np.int8(1)))
    assert (library.entry(digest).gain, library.entry(digest).flops) == (measured, 5)
    assert library.origins(digest)[0].key == 7 and library.entry(other).gain == Measured(0.25, None, 1)
    library.validate(digest, Measured(0.5, 0.25, 2**63 - 1))
    assert library.entry(digest).gain.n == 2**63 - 1 and library.verify().problems == ()


@pytest.mark.parametrize(
    ("gain", "field"),
    [
        ((NAN, 0.1, 3), "mean"), ((10**400, 0.1, 3), "mean"), ((INF, 0.1, 3), "mean"), (("0.1", 0.1, 3), "mean"),
        ((True, 0.1, 3), "mean"), ((np.array([0.1]), 0.1, 3), "mean"), ((None, 0.1, 3), "mean"),
        ((np.bool_(True), 0.1, 3), "mean"),
        ((1.0, -1.0, 3), "stderr"), ((1.0, INF, 3), "stderr"), ((1.0, NAN, 3), "stderr"), ((1.0, "a", 3), "stderr"),
        ((1.0, 0.1, 0), "n"), ((1.0, 0.1, 2.0), "n"), ((1.0, 0.1, NAN), "n"), ((1.0, 0.1, True), "n"),
        ((1.0, 0.1, 2**63), "n"), ((1.0, 0.1, "3"), "n"), ((1.0, 0.1, None), "n"),
    ],
    ids=str,
)  # fmt: skip
def test_a_gain_is_of_numbers(gain, field):
    with pytest.raises(ArgumentError, match=f"the {field} of a gain"):
        Measured(*gain)


def test_what_python_does_not_write_out_is_refused_by_its_type():
    with pytest.raises(ArgumentError, match="not something of int"):
        Measured(0.1, 0.1, 10**5000)


@pytest.mark.parametrize("time", [datetime(2026, 1, 1), datetime.max.replace(tzinfo=UTC), "2026-01-01", 5], ids=str)
def test_a_time_is_a_moment(time):
    with pytest.raises(ArgumentError, match="a moment with a zone"):
        Origin(run="r", time=time)


@pytest.mark.parametrize("reason", [None, 5, HALF, NUL], ids=ascii)
def test_a_kernel_is_retired_for_a_reason(library, reason):
    digest = library.put(artifact(1))
    with pytest.raises(ArgumentError, match="the reason for which a kernel is retired is text"):
        library.retire(digest, reason)
    assert library.entry(digest).lifecycle == "candidate"


UNFINDABLE = [
    {"order_by": "beauty"}, {"order_by": ["gain"]}, {"limit": 0}, {"limit": True}, {"limit": "5"}, {"lifecycle": "x"},
    {"lifecycle": ["candidate"]}, {"max_parameters": "x"}, {"max_parameters": 1 << 80}, {"max_parameters": 1.5},
    {"max_parameters": -1}, {"min_gain": "abc"}, {"min_gain": "0.1"}, {"min_gain": NAN}, {"min_gain": True},
    {"kind": 5}, {"kind": ["Linear"]}, {"kind": HALF}, {"blueprint": NUL}, {"dtype": np.float32}, {"run": 5},
    {"run": HALF}, {"run": NUL}, {"tag": 5}, {"tag": HALF}, {"attributes": [1]}, {"attributes": {1: 2}},
    {"attributes": {"in_features": NAN}}, {"attributes": {"in_features": object}}, {"attributes": {HALF: 1}},
    {"attributes": {"in_features": NUL}}, {"attributes": {"in_features": 1 << 80}},
]  # fmt: skip


@pytest.mark.parametrize("wanted", UNFINDABLE, ids=ascii)
def test_find_refuses_what_makes_no_sense(library, wanted):
    with pytest.raises(ArgumentError):
        library.find(**wanted)


@pytest.mark.parametrize(
    "wanted",
    [
        {"attributes": {"in_features": np.int64(3)}}, {"attributes": {"in_features": jnp.int32(3)}},
        {"max_parameters": np.int32(13)}, {"min_gain": np.float32(0.1)}, {"min_gain": jnp.float32(0.1)},
        {"min_gain": 0}, {"min_gain": -INF}, {"limit": np.int64(5)}, {"max_parameters": 2**63 - 1},
    ],
    ids=str,
)  # fmt: skip
def test_find_takes_numbers_of_numpy_and_jax(library, wanted):
    digest = library.put(artifact(1), gain=Measured(0.2, 0.01, 4))
    assert [entry.digest for entry in library.find(**wanted)] == [digest]


def test_attributes_are_found_by_the_values_that_they_have(library):
    values = {"flag": True, "pair": (1, 2), "name": "same", "scale": 0.5, "none": None}
    digest = library.put(artifact(1, attributes=tuple(values.items())))
    given = {**values, "flag": np.bool_(True), "pair": [np.int64(1), 2], "scale": np.float64(0.5)}
    for wanted in (values, given):
        assert [entry.digest for entry in library.find(attributes=wanted)] == [digest]
    assert library.find(attributes={"flag": 1}) == []
