"""`esper watch`: runs as they go, from their files or from Redis."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from esper.telemetry import Event

_WIDTH = 120


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Puts `esper watch` among the commands."""
    parser = commands.add_parser(
        "watch",
        help="show runs as they go",
        description="Shows runs as they go: in terminals a view that changes, elsewhere a line an event, until Ctrl-C.",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="the folder of a run, or of several; with Redis, the id of a run"
    )
    parser.add_argument(
        "--config", metavar="FILE", help="watch where this configuration sends events: its Redis, else its output_dir"
    )
    parser.add_argument("--once", action="store_true", help="show how things are now, and end")
    parser.add_argument("--new", action="store_true", help="leave out what has happened already")
    parser.set_defaults(run=_watch)


def _watch(asked: argparse.Namespace) -> int:
    from rich.console import Console

    from esper.errors import ArgumentError

    if asked.once and asked.new:
        raise ArgumentError("--once shows what has happened, and --new leaves that out: give one of them")
    stop = threading.Event()
    console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    events, place = _events(asked, stop)
    try:
        if asked.once:
            stop.set()
            return _once(events, console, place)
        return _live(events, console) if console.is_terminal else _lines(events)
    except KeyboardInterrupt:
        return 0
    finally:
        stop.set()


def _events(asked: argparse.Namespace, stop: threading.Event) -> tuple[Iterator[Event], str]:
    """The events, and where they come from."""
    from esper.configs import EsperConfig
    from esper.errors import ArgumentError
    from esper.telemetry import follow
    from esper.telemetry.streams import follow_redis

    beginning = not asked.new
    if asked.config is None:
        if not asked.runs:
            raise ArgumentError("nothing to watch: give the folder of a run, such as runs/quickstart, or --config FILE")
        return follow(*asked.runs, beginning=beginning, stop=stop), _places(asked.runs)
    config = EsperConfig.from_yaml(asked.config)
    config.check()
    if config.redis is not None and config.nissa_settings().redis:
        oona, server = config.oona_settings(), f"{config.redis.host}:{config.redis.port}"
        place = f"{' and '.join(asked.runs) or 'any run'}, on Redis at {server} under the prefix {oona.prefix}"
        return follow_redis(config.redis, oona, runs=asked.runs, beginning=beginning, stop=stop), place
    runs = asked.runs or [config.training_settings().output_dir]
    return follow(*runs, beginning=beginning, stop=stop), _places(runs)


def _places(runs: Sequence[str]) -> str:
    return " and ".join(run if Path(run).exists() else f"{run}, which is not there" for run in runs)


def _once(events: Iterator[Event], console: Console, place: str) -> int:
    from esper.errors import ArgumentError
    from esper.telemetry.showing import board
    from esper.telemetry.state import states

    found = states(events)
    if not found:
        raise ArgumentError(f"there are no events yet of {place}: give the folder of a run that has begun")
    console.print(board(found, unicode=_draws(console)))
    return 0


def _lines(events: Iterator[Event]) -> int:
    from esper.telemetry.showing import sentence

    for event in events:
        print(sentence(event), flush=True)
    return 0


def _live(events: Iterator[Event], console: Console) -> int:
    from rich.live import Live

    from esper.telemetry.showing import board
    from esper.telemetry.state import Key, RunState, states

    found: dict[Key, RunState] = {}
    draws = _draws(console)
    with Live(get_renderable=lambda: board(found, unicode=draws), console=console, refresh_per_second=4):
        for event in events:
            found = states([event], found)
    return 0


def _draws(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")
