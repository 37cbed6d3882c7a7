"""`esper tamiyo`: the controller, a process that decides how runs grow."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from esper.cli.modules import find_user_modules

_LOG = logging.getLogger("esper.control")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Puts `esper tamiyo` among the commands."""
    parser = commands.add_parser("tamiyo", help="decide how runs grow, for runs in other processes")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--config", metavar="FILE", help="the configuration that the runs have too")
    task.add_argument("--new-key", metavar="ID", help="print a line with a new key, for the file of keys")
    parser.set_defaults(run=_tamiyo)


def _tamiyo(asked: argparse.Namespace) -> int:
    if asked.new_key is not None:
        from esper.control.keys import new_key

        print(new_key(asked.new_key))
        return 0
    return _serve(asked)


def _serve(asked: argparse.Namespace) -> int:
    find_user_modules()
    from rich.console import Console

    from esper.cli.grow import logged
    from esper.configs import EsperConfig
    from esper.control.connect import controller_of
    from esper.control.service import serve

    config = EsperConfig.from_yaml(asked.config)
    config.check()
    with (
        logged(config.logging_settings(), Console(stderr=True), quiet=False),
        _until_told() as stop,
        controller_of(config) as (controller, channel),
    ):
        _LOG.info("serving every run")
        serve(controller, channel, stop)
        _LOG.info("told to end")
    return 0


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """Set by SIGTERM and SIGINT: what is being answered is answered first."""
    stop = threading.Event()

    def told(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, told) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
