"""Objects by the SHA-256 of their content, in a folder, an S3 bucket, or memory (obstore)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from esper.configs.redaction import scrubbed
from esper.errors import LibraryError
from esper.library.content import LARGEST
from esper.persistence.folder import make_folders, write_file

_KEY = re.compile(r"kernels/[0-9a-f]{32}/[0-9a-f]{2}/([0-9a-f]{64})\.esper")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"kernels/[0-9a-f]{32}/[0-9a-f]{2}/\.part-[0-9a-f]+")


@dataclass(frozen=True)
class Object:
    """One object: where it lies, the digest that its name has (None: a write left it), size, last change (UTC)."""

    path: str
    digest: str | None
    bytes: int
    modified: datetime


class Blobs:
    """Where artifacts lie. What is there under a name was written whole, or was tampered with: reading tells.

    Names begin with that of the catalogue they belong to, so that several may share a bucket, with each other and with
    whatever else is in it: nothing is seen, and so nothing removed, but one's own.

    Attributes:
        owner: Names the catalogue, 32 hexadecimal digits.
        place: Where it is, for messages; no credentials.
    """

    def __init__(
        self,
        store: Any,
        place: str,
        owner: str,
        write: Callable[[str, bytes], None],
        secrets: tuple[str, ...] = (),
        key_ids: tuple[str, ...] = (),
    ) -> None:
        self.place, self.owner, self._store, self._write = place, owner, store, write
        self._secrets, self._key_ids = secrets, key_ids

    @classmethod
    def in_folder(cls, folder: Path, owner: str) -> Blobs:
        """A folder, which is made if it is not there."""
        try:
            make_folders(folder)
        except OSError as error:
            raise LibraryError(f"the library's folder {folder}: {error.strerror}; {_next_move(str(error))}") from None
        return cls(LocalStore(folder), str(folder), owner, lambda path, data: write_file(folder / path, data))

    @classmethod
    def in_bucket(cls, options: Mapping[str, Any], owner: str) -> Blobs:
        """An S3 bucket, which must be there; writes are atomic, large ones go in parts that nobody sees.

        Args:
            options: As `StorageConfig.options` gives them.
            owner: Names the catalogue.
        """
        retries: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
        store = S3Store(**options, virtual_hosted_style_request=False, retry_config=retries)
        hidden = (options[name] for name in ("secret_access_key", "session_token") if name in options)
        endpoint = urlsplit(options["endpoint"])
        login, _, host = endpoint.netloc.rpartition("@")
        password = login.partition(":")[2]
        place = f"bucket {options['bucket']} at {endpoint._replace(netloc=host).geturl()}"
        secrets = tuple(filter(None, (*hidden, login, password, unquote(password))))
        return cls(
            store, place, owner, lambda path, data: _put(store, path, data), secrets, (options["access_key_id"],)
        )

    def put(self, digest: str, data: bytes) -> None:
        """Writes an object; others see all of it or nothing, and it is there to stay once this returns."""
        with self._speaking():
            self._write(self.path(digest), data)

    def get(self, digest: str, size: int) -> memoryview | None:
        """The content of an object; None: there is none, or of another size: nothing of that is read."""
        found = self.size(digest)
        if found != size or size > LARGEST:
            return None
        with self._speaking():
            data = memoryview(obstore.get(self._store, self.path(digest)).bytes())
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def size(self, digest: str) -> int | None:
        """The size of an object; None: there is none, as there is of a name that is no digest."""
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            return None
        found = self.at(self.path(digest))
        return None if found is None else found.bytes

    def at(self, path: str) -> Object | None:
        """The object at a path; None: there is none."""
        with self._speaking():
            try:
                return _object(obstore.head(self._store, path))
            except FileNotFoundError:
                return None

    def all(self) -> Iterator[Object]:
        """Every object of the catalogue's, those that writes left unfinished included."""
        with self._speaking():
            for batch in obstore.list(self._store, prefix=f"kernels/{self.owner}"):
                yield from (_object(meta) for meta in batch if _KEY.fullmatch(meta["path"]) or _unfinished(meta))

    def path(self, digest: str) -> str:
        """Where an object lies."""
        return f"kernels/{self.owner}/{digest[:2]}/{digest}.esper"

    def delete(self, path: str) -> None:
        """Removes an object if it is there."""
        with self._speaking():
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                return

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """What the store says as a LibraryError, with what to do and without credentials."""
        try:
            yield
            return
        except LibraryError:
            raise
        except (BaseError, OSError) as error:
            said = _said(error)
        said = scrubbed(said, self._secrets, self._key_ids)
        raise LibraryError(f"the library's objects ({self.place}): {said}; {_next_move(said)}") from None


def _unfinished(meta: Any) -> bool:
    """Whether a write in a folder left it, as `write_file` names what it writes."""
    return _UNFINISHED.fullmatch(meta["path"]) is not None


def _object(meta: Any) -> Object:
    found = _KEY.fullmatch(meta["path"])
    return Object(meta["path"], found[1] if found else None, meta["size"], meta["last_modified"])


def _put(store: Any, path: str, data: bytes) -> None:
    obstore.put(store, path, data)


_MOVES = {
    "no space": "free some space; what was there is as it was",
    "file too large": "the system limits the size of files: raise that limit (ulimit -f), or free some space",
    "permission denied": "let this user write there, or take another folder",
    "read-only file system": "take a folder that can be written, or mount it so",
    "file exists": "a file is in the way: take another folder",
    "not a directory": "a file is in the way: take another folder",
    "nosuchbucket": "create the bucket, or set storage.bucket_name to one that is there",
    "skewed": "set the clocks: this machine's and the server's are too far apart",
    "signature": "set storage.access_key and storage.secret_key to what the server has",
    "accesskey": "set storage.access_key and storage.secret_key to what the server has",
    "forbidden": "set storage.access_key and storage.secret_key to keys that may read and write the bucket, and see "
    "that the clocks agree",
    "unauthorized": "set storage.access_key and storage.secret_key to what the server has",
    "expired": "get new credentials",
}


def _said(error: BaseException) -> str:
    """What went wrong, without obstore's dump of its own state."""
    text = str(error).partition("Debug source")[0]
    return " ".join(text.split())[:500] or type(error).__name__


def _next_move(said: str) -> str:
    lower = said.lower()
    return next(
        (move for cause, move in _MOVES.items() if cause in lower),
        "see whether it runs and can be reached from here; once it can, do the same again: nothing is half done",
    )
