"""What every library does, whatever it keeps its catalogue and its artifacts in.

Modules that import these tests give them a fixture `opened`, which opens the library under test once more.
"""

import copy
import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import jax
import numpy as np
import pytest
import sqlalchemy as sa
from library.places import X, artifact, donor, host, wrapped

import esper
from esper.errors import ArgumentError, ArtifactError, LibraryError, SeedError, UnknownLayerError
from esper.jax_backend.artifact import artifact_of
from esper.library import Measured, Origin, open_library
from esper.library.publishing import fingerprint, with_programs
from esper.library.schema import attributes, kernels, tags
from esper.lifecycle import SeedLifecycleState as State

NOW = timedelta(0)
GAIN = Measured(0.2, 0.05, 8)


def rows(library, table=kernels):
    with library._catalogue.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


# ---- put and get --------------------------------------------------------------------------------------------------


def test_what_is_put_in_comes_back_bit_for_bit(library, opened):
    given = artifact(1)
    digest = library.put(given)
    assert digest == given.digest
    for found in (library.get(digest), opened().get(digest), library.get(digest[:20]), library.get(digest[7:])):
        assert found == given and found.recipe == given.recipe
        assert all(np.array_equal(found.params[name], array) for name, array in given.params.items())
        assert found.options == given.options and found.attributes == given.attributes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "bool", "uint32", "complex64"])
def test_parameters_of_every_dtype_and_of_none(library, dtype):
    array = jax.numpy.asarray(np.arange(6).reshape(2, 3), dtype)
    given = artifact(params={"a": array, "empty": array[:0], "one": array[0, 0]})
    found = library.get(library.put(given))
    assert found == given and {name: a.dtype for name, a in found.params.items()} == {n: dtype for n in given.params}


def test_an_entry_says_all_that_is_known(library):
    before = datetime.now(UTC)
    about = dict(run="r1", model="m", data="mnist", revision="abc", key=7, parent=artifact(9).digest)
    digest = library.put(artifact(1), gain=GAIN, flops=24, tags=["b", "a", "a"], **about)
    entry = library.entry(digest)
    assert (entry.digest, entry.blueprint, entry.kind, entry.dtype) == (digest, "mlp", "Linear", "float32")
    assert dict(entry.attributes) == {"in_features": 3, "out_features": 5} and entry.options == (("width", 4),)
    assert entry.shapes == (("scale", "float32", ()), ("up", "float32", (4, 3)))
    assert (entry.parameters, entry.bytes, entry.flops) == (13, 52, 24)
    assert (entry.gain, entry.tags, entry.lifecycle, entry.carried) == (GAIN, ("a", "b"), "candidate", False)
    assert before <= entry.created <= entry.updated <= datetime.now(UTC) and entry.created.tzinfo is UTC
    (origin,) = library.origins(digest)
    assert origin == Origin(**about, gain=GAIN) and origin.time.tzinfo is UTC
    assert library.find() == [entry]


def test_a_second_put_adds_and_loses_nothing(library):
    given = artifact(1)
    library.put(given, gain=GAIN, flops=24, tags=["a"], run="r1", lifecycle="validated")
    library.put(given, tags=["b"], run="r2")
    library.put(given, tags=["b"], run="r2")
    library.put(given)
    entry = library.entry(given.digest)
    assert (entry.tags, entry.gain, entry.flops, entry.lifecycle) == (("a", "b"), GAIN, 24, "validated")
    assert {origin.run for origin in library.origins(given.digest)} == {"r1", "r2"}
    assert len(library.origins(given.digest)) == 2 and len(rows(library)) == 1
    assert library.verify().orphans == ()


def test_programs_that_come_later_are_kept_and_stay(library):
    bare = artifact_of(donor(), layer="0")
    carrying, flops = with_programs(donor(), layer="0")
    assert carrying == bare and flops > 0
    for given in (bare, carrying, bare):
        library.put(given)
    assert library.entry(bare.digest).carried and library.get(bare.digest).carried is not None
    assert library.verify().problems == () and len(library.verify().orphans) == 1
    library.gc(grace=NOW, dry_run=False)
    assert library.verify().orphans == () and library.get(bare.digest) == bare


@pytest.mark.parametrize(
    "digest",
    ["", "sha256:", "../../etc/passwd", "sha256:../x", "sha256:" + "A" * 64, "abc", "%2e%2e", "0" * 65, None, 7, b"ab"],
)
def test_what_is_no_digest_is_refused(library, digest):
    for verb in (library.get, library.entry, library.origins, lambda d: library.retire(d, "why")):
        with pytest.raises(ArgumentError, match="is no digest"):
            verb(digest)


def test_a_digest_that_is_not_there_or_not_one(library):
    with pytest.raises(ArtifactError, match="is in the library"):
        library.get("sha256:" + "0" * 64)
    names = [library.put(artifact(number)) for number in range(3)]
    with library._catalogue.writing() as connection:  # two that begin alike
        twin = names[0][7:20] + "0" * 51
        row = {**rows(library)[0], "digest": twin}
        connection.execute(sa.insert(kernels).values(**row))
    first = next(name for name in names if name.startswith("sha256:" + twin[:13]))
    with pytest.raises(ArtifactError, match=r"several digests begin with .*: give more"):
        library.get(first[:20])
    assert library.get(first) == artifact(names.index(first))


# ---- compare, lifecycle ---------------------------------------------------------------------------------------------


def test_compare(library):
    one = library.put(artifact(1), gain=Measured(0.30, 0.03, 10), flops=10)
    other = library.put(artifact(2, blueprint="low_rank", size=6), gain=Measured(0.10, 0.04, 10), flops=4)
    found = library.compare(one, other)
    assert found.recipe == {"blueprint": ("mlp", "low_rank"), "options": ({"width": 4}, {"width": 6})}
    assert found.gain == pytest.approx(0.2) and found.stderr == pytest.approx(0.05) and found.t == pytest.approx(4.0)
    assert 0.0005 < found.p < 0.002
    assert (found.parameters, found.bytes, found.flops) == (13 - 19, 52 - 76, 6)
    bare = library.compare(one, library.put(artifact(3)))
    assert (bare.gain, bare.t, bare.p, bare.flops) == (None, None, None, None)


def test_a_kernel_is_validated_retired_and_back(library):
    digest = library.put(artifact(1))
    assert library.validate(digest[:15], GAIN, data="cifar", run="r2").lifecycle == "validated"
    retired = library.retire(digest, "replaced")
    assert (retired.lifecycle, retired.reason, retired.gain) == ("retired", "replaced", GAIN)
    assert library.find() == [] and library.get(digest) == artifact(1)
    library.put(artifact(1), lifecycle="retired")
    assert library.entry(digest) == replace(retired, updated=library.entry(digest).updated)
    library.put(artifact(1), tags=["again"])
    again = library.entry(digest)
    assert (again.lifecycle, again.reason) == ("candidate", "") and library.find() == [again]
    assert library.gc(grace=NOW).retired == ()
    library.put(artifact(1), lifecycle="retired")
    assert library.find() == [] and library.gc(grace=NOW).retired == (digest,)
    back = library.validate(digest, Measured(0.1, None, 1))
    assert (back.lifecycle, back.reason, back.gain.stderr) == ("validated", "", None)
    assert [origin.gain for origin in library.origins(digest)] == [GAIN, Measured(0.1, None, 1)]


def test_the_gain_that_was_measured_last_tells_the_kernels(library, tmp_path):
    """However often, and in whatever order, others hear of it."""
    digest = library.add(artifact(1), told=[Origin(run="a", gain=GAIN)])
    library.validate(digest, Measured(0.1, 0.01, 9), run="b")
    library.add(artifact(1), told=library.origins(digest)[:1])
    assert library.entry(digest).gain == Measured(0.1, 0.01, 9)
    with open_library(tmp_path / "copy") as other:
        other.add(artifact(1), told=tuple(reversed(library.origins(digest))))
        assert other.entry(digest).gain == Measured(0.1, 0.01, 9)
        library.put(artifact(1), run="a", gain=GAIN)
        for told in (library.origins(digest), other.origins(digest)):
            other.add(artifact(1), told=told)
            assert other.entry(digest).gain == GAIN


def test_the_gain_of_the_last_call_tells_the_kernels_whatever_clocks_say(library, monkeypatch):
    from esper.library import rows as of_rows

    less = Measured(-0.3, 0.05, 8)
    with monkeypatch.context() as patched:
        patched.setattr(of_rows, "now", lambda: datetime.now(UTC) + timedelta(days=365))
        digest = library.put(artifact(1), gain=GAIN, run="ahead")
    library.put(artifact(1), gain=less, run="r")
    assert library.entry(digest).gain == less
    library.put(artifact(1), gain=GAIN, run="ahead")
    assert library.entry(digest).gain == GAIN
    assert [origin.run for origin in library.origins(digest)] == ["r", "ahead"]
    library.put(artifact(1), run="s")
    assert library.entry(digest).gain == library.validate(digest, GAIN, run="r").gain == GAIN


def test_what_is_validated_has_gained(library):
    for about in ({}, {"gain": Measured(0.0, 0.1, 4)}, {"gain": Measured(-1.0, 0.1, 4)}):
        with pytest.raises(ArgumentError, match="a gain above 0"):
            library.put(artifact(1), lifecycle="validated", **about)
    digest = library.put(artifact(1))
    with pytest.raises(ArgumentError, match="proves nothing"):
        library.validate(digest, Measured(-0.1, 0.01, 4))
    assert library.entry(digest).lifecycle == "candidate"


def test_what_a_model_cannot_build_does_not_stand_before_what_it_can(library):
    good = library.put(artifact_of(donor(), layer="0"), gain=Measured(0.1, 0.01, 8))
    for number in range(3):
        library.put(artifact(number, blueprint="of_others"), gain=Measured(1.0 + number, 0.01, 8))
    assert [entry.digest for entry in library.find_for(wrapped(), "0", limit=1)] == [good]


# ---- models -------------------------------------------------------------------------------------------------------


def test_a_kernel_of_one_host_does_the_same_in_another(library):
    given, flops = with_programs(donor(), layer="0")
    digest = library.put(given, gain=GAIN, flops=flops, model=fingerprint(donor()))
    receiver = wrapped(host(seed=3), library=library)
    (entry,) = library.find_for(receiver, "0")
    assert entry.digest == digest
    assert library.find_for(receiver, "2") == []
    grown = receiver.load_kernel("0", 1, entry.digest)
    assert grown.seeds.lifecycle[0, 1] == State.GRAFTING and digest in grown.structure.cache
    np.testing.assert_array_equal(grown(X), receiver(X))  # at alpha 0
    # The same host with the donor's own kernel in its seed, against what came through the library.
    there = esper.load_kernel(wrapped(host(seed=3)), None, layer="0", seed=1, artifact=artifact_of(donor(), layer="0"))
    for model in (grown, there[0]):
        np.testing.assert_array_equal(esper.set_alpha(model, layer="0", seed=1, alpha=0.75)(X), _at_work(there[0]))
    assert not np.array_equal(_at_work(grown), receiver(X))


def _at_work(model):
    return esper.set_alpha(model, layer="0", seed=1, alpha=0.75)(X)


def test_the_cache_is_asked_before_the_library(library):
    digest = library.put(artifact_of(donor(), layer="0"))
    model = wrapped(library=library)
    model.load_kernel("0", 0, digest)
    library.retire(digest, "gone")
    library.gc(grace=NOW, dry_run=False)
    assert model.load_kernel("0", 0, digest).structure.kernels[0].blueprint == "mlp"
    with pytest.raises(ArtifactError, match=r"layer '0', seed 0: no kernel sha256:.* is in the library"):
        wrapped(library=library, cache_size_mb=0).load_kernel("0", 0, digest)


def test_a_kernel_is_fetched_in_the_background(library):
    digest = library.put(artifact_of(donor(), layer="0"))
    model = wrapped(library=library)
    coming = model.prefetch_kernel(digest)
    assert coming.result(60).digest == digest
    assert model.prefetch_kernel(digest).result(60).digest == digest
    assert digest in model.structure.cache and library.fetch(digest[:20]).result(60).digest == digest
    with pytest.raises(ArtifactError, match="is in the library"):
        model.prefetch_kernel("sha256:" + "0" * 64).result(60)
    with pytest.raises(ArtifactError, match="has no library"):
        wrapped().prefetch_kernel(digest)


def test_what_does_not_fit_is_refused_with_the_reason(library):
    digest = library.put(artifact_of(donor(), layer="0"))
    other = wrapped(host(hidden=6), library=library)
    with pytest.raises(ArtifactError, match="built for out_features 5, and the layer has 6"):
        other.load_kernel("0", 0, digest)
    half = wrapped(host().bfloat16(), library=library, example_inputs=None)
    with pytest.raises(ArtifactError, match="built for float32, and the layer has bfloat16"):
        half.load_kernel("0", 0, digest)
    with pytest.raises(UnknownLayerError):
        library.find_for(other, "9")
    with pytest.raises(ArtifactError, match="is no digest"):
        other.load_kernel("0", 0, "../../x")


def test_a_library_is_no_part_of_what_is_computed_saved_or_pickled(library, tmp_path):
    model, bare = wrapped(library=library), wrapped()
    structure = model.structure
    assert structure == copy.copy(structure) and jax.jit(lambda m: m(X))(model).shape == (4, 2)
    assert copy.deepcopy(model).structure.library is library
    assert pickle.loads(pickle.dumps(model)).structure.library is None
    assert "library" not in repr(structure) and bare.structure.library is None
    loaded = esper.load(esper.save(model, tmp_path / "model"))
    assert loaded.structure.library is None
    assert esper.load(tmp_path / "model", library=library).structure.library is library


def test_a_model_without_torch_loads_by_the_programs_that_a_kernel_carries(library, tmp_path):
    given, _ = with_programs(donor(), layer="0")
    library.put(given)
    host_only = esper.load(esper.save(wrapped(), tmp_path / "host", blueprints=["low_rank"]), library=library)
    assert "mlp" not in host_only.structure.source.blueprints("Linear")
    assert [entry.digest for entry in library.find_for(host_only, "0")] == [given.digest]
    grown = esper.set_alpha(host_only.load_kernel("0", 0, given.digest), layer="0", alpha=0.75)
    np.testing.assert_allclose(grown(X), donor()(X), rtol=1e-6)
    again = esper.load(esper.save(grown, tmp_path / "grown"))
    np.testing.assert_array_equal(again(X), grown(X))


def forged(given, **more):
    """The artifact with a Program that does something else."""
    signature, program = given.carried.captures[0]
    node = replace(program.nodes[1], op="aten.relu.default", args=program.nodes[1].args[:1], kwargs=())
    other = replace(program, nodes=(program.nodes[0], node, *program.nodes[2:]))
    carried = replace(given.carried, captures=((signature, other), *given.carried.captures[1:]))
    return replace(given, carried=carried, **more)


def test_a_kernel_that_is_refused_teaches_a_model_nothing(tmp_path):
    given, _ = with_programs(donor(), layer="0")
    path = esper.save(wrapped(), tmp_path / "host", blueprints=["low_rank"])
    model = esper.load(path)
    before = model.structure.source.recipes
    with pytest.raises(ArtifactError, match="does not fit"):
        model.load_kernel("0", 0, forged(given, params={**given.params, "more": X}))
    assert model.structure.source.recipes == before
    grown = esper.set_alpha(model.load_kernel("0", 0, given), layer="0", alpha=0.75)
    np.testing.assert_allclose(grown(X), donor()(X), rtol=1e-6)
    with pytest.raises(ArtifactError, match="by other Programs than those it carries"):
        grown.load_kernel("0", 1, forged(given, params={n: a + 1 for n, a in given.params.items()}))
    assert grown.load_kernel("0", 1, given).structure.source.recipes == (*before, given.carried)


def test_what_asks_for_more_memory_than_it_has_is_refused_before_it_is_built(monkeypatch):
    model, given = wrapped(), artifact_of(donor(), layer="0")

    def built(*given, **more):
        raise AssertionError("built")

    monkeypatch.setattr(model.structure.source, "sprout", built)
    options = tuple((name, 10_000_000 if name == "width" else value) for name, value in given.options)
    with pytest.raises(
        ArtifactError, match=r"its 0\.bias is float32\[\d+\], and the recipe's here is float32\[10000000\]"
    ):
        model.load_kernel("0", 0, replace(given, options=options))


@pytest.mark.parametrize(
    ("option", "said"),
    [(("width", "x"), "makes no kernel"), (("width", -1), "makes no kernel"), (("depth", 3), "has no option")],
)
def test_options_that_a_blueprint_does_not_take_are_said(option, said):
    given = with_programs(donor(), layer="0")[0]
    with pytest.raises(SeedError, match=said):
        wrapped().load_kernel("0", 0, replace(given, options=tuple({**dict(given.options), **dict([option])}.items())))


def test_a_cached_kernel_without_programs_stands_in_for_none_with_them(tmp_path):
    given = with_programs(donor(), layer="0")[0]
    model = esper.load(esper.save(wrapped(), tmp_path / "host"))
    model.structure.cache.put(replace(given, carried=None))
    assert model.load_kernel("0", 0, given).structure.kernels[0].blueprint == "mlp"


# ---- the end of things ---------------------------------------------------------------------------------------------


def test_a_library_that_was_closed_says_so(opened):
    library = opened()
    library.put(artifact(1))
    library.close()
    library.close()
    for verb in (library.find, library.verify, library.gc, lambda: library.put(artifact(2))):
        with pytest.raises(LibraryError, match="was closed: open it again"):
            verb()


# ---- interrupted writes and garbage -------------------------------------------------------------------------------


def test_an_interrupted_write_is_invisible_and_goes(library, monkeypatch):
    from esper.library import rows as of_rows

    def killed(*given, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(of_rows, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            library.put(artifact(1), tags=["a"])
    assert library.find() == [] and rows(library, tags) == [] and rows(library, attributes) == []
    with pytest.raises(ArtifactError, match="is in the library"):
        library.get(artifact(1).digest)
    found = library.verify()
    assert found.problems == () and len(found.orphans) == 1
    assert library.gc(dry_run=False).objects == ()  # within the grace period
    assert library.gc(grace=NOW).objects == found.orphans  # would go
    assert library.verify().orphans == found.orphans
    assert library.gc(grace=NOW, dry_run=False).objects == found.orphans
    assert library.verify().orphans == ()


def test_gc_removes_what_was_retired_before_the_grace_period(library):
    kept, gone = library.put(artifact(1)), library.put(artifact(2))
    library.retire(gone, "superseded")
    assert library.gc(dry_run=False).retired == ()
    tried = library.gc(grace=NOW)
    assert tried.dry_run and tried.retired == (gone,) and len(tried.objects) == 1 and tried.bytes > 0
    done = library.gc(grace=NOW, dry_run=False)
    assert (done.retired, done.objects, done.bytes) == (tried.retired, tried.objects, tried.bytes)
    assert [entry.digest for entry in library.find(lifecycle=None)] == [kept] and library.get(kept) == artifact(1)
    with pytest.raises(ArtifactError):
        library.get(gone)
    assert library.put(artifact(2)) == gone and library.get(gone) == artifact(2)
    for wrong, said in ((-timedelta(1), "not negative"), (5, "is a timedelta")):
        with pytest.raises(ArgumentError, match=said):
            library.gc(grace=wrong)
    assert library.gc(grace=timedelta.max).objects == ()


def test_gc_takes_nothing_that_is_not_the_catalogues_own(library, tmp_path, monkeypatch):
    """Other catalogues keep their objects in the same place, and others keep other things there."""
    from esper.library import upkeep
    from esper.library.catalogue import Catalogue
    from esper.library.library import Library

    ours, blobs = library.put(artifact(1)), library._blobs
    others = copy.copy(blobs)
    with Library(Catalogue.in_file(tmp_path / "other.sqlite"), others, tmp_path / "other") as other:
        others.owner = other._catalogue.id
        theirs = other.put(artifact(2))
        assert library._catalogue.id != others.owner
        own = f"kernels/{blobs.owner}"
        foreign = ["data.csv", "kernels/ab/x.esper", f"{own}/notes.txt", f"{own}-2/ab/.part-12"]
        for path in foreign:
            blobs._write(path, b"somebody's")
        blobs._write(f"{own}/ab/.part-0123abcd", b"left over")
        assert library.gc(grace=NOW, dry_run=False).objects == ()  # it may be being written
        monkeypatch.setattr(upkeep, "WRITING", NOW)
        assert library.gc(grace=NOW, dry_run=False).objects == (f"{own}/ab/.part-0123abcd",)
        assert other.gc(grace=NOW, dry_run=False).objects == ()
        assert all(blobs.at(path) for path in foreign)
        assert library.get(ours) == artifact(1) and other.get(theirs) == artifact(2)


def test_gc_never_takes_what_is_put_in_meanwhile(library, opened, monkeypatch):
    """Garbage is collected between a put's upload and its row; and a put names an object that is about to go."""
    other, blobs = opened(), type(library._blobs)
    upload = blobs.put

    def collected_in_between(self, digest, data):
        upload(self, digest, data)
        if self is library._blobs and not busy:
            busy.append(1)
            other.gc(grace=NOW, dry_run=False)

    busy = []
    with monkeypatch.context() as patched:
        patched.setattr(blobs, "put", collected_in_between)
        digest = library.put(artifact(1))
    assert busy and library.get(digest) == artifact(1)

    listing = blobs.all

    def named_in_between(self):
        found = list(listing(self))
        if self is library._blobs:
            other.put(artifact(2))
        return iter(found)

    data = b"left over"
    library._blobs.put("0" * 64, data)
    with monkeypatch.context() as patched:
        patched.setattr(blobs, "all", named_in_between)
        library.gc(grace=NOW, dry_run=False)
    assert other.get(artifact(2).digest) == artifact(2) and library.verify().orphans == ()
