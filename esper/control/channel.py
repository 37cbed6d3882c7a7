"""What a channel is, and one within a process."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Protocol

from esper.control.seal import MAX_BYTES

CONTROLLER = "controller"
"""The inbox that runs send their questions to."""

KEPT = 1000
"""Messages an inbox holds; the oldest make room."""


def too_large() -> bytes:
    """What is received of a message that is too large: as many bytes as tell that, and none of its own."""
    return bytes(MAX_BYTES + 1)


class Channel(Protocol):
    """One end: an inbox of its own, and a way into those of others.

    Messages may be lost, doubled, delayed and forged: signatures and nonces tell what to heed. A message is read once,
    by one of those that share an inbox. Anybody may have put anything there, and any number of it: no call takes much
    longer for that than it may, or more memory than some messages do.
    """

    def send(self, to: str, message: bytes, about: str = "") -> None:
        """Puts a message into an inbox.

        Args:
            to: Name of the inbox.
            message: The message.
            about: The nonce of the question that it answers, by which it is found; empty: it answers none.

        Raises:
            ChannelError: That does not work now.
        """
        ...

    def receive(self, timeout: float, about: str = "") -> bytes | None:
        """The message about this if it is there, however many others are, else the oldest of the own inbox.

        Args:
            timeout: Seconds that are waited for one; None is the answer where there is none then.
            about: The nonce of a question of one's own; empty: of none.

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
        self._inboxes: dict[str, deque[tuple[str, bytes]]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._arrived = threading.Condition()

    def end(self, inbox: str) -> PostChannel:
        """The end with this inbox."""
        return PostChannel(inbox, self._inboxes, self._arrived)


@dataclass(frozen=True)
class PostChannel:
    """One end of a `Post`."""

    inbox: str
    _inboxes: dict[str, deque[tuple[str, bytes]]] = field(repr=False)
    _arrived: threading.Condition = field(repr=False)

    def send(self, to: str, message: bytes, about: str = "") -> None:
        """Puts a message into an inbox."""
        with self._arrived:
            self._inboxes[to].append((about, message))
            self._arrived.notify_all()

    def receive(self, timeout: float, about: str = "") -> bytes | None:
        """The message about this, else the oldest of the own inbox."""
        with self._arrived:
            own = self._inboxes[self.inbox]
            if not self._arrived.wait_for(lambda: own, timeout):
                return None
            first = next((at for at, (what, _) in enumerate(own) if about and what == about), 0)
            _, message = own[first]
            del own[first]
            return message

    def close(self) -> None:
        """Nothing is held open."""
