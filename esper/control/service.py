"""The controller's side: a policy that decides for any number of runs, each of which keeps what is remembered of it."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from esper.control.channel import KEPT, Channel
from esper.control.exchange import DECIDE, MEASURE
from esper.control.keys import Keys
from esper.control.messages import CLASSES, Answer, Question, nonce, now, read, written
from esper.control.seal import Purpose
from esper.control.text import MEMORY, from_text, to_text
from esper.errors import ChannelError, MessageError
from esper.growth.memory import Culled, Memory
from esper.growth.policy import Policy, asked
from esper.persistence.plain import held_classes, table

_LOG = logging.getLogger("esper.control")
_PAUSE = 1.0  # seconds until a channel that does not work is tried again
_ROUND = 0.25  # seconds that messages are gathered before the questions among them are answered, at most


@dataclass(frozen=True)
class Controller:
    """Answers questions. It remembers nothing itself, so that any of several may, and one that is restarted goes on.

    Attributes:
        policy: What decides.
        keys: For both directions.
    """

    policy: Policy[Any]
    keys: Keys
    _classes: dict[str, type] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        classes = CLASSES | table(Memory, Culled) | held_classes(self.policy.start())
        object.__setattr__(self, "_classes", classes)

    def questions(self, messages: Iterable[bytes]) -> list[tuple[Question, tuple[Purpose, Purpose]]]:
        """The newest question of every run; the run waits for none of the others any more.

        What is none is logged, a line for each kind: a flood of messages is no flood of lines.
        """
        newest: dict[str, tuple[Question, tuple[Purpose, Purpose]]] = {}
        times: Counter[str] = Counter()
        reasons: dict[str, str] = {}
        for message in messages:
            try:
                question, purposes = self._read(message)
            except MessageError as error:
                times[error.kind] += 1
                reasons.setdefault(error.kind, str(error))
                continue
            newest[question.run] = question, purposes
        for kind, reason in reasons.items():
            _LOG.warning("rejected, messages: %d, %s", times[kind], reason)
        return list(newest.values())

    def answer(self, question: Question, purposes: tuple[Purpose, Purpose]) -> bytes:
        """The policy's answer, signed.

        Raises:
            MessageError: The question cannot be understood, or the answer cannot be said.
        """
        memory = self._memory(question)
        given: dict[str, Any]
        if purposes == MEASURE:
            given = {"asks": asked(self.policy, question.observation, memory)}
        else:
            actions, memory = self.policy(question.observation, memory)
            given = {"actions": tuple(actions), "memory": to_text(memory, self._classes)}
        about = {"run": question.run, "sequence": question.sequence, "step": question.observation.step}
        answer = Answer(**about, to=question.nonce, nonce=nonce(), time=now(), **given)
        _LOG.info("run %s, observation %d: %d actions", question.run, question.sequence, len(answer.actions))
        return written(answer, purposes[1], self.keys)

    def _read(self, message: bytes) -> tuple[Question, tuple[Purpose, Purpose]]:
        try:
            return read(message, Question, DECIDE[0], self.keys), DECIDE
        except MessageError as error:
            if error.kind != "signature":
                raise
        return read(message, Question, MEASURE[0], self.keys), MEASURE

    def _memory(self, question: Question) -> Any:
        """What is remembered of the run: what was said last, or, where that has gaps, what the run's own policy knows.

        The latter only if both are policies of one kind; without either the policy begins. What another policy said,
        such as one that served before, is nothing to go on from.
        """
        start = self.policy.start()
        held = self._fitting(question.theirs, start)
        if question.theirs and held is None:
            about = question.run, question.sequence, type(self.policy).__name__
            _LOG.warning("run %s, observation %d: what was said last is no memory of %s, and is left out", *about)
        default = self._fitting(question.default, start) if held_classes(start) else None
        found = (default, held) if question.missed or held is None else (held,)
        return next((memory for memory in found if memory is not None), start)

    def _fitting(self, text: str, start: Any) -> Any:
        """The memory that a text holds; None: there is none, or it is of another kind than the policy's."""
        if not text:
            return None
        try:
            memory = from_text(text, self._classes, MEMORY)
        except MessageError:
            return None
        # Plain values may be anything: a policy that begins with None may remember numbers.
        plain = not (held_classes(memory) or held_classes(start))
        return memory if plain or type(memory) is type(start) else None


def serve(controller: Controller, channel: Channel, stop: threading.Event, *, poll: float = 0.5) -> None:
    """Answers what comes until `stop` is set, which is noticed within `poll` seconds; nothing else ends it.

    Args:
        controller: What answers.
        channel: The end whose inbox is `CONTROLLER`.
        stop: Set from elsewhere, such as a handler of signals.
        poll: Seconds that a message is waited for.
    """
    works = True
    while not stop.is_set():
        try:
            questions = controller.questions(_arrived(channel, poll))
            if not works:
                _LOG.info("the channel works again")
            works = True
        except ChannelError as error:
            if works:
                _LOG.warning("%s; trying again until it works", error)
            works = False
            stop.wait(_PAUSE)
            continue
        for question, purposes in questions:
            _answer(controller, channel, question, purposes)


def _answer(controller: Controller, channel: Channel, question: Question, purposes: tuple[Purpose, Purpose]) -> None:
    try:
        channel.send(question.run, controller.answer(question, purposes), question.nonce)
    except (ChannelError, MessageError) as error:
        _LOG.warning("run %s, observation %d is not answered: %s", question.run, question.sequence, error)
    except Exception:  # whatever a policy raises for one run: the others are still served
        _LOG.exception("run %s, observation %d is not answered", question.run, question.sequence)


def _arrived(channel: Channel, timeout: float) -> Iterator[bytes]:
    """What is in the inbox, one by one, after waiting for a first message.

    No more, and for no longer, than those whose questions are among it can be let wait; the rest is for the next round.
    """
    message = channel.receive(timeout)
    until, count = time.monotonic() + _ROUND, 1
    while message is not None:
        yield message
        if count == KEPT or time.monotonic() > until:
            return
        try:
            message = channel.receive(0)
        except ChannelError:  # the next round tells of it, after what has come is answered
            return
        count += 1
