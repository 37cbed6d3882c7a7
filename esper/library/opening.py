"""`open_library`: from a path or a configuration to a library."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from esper.configs import DatabaseConfig, EsperConfig, StorageConfig
from esper.errors import LibraryError, MissingExtraError
from esper.library.library import Library

if TYPE_CHECKING:
    from esper.library.blobs import Blobs
    from esper.library.catalogue import Catalogue

_LOG = logging.getLogger("esper.library")
_HALF_SHARED = (
    "the configuration has %s and no %s: other machines do not find what is put into the library here; give both to "
    "share it"
)

CATALOGUE = "catalogue.sqlite"
OBJECTS = "objects"


def open_library(where: str | os.PathLike[str] | EsperConfig) -> Library:
    """A library; it is made if it is not there, and its catalogue brought to the newest schema.

    Args:
        where: A folder, in which all of it lies; or a configuration: its `database` holds the catalogue and its
            `storage` the artifacts, and what it leaves out lies in the folder of `components.urza.config`.

    Raises:
        MissingExtraError: What a library needs is not installed.
        LibraryError: It cannot be opened.

    Example:
        >>> import tempfile
        >>> from esper.library import open_library
        >>> with open_library(tempfile.mkdtemp()) as library:
        ...     library.find()
        []
    """
    for package in ("sqlalchemy", "alembic", "obstore"):
        if find_spec(package) is None:
            raise MissingExtraError("a kernel library", package, "library")
    config = where if isinstance(where, EsperConfig) else None
    folder = _absolute(Path(config.urza_settings().folder if config else os.fspath(where)))  # type: ignore[arg-type]
    if config and (config.database is None) != (config.storage is None):
        _LOG.warning(_HALF_SHARED, *(("storage", "database") if config.database is None else ("database", "storage")))
    catalogue = _catalogue(folder, config.database if config else None)
    try:
        return Library(catalogue, _blobs(folder, config.storage if config else None, catalogue.id), folder)
    except BaseException:
        catalogue.close()
        raise


def _absolute(folder: Path) -> Path:
    """The folder wherever the process goes from here."""
    try:
        return folder.absolute()
    except OSError as error:
        raise LibraryError(
            f"the library's folder {folder} is one below the folder that this process works in, which cannot be found: "
            f"{error.strerror}; give the whole path"
        ) from None


def _blobs(folder: Path, storage: StorageConfig | None, owner: str) -> Blobs:
    from esper.library.blobs import Blobs

    if storage is None:
        return Blobs.in_folder(folder / OBJECTS, owner)
    try:
        return Blobs.in_bucket(storage.options(), owner)
    except OSError as error:
        raise LibraryError(f"storage.ca_file {error.filename} cannot be read: {error.strerror}") from None


def _catalogue(folder: Path, database: DatabaseConfig | None) -> Catalogue:
    from esper.library.catalogue import Catalogue

    if database is not None:
        if find_spec("psycopg") is None:
            raise MissingExtraError("a catalogue in PostgreSQL", "psycopg", "postgres")
        return Catalogue.on_server(database.options())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LibraryError(
            f"the library's folder {folder} cannot be made: {error.strerror}; take another folder, or let this user "
            "write there"
        ) from None
    return Catalogue.in_file(folder / CATALOGUE)
