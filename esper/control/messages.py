"""What a run and its controller say to each other, and how it is checked when it is read."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from esper.control.channel import CONTROLLER
from esper.control.keys import Keys
from esper.control.seal import Purpose, opened, sealed
from esper.control.text import conforms, from_text, to_text
from esper.errors import ArgumentError, MessageError
from esper.growth.credit import Gain
from esper.growth.policy import (
    Asks,
    Cull,
    Germinate,
    Hold,
    LayerView,
    Load,
    Observation,
    Plan,
    SeedView,
    SetAlpha,
    Transition,
)
from esper.growth.scores import FirstOrder
from esper.lifecycle import SeedLifecycleState
from esper.persistence.plain import table

Said = Germinate | Load | Transition | SetAlpha | Cull | Hold
"""The actions that a controller may send: what only happens inside a run, such as its notes, is not among them."""

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NONCE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Question:
    """What a run asks: to decide on an observation, or what to measure for that first.

    Attributes:
        run: Name of the run.
        sequence: Number of the observation in the run; it only ever rises, also where the run goes back.
        nonce: 128 random bits, new in every question: an answer that names them is younger than it.
        time: When it was asked, UTC.
        observation: What there is.
        theirs: What the controller remembers, as it last said; empty: nothing.
        default: What the run's own policy remembers, which has seen everything; empty: that cannot be said.
        missed: Observations since the controller's last decision that were decided without it.
    """

    run: str
    sequence: int
    nonce: str
    time: str
    observation: Observation
    theirs: str = ""
    default: str = ""
    missed: int = 0


@dataclass(frozen=True)
class Answer:
    """What a controller answers.

    Attributes:
        run: Name of the run.
        sequence: As in the question.
        step: The step of the observation.
        to: The question's nonce.
        nonce: 128 random bits of its own.
        time: When it was answered, UTC.
        actions: What to do.
        memory: What the controller remembers from now on: the run keeps it, and gives it back with its next question.
        asks: What to measure, if that was the question.
    """

    run: str
    sequence: int
    step: int
    to: str
    nonce: str
    time: str
    actions: tuple[Said, ...] = ()
    memory: str = ""
    asks: Asks | None = None


CLASSES = table(
    *(Question, Answer, Observation, LayerView, SeedView, Plan, Gain, FirstOrder, SeedLifecycleState),
    *(Asks, Germinate, Load, Transition, SetAlpha, Cull, Hold),
)

_Message = TypeVar("_Message", Question, Answer)


def written(message: Question | Answer, purpose: Purpose, keys: Keys) -> bytes:
    """The message, signed.

    Raises:
        MessageError: It holds something that a message cannot say ("unsayable"), or too much ("oversized").
    """
    if not conforms(message, type(message)):
        raise MessageError("unsayable", f"the {type(message).__name__} holds what is of another type than declared")
    return sealed(to_text(message, CLASSES), purpose, keys)


def read(message: bytes, kind: type[_Message], purpose: Purpose, keys: Keys) -> _Message:
    """A message of this kind, its signature and every field checked.

    Raises:
        MessageError: It is not heeded; `kind` says why.
    """
    found = from_text(opened(message, purpose, keys), CLASSES)
    if type(found) is not kind or not conforms(found, kind):
        raise MessageError("malformed", f"a {kind.__name__} was expected, with every field of its type")
    if not (_RUN.fullmatch(found.run) and _NONCE.fullmatch(found.nonce) and found.sequence >= 0):
        raise MessageError("malformed", "no name of a run, no nonce or no sequence number")
    moment(found.time)
    return found


def checked_run(name: str) -> str:
    """The name, if one of a run.

    Raises:
        ArgumentError: It cannot be one.
    """
    if not _RUN.fullmatch(name) or name == CONTROLLER:
        raise ArgumentError(
            f"a run's name has up to 100 letters, digits and . _ -, a letter or a digit first, and is not "
            f"{CONTROLLER!r}; it was {name!r}"
        )
    return name


def nonce() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


def now() -> str:
    """The time, UTC."""
    return datetime.now(UTC).isoformat()


def moment(time: str) -> datetime:
    """The time that a message names.

    Raises:
        MessageError: It is none, or not UTC.
    """
    try:
        found = datetime.fromisoformat(time)
    except ValueError:
        found = None
    if found is None or found.utcoffset() != timedelta(0):
        raise MessageError("malformed", "its time is none in UTC")
    return found


def memory_text(memory: Any, classes: dict[str, type]) -> str:
    """A policy's memory as text; empty: it cannot be said."""
    try:
        return to_text(memory, classes)
    except MessageError:
        return ""
