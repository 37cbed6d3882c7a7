"""What becomes of what somebody changes behind a library's back; part of the contract, as `contract.py` is."""

from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from library.contract import GAIN, NOW, forged
from library.places import artifact, donor

from esper.errors import ArtifactError
from esper.library import Measured, Origin, queries
from esper.library.entries import now
from esper.library.publishing import with_programs
from esper.library.rows import origin_row
from esper.library.schema import attributes, kernels, origins, tags


def object_of(library, digest):
    return library.entry(digest).blob


def overwritten(library, blob, change):
    """The object with other bytes under its name."""
    size = library._blobs.size(blob)
    data = bytearray(library._blobs.get(blob, size))
    library._blobs.put(blob, bytes(change(data)))


def flipped(place):
    def change(data):
        data[place(len(data))] ^= 1
        return data

    return change


TAMPERED = {
    "a bit of a tensor": flipped(lambda size: size - 1),
    "a bit of the manifest": flipped(lambda size: 60),
    "the header's length": flipped(lambda size: 0),
    "cut short": lambda data: data[:-5],
    "longer": lambda data: data + b"0000",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_a_tampered_artifact_is_never_given_out_and_can_be_mended(library, change):
    digest, sound = library.put(artifact(1), tags=["a"]), library.put(artifact(2))
    overwritten(library, object_of(library, digest), change)
    with pytest.raises(ArtifactError, match=rf"{digest}.*put the kernel in again"):
        library.get(digest)
    ((found, why),) = library.verify().problems
    assert found == digest and "not what was written" in why
    assert library.get(sound) == artifact(2)
    library.put(artifact(1))
    assert library.get(digest) == artifact(1) and library.verify().problems == ()
    assert library.entry(digest).tags == ("a",)


def test_another_artifact_under_a_name_is_refused_even_where_the_catalogue_agrees(library):
    digest, other = library.put(artifact(1)), library.put(artifact(2))
    theirs = library.entry(other)
    with library._catalogue.writing() as connection:
        query = sa.update(kernels).where(kernels.c.digest == digest[7:])
        connection.execute(query.values(blob=theirs.blob, blob_bytes=theirs.blob_bytes))
        from esper.library.rows import seal

        seal(connection, digest[7:])
    with pytest.raises(ArtifactError, match="is not what was written"):
        library.get(digest)
    assert [name for name, _ in library.verify().problems] == [digest]


def test_a_missing_object_is_said(library):
    digest = library.put(artifact(1))
    library._blobs.delete(library._blobs.path(object_of(library, digest)))
    with pytest.raises(ArtifactError, match=r"its object .* is missing"):
        library.get(digest)
    assert len(library.verify().problems) == 1
    library.put(artifact(1))
    assert library.get(digest) == artifact(1)


@pytest.mark.parametrize("blob", ["", "..", "a/../../b", "/etc/passwd", "\u00fc", "A" * 64])
def test_an_object_of_no_such_name_is_not_there_and_is_mended(library, blob):
    digest = library.put(artifact(1), tags=["a"])
    with library._catalogue.writing() as connection:
        connection.execute(sa.update(kernels).values(blob=blob))
    assert library._blobs.size(blob) is None
    assert [name for name, _ in library.verify().problems] == [digest]
    library.put(artifact(1))
    assert library.get(digest) == artifact(1) and library.verify().problems == library.verify().orphans == ()


CHANGES = {
    "blueprint": "other", "options": "{}", "kind": "Conv2d", "attributes": "{}", "dtype": "int8", "parameters": 1,
    "gain_mean": 9.0, "flops": 3, "lifecycle": "validated", "blob": "0" * 64, "reason": "x", "shapes": "[]",
}  # fmt: skip


@pytest.mark.parametrize("column", CHANGES)
def test_a_changed_row_is_detected(library, column):
    digest = library.put(artifact(1), gain=GAIN, tags=["a"])
    with library._catalogue.writing() as connection:
        connection.execute(sa.update(kernels).values(**{column: CHANGES[column]}))
    with pytest.raises(ArtifactError, match="was changed by other means"):
        library.get(digest)
    assert [name for name, _ in library.verify().problems] == [digest]


SENSELESS = [
    ("options", "'{'"),
    ("gain_n", "0"),
    ("attributes", "'[1]'"),
    ("rank", "7.5"),
    ("flops", "3"),
    ("labels", "0"),
]


@pytest.mark.parametrize(("column", "value"), SENSELESS)
def test_a_changed_row_hides_no_other_and_is_mended_by_a_put(library, column, value, caplog):
    digest, sound = library.put(artifact(1), gain=GAIN, tags=["a"], run="r"), library.put(artifact(2))
    with library._catalogue.writing() as connection:
        change = f"UPDATE esper_kernels SET {column} = {value} WHERE digest = '{digest[7:]}'"
        connection.exec_driver_sql(change)
    for verb in (
        library.entry,
        lambda d: library.compare(sound, d),
        lambda d: library.validate(d, GAIN),
    ):
        with pytest.raises(ArtifactError, match="was changed by other means"):
            verb(digest)
    assert [entry.digest for entry in library.find()] == [sound] and digest in caplog.text
    assert [name for name, _ in library.verify().problems] == [digest]
    library.put(artifact(1), tags=["b"])
    mended = library.entry(digest)
    assert (mended.gain, mended.tags, mended.flops) == (GAIN, ("b",), None) and library.verify().problems == ()
    assert library.get(digest) == artifact(1) and library.find(attributes={"in_features": 3}, tag="b") == [mended]


def test_a_put_does_not_seal_what_was_tampered_with(library):
    digest = library.put(artifact(1), run="r")
    with library._catalogue.writing() as connection:
        connection.execute(sa.update(kernels).values(lifecycle="validated", gain_mean=9.0, gain_n=3, rank=9.0))
        connection.execute(sa.update(origins).values(content='{"run": "other"}'))
    library.put(artifact(1), tags=["a"])
    entry = library.entry(digest)
    assert (entry.lifecycle, entry.gain, library.origins(digest)) == ("candidate", None, ())


def test_another_kernels_programs_are_refused(library):
    given, _ = with_programs(donor(), layer="0")
    digest = library.put(given)
    program = given.carried.captures[0][1]
    with pytest.raises(ArtifactError, match="with other Programs"):
        library.put(forged(given))
    assert library.get(digest).carried.captures[0][1] == program
    library.put(given)
    library.put(replace(given, carried=None))


def test_changed_tags_and_origins_are_detected(library):
    one, other = library.put(artifact(1), tags=["a"]), library.put(artifact(2), run="r")
    with library._catalogue.writing() as connection:
        connection.execute(sa.update(tags).values(tag="b"))
        connection.execute(sa.update(origins).values(content='{"run": "other"}'))
    with pytest.raises(ArtifactError, match="its entry in the catalogue was changed"):
        library.get(one)
    with pytest.raises(ArtifactError, match="where it came from in the catalogue was changed"):
        library.origins(other)
    assert {name for name, _ in library.verify().problems} == {one, other}


HIDDEN = {
    "an attribute": sa.update(attributes).where(attributes.c.name == "in_features").values(value="784"),
    "attributes": sa.delete(attributes),
    "a run": sa.update(origins).values(run="other"),
    "runs": sa.delete(origins),
}


@pytest.mark.parametrize("change", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("by_chance", [False, True])
def test_nothing_is_found_by_what_its_entry_does_not_say(library, change, by_chance, monkeypatch, caplog):
    digest = library.put(artifact(1), run="r", tags=["a"])
    if by_chance:
        monkeypatch.setattr(queries, "bits", lambda labels: 0)
    with library._catalogue.writing() as connection:
        connection.execute(change)
    assert library.find(attributes={"in_features": 784}) == library.find(run="other") == []
    assert [entry.digest for entry in library.find(tag="a")] == [digest]
    ((found, why),) = library.verify().problems
    assert found == digest and "was changed by other means" in why
    library.put(artifact(1), run="r")
    assert library.verify().problems == ()
    assert [entry.digest for entry in library.find(attributes={"in_features": 3}, run="r")] == [digest]


@pytest.mark.parametrize("run", ["first", "later"])
@pytest.mark.parametrize("years", [-30, 30])
def test_a_changed_time_is_detected_and_changes_no_gain(library, run, years):
    digest = library.put(artifact(1), gain=GAIN, run="first")
    last = library.validate(digest, Measured(0.5, 0.1, 4), run="later").gain
    (time,) = (origin.time for origin in library.origins(digest) if origin.run == run)
    with library._catalogue.writing() as connection:
        changed = sa.update(origins).where(origins.c.run == run).values(time=time + years * timedelta(365))
        connection.execute(changed)
    ((found, why),) = library.verify().problems
    assert found == digest and "where it came from in the catalogue was changed" in why
    assert [entry.gain for entry in library.find()] == [last]
    library.put(artifact(1), tags=["a"])
    assert library.entry(digest).gain == last and library.verify().problems == ()
    assert [origin.run for origin in library.origins(digest)] == [{"first": "later", "later": "first"}[run]]


def test_a_kernel_that_is_given_another_run_or_attribute_is_reported(library):
    one, other = library.put(artifact(1)), library.put(artifact(2))
    with library._catalogue.writing() as connection:
        connection.execute(sa.insert(origins).values(**origin_row(one[7:], Origin(run="r", time=now()))))
        connection.execute(sa.insert(attributes).values(digest=other[7:], name="groups", value="2"))
    assert library.find(run="r") == library.find(attributes={"groups": 2}) == []
    assert {name for name, _ in library.verify().problems} == {one, other}


@pytest.mark.parametrize(("column", "value"), [*SENSELESS, ("updated", "created"), ("lifecycle", "'validated'")])
def test_what_was_tampered_with_is_retired_and_no_more_believed(library, column, value):
    digest = library.put(artifact(1), gain=GAIN, tags=["a"], run="r")
    blob = object_of(library, digest)
    with library._catalogue.writing() as connection:
        connection.exec_driver_sql(f"UPDATE esper_kernels SET {column} = {value}, reason = 'x'")
    assert library.retire(digest, "somebody changed it") is None
    assert library.find() == library.find(lifecycle="retired") == [] and list(library.digests()) == []
    for verb in (library.entry, library.get, lambda d: library.validate(d, GAIN)):
        with pytest.raises(ArtifactError, match="was changed by other means"):
            verb(digest)
    assert [name for name, _ in library.verify().problems] == [digest]
    library.put(artifact(1), tags=["b"])
    entry = library.entry(digest)
    assert (entry.lifecycle, entry.reason, entry.tags, entry.gain) == ("candidate", "", ("b",), GAIN)
    with library._catalogue.writing() as connection:
        connection.exec_driver_sql(f"UPDATE esper_kernels SET {column} = {value}, reason = 'x'")
    library.retire(digest, "somebody changed it again")
    gone = library.gc(grace=NOW, dry_run=False)
    assert gone.retired == (digest,) and [blob[:12] in path for path in gone.objects] == [True]
    assert library.verify().problems == library.verify().orphans == ()
