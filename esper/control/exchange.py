"""One question and its answer: what is heeded, and what is rejected, with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from esper.control.channel import CONTROLLER, Channel
from esper.control.keys import Keys
from esper.control.messages import Answer, Question, moment, now, read, written
from esper.control.seal import Purpose
from esper.errors import ChannelError, MessageError

_TOLD = 8  # rejections of one exchange that are told one by one

DECIDE: tuple[Purpose, Purpose] = ("run asks to decide", "controller decides")
MEASURE: tuple[Purpose, Purpose] = ("run asks what to measure", "controller asks to measure")


@dataclass(frozen=True)
class Line:
    """What a run needs to speak with its controller.

    Attributes:
        channel: Its end of a channel; the inbox has the run's name.
        keys: For both directions.
        run: Name of the run.
        timeout: Seconds that an answer is waited for, at most.
        clock_tolerance: Seconds that the controller's clock may be off; None: clocks are not compared.
    """

    channel: Channel
    keys: Keys
    run: str
    timeout: float
    clock_tolerance: float | None = None


@dataclass(frozen=True)
class Heard:
    """What came of a question.

    Attributes:
        answer: The answer; None: there is none to be heeded.
        why: Why there is none.
        rejected: What was not heeded while it was waited for, each with the reason.
        waited: Seconds that took.
    """

    answer: Answer | None
    why: str = ""
    rejected: tuple[str, ...] = ()
    waited: float = 0.0


@dataclass
class _Rejected:
    """Reasons of rejections, the first few one by one: a flood of messages is no flood of events."""

    told: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, error: MessageError) -> None:
        if len(self.told) < _TOLD:
            self.told.append(str(error))
        else:
            self.more += 1

    def reasons(self) -> tuple[str, ...]:
        return (*self.told, f"{self.more} more messages") if self.more else tuple(self.told)


def exchange(
    line: Line, question: Question, purposes: tuple[Purpose, Purpose], last: str, obstacle: Callable[[Answer], str]
) -> Heard:
    """Asks, and waits for an answer no longer than the line's timeout, or than the channel takes to fail.

    What else lies in the inbox is gone through meanwhile, so that it is told of and does not stay.

    Args:
        line: Where to.
        question: What is asked.
        purposes: `DECIDE` or `MEASURE`.
        last: The nonce of the question whose answer was heeded last.
        obstacle: Why an answer is impossible; empty: it is not.
    """
    began, rejected = time.monotonic(), _Rejected()
    answer, why = None, f"no answer within {line.timeout:g} s"
    try:
        line.channel.send(CONTROLLER, written(question, purposes[0], line.keys))
        while answer is None and (left := began + line.timeout - time.monotonic()) > 0:
            if (message := line.channel.receive(left, question.nonce)) is None:
                break
            try:
                answer = _heeded(message, line, question, purposes[1], last, obstacle)
            except MessageError as error:
                rejected.add(error)
                if error.kind == "impossible":  # it is the answer; a better one will not come
                    why = "what the controller decided is impossible"
                    break
    except (ChannelError, MessageError) as error:
        why = str(error)
    return Heard(answer, "" if answer else why, rejected.reasons(), time.monotonic() - began)


def _heeded(
    message: bytes, line: Line, question: Question, purpose: Purpose, last: str, obstacle: Callable[[Answer], str]
) -> Answer:
    """The message, if it is the answer to the question.

    Raises:
        MessageError: It is not.
    """
    answer = read(message, Answer, purpose, line.keys)
    if answer.run != line.run:
        raise MessageError("run", f"an answer to the run {answer.run}, and this is {line.run}")
    if last and answer.to == last:
        raise MessageError("duplicate", f"observation {answer.sequence} was answered already")
    if answer.to != question.nonce:
        raise MessageError(
            "stale", f"an answer to an earlier question, of observation {answer.sequence} at step {answer.step}"
        )
    if (answer.sequence, answer.step) != (question.sequence, question.observation.step):
        raise MessageError("malformed", "its sequence number and step are not those of the question")
    if line.clock_tolerance is not None:
        off = (moment(answer.time) - moment(now())).total_seconds()
        if abs(off) > line.clock_tolerance:
            raise MessageError("clock", f"its clock is {off:+.1f} s off, and {line.clock_tolerance:g} s are tolerated")
    if reason := obstacle(answer):
        raise MessageError("impossible", reason)
    return answer
