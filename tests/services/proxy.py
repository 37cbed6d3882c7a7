"""A TCP proxy that a test puts before a server: slow, cut, hanging or refusing."""

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 65536


class Proxy:
    """Carries bytes between the clients of `port` and the server at `target`, in a thread of its own.

    `delay` (seconds, each way) and `refusing` may be changed at any time.
    """

    def __init__(self, target: int, delay: float = 0.0) -> None:
        self.target, self.delay, self.port = target, delay, 0
        self.refusing = False
        self.connections = 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break every connection there is; new ones are taken."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            for end in pair:
                with suppress(OSError):  # the other side was faster
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no more, break what there is, and wait for the threads."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            if self.refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.target), timeout=5)
            except OSError:
                client.close()
                continue
            thread = threading.Thread(target=self._carry, args=((client, server),), daemon=True)
            with self._lock:
                self._pairs.add((client, server))
            self._threads.append(thread)
            thread.start()

    def _carry(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """Everything read is sent on `delay` later, in order, so that only latency grows and not the work."""
        waiting: deque[tuple[float, socket.socket, bytes]] = deque()
        try:
            with selectors.DefaultSelector() as selector:
                for here, there in (pair, pair[::-1]):
                    selector.register(here, selectors.EVENT_READ, there)
                while True:
                    now = time.monotonic()
                    while waiting and waiting[0][0] <= now:
                        waiting[0][1].sendall(waiting.popleft()[2])
                    until = max(0.0, waiting[0][0] - now) if waiting else None
                    for key, _ in selector.select(until):
                        here: socket.socket = key.fileobj  # type: ignore[assignment]
                        data = here.recv(_CHUNK)
                        if not data:
                            return
                        waiting.append((time.monotonic() + self.delay, key.data, data))
        except OSError:  # one side broke: so does the other
            return
        finally:
            with self._lock:
                self._pairs.discard(pair)
            for end in pair:
                end.close()


@contextmanager
def proxy(target: int, delay: float = 0.0) -> Iterator[Proxy]:
    """A `Proxy` before the server at port `target`."""
    made = Proxy(target, delay)
    try:
        yield made
    finally:
        made.close()
