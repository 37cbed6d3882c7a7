"""What a check found, in words that hold no secret, within a time that is bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from esper.configs.redaction import scrubbed

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        verdict: "ok", "warning" (it works and should not stay so) or "failed".
        subject: The part of the configuration.
        told: What was found.
        move: What to do about it; empty: nothing.
        said: What a driver or a server says of it, without secrets.
    """

    verdict: Verdict
    subject: str
    told: str
    move: str = ""
    said: str = ""

    def __str__(self) -> str:
        said = f" ({self.said})" if self.said else ""
        return f"{self.verdict:<7}  {self.subject}: {self.told}{said}" + (f"; {self.move}" if self.move else "")


@dataclass(frozen=True)
class Probe:
    """What asks one service: yields findings, and stops at the first it cannot get past."""

    subject: str
    examine: Callable[[Any], Iterator[Finding]]
    section: Any


def within(probe: Probe, seconds: float, secrets: Iterable[str], key_ids: Iterable[str] = ()) -> list[Finding]:
    """What the probe found; one that hangs is left behind, and that is a finding too."""
    found: list[Finding] = []
    work = threading.Thread(target=_ask, args=(probe, found), daemon=True, name=f"check {probe.subject}")
    work.start()
    work.join(seconds)
    so_far = list(found)
    if work.is_alive():
        told = f"no answer within {seconds:g} s"
        move = "it may be overloaded, stopped, or behind a firewall that drops packets: see whether it runs"
        so_far.append(Finding("failed", probe.subject, told, move))
    return [replace(finding, said=scrubbed(finding.said, secrets, key_ids)) for finding in so_far]


def first_line(error: BaseException) -> str:
    """What a driver says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _ask(probe: Probe, found: list[Finding]) -> None:
    try:
        for finding in probe.examine(probe.section):
            found.append(finding)  # one by one: what hangs later leaves what was found
    except Exception as error:  # a driver may raise anything, and the others are to be heard too
        told = f"an unexpected {type(error).__name__}"
        found.append(Finding("failed", probe.subject, told, "see the server's log", first_line(error)))
