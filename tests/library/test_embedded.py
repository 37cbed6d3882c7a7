"""The contract on SQLite and a folder, and what can go wrong with files."""

import os
import resource
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import jax.numpy as jnp
import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from library.contract import *  # noqa: F403
from library.finding import *  # noqa: F403
from library.given import *  # noqa: F403
from library.killed import *  # noqa: F403
from library.places import artifact
from library.tampering import *  # noqa: F403

from esper.cli import main
from esper.configs import EsperConfig
from esper.errors import ArtifactError, LibraryError, MissingExtraError
from esper.library import Measured, finding, open_library, queries
from esper.library.schema import HEAD, VERSION_TABLE, metadata

LARGE = artifact(params={"a": jnp.arange(1 << 16, dtype=jnp.float32)})


# ---- schema -------------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_are_used(library):
    scripts = ScriptDirectory(str(Path(sys.modules["esper.library"].__file__).parent / "migrations"))
    assert scripts.get_heads() == [HEAD]
    with library._catalogue.reading() as connection:
        from alembic.autogenerate import compare_metadata

        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_going_back_leaves_nothing(library):
    from alembic import command

    config = Config()
    place = Path(sys.modules["esper.library"].__file__).parent / "migrations"
    config.set_main_option("script_location", str(place))
    with library._catalogue.writing() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(sa.inspect(connection).get_table_names()) == {VERSION_TABLE}


def test_of_many_who_open_it_at_once_one_makes_it(config):
    def opened(number):
        with open_library(config) as library:
            return library.put(artifact(number % 3))

    with ThreadPoolExecutor(8) as threads:
        digests = set(threads.map(opened, range(8)))
    with open_library(config) as library:
        assert {entry.digest for entry in library.find()} == digests and len(digests) == 3


def test_many_that_are_opened_at_once_each_get_their_own_tables(tmp_path):
    def opened(number):
        with open_library(tmp_path / str(number)) as library:
            return library.put(artifact(number)), [entry.digest for entry in library.find()]

    with ThreadPoolExecutor(8) as threads:
        for digest, found in threads.map(opened, range(16)):
            assert found == [digest]


def test_a_password_in_the_storages_url_is_in_no_text(tmp_path):
    storage = {"access_key": "accesskey", "secret_key": "secretkey", "endpoint_url": "http://me:hun%21ter2@127.0.0.1:1"}
    urza = {"urza": {"config": {"folder": str(tmp_path / "library")}}}
    with open_library(EsperConfig(name="test", storage=storage, components=urza)) as library:
        blobs = library._blobs
        assert "at http://127.0.0.1:1" in repr(library) and "ter2" not in repr(library) + blobs.place
        with pytest.raises(LibraryError) as raised, blobs._speaking():
            raise OSError("no answer of http://me:hun%21ter2@127.0.0.1:1, hun!ter2")
        assert "ter2" not in str(raised.value) and "no answer" in str(raised.value)


def test_half_of_a_shared_library_is_warned_of(tmp_path, caplog):
    storage = {"access_key": "a", "secret_key": "b"}
    urza = {"urza": {"config": {"folder": str(tmp_path / "library")}}}
    with open_library(EsperConfig(name="test", storage=storage, components=urza)):
        assert "has storage and no database: other machines do not find" in caplog.text


def test_a_catalogue_of_a_newer_esper_is_refused(config, library, tmp_path):
    library.put(artifact())
    with library._catalogue.writing() as connection:
        connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(LibraryError, match=r"schema 9999, and this version of esper knows .*: it was made by a newer"):
        open_library(config)


WANTED = (
    {"kind": "Conv2d", "blueprint": "mlp"},
    {"kind": "Linear", "dtype": "int8", "blend": "add", "placement": "parallel", "lifecycle": "validated"},
    {"attributes": {"in_features": 3, "out_features": 5}, "lifecycle": "validated"},
    {"tag": "a", "dtype": "int8"},
    {"run": "r", "tag": "a", "min_gain": 0.1, "max_parameters": 9, "attributes": {"in_features": 3}},
)


def plans(library, wanted):
    """What SQLite does to find what is wanted, for each order: the columns' name, and a line for each step."""
    engine = library._catalogue._engine
    for name, (column, _) in queries.ORDERS.items():
        asked = []

        def hear(connection, cursor, statement, parameters, *more, asked=asked):
            if "ORDER BY" in statement:
                asked.append((statement, parameters))

        sa.event.listen(engine, "before_cursor_execute", hear)
        library.find(**wanted, order_by=name)
        sa.event.remove(engine, "before_cursor_execute", hear)
        ((statement, parameters),) = asked
        with library._catalogue.reading() as connection:
            steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            yield column.name, [step[-1] for step in steps]


@pytest.mark.parametrize("statistics", [False, True])
def test_kernels_that_are_not_wanted_are_passed_in_an_index(library, statistics, monkeypatch):
    """However conditions are combined, and whatever SQLite believes of them: none costs a look at its row."""
    for number in range(4):
        library.put(artifact(number), tags=["a"], run="r")
    if statistics:
        with library._catalogue.writing() as connection:
            connection.exec_driver_sql("ANALYZE")
    monkeypatch.setattr(finding, "FEW", NEVER_FEW)  # noqa: F405
    for wanted in WANTED:
        for column, (first, *others) in plans(library, wanted):
            assert f"COVERING INDEX ix_esper_kernels_{column}" in first, wanted
            for step in others:
                assert "SUBQUERY" in step or ("SEARCH" in step and "COVERING INDEX" in step), wanted


def test_a_few_kernels_are_looked_up(library):
    library.put(artifact(1), tags=["a"], run="r")
    for wanted in WANTED:
        for _, (first, *_) in plans(library, wanted):
            assert first == "SEARCH esper_kernels USING INDEX sqlite_autoindex_esper_kernels_1 (digest=?)", wanted


def test_garbage_is_collected_beside_whoever_writes(library, opened, monkeypatch):
    """`gc` comes between a put's temporary file and its rename; and between what `retire` writes and what it says."""
    from esper.library.catalogue import Catalogue

    other, replaced, writing = opened(), os.replace, Catalogue.writing

    def collecting(source, target):
        other.gc(grace=NOW, dry_run=False)  # noqa: F405
        replaced(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", collecting)
        digest = library.put(artifact(1), gain=Measured(0.2, 0.01, 4), tags=["a"])
    assert library.get(digest) == artifact(1)

    @contextmanager
    def collected(self, **more):
        with writing(self, **more) as connection:
            yield connection
        if self is library._catalogue:
            other.gc(grace=NOW, dry_run=False)  # noqa: F405

    monkeypatch.setattr(Catalogue, "writing", collected)
    retired = library.retire(digest, "worse")
    assert (retired.digest, retired.lifecycle, retired.reason, retired.tags) == (digest, "retired", "worse", ("a",))
    assert library.find(lifecycle="retired") == []


# ---- what goes wrong with files -----------------------------------------------------------------------------------


def test_a_time_that_is_none_hides_no_other_row(library):
    digest, sound = library.put(artifact(1)), library.put(artifact(2))
    with library._catalogue.writing() as connection:
        connection.exec_driver_sql(f"UPDATE esper_kernels SET updated = 'x' WHERE digest = '{digest[7:]}'")
    assert [entry.digest for entry in library.find()] == [sound]
    assert [name for name, _ in library.verify().problems] == [digest]
    library.put(artifact(1))
    assert library.get(digest) == artifact(1) and library.verify().problems == ()


DAMAGES = {
    f"UPDATE {VERSION_TABLE} SET version_num = '!!'": "another version of esper wrote it, or it was damaged",
    f"UPDATE {VERSION_TABLE} SET version_num = '0000'": "another version of esper wrote it, or it was damaged",
    f"UPDATE {VERSION_TABLE} SET version_num = 'zz'": "another version of esper wrote it, or it was damaged",
    f"INSERT INTO {VERSION_TABLE} VALUES ('0000')": "another version of esper wrote it, or it was damaged",
    f"DELETE FROM {VERSION_TABLE}": "the catalogue was damaged",
    "UPDATE esper_library SET id = '../../../../etc'": "its objects are found, is .* and not 32 hexadecimal digits",
    "UPDATE esper_library SET id = x'00'": "its objects are found, is .* and not 32 hexadecimal digits",
    "DROP TABLE esper_kernels": "the catalogue was damaged",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_makes_no_sense_in_a_catalogue_is_said(config, library, damage):
    library.put(artifact())
    with library._catalogue.writing() as connection:
        connection.exec_driver_sql(damage)
    with pytest.raises(LibraryError, match=rf"{DAMAGES[damage]}.*backup"), open_library(config) as again:
        again.find()


def test_an_object_whose_name_no_file_can_have_is_not_there(library):
    digest = library.put(artifact(1))
    for name in ("'a' || char(0)", "x'00ff'", "7"):
        with library._catalogue.writing() as connection:
            connection.exec_driver_sql(f"UPDATE esper_kernels SET blob = {name}")
        library.put(artifact(1))
        assert library.get(digest) == artifact(1) and library.verify().problems == ()


def test_a_file_that_is_no_catalogue_is_said(tmp_path):
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "catalogue.sqlite").write_bytes(b"something else" * 1000)
    with pytest.raises(LibraryError, match="none of esper's or was damaged"):
        open_library(folder)


def test_a_damaged_catalogue_is_said(config, tmp_path):
    with open_library(config) as library:
        for number in range(40):
            library.put(artifact(number))
    file = tmp_path / "library" / "catalogue.sqlite"
    with sqlite3.connect(file) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    raw.close()
    data = bytearray(file.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    file.write_bytes(data)
    with pytest.raises(LibraryError, match="backup"), open_library(config) as library:
        library.find()


def test_a_file_in_the_way_is_said(tmp_path):
    (tmp_path / "library").write_text("")
    with pytest.raises(LibraryError, match="take another folder"):
        open_library(tmp_path / "library")


def test_a_library_stays_where_it_was_opened(tmp_path, monkeypatch):
    from esper.library.files import Parcel, left_for_later, waiting

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with open_library("library") as library:
        library.put(artifact(1))
        monkeypatch.chdir(tmp_path / "elsewhere")
        digest = library.put(artifact(2))
        assert library.get(digest) == artifact(2)
        assert left_for_later(library.folder, Parcel(artifact(3))).parent == tmp_path / "library/outbox"
        assert len(waiting(library.folder)) == 1
    with open_library(tmp_path / "library") as library:
        assert library.get(digest) == artifact(2) and library.verify().problems == ()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_relative_library_of_a_process_that_works_nowhere_is_said(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(LibraryError, match="give the whole path"):
        open_library("library")


@contextmanager
def files_of_at_most(size):
    """The system refuses larger files, as it does when the disk is full."""
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_is_full_of_artifacts_is_said_and_nothing_is_half_there(library, tmp_path):
    kept = library.put(artifact(1))
    with files_of_at_most(1 << 17), pytest.raises(LibraryError, match=r"File too large.*free some space"):
        library.put(LARGE)
    assert library.find() == [library.entry(kept)] and library.verify().orphans == ()
    assert library.get(library.put(LARGE)) == LARGE


def test_a_disk_that_is_full_of_the_catalogue_is_said_and_nothing_is_lost(library, tmp_path):
    acknowledged = []
    size = (tmp_path / "library" / "catalogue.sqlite-wal").stat().st_size
    with files_of_at_most(size + (1 << 18)), pytest.raises(LibraryError, match=r"catalogue.*(disk|full)"):
        for number in range(1000):
            acknowledged.append(library.put(artifact(number)))
    assert acknowledged and {entry.digest for entry in library.find(limit=1000)} == set(acknowledged)
    assert library.get(library.put(artifact(2000))) == artifact(2000) and library.verify().problems == ()


@contextmanager
def as_nobody():
    """Permissions apply, whoever runs the tests."""
    was = os.geteuid(), os.getegid()
    if was[0] == 0:
        os.setegid(65534)
        os.seteuid(65534)
    try:
        yield
    finally:
        if was[0] == 0:
            os.seteuid(was[0])
            os.setegid(was[1])


@pytest.mark.parametrize("locked", ["folder", "objects", "catalogue.sqlite"])
def test_a_library_that_may_not_be_written_is_said(locked):
    with TemporaryDirectory() as temporary:  # pytest's own folders are closed to others
        folder = Path(temporary, "library")
        with open_library(folder) as library:
            kept = library.put(artifact(2))
        Path(temporary).chmod(0o755)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)
        for path in {"folder": [folder, *folder.glob("catalogue*")], "objects": [*folder.rglob("*/")]}.get(
            locked, [folder / locked]
        ):
            path.chmod(0o555 if path.is_dir() else 0o444)
        message = r"let this user write there|writable for this user"
        with as_nobody(), pytest.raises(LibraryError, match=message), open_library(folder) as library:
            library.put(artifact(1))
        with open_library(folder) as library:
            assert [entry.digest for entry in library.find()] == [kept] and library.get(kept) == artifact(2)


@contextmanager
def nothing_may_be_written():
    """Yields a library's folder, its kernel's digest and a function that closes and opens the folder to writes."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "library")
        with open_library(folder) as library:
            kept = library.put(artifact(2), gain=Measured(0.2, 0.01, 4), tags=["a"], run="r")
        Path(temporary).chmod(0o755)

        def close(mode=0o555):
            for path in (folder, *folder.rglob("*")):
                path.chmod(mode if path.is_dir() else mode & 0o666)

        yield folder, kept, close


def test_a_library_where_nothing_may_be_written_is_read(capsys):
    with nothing_may_be_written() as (folder, kept, close):
        close()
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        with as_nobody(), open_library(folder) as library:
            assert [entry.digest for entry in library.find(tag="a")] == [kept] and library.get(kept) == artifact(2)
            assert library.verify().problems == library.gc().objects == () and library.origins(kept)[0].run == "r"
            writes = (
                lambda: library.put(artifact(1)),
                lambda: library.retire(kept, "worse"),
                lambda: library.validate(kept, Measured(0.2, 0.01, 4)),
            )
            for write in writes:
                with pytest.raises(LibraryError, match=r"is read-only: .*make both writable for this user"):
                    write()
            assert main(["library", "list", "--library", str(folder)]) == 0
            assert kept[7:19] in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_library_that_only_others_may_write_is_read_as_they_write_it():
    with nothing_may_be_written() as (folder, kept, close), open_library(folder) as theirs:
        more = [theirs.put(artifact(3))]
        close()
        with as_nobody():
            mine = open_library(folder)
            assert {entry.digest for entry in mine.find()} == {kept, *more}
        close(0o755)
        more.append(theirs.put(artifact(4)))
        close()
        with as_nobody():
            assert {entry.digest for entry in mine.find()} == {kept, *more}
        close(0o755)
        theirs.close()
        close()
        with as_nobody(), mine:
            assert {entry.digest for entry in mine.find()} == {kept, *more}


def test_what_a_killed_writer_left_is_not_passed_over_where_it_cannot_be_read():
    with nothing_may_be_written() as (folder, _, close):
        with open_library(folder) as writer:
            writer.put(artifact(3))
            log = (folder / "catalogue.sqlite-wal").read_bytes()
        (folder / "catalogue.sqlite-wal").write_bytes(log)
        close()
        with as_nobody(), pytest.raises(LibraryError, match=r"write-ahead log .*open it once where it may be written"):
            open_library(folder)


@pytest.mark.parametrize("log", [False, True])
def test_a_catalogue_that_may_not_be_read_is_said(log, capsys):
    with nothing_may_be_written() as (folder, _, close):
        if log:
            (folder / "catalogue.sqlite-wal").write_bytes(b"left behind")
        close()
        (folder / "catalogue.sqlite").chmod(0o600)
        with as_nobody(), pytest.raises(LibraryError, match="this user may not read the file: let this user read it"):
            open_library(folder)
        folder.chmod(0o700)
        with as_nobody():
            with pytest.raises(LibraryError, match="let this user write there"):
                open_library(folder)
            assert main(["library", "list", "--library", str(folder)]) == 2
        assert "cannot be looked into: Permission denied; let this user read it" in capsys.readouterr().err


def test_an_older_catalogue_where_nothing_may_be_written_is_said(monkeypatch):
    with nothing_may_be_written() as (folder, _, close):
        close()
        monkeypatch.setattr("esper.library.catalogue.HEAD", "9999")
        with as_nobody(), pytest.raises(LibraryError, match=r"an older esper, and it is read-only: open it once where"):
            open_library(folder)


def test_an_access_key_hides_no_other_name(monkeypatch):
    from esper.library.blobs import Blobs

    keys = {"access_key_id": "esper", "secret_access_key": "s3cret", "session_token": "t0ken"}
    place = {"bucket": "esper-artifacts", "endpoint": "http://localhost:9", "region": "us-east-1"}
    blobs = Blobs.in_bucket({**keys, **place, "client_options": {"allow_http": True}}, "0" * 32)
    said = (
        "PUT http://localhost:9/esper-artifacts/kernels/ab.esper?X-Amz-Credential=esper%2F2026: "
        "<AWSAccessKeyId>esper</AWSAccessKeyId> s3crets t0ken"
    )
    monkeypatch.setattr(blobs, "_write", lambda path, data: (_ for _ in ()).throw(OSError(said)))
    with pytest.raises(LibraryError) as raised:
        blobs.put("0" * 64, b"")
    assert "/esper-artifacts/kernels/ab.esper?X-Amz-Credential=***%2F2026" in str(raised.value)
    assert "<AWSAccessKeyId>***</AWSAccessKeyId> ***s ***;" in str(raised.value)


def test_what_a_library_needs_is_named(monkeypatch, tmp_path):
    from esper.library import opening

    monkeypatch.setattr(opening, "find_spec", lambda name: None if name == "obstore" else 1)
    with pytest.raises(MissingExtraError, match=r'needs the package obstore: pip install "esper\[library\]"'):
        open_library(tmp_path)


def test_an_artifact_of_64_bits_needs_that_mode(library, tmp_path):
    import jax

    with jax.enable_x64(True):
        wide = artifact(dtype="float64", params={"a": jnp.ones(3, jnp.float64)})
        digest = library.put(wide)
        assert library.get(digest) == wide
    with pytest.raises(ArtifactError, match="needs JAX's 64-bit mode"):
        library.get(digest)
    assert library.verify().problems == ()
