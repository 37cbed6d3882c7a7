"""A server process of a test: started, killed, started again on the same port and data, and never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds until a server that does not answer has failed; a busy machine is slow
# A child that asks to die with its parent dies with the *thread* that made it: this one lives as long as the process.
_PARENT = ThreadPoolExecutor(1, thread_name_prefix="services")


@dataclass
class Server:
    """A running server; `section` is what `EsperConfig` is told of it."""

    name: str
    command: list[str]
    port: int
    log: Path
    section: dict[str, Any]
    answers: Callable[[], bool]
    """Whether it takes work, with the credentials of `section`."""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    prepare: Callable[[], None] | None = None
    """What is made after every start, where the server forgets it."""
    admin: dict[str, Any] = field(default_factory=dict, repr=False)
    """The section of an account that may do anything, where that is another one."""
    data: Path | None = None
    """Where it keeps its data."""
    process: subprocess.Popen | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it on its port with the data it has, and wait until it answers."""
        assert self.process is None, f"{self.name} is running"
        with self.log.open("ab") as log:
            self.process = _PARENT.submit(
                subprocess.Popen,
                ["setpriv", "--pdeathsig", "KILL", "--", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
            ).result()
        try:
            self._wait()
            if self.prepare is not None:
                self.prepare()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask it to end in good order, and wait; SIGINT is what PostgreSQL calls a fast shutdown."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(PATIENCE)
            self.process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it and its children with SIGKILL, as a power cut would, and wait until they are gone."""
        if self.process is None:
            return
        children = _children(self.process.pid)
        self.process.kill()
        for child in children:
            _send(child, signal.SIGKILL)
        self.process.wait()
        self.process = None
        _until(lambda: not any(_alive(child) for child in children), "its children are still there")

    def pause(self) -> None:
        """Let it hang: connections are accepted by the kernel and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._signal_all(signal.SIGCONT)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def _signal_all(self, number: int) -> None:
        assert self.process is not None, f"{self.name} is not running"
        for pid in (self.process.pid, *_children(self.process.pid)):
            _send(pid, number)

    def _wait(self) -> None:
        def ready() -> bool:
            if self.running:
                return self.answers()
            raise RuntimeError(f"{self.name} ended at once; its log ends:\n{self.log.read_text()[-2000:]}")

        _until(ready, f"{self.name} does not answer; see {self.log}")


def free_port() -> int:
    """A TCP port on loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def unprivileged() -> list[str]:
    """What makes a command run as somebody who is not root; nothing where we are not.

    A process that becomes somebody else no longer dies with its parent: that has to be said again.
    """
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--pdeathsig", "KILL", f"--reuid={account()}", f"--regid={_group()}", "--clear-groups", "--"]


def account() -> str:
    """The account that runs what must not run as root."""
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _group() -> int:
    import pwd

    return pwd.getpwnam(account()).pw_gid


def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {PATIENCE:.0f} s: {what}")
        time.sleep(0.02)


def _children(pid: int) -> list[int]:
    """The processes whose parent is `pid`: PostgreSQL's leave its process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it ended by itself, which is as good
        return


assert sys.platform == "linux", "the servers of the tests are started with Linux's means"
