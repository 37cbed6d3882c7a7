"""`esper library`: what is in a kernel library, and kernels into and out of it."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.cli.arguments import amount, words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.text import Text

    from esper.library import Entry, Library

_WIDTH = 140
_CENTURY = 876_600  # hours
_DIGEST = "its digest, or the beginning of it: at least 6 digits, with which no other begins"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Puts `esper library` among the commands."""
    parser = commands.add_parser("library", help="look into a kernel library, and move kernels")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    found = _verb(verbs, "list", _list, "the kernels of a library, the best gain first")
    for name in ("kind", "blueprint", "tag", "lifecycle"):
        found.add_argument(f"--{name}", type=words, help=f"only those of this {name}")
    of_run = "only those of this run: its run_id, such as 20261130T101530-1a2b3c, not the name of its configuration"
    found.add_argument("--run", dest="of_run", type=words, metavar="RUN_ID", help=of_run)
    found.add_argument("--min-gain", type=float, help="only those that gained as much")
    found.add_argument("--order-by", type=words, default="gain", help="gain, created, updated or parameters")
    found.add_argument("--limit", type=int, default=50, help="how many at most (50)")
    shown = _verb(verbs, "show", _show, "all that is known of one kernel")
    shown.add_argument("digest", metavar="DIGEST", help=_DIGEST)
    pushed = _verb(verbs, "push", _push, "put kernels into the library: files, those of another, or the outbox")
    pushed.add_argument("what", metavar="FILE|DIGEST", nargs="*", help="files; with --from digests; none: the outbox")
    pushed.add_argument("--from", dest="other", metavar="DIR", help="another library, of which all or these are taken")
    pulled = _verb(verbs, "pull", _pull, "take a kernel out of the library, into a file or another library")
    pulled.add_argument("digest", metavar="DIGEST", help=_DIGEST)
    pulled.add_argument("--to", required=True, metavar="FILE.esper|DIR", help="a file, or the folder of a library")
    retired = _verb(verbs, "retire", _retire, "take a kernel out of what is found; gc removes it after a time")
    retired.add_argument("digest", metavar="DIGEST", help=_DIGEST)
    retired.add_argument("--reason", type=words, required=True, metavar="TEXT", help="why, for whoever asks later")
    _verb(verbs, "verify", _verify, "read everything, and say what is damaged or missing")
    collected = _verb(verbs, "gc", _gc, "say what could go; with --delete, remove it")
    collected.add_argument(
        "--grace",
        type=amount("hours", _CENTURY, zero=True),
        default=168,
        metavar="HOURS",
        help="leave alone what is newer (168)",
    )
    collected.add_argument("--delete", action="store_true", help="remove it")


def _verb(verbs: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=about, description=about)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--library", metavar="DIR", help="the folder of a library; without one, runs/library")
    where.add_argument("--config", metavar="FILE", help="the configuration that says where the library is")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.set_defaults(run=lambda asked: _run(asked, run))
    return parser


def _run(asked: argparse.Namespace, verb: Any) -> int:
    from esper.configs import EsperConfig, UrzaSettings
    from esper.library import open_library

    where: Any = asked.library or UrzaSettings().folder
    if asked.config:
        where = EsperConfig.from_yaml(asked.config)
        if where.database is None and verb is not _push:
            _there(where.urza_settings().folder)
    elif verb is not _push:
        _there(where)
    with open_library(where) as library:
        return verb(asked, library)


def _plain(text: str) -> str:
    """Text as a terminal may be given it: what comes from a library says nothing to the terminal itself."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _list(asked: argparse.Namespace, library: Library) -> int:
    named = ("kind", "blueprint", "tag", "lifecycle", "min_gain", "order_by", "limit")
    found = library.find(**{name: getattr(asked, name) for name in named}, run=asked.of_run)
    if asked.json:
        return _said([entry.as_dict() for entry in found])
    _console().print(_table(found, library.place))
    return 0


def _show(asked: argparse.Namespace, library: Library) -> int:
    entry, origins = library.entry(asked.digest), library.origins(asked.digest)
    told = [{**origin.as_dict(), "time": origin.time and origin.time.isoformat()} for origin in origins]
    if asked.json:
        return _said(entry.as_dict() | {"origins": told})
    from rich.table import Table

    title = _cell(f"{entry.blueprint} beside {entry.kind}")
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in entry.as_dict().items():
        table.add_row(name, _cell(_text(value)))
    for number, origin in enumerate(told, start=1):
        known = {name: value for name, value in origin.items() if value not in ("", None)}
        table.add_row(f"origin {number}", _cell(_text(known)))
    _console().print(table)
    return 0


def _push(asked: argparse.Namespace, library: Library) -> int:
    from esper.library import open_library
    from esper.library.files import delivered, delivered_later, read_parcel, taken

    if asked.other:
        with open_library(_there(asked.other)) as other:
            digests = asked.what or other.digests()
            return _moved(asked, (delivered(library, taken(other, digest)) for digest in digests), library.place)
    if asked.what:
        return _moved(asked, (delivered(library, read_parcel(Path(file))) for file in asked.what), library.place)
    return _moved(asked, (digest for _, digest in delivered_later(library)), library.place)


def _pull(asked: argparse.Namespace, library: Library) -> int:
    from esper.library import open_library
    from esper.library.files import SUFFIX, delivered, taken, write_parcel

    parcel = taken(library, asked.digest)
    if asked.to.endswith(SUFFIX):
        write_parcel(Path(asked.to), parcel)
    else:
        with open_library(asked.to) as other:
            delivered(other, parcel)
    return _moved(asked, [parcel.artifact.digest], asked.to)


def _verify(asked: argparse.Namespace, library: Library) -> int:
    found = library.verify()
    if asked.json:
        _said({"checked": found.checked, "problems": dict(found.problems), "orphans": list(found.orphans)})
        return 1 if found.problems else 0
    for _, problem in found.problems:
        print(_plain(problem))
    print(f"{found.checked} artifacts read through, {len(found.problems)} of them not whole")
    print(f"{len(found.orphans)} objects that no kernel names, which `esper library gc` removes")
    return 1 if found.problems else 0


def _retire(asked: argparse.Namespace, library: Library) -> int:
    digest = library.digest(asked.digest)
    entry = library.retire(digest, asked.reason)
    if asked.json:
        return _said({"digest": digest, "lifecycle": "retired", "reason": asked.reason, "sound": entry is not None})
    print(f"{digest} is retired; `esper library gc --delete` removes it after its grace period")
    if entry is None:
        print("its entry was changed by other means than the library's, and is not believed: only a push makes it anew")
    return 0


def _gc(asked: argparse.Namespace, library: Library) -> int:
    found = library.gc(grace=timedelta(hours=asked.grace), dry_run=not asked.delete)
    if asked.json:
        held = {"retired": list(found.retired), "objects": list(found.objects)}
        return _said({**held, "bytes": found.bytes, "dry_run": found.dry_run})
    verb = "would go (--delete removes them)" if found.dry_run else "went"
    print(f"{len(found.retired)} retired artifacts and {len(found.objects)} objects, {found.bytes} bytes, {verb}")
    return 0


def _moved(asked: argparse.Namespace, digests: Iterable[str], to: str) -> int:
    """Says what was moved, each as soon as it is: what comes after may fail."""
    moved: list[str] = []
    try:
        for digest in digests:
            moved.append(digest)
            if not asked.json:
                print(_plain(f"{digest} -> {to}"))
    finally:
        if asked.json:
            _said({"digests": moved, "to": to})
        else:
            print(f"{len(moved)} kernels")
    return 0


def _there(folder: str) -> str:
    """A library that is to be read from; one that is not there is not made.

    Raises:
        LibraryError: It is not there, or nobody lets this user look.
    """
    from esper.errors import LibraryError
    from esper.library.opening import CATALOGUE

    try:
        if (Path(folder) / CATALOGUE).is_file():
            return folder
    except OSError as error:
        raise LibraryError(f"{folder} cannot be looked into: {error.strerror}; let this user read it") from None
    raise LibraryError(f"{folder} holds no library; give the folder of one")


def _table(found: list[Entry], place: str) -> Any:
    from rich.table import Table

    table = Table(title=_cell(f"{len(found)} kernels in {place}"), title_justify="left")
    for name in ("digest", "blueprint", "layer", "gain", "parameters", "lifecycle", "tags", "created (UTC)"):
        table.add_column(name, no_wrap=name == "digest", justify="right" if name in ("gain", "parameters") else "left")
    for entry in found:
        table.add_row(
            entry.digest[7:19],
            _cell(" ".join([entry.blueprint, *(f"{name}={value}" for name, value in entry.options)])),
            _cell(" ".join([entry.kind, *(f"{name}={value}" for name, value in entry.attributes)])),
            str(entry.gain or "-"),
            f"{entry.parameters:,}",
            entry.lifecycle,
            _cell(", ".join(entry.tags)),
            f"{entry.created:%Y-%m-%d %H:%M}",
        )
    return table


def _cell(text: str) -> Text:
    """Text that is no markup."""
    from rich.text import Text

    return Text(_plain(text))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _said(value: Any) -> int:
    print(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


def _console() -> Console:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)
