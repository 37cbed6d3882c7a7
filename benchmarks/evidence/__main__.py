"""Runs benchmarks and makes the page: `python -m benchmarks.evidence [B1 ... | report]`; all of it by default."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from importlib import import_module

from benchmarks.evidence.results import save

BENCHMARKS = {"B1": "organ", "B2": "paid_host", "B3": "language", "B4": "width", "B5": "harmless"}
"""Name to module."""


def main(chosen: list[str]) -> None:
    unknown = [name for name in chosen if name not in BENCHMARKS and name != "report"]
    if unknown:
        raise SystemExit(f"no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}, and 'report'")
    for name in [name for name in chosen if name != "report"] or ([] if chosen else list(BENCHMARKS)):
        start = time.perf_counter()
        found = import_module(f"benchmarks.evidence.{BENCHMARKS[name]}").run()
        path = save(replace(found, seconds=time.perf_counter() - start))
        print(f"{name}: {path}")
    import_module("benchmarks.evidence.report").write()


if __name__ == "__main__":
    main(sys.argv[1:])
