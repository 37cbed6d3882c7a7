"""What a channel is, and one within a process."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Protocol

CONTROLLER = "controller"
"""The inbox that runs send their questions to."""

KEPT = 1000
"""Messages an inbox holds; the oldest make room."""


class Channel(Protocol):
    """One end: an inbox of its own, and a way into those of others.

    Messages may be lost, doubled, delayed and forged: signatures and nonces tell what to heed. A message is read once,
    by one of those that share an inbox.
    """

    def send(self, to: str, message: bytes) -> None:
        """Puts a message into an inbox.

        Raises:
            ChannelError: That does not work now.
        """
        ...

    def receive(self, timeout: float) -> bytes | None:
        """The oldest message of the own inbox; None: there is none within so many seconds.

        Raises:
            ChannelError: It cannot be looked into now.
        """
        ...

    def close(self) -> None:
        """Gives back what it holds open."""
        ...


class Post:
    """Inboxes within a process, for tests and for a controller in a thread."""

    def __init__(self) -> None:
        self._inboxes: dict[str, deque[bytes]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._arrived = threading.Condition()

    def end(self, inbox: str) -> PostChannel:
        """The end with this inbox."""
        return PostChannel(inbox, self._inboxes, self._arrived)


@dataclass(frozen=True)
class PostChannel:
    """One end of a `Post`."""

    inbox: str
    _inboxes: dict[str, deque[bytes]] = field(repr=False)
    _arrived: threading.Condition = field(repr=False)

    def send(self, to: str, message: bytes) -> None:
        """Puts a message into an inbox."""
        with self._arrived:
            self._inboxes[to].append(message)
            self._arrived.notify_all()

    def receive(self, timeout: float) -> bytes | None:
        """The oldest message of the own inbox."""
        with self._arrived:
            own = self._inboxes[self.inbox]
            self._arrived.wait_for(lambda: own, timeout)
            return own.popleft() if own else None

    def close(self) -> None:
        """Nothing is held open."""
