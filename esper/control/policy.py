"""`RemotePolicy`: another process decides, and where it cannot be heard in time, the local default does."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal
from uuid import uuid4

import jax

from esper.control.channel import Channel
from esper.control.exchange import DECIDE, MEASURE, Heard, Line, exchange
from esper.control.keys import Keys
from esper.control.legal import obstacle, unmeasurable
from esper.control.messages import CLASSES, Answer, Question, checked_run, memory_text, nonce, now
from esper.errors import ArgumentError
from esper.growth.policy import Action, Asks, Note, Observation, Policy, asked, witnessed
from esper.persistence.plain import held_classes


@dataclass(frozen=True)
class RemoteMemory:
    """What a run remembers of its controller; all of it goes into checkpoints.

    Attributes:
        local: What the local default remembers; it keeps up with every observation.
        theirs: What the controller remembers, as it said with its last decision.
        sequence: Observations so far.
        last: Nonce of the question whose answer was heeded last.
        missed: Observations since then, which the local default decided on.
        failures: Questions since then that were not answered.
        rest: Observations for which the controller is not asked, since it did not answer.
    """

    local: Any
    theirs: str = ""
    sequence: int = 0
    last: str = ""
    missed: int = 0
    failures: int = 0
    rest: int = 0


class RemotePolicy:
    """A policy for `fit` whose decisions come from a controller in another process.

    A decision is heeded if it is signed, answers the very question that was just asked, and is possible; all else is
    rejected, recorded, and changes nothing. Without a decision in time the local default decides at once. It keeps up
    with what the controller decides, so that it can, at any time. After `patience` questions without an answer the
    controller is asked less and less often, at every `longest_rest`-th observation at least: an unreachable one costs
    little, and one that returns is heard again.

    What the controller remembers is kept by the run: a controller that is restarted goes on where it was, and one that
    serves a resumed run knows nothing of the future that was discarded.

    Args:
        channel: The run's end of a channel; its inbox has the run's name.
        keys: For both directions.
        local: The local default.
        run: Name of the run; None: a new one.
        timeout: Seconds that an answer is waited for, at most; twice that where `measure` is "remote".
        patience: Questions in a row without an answer after which the controller is given a rest.
        longest_rest: Observations without a question, at most.
        measure: Who says what is measured before a decision: "local", the local default, or "remote", the controller,
            which is asked twice then.
        clock_tolerance: Seconds that the controller's clock may be off; None: clocks are not compared, since the
            nonces show how old an answer is.

    Raises:
        ArgumentError: A number is out of its range, or the name is none.
    """

    forgiving = True

    def __init__(
        self,
        channel: Channel,
        keys: Keys,
        *,
        local: Policy[Any],
        run: str | None = None,
        timeout: float = 2.0,
        patience: int = 2,
        longest_rest: int = 16,
        measure: Literal["local", "remote"] = "local",
        clock_tolerance: float | None = None,
    ) -> None:
        if not timeout > 0 or patience < 1 or longest_rest < 1:
            raise ArgumentError(
                f"timeout is above 0, patience and longest_rest at least 1, not {timeout}, {patience}, {longest_rest}"
            )
        if measure not in ("local", "remote"):
            raise ArgumentError(f"measure is 'local' or 'remote', not {measure!r}")
        self._line = Line(channel, keys, checked_run(run or uuid4().hex), timeout, clock_tolerance)
        self._local: Any = local
        self._patience, self._longest_rest, self._measure = patience, longest_rest, measure
        # An exchange about what to measure, until the decision that follows tells of it.
        self._before: Heard | None = None

    @property
    def run(self) -> str:
        """Name of the run."""
        return self._line.run

    @property
    def heeded_by(self) -> str:
        """Whose settings they are that change in a run, and what else hangs on them."""
        if self._measure == "remote":
            return "the local default only"
        return (
            "the local default only, which also says what is measured before the controller decides: it may miss what "
            "it reads until it has the same settings, or `measure` is remote"
        )

    @property
    def settings(self) -> Any:
        """The local default's settings, the ones that may change in a run; None: it has none."""
        return getattr(self._local, "settings", None)

    def updated(self, **changes: Any) -> RemotePolicy:
        """The policy with some settings of its local default changed; the controller has its own."""
        policy = copy(self)
        policy._local = self._local.updated(**changes)
        return policy

    def start(self) -> RemoteMemory:
        """Nothing remembered.

        Raises:
            ArgumentError: The run is spread over several processes, which would not all hear the same.
        """
        if jax.process_count() > 1:
            raise ArgumentError("remote control is for runs in one process: give the policy itself to each of several")
        return RemoteMemory(self._local.start())

    def asks(self, observation: Observation, memory: RemoteMemory) -> Asks:
        """What the controller wants measured, if it is asked that; else what the local default does."""
        memory = _own(memory)
        own = asked(self._local, observation, memory.local)
        if self._measure == "local" or memory.rest:
            return own
        question = self._question(observation, memory)
        self._before = exchange(
            self._line, question, MEASURE, memory.last, lambda answer: _unmeasurable(observation, answer)
        )
        answer = self._before.answer
        return own if answer is None or answer.asks is None else answer.asks

    def __call__(self, observation: Observation, memory: RemoteMemory) -> tuple[tuple[Action, ...], RemoteMemory]:
        """What the controller decides; without it, what the local default does."""
        memory = _own(memory)
        before, self._before = self._before or Heard(None), None
        if memory.rest:
            return self._alone(observation, replace(memory, rest=memory.rest - 1), ())
        if before.why:
            heard = before  # it was silent a moment ago: it is not waited for twice
        else:
            question = self._question(observation, memory)
            heard = exchange(
                self._line, question, DECIDE, memory.last, lambda answer: obstacle(observation, answer.actions)
            )
            heard = replace(heard, rejected=(*before.rejected, *heard.rejected), waited=before.waited + heard.waited)
        notes = tuple(Note("rejected", reason) for reason in heard.rejected)
        if heard.answer is None:
            return self._failed(observation, memory, heard, notes)
        return self._heeded(observation, memory, heard.answer, (*notes, _decided(heard.answer, heard.waited)))

    def _question(self, observation: Observation, memory: RemoteMemory) -> Question:
        return Question(
            run=self.run,
            sequence=memory.sequence + 1,
            nonce=nonce(),
            time=now(),
            observation=observation,
            theirs=memory.theirs,
            default=memory_text(memory.local, CLASSES | held_classes(memory.local)),
            missed=memory.missed,
        )

    def _heeded(
        self, observation: Observation, memory: RemoteMemory, answer: Answer, notes: tuple[Note, ...]
    ) -> tuple[tuple[Action, ...], RemoteMemory]:
        local = witnessed(self._local, observation, answer.actions, memory.local)
        return (*notes, *answer.actions), RemoteMemory(local, answer.memory, answer.sequence, answer.to)

    def _failed(
        self, observation: Observation, memory: RemoteMemory, heard: Heard, notes: tuple[Note, ...]
    ) -> tuple[tuple[Action, ...], RemoteMemory]:
        failures = memory.failures + 1
        over = failures - self._patience
        rest = 0 if over < 0 else min(2**over, self._longest_rest)
        when = f"after {rest} more" if rest else "at the next one"
        reason = f"the local default decides: {heard.why}; the controller is asked again {when}"
        said = (*notes, Note("remote", reason, heard.waited))
        return self._alone(observation, replace(memory, failures=failures, rest=rest), said)

    def _alone(
        self, observation: Observation, memory: RemoteMemory, notes: tuple[Note, ...]
    ) -> tuple[tuple[Action, ...], RemoteMemory]:
        actions, local = self._local(observation, memory.local)
        after = replace(memory, local=local, sequence=memory.sequence + 1, missed=memory.missed + 1)
        return (*notes, *actions), after


def _own(memory: Any) -> RemoteMemory:
    """The memory; that of a run which the local default alone decided until its checkpoint is the local default's."""
    return memory if isinstance(memory, RemoteMemory) else RemoteMemory(memory)


def _decided(answer: Answer, waited: float) -> Note:
    return Note("remote", f"the controller decides on observation {answer.sequence}", waited)


def _unmeasurable(observation: Observation, answer: Answer) -> str:
    return "it says nothing of what to measure" if answer.asks is None else unmeasurable(observation, answer.asks)
