"""A run's network as a file, kept up to date while the run goes on, for whoever looks at it meanwhile."""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esper.jax_backend.description import description
from esper.jax_backend.model import MorphableModel
from esper.persistence.folder import write_file
from esper.train.history import Record

if TYPE_CHECKING:
    from esper.train.run import Run

NETWORK = "network.json"
_WAITED = ("start", "resume", "evaluate")  # events at which the device has been waited for: looking at it costs nothing
_LOG = logging.getLogger("esper.job")


class NetworkFile:
    """A callback of `fit` that keeps `network.json` in a folder: the network as it was at its latest evaluation.

    It is written where a run begins or goes on, and at evaluations since which the network or the state of a seed has
    changed; in a thread, and whole or not at all. Where it cannot be written, training goes on, and it is tried again.

    Args:
        folder: Of the run.

    Example:
        >>> import esper, jax, optax, tempfile, torch
        >>> folder = tempfile.mkdtemp()
        >>> drawn = NetworkFile(folder)
        >>> inputs = jax.random.normal(jax.random.key(0), (64, 4))
        >>> data = inputs, (inputs.sum(1) > 0).astype(int)
        >>> model, key = esper.wrap(torch.nn.Linear(4, 2)), jax.random.key(1)
        >>> _ = esper.fit(model, data, tx=optax.adam(0.1), steps=4, key=key, callbacks=[drawn])
        >>> drawn.close()
        >>> json.loads((Path(folder) / "network.json").read_text())["step"]
        0
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder) / NETWORK
        self._written: Any = None  # what the file shows
        self._thread: threading.Thread | None = None

    def __call__(self, record: Record, run: Run) -> None:
        """Looks whether the network is another one than the file shows."""
        if record.event not in _WAITED or (self._thread is not None and self._thread.is_alive()):
            return
        shown = _shown(run.model)
        if shown == self._written:
            return
        self._written = shown
        text = json.dumps({**description(run.model), "step": record.step}) + "\n"
        self._thread = threading.Thread(target=self._write, args=(text,), name="esper-network")
        self._thread.start()

    def close(self) -> None:
        """Waits until what is being written is there."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, text: str) -> None:
        try:
            write_file(self._path, text.encode())
        except OSError as error:
            self._written = None
            _LOG.warning("the network is not drawn for now: %s cannot be written: %s", self._path, error)


def _shown(model: MorphableModel) -> Any:
    """What of a model a drawing shows and a run changes."""
    kernels = tuple((kernel.layer, kernel.seed, kernel.blueprint, kernel.options) for kernel in model.structure.kernels)
    return kernels, *(np.asarray(field).tobytes() for field in (model.seeds.lifecycle, model.seeds.alpha))
