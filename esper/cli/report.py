"""`esper report`: what runs did, as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Puts `esper report` among the commands."""
    parser = commands.add_parser("report", help="write what runs did as one HTML page")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, as `esper grow` writes it")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to; left out: report.html in the first run's folder"
    )
    parser.set_defaults(run=_report)


def _report(asked: argparse.Namespace) -> int:
    from esper.report import write

    first = Path(asked.runs[0])
    path = Path(asked.output) if asked.output else (first if first.is_dir() else first.parent) / "report.html"
    written = write(asked.runs, path)
    print(f"{written}: the report, one file of {written.stat().st_size / 1000:,.0f} kB; open it in a browser")
    return 0
