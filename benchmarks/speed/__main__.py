"""Measures and makes the page: `python -m benchmarks.speed [workload ...] [report]`; all of it by default."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from typing import Any

from benchmarks.speed import measure, overhead, report, resident
from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.results import Measurement, save, save_overhead
from benchmarks.speed.workloads import WORKLOADS

RUNS = 3
COUNTED_BY_PROCESS = ("eager torch", "esper")


def main() -> None:
    """A process for each run of each workload: none finds what another compiled, loaded or left in memory."""
    chosen = _arguments()
    contenders = chosen.contenders or list(CONTENDERS)
    for name in [name for name in chosen.what if name in WORKLOADS] or ([] if chosen.what else list(WORKLOADS)):
        runs = tuple(alone(measure.one_run, name, contenders) for _ in range(chosen.runs))
        sizes = {who: alone(resident.resident, name, who) for who in COUNTED_BY_PROCESS if who in contenders}
        workload = WORKLOADS[name]
        found = Measurement(
            name, workload.about, workload.tuned, machine(), runs, {who: size for who, size in sizes.items() if size}
        )
        print(*report.section(found), sep="\n", flush=True)
        if not chosen.contenders:
            save(found)
    if not chosen.what or "overhead" in chosen.what:
        save_overhead(alone(overhead.measured))
    if not chosen.contenders:
        print(report.write())


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def machine() -> dict[str, str]:
    """What the figures depend on besides the code."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = {name: version(name) for name in ("torch", "jax", "jaxlib", "optax")}
    return {"processor": processor, "cores": str(os.cpu_count()), "python": platform.python_version(), **versions}


def _arguments() -> argparse.Namespace:
    known = [*WORKLOADS, "overhead", "report"]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed")
    parser.add_argument("what", nargs="*", metavar="workload", help=f"of: {', '.join(known)}; all by default")
    parser.add_argument(
        "--contenders", nargs="+", choices=list(CONTENDERS), help="only these; then results are printed and not kept"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="processes for each workload")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.what if name not in known]
    if unknown:
        parser.error(f"no workload {', '.join(unknown)}; there are: {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    main()
