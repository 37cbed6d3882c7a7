"""Measures and makes the page: `python -m benchmarks.speed [workload | part ...]`; all of it by default.

Parts are `overhead`, `seeds`, `hosted`, `warm` and `report`, which only makes the page; `seeds:gpt` is one workload's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from typing import Any

from benchmarks.speed import measure, overhead, report, resident, seeds, warm
from benchmarks.speed.contenders import CONTENDERS
from benchmarks.speed.costs import Seeded, Warm, save_hosted, save_overhead, save_seeded, save_warm
from benchmarks.speed.results import Measurement, save
from benchmarks.speed.workloads import WORKLOADS

RUNS = 3
COUNTED_BY_PROCESS = ("eager torch", "esper")


def main() -> None:
    """A process for each run of each workload: none finds what another compiled, loaded or left in memory."""
    chosen = _arguments()
    for name in _listed("", WORKLOADS, chosen.what):
        _race(name, chosen)
    if chosen.contenders:
        return
    if _listed("overhead", ("",), chosen.what):
        save_overhead(alone(overhead.measured))
    for name in _listed("seeds", seeds.LAYERS, chosen.what):
        runs = tuple(alone(seeds.one_run, name) for _ in range(chosen.runs))
        save_seeded(Seeded(name, seeds.LAYERS[name], machine(), runs))
    for name in _listed("hosted", measure.IN_TORCH, chosen.what):
        runs = tuple(alone(measure.hosted_run, name) for _ in range(chosen.runs))
        save_hosted(Measurement(name, WORKLOADS[name].about, WORKLOADS[name].tuned, machine(), runs))
    for name in _listed("warm", warm.LISTED, chosen.what):
        save_warm(Warm(name, machine(), tuple(_twice(name) for _ in range(chosen.runs))))
    print(report.write())


def _race(name: str, chosen: argparse.Namespace) -> None:
    contenders = chosen.contenders or list(CONTENDERS)
    runs = tuple(alone(measure.one_run, name, contenders) for _ in range(chosen.runs))
    sizes = {who: alone(resident.resident, name, who) for who in COUNTED_BY_PROCESS if who in contenders}
    workload = WORKLOADS[name]
    found = Measurement(
        name, workload.about, workload.tuned, machine(), runs, {who: size for who, size in sizes.items() if size}
    )
    print(*report.section(found), sep="\n", flush=True)
    if not chosen.contenders:
        save(found)


def _twice(name: str) -> tuple[dict[str, float], dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        return alone(warm.first_call, name, folder), alone(warm.first_call, name, folder)


def _listed(part: str, names: Iterable[str], asked: list[str]) -> list[str]:
    """Of the names that a part has, those that are asked for; all if the part is, or nothing."""
    if not asked or part in asked:
        return list(names)
    return [name for name in names if (f"{part}:{name}" if part else name) in asked]


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
    known = [*WORKLOADS, "overhead", "seeds", "hosted", "warm", "report"]
    parts = {"seeds": seeds.LAYERS, "hosted": measure.IN_TORCH, "warm": warm.LISTED}
    single = {f"{part}:{name}" for part, names in parts.items() for name in names}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed")
    parser.add_argument("what", nargs="*", metavar="workload", help=f"of: {', '.join(known)}; all by default")
    parser.add_argument(
        "--contenders", nargs="+", choices=list(CONTENDERS), help="only these; then results are printed and not kept"
    )
    parser.add_argument("--runs", type=int, default=RUNS, help="processes for each workload")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.what if name not in known and name not in single]
    if unknown:
        parser.error(f"no workload {', '.join(unknown)}; there are: {', '.join(known)}")
    return chosen


if __name__ == "__main__":
    main()
