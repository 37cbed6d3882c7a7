"""The connection to a catalogue: SQLite in a file, or PostgreSQL; its migrations, transactions and errors."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from esper.errors import LibraryError
from esper.library.schema import HEAD, VERSION_TABLE, identity

if TYPE_CHECKING:
    from alembic.config import Config

_MIGRATIONS = Path(__file__).parent / "migrations"
_PATIENCE = 30  # seconds that one writer waits for another, or for a server to answer
_LOCK = 0x65737065  # of PostgreSQL's advisory locks, "espe"
_WRITES = "esper_writes"
_REVISION, _IDENTITY = re.compile(r"[0-9]{4}"), re.compile(r"[0-9a-f]{32}")
_UPGRADING = threading.Lock()  # alembic keeps the connection that it migrates for the whole process


class Catalogue:
    """A database with the catalogue's tables, of the newest schema.

    Attributes:
        place: Where it is, for messages; no credentials.
        read_only: Whether it lies where this user may write nothing.
        id: Names it among those that keep their objects in one place: 32 hexadecimal digits.
    """

    def __init__(self, engine: Engine, place: str, secrets: tuple[str, ...] = (), *, read_only: bool = False) -> None:
        self.place, self.read_only = place, read_only
        self._engine, self._secrets, self._closed = engine, secrets, False
        with self._speaking():
            self._migrate()
        with self.reading() as connection:
            self.id = self._identity(connection)

    @classmethod
    def in_file(cls, file: Path) -> Catalogue:
        """A catalogue in a file of its own, which is made if it is not there; several processes may share it.

        One that lies where nothing may be written is read.

        Raises:
            LibraryError: The file cannot be opened, or is no catalogue, or one of a newer esper.
        """
        if _is_read_only(file):
            return cls(_reader(file), str(file), read_only=True)
        url = URL.create("sqlite", database=str(file))
        engine = sa.create_engine(url, connect_args={"timeout": _PATIENCE}, hide_parameters=True)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return cls(engine, str(file))

    @classmethod
    def on_server(cls, options: Mapping[str, Any]) -> Catalogue:
        """A catalogue in a PostgreSQL database.

        Args:
            options: As `DatabaseConfig.options` gives them.

        Raises:
            LibraryError: The server does not answer, does not let us in, or holds the catalogue of a newer esper.
        """
        from esper.library.patience import be_patient

        # Dead peers are noticed, and a connection that the server has closed meanwhile before it is used.
        more = {"application_name": "esper-library", "tcp_user_timeout": _PATIENCE * 1000}
        engine = sa.create_engine(
            "postgresql+psycopg://", connect_args={**more, **options}, pool_pre_ping=True, hide_parameters=True
        )
        be_patient(engine, _PATIENCE)
        place = f"{options['dbname']} on {options['host']}:{options['port']}"
        return cls(engine, place, (options["password"],) if options["password"] else ())

    @property
    def dialect(self) -> str:
        """What speaks to it: "sqlite" or "postgresql"."""
        return self._engine.dialect.name

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads; all of it sees the catalogue as it was at one moment."""
        with self._speaking(), self._connected() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def writing(self, *, alone: bool = False) -> Iterator[Connection]:
        """A transaction that writes, all of it or nothing.

        Args:
            alone: Whether no other writes meanwhile; in SQLite none ever does.
        """
        self.check_writable()
        with self._speaking(), self._connected() as connection:
            connection = connection.execution_options(**{_WRITES: True})
            with connection.begin():
                if self.dialect == "postgresql":
                    lock = sa.func.pg_advisory_xact_lock if alone else sa.func.pg_advisory_xact_lock_shared
                    connection.execute(sa.select(lock(_LOCK)))
                yield connection

    def check_writable(self) -> None:
        """Raises a LibraryError if nothing can be written here, before anything is."""
        if self.read_only:
            raise LibraryError(f"the library's catalogue ({self.place}) is {_READ_ONLY}")

    def _connected(self) -> Connection:
        """A connection.

        Raises:
            LibraryError: The catalogue was closed.
        """
        if self._closed:
            raise LibraryError(f"the library ({self.place}) was closed: open it again with esper.library.open_library")
        return self._engine.connect()

    def insert_missing(self, table: sa.Table) -> Any:
        """An insert that leaves what is there as it is."""
        if self.dialect == "postgresql":
            from sqlalchemy.dialects.postgresql import insert
        else:
            from sqlalchemy.dialects.sqlite import insert
        return insert(table).on_conflict_do_nothing()

    def optimise(self) -> None:
        """Lets SQLite look at its tables again if they have changed much; a server does so by itself."""
        if self.dialect == "sqlite" and not self.read_only:
            with self._speaking(), self._engine.connect() as connection:
                raw: Any = connection.connection.driver_connection
                raw.execute("PRAGMA optimize")  # in no transaction: what it finds out is kept

    def close(self) -> None:
        """Closes every connection; there are no others from then on."""
        self._closed = True
        self._engine.dispose()

    # ---- schema -------------------------------------------------------------------------------------------------

    def _migrate(self) -> None:
        """Applies the migrations that are missing; of several who open it at once, one does."""
        if self.dialect == "sqlite" and not self.read_only:
            _retrying(self._use_wal)
        with self._engine.connect() as connection:
            if self._version(connection) == HEAD:
                return
        if self.read_only:
            raise LibraryError(
                f"{self.place}: the catalogue was made by an older esper, and it is read-only: open it once where it "
                "may be written, which brings it to this version's schema"
            )
        with self.writing(alone=True) as connection:
            if self._version(connection) != HEAD:
                _upgrade(connection)

    def _use_wal(self) -> None:
        """Lets readers read while others write; kept in the file."""
        with self._engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            if raw.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                raw.execute("PRAGMA journal_mode=WAL")

    def _version(self, connection: Connection) -> str | None:
        """The schema's version; None: there is none yet.

        Raises:
            LibraryError: It is none that is known here.
        """
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        named = list(connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars())
        found = ", ".join(map(str, named))
        if not named or found == HEAD or found in _known():
            return found or None
        if found > HEAD and _REVISION.fullmatch(found):
            raise LibraryError(
                f"{self.place}: the catalogue has schema {found}, and this version of esper knows {HEAD}: it was made "
                "by a newer esper; use that one here too"
            )
        raise LibraryError(
            f"{self.place}: the catalogue says that its schema is {found!r:.80}, which this version of esper does not "
            "know: another version of esper wrote it, or it was damaged; use that version, or bring it back from a "
            "backup"
        )

    def _identity(self, connection: Connection) -> str:
        """What names this catalogue among others.

        Raises:
            LibraryError: That is no name that esper gives.
        """
        found = connection.execute(sa.select(identity.c.id)).scalar_one()
        if not isinstance(found, str) or not _IDENTITY.fullmatch(found):
            raise LibraryError(
                f"{self.place}: the catalogue's own id, by which its objects are found, is {found!r:.80} and not 32 "
                f"hexadecimal digits: the table {identity.name} was changed by other means than the library's; bring "
                "the catalogue back from a backup"
            )
        return found

    # ---- errors -------------------------------------------------------------------------------------------------

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """What the database says as a LibraryError, with what to do and without credentials."""
        try:
            yield
            return
        except (SQLAlchemyError, sqlite3.Error) as error:
            said = self._redacted(str(getattr(error, "orig", None) or error))
        # Without the driver's error, which holds the arguments of the connection.
        move = self._unopened() if self.read_only and "unable to open" in said else _next_move(said)
        raise LibraryError(f"the library's catalogue ({self.place}): {said}; {move}") from None

    def _unopened(self) -> str:
        """What to do where a file cannot be opened beside which nothing may be written."""
        file = Path(self.place)
        return _LEFT_BEHIND if _may(file, os.R_OK) and _has_log(file) else _UNREADABLE

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:500]


_READ_ONLY = (
    "read-only: this user may not write its file or its folder, or the file system is mounted so; make both writable "
    "for this user, or take another library"
)
_LEFT_BEHIND = (
    "it is read-only, and who wrote last was killed or writes still, so that there is a write-ahead log (-wal) to be "
    "read first: open it once where it may be written"
)
_UNREADABLE = "this user may not read the file: let this user read it and its folder, or take another library"
_MOVES = {
    "locked": f"another process has been writing for more than {_PATIENCE} s; try again when it is done",
    "no answer in": "see whether the server hangs, or who has been writing for so long; then do the same again",
    "disk is full": "free some space; what was there is as it was",
    "disk i/o": "see whether the disk is full or failing; what was there is as it was",
    "readonly": "make the folder and the file writable for this user",
    "read-only": "make it writable for this user",
    "unable to open": "make the folder, and let this user write there",
    "not a database": "the file is none of esper's or was damaged: bring it back from a backup",
    "malformed": "the file was damaged: bring it back from a backup",
    "no such table": "the catalogue was damaged: bring it back from a backup",
    "no such column": "the catalogue was damaged: bring it back from a backup",
    "already exists": "the catalogue was damaged, or others have tables of its names: bring it back from a backup, "
    "or take another database",
    "password authentication": "set database.username and database.password to what the server has",
    "no password": "set database.password",
    "does not exist": "create it on the server, or set database.database and database.username to what is there",
    "permission denied": "grant this role USAGE and CREATE on the schema, and the tables' rights",
    "ssl": "see database.ssl_mode and the server's certificate",
}


def _next_move(said: str) -> str:
    lower = said.lower()
    return next(
        (move for cause, move in _MOVES.items() if cause in lower),
        "see whether the server runs and can be reached from here; then do the same again: nothing is half done",
    )


def _migrations() -> Config:
    """Where alembic finds the migrations."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _known() -> set[str]:
    """The schemas that can be brought to the newest one."""
    from alembic.script import ScriptDirectory

    return {script.revision for script in ScriptDirectory.from_config(_migrations()).walk_revisions()}


def _upgrade(connection: Connection) -> None:
    """Runs the migrations on a connection, in its transaction."""
    from alembic import command

    config = _migrations()
    config.attributes["connection"] = connection
    with _UPGRADING:
        command.upgrade(config, HEAD)


def _retrying(action: Callable[[], None]) -> None:
    """Does it, again while another process holds the lock, which SQLite does not wait for here."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.05)


def _is_read_only(file: Path) -> bool:
    """Whether a file is there, and this user may not write it and what SQLite puts beside it."""
    return os.path.isfile(file) and not all(_may(path, os.W_OK) for path in (file, file.parent))


def _may(path: Path, mode: int) -> bool:
    """Whether this user may do so with a file or folder."""
    effective = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
    return os.access(path, mode, **effective)


def _reader(file: Path) -> Engine:
    """What reads a file beside which nothing can be written: https://sqlite.org/wal.html#read_only_databases."""

    def connect() -> sqlite3.Connection:
        # Where a write-ahead log is, SQLite reads it, and sees what others write; without one it would have to make it,
        # unless it is told that nobody writes. Another may begin to: so this is asked again for every transaction.
        uri = f"{file.absolute().as_uri()}?mode=ro" + ("" if _has_log(file) else "&immutable=1")
        return sqlite3.connect(uri, uri=True, timeout=_PATIENCE, check_same_thread=False)

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.NullPool, hide_parameters=True)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _has_log(file: Path) -> bool:
    """Whether a write-ahead log is there that says something, or that somebody writes."""
    try:
        return file.with_name(f"{file.name}-wal").stat().st_size > 0 or file.with_name(f"{file.name}-shm").exists()
    except OSError:  # there is none, or nothing that this user can see
        return False


def _prepare_sqlite(connection: Any, record: Any) -> None:
    # SQLAlchemy begins transactions, not the driver, which would end them before every change of a table.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={_PATIENCE * 1000}")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")  # what was acknowledged survives a power cut


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later could not go on if another wrote in between.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
