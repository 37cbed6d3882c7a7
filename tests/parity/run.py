"""Runs suites: `python -m parity.run operators modules`. Each case is judged in one of a few worker processes.

A worker that dies takes only its case with it. Results go to a JSON file, one object a case.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from parity.case import DOCUMENTED, NONE, PASS, REFUSED, SKIP, Case, Verdict

SUITES = ("operators", "modules", "semantics", "hugging_face", "timm_models")
TIMEOUT_S = 1800  # one module of the database has 857 samples
RECYCLE = 60  # cases a worker judges before a fresh one takes over: compiled programs pile up


def suite(name: str) -> list[Case]:
    """The cases of a suite by its name."""
    return import_module(f"parity.{name}").cases()


def main() -> None:
    """Runs the suites named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", default=SUITES, help=f"any of {', '.join(SUITES)}")
    parser.add_argument("--only", default="", help="a regular expression that case names must match")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help="folder for results, one file a suite")
    args = parser.parse_args()
    for name in args.suites:
        results = run_suite(name, re.compile(args.only), args.jobs, _print)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{name}.json").write_text(json.dumps(results, indent=0) + "\n")


def _print(result: dict[str, Any]) -> None:
    if result["values"] not in (PASS, DOCUMENTED, SKIP) or result["gradients"] not in (PASS, DOCUMENTED, SKIP, NONE):
        print(json.dumps(result), flush=True)  # noqa: T201


def run_suite(name: str, only: re.Pattern[str], jobs: int, report: Callable[[dict[str, Any]], None]) -> list[dict]:
    """Judges the cases of a suite; results in the order of the cases."""
    wanted = [place for place, case in enumerate(suite(name)) if only.search(case.name)]
    results: dict[int, dict[str, Any]] = {}
    workers = [_Worker(name) for _ in range(min(jobs, len(wanted)) or 1)]
    queue = iter(wanted)
    busy = {worker: place for worker in workers if (place := worker.start(queue)) is not None}
    while busy:
        for worker, place in list(busy.items()):
            result = worker.poll(place)
            if result is None:
                continue
            results[place] = result
            report(result)
            del busy[worker]
            following = worker.start(queue)
            if following is not None:
                busy[worker] = following
        time.sleep(0.01)
    for worker in workers:
        worker.stop()
    return [results[place] for place in wanted]


class _Worker:
    """A process that judges one case at a time, and is replaced when it dies, hangs or has judged many."""

    def __init__(self, name: str) -> None:
        self._name, self._names = name, [case.name for case in suite(name)]
        self._open()

    def _open(self) -> None:
        context = get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._name, other), daemon=True)
        self._process.start()
        other.close()
        self._judged = 0

    def start(self, queue: Any) -> int | None:
        place = next(queue, None)
        if place is not None:
            if self._judged >= RECYCLE or not self._process.is_alive():
                self.stop()
                self._open()
            self._pipe.send(place)
            self._since = time.monotonic()
        return place

    def poll(self, place: int) -> dict[str, Any] | None:
        try:
            if self._pipe.poll():
                self._judged += 1
                return self._pipe.recv()
        except (EOFError, OSError):
            return self._lost(place, f"the process died (exit code {self._process.exitcode})")
        if time.monotonic() - self._since > TIMEOUT_S:
            self.stop()
            return self._lost(place, f"no verdict within {TIMEOUT_S} s")
        return None

    def _lost(self, place: int, reason: str) -> dict[str, Any]:
        self._process.join(1)
        verdict = Verdict(REFUSED, REFUSED, reason)
        return {"case": self._names[place], **verdict.as_dict(), "seconds": time.monotonic() - self._since}

    def stop(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()


def _serve(name: str, pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from parity.judge import judge

    torch.set_num_threads(1)
    found = suite(name)
    while True:
        try:
            place = pipe.recv()
        except EOFError:
            sys.exit()
        start = time.monotonic()
        try:
            verdict = judge(found[place])
        except Exception as error:  # a fault of the case or of the harness: it counts as a failure, with its text
            verdict = Verdict(REFUSED, REFUSED, f"harness: {type(error).__name__}: {error}"[:300])
        seconds = round(time.monotonic() - start, 2)
        pipe.send({"case": found[place].name, **verdict.as_dict(), "seconds": seconds})


if __name__ == "__main__":
    main()
