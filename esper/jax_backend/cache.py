"""KernelCache: trained kernels that stay on the device, the least recently used ones leaving first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from esper.errors import ArgumentError

if TYPE_CHECKING:  # an artifact is taken out of a model, and a model holds a cache
    from esper.jax_backend.artifact import KernelArtifact


@dataclass(frozen=True)
class CacheStatistics:
    """What a cache has done and holds.

    Attributes:
        hits: Look-ups that found their artifact.
        misses: Look-ups that did not.
        evictions: Artifacts that left to make room.
        refusals: Artifacts that were not kept because they are larger than the budget.
        entries: Artifacts held.
        bytes: Memory of their parameters; never above the budget.
        budget: The limit, in bytes.
    """

    hits: int
    misses: int
    evictions: int
    refusals: int
    entries: int
    bytes: int
    budget: int


class KernelCache:
    """Artifacts by digest, within a budget of bytes; of 0 bytes: none.

    A cache remembers by content: under one digest there can only be one kernel, so what it holds changes how soon a
    kernel is found and never what a model computes. It may be used from several threads.
    """

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 0:
            raise ArgumentError(f"a cache's budget is at least 0 bytes, not {budget_bytes}")
        self.budget = budget_bytes
        self._held: OrderedDict[str, KernelArtifact] = OrderedDict()  # the least recently used first
        self._bytes = self._hits = self._misses = self._evictions = self._refusals = 0
        self._lock = Lock()

    def has_room_for(self, artifact: KernelArtifact) -> bool:
        """Whether the artifact would be kept if it were put in."""
        return 0 < self.budget >= artifact.nbytes

    def put(self, artifact: KernelArtifact) -> bool:
        """Keeps an artifact as the most recently used; others leave if they must.

        One that is larger than the whole budget is not kept, and counted as refused.

        Returns:
            Whether it was kept.
        """
        with self._lock:
            if not self.has_room_for(artifact):
                self._refusals += 1
                return False
            self._drop(artifact.digest)
            self._held[artifact.digest] = artifact
            self._bytes += artifact.nbytes
            while self._bytes > self.budget:
                self._drop(next(iter(self._held)))
                self._evictions += 1
            return True

    def get(self, digest: str) -> KernelArtifact | None:
        """The artifact of that digest, from now on the most recently used; None: it is not here.

        An artifact whose arrays were donated to a compiled step and so deleted is not here either.
        """
        with self._lock:
            found = self._held.get(digest)
            if found is None or not found.alive:
                self._drop(digest)
                self._misses += 1
                return None
            self._held.move_to_end(digest)
            self._hits += 1
            return found

    def clear(self) -> None:
        """Lets go of everything, and so of its memory; what was counted stays counted."""
        with self._lock:
            self._held.clear()
            self._bytes = 0

    def digests(self) -> tuple[str, ...]:
        """What is held, the least recently used first."""
        with self._lock:
            return tuple(self._held)

    def statistics(self) -> CacheStatistics:
        """What the cache has done and holds, at one moment."""
        with self._lock:
            return CacheStatistics(
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                refusals=self._refusals,
                entries=len(self._held),
                bytes=self._bytes,
                budget=self.budget,
            )

    def __contains__(self, digest: object) -> bool:
        with self._lock:
            return digest in self._held

    def __len__(self) -> int:
        with self._lock:
            return len(self._held)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:  # a lock can be neither copied nor written down
            return {**vars(self), "_held": self._held.copy(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    def __repr__(self) -> str:
        return f"KernelCache({self.statistics()})"

    def _drop(self, digest: str) -> None:
        held = self._held.pop(digest, None)
        self._bytes -= held.nbytes if held else 0
