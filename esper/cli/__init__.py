"""The command `esper`: what goes wrong is one message and exit code 2, never a traceback.

One module a command, each with `add(commands)`. Exit codes: 0 all is well; 1 the command found what it looked for,
such as operators without a lowering; 2 the request cannot be met; 130 and 141 it was interrupted, or nobody reads what
it prints any more, as in `esper watch RUN | head`. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import io
import os
import select
import sys
from collections.abc import Sequence

from esper import __version__
from esper.cli import config, grow, inspect, library, report, tamiyo, watch
from esper.errors import EsperError

COMMANDS = (grow, watch, report, tamiyo, library, inspect, config)
"""Modules with an `add(commands)`, in the order they are listed in."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The command line without the program's name; None: that of the process.

    Returns:
        The exit code.
    """
    asked = _parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # what a terminal cannot show is no reason to end
    try:
        code = asked.run(asked)
        sys.stdout.flush()  # here, where it can be caught that nobody reads it
        return code
    except EsperError as error:
        print(f"esper: {error}", file=sys.stderr)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and not _is_read():
            return 141  # as for a process that SIGPIPE ended
        print(f"esper: {error.strerror or error}: {error.filename or ''}".rstrip(": "), file=sys.stderr)
    except KeyboardInterrupt:
        print("esper: interrupted", file=sys.stderr)
        return 130
    return 2


def _is_read() -> bool:
    """Whether anybody reads the output still; if not, what is left to write goes nowhere instead of failing again."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # it is no file
        return True
    ends = select.poll()
    ends.register(output, 0)
    if not any(told & select.POLLERR for _, told in ends.poll(0)):
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="esper", description="Run, train and grow PyTorch models on XLA.")
    parser.add_argument("--version", action="version", version=f"esper {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
