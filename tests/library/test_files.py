"""Artifacts as files of their own: into a library and out of it by the command, and hostile ones."""

import json
import struct

import numpy as np
import pytest
from library.places import artifact, donor

from esper.cli import main
from esper.errors import ArtifactError, LibraryError
from esper.library import Measured, open_library
from esper.library.content import pack, unpack
from esper.library.files import Parcel, read_parcel, taken, write_parcel
from esper.library.publishing import with_programs
from esper.persistence.tensors import read_metadata, read_tensors, tensor_bytes

GAIN = Measured(0.25, 0.01, 6)


@pytest.fixture
def place(tmp_path):
    return str(tmp_path / "library")


@pytest.fixture
def filled(place):
    with open_library(place) as library:
        about = {"gain": GAIN, "flops": 12, "tags": ["a"], "run": "r", "data": "mnist", "lifecycle": "validated"}
        return library.put(artifact(1), **about), library.put(artifact(2, blueprint="low_rank"))


def said(capsys, *command, code=0):
    assert main(["library", *command]) == code
    return capsys.readouterr().out


def test_list_and_show(place, filled, capsys):
    text = said(capsys, "list", "--library", place)
    assert filled[0][7:19] in text and "mlp width=4" in text and "+0.2500 ± 0.0100" in text
    assert "in_features=3" in text
    found = json.loads(said(capsys, "list", "--library", place, "--json", "--blueprint", "low_rank", "--limit", "3"))
    assert [entry["digest"] for entry in found] == [filled[1]]
    assert json.loads(said(capsys, "list", "--library", place, "--json", "--run", "r", "--min-gain", "0.2"))
    assert json.loads(said(capsys, "list", "--library", place, "--json", "--tag", "b")) == []
    text = said(capsys, "show", filled[0][7:17], "--library", place)
    assert filled[0] in text and "mnist" in text
    shown = json.loads(said(capsys, "show", filled[0], "--library", place, "--json"))
    assert shown["origins"][0]["run"] == "r" and shown["parameters"] == 13


def test_a_kernel_goes_by_file_from_one_library_to_another(place, filled, tmp_path, capsys):
    file, other = str(tmp_path / "kernel.esper"), str(tmp_path / "other")
    assert filled[0] in said(capsys, "pull", filled[0][7:19], "--to", file, "--library", place)
    assert "1 kernels" in said(capsys, "push", file, "--library", other)
    with open_library(place) as one, open_library(other) as two:
        mine, theirs = (taken(library, filled[0]) for library in (one, two))
        assert mine == theirs and theirs.told[0].time == mine.told[0].time
        assert two.entry(filled[0]).gain == GAIN and len(two.find()) == 1


def test_kernels_go_from_library_to_library(place, filled, tmp_path, capsys):
    other, third = str(tmp_path / "other"), str(tmp_path / "third")
    said(capsys, "pull", filled[1], "--to", other, "--library", place)
    moved = json.loads(said(capsys, "push", "--from", place, "--library", other, "--json"))
    assert set(moved["digests"]) == set(filled)
    said(capsys, "push", filled[1][7:20], "--from", place, "--library", third)
    with open_library(third) as library:
        assert [entry.digest for entry in library.find()] == [filled[1]]
    assert main(["library", "push", "--from", str(tmp_path / "nowhere"), "--library", other]) == 2
    assert "holds no library" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()


def test_verify_and_gc(place, filled, capsys):
    assert "2 artifacts read through, 0 of them not whole" in said(capsys, "verify", "--library", place)
    with open_library(place) as library:
        library.retire(filled[1], "worse")
        blob = library.entry(filled[0]).blob
        library._blobs.put(blob, b"x")
    assert filled[0] in said(capsys, "verify", "--library", place, code=1)
    assert filled[0] in json.loads(said(capsys, "verify", "--library", place, "--json", code=1))["problems"]
    assert "would go" in said(capsys, "gc", "--library", place, "--grace", "0")
    went = json.loads(said(capsys, "gc", "--library", place, "--grace", "0", "--delete", "--json"))
    assert went["retired"] == [filled[1]] and len(went["objects"]) == 1 and not went["dry_run"]


def test_retire(place, filled, capsys):
    import sqlalchemy as sa

    from esper.library.schema import kernels

    assert f"{filled[1]} is retired" in said(
        capsys, "retire", filled[1][7:17], "--reason", "gains less", "--library", place
    )
    with open_library(place) as library:
        assert library.entry(filled[1]).reason == "gains less"
        assert [entry.digest for entry in library.find()] == [filled[0]]
        with library._catalogue.writing() as connection:
            connection.execute(sa.update(kernels).where(kernels.c.digest == filled[0][7:]).values(flops=3))
    told = said(capsys, "retire", filled[0], "--reason", "somebody changed it", "--library", place)
    assert f"{filled[0]} is retired" in told and "changed by other means" in told
    told = json.loads(said(capsys, "retire", filled[0], "--reason", "again", "--library", place, "--json"))
    assert told == {"digest": filled[0], "lifecycle": "retired", "reason": "again", "sound": False}
    assert json.loads(said(capsys, "list", "--library", place, "--json")) == []
    gone = json.loads(said(capsys, "gc", "--library", place, "--grace", "0", "--delete", "--json"))
    assert set(gone["retired"]) == set(filled)


def test_the_commands_that_messages_advise_are_there(place, filled, capsys):
    with open_library(place) as library:
        library._blobs.put(library.entry(filled[0]).blob, b"x")
    assert "`esper library retire`" in said(capsys, "verify", "--library", place, code=1)


def test_all_of_a_library_is_pushed_and_one_bad_file_stops_no_other(place, filled, tmp_path, capsys, monkeypatch):
    from esper.library import queries

    paged = queries.page
    monkeypatch.setattr(queries, "page", lambda last: paged(last, 1))
    other = str(tmp_path / "other")
    assert set(json.loads(said(capsys, "push", "--from", place, "--library", other, "--json"))["digests"]) == set(
        filled
    )
    with open_library(place) as library:
        outbox = library.folder / "outbox"
        write_parcel(outbox / "a.esper", Parcel(artifact(3)))
        (outbox / "a.esper").write_bytes((outbox / "a.esper").read_bytes()[:-9])
        write_parcel(outbox / "b.esper", Parcel(artifact(4)))
    assert main(["library", "push", "--library", place]) == 2
    told = capsys.readouterr()
    assert artifact(4).digest in told.out and "1 files of the outbox" in told.err and "a.esper" in told.err
    assert [file.name for file in outbox.iterdir()] == ["a.esper.bad"]
    assert "0 kernels" in said(capsys, "push", "--library", place)


def test_two_pushes_at_once_get_along(place, monkeypatch):
    from esper.library import files

    with open_library(place) as library:
        for number in range(3):
            write_parcel(library.folder / "outbox" / f"{number}.esper", Parcel(artifact(number)))
        first = files.delivered_later(library)
        next(first)
        deliver = files.delivered

        def taken_meanwhile(library, parcel):
            for file in files.waiting(library.folder):
                file.unlink()
            return deliver(library, parcel)

        monkeypatch.setattr(files, "delivered", taken_meanwhile)
        assert len(list(first)) == 1 and not files.waiting(library.folder)


def test_files_before_a_bad_one_are_delivered(place, tmp_path, capsys):
    write_parcel(tmp_path / "good.esper", Parcel(artifact(5)))
    (tmp_path / "bad.esper").write_bytes(b"x")
    assert main(["library", "push", str(tmp_path / "good.esper"), str(tmp_path / "bad.esper"), "--library", place]) == 2
    assert artifact(5).digest in capsys.readouterr().out
    with open_library(place) as library:
        assert library.entry(artifact(5).digest)


def test_what_a_library_holds_says_nothing_to_the_terminal(place, capsys):
    with open_library(place) as library:
        options = (("act", "\x1b[31m"), ("name", "[/bold]"))
        digest = library.put(artifact(1, options=options), tags=["[/x]", "[link=y]", "a\u202eb"], run="[/r]")
    listed = said(capsys, "list", "--library", place)
    shown = said(capsys, "show", digest, "--library", place)
    assert "[/x]" in listed and "[/x]" in shown and "[/r]" in shown
    assert not {"\x1b", "\u202e"} & set(listed + shown)


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["show", "abcdef12"],
        ["pull", "abcdef12", "--to", "x.esper"],
        ["verify"],
        ["gc"],
        ["retire", "abcdef12", "--reason", "x"],
    ],
    ids=str,
)
@pytest.mark.parametrize("how", ["--library", "--config"])
def test_what_is_not_there_is_not_made(command, how, tmp_path, capsys):
    where = tmp_path / "tpyo"
    config = tmp_path / "config.yaml"
    config.write_text(f"name: x\ncomponents: {{urza: {{config: {{folder: {where}}}}}}}\n")
    assert main(["library", *command, how, str(where if how == "--library" else config)]) == 2
    assert "holds no library" in capsys.readouterr().err and not where.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["show", "../../x"], "is no digest"),
        (["show", "abcdef12"], "is in the library"),
        (["push", "no-such-file.esper"], "is no file of a kernel"),
        (["list", "--order-by", "beauty"], "ordered by gain"),
    ],
)
def test_what_goes_wrong_is_one_message_and_2(place, filled, command, message, capsys):
    assert main(["library", *command, "--library", place]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        *((["gc", "--grace", hours], "from 0 to 876600") for hours in ("nan", "inf", "1e300", "99999999", "-1")),
        (["gc", "--grace", "soon"], "a number of hours from 0 to 876600, not 'soon'"),
        *((["list", option, "\udcff"], "is not UTF-8") for option in ("--tag", "--kind", "--run", "--lifecycle")),
        (["retire", "abcdef12", "--reason", "\udcff"], "is not UTF-8"),
    ],
    ids=ascii,
)
def test_an_argument_that_makes_no_sense_is_said_with_the_usage(place, filled, command, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["library", *command, "--library", place])
    assert left.value.code == 2 and message in capsys.readouterr().err


# ---- hostile files --------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_file_is_noticed():
    data = pack(artifact(1), {"flops": 1, "tags": ["a"], "lifecycle": "candidate"})
    assert unpack(data, "it")[1]["flops"] == 1
    for place in range(0, len(data) * 8, 13):
        hostile = bytearray(data)
        hostile[place // 8] ^= 1 << place % 8
        with pytest.raises(ArtifactError):
            unpack(bytes(hostile), "it")


def rewritten(data, change):
    """The file with another manifest or other arrays, as somebody would write it who knows the format."""
    said, arrays = read_metadata(memoryview(data), "it"), dict(read_tensors(memoryview(data), "it"))
    manifest = json.loads(said["esper.kernel"])
    change(manifest, arrays)
    return tensor_bytes(arrays, {**said, "esper.kernel": json.dumps(manifest)})


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest, arrays: manifest["about"].update(lifecycle="validated"),
        lambda manifest, arrays: manifest["carried"]["data"][1].update(description="another"),
        lambda manifest, arrays: arrays.update(more=np.zeros(3)),
        lambda manifest, arrays: manifest.pop("sum"),
    ],
    ids=["told", "carried", "arrays", "no sum"],
)
def test_what_a_file_says_and_carries_is_part_of_its_sum(change, tmp_path):
    given, _ = with_programs(donor(), layer="0")
    data = pack(given, {"lifecycle": "candidate"})
    assert unpack(rewritten(data, lambda manifest, arrays: None), "it")[0] == given
    with pytest.raises(ArtifactError, match="is not what was written"):
        unpack(rewritten(data, change), "it", given.digest)


def test_arrays_that_nothing_names_are_refused():
    from esper.library import content

    def more(manifest, arrays):
        arrays["carried/99"] = np.zeros(3)
        manifest["sum"] = content._sum({k: v for k, v in manifest.items() if k != "sum"}, arrays)

    with pytest.raises(ArtifactError, match=r"nothing names: \['carried/99'\]"):
        unpack(rewritten(pack(artifact(1)), more), "it")


def forged(manifest, body=b""):
    header = json.dumps({"__metadata__": {"esper.kernel": json.dumps(manifest)}}).encode()
    return struct.pack("<Q", len(header)) + header + body


HOSTILE = {
    "nothing": b"",
    "a header of 2**60 bytes": struct.pack("<Q", 1 << 60) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"{{{{",
    "nested": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "no manifest": struct.pack("<Q", 2) + b"{}",
    "a list": forged([]),
    "a newer format": forged({"schema": "esper.kernel-file/9"}),
    "no recipe": forged({"schema": "esper.kernel-file/1", "digest": "x", "recipe": {}, "carried": None}),
    "a class of no kind": forged(
        {
            "schema": "esper.kernel-file/1",
            "digest": artifact(params={}).digest,
            "recipe": artifact(params={}).recipe,
            "carried": {"data": ["os.system", {"command": "true"}]},
        }
    ),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused(data, tmp_path):
    file = tmp_path / "hostile.esper"
    file.write_bytes(data)
    with pytest.raises(ArtifactError):
        read_parcel(file)


@pytest.mark.parametrize(
    "about", [{"tags": "x"}, {"lifecycle": 3}, {"flops": "many"}, {"told": [{"run": 1}]}, {"told": 3}], ids=str
)
def test_a_file_that_says_strange_things_is_refused(about, tmp_path):
    file = tmp_path / "strange.esper"
    file.write_bytes(pack(artifact(1), about))
    with pytest.raises(ArtifactError, match="says of its kernel what no library has"):
        read_parcel(file)


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LibraryError, match="cannot be written"):
        write_parcel(tmp_path / "file" / "kernel.esper", Parcel(artifact(1)))
    with pytest.raises(LibraryError, match="is no file of a kernel"):
        read_parcel(tmp_path)
