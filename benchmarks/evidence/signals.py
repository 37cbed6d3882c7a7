"""mnist1d: ten shapes as signals of 40 samples, generated offline, cached under build/."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

CACHE = Path(__file__).parents[2] / "build" / "evidence"
FEATURES, CLASSES = 40, 10


@struct.dataclass
class Split:
    """Signals [examples, 40] and their labels [examples]."""

    inputs: jax.Array
    labels: jax.Array

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """One after the other; a remainder is left out."""
        for start in range(0, len(self) - size + 1, size):
            yield self.inputs[start : start + size], self.labels[start : start + size]


class Data(NamedTuple):
    """Three ways split: what a network is fitted to, what is chosen by, what is touched once."""

    train: Split
    validation: Split
    test: Split


def published() -> Data:
    """The published 4,000 training and 1,000 test signals (seed 42); 1,000 more (seed 43) are for validation."""
    signals, labels = _generated(5_000, 42)
    more, their = _generated(1_000, 43)
    return Data(_split(signals[:4_000], labels[:4_000]), _split(more, their), _split(signals[4_000:], labels[4_000:]))


def unseen() -> Data:
    """`published` with 1,000 test signals (seed 44) that no design was ever compared on."""
    signals, labels = _generated(1_000, 44)
    return published()._replace(test=_split(signals, labels))


def plentiful() -> Data:
    """40,000 signals for training, 5,000 each for validation and test, all of one draw (seed 42)."""
    signals, labels = _generated(50_000, 42)
    parts = (slice(0, 40_000), slice(40_000, 45_000), slice(45_000, None))
    train, validation, test = (_split(signals[part], labels[part]) for part in parts)
    return Data(train, validation, test)


def _split(signals: np.ndarray, labels: np.ndarray) -> Split:
    return Split(jnp.asarray(signals, jnp.float32), jnp.asarray(labels, jnp.int32))


def _generated(samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffled signals and labels."""
    path = CACHE / f"mnist1d-{samples}-{seed}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **_made(samples, seed))
    with np.load(path) as found:
        return found["signals"], found["labels"]


def _made(samples: int, seed: int) -> dict[str, np.ndarray]:
    import random

    from mnist1d.data import get_dataset_args, make_dataset

    args = get_dataset_args()
    args.num_samples, args.seed = samples, seed
    # The package seeds the global generators and draws from them.
    states = np.random.get_state(), random.getstate()
    try:
        made = make_dataset(args)
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
    signals, labels = (np.concatenate([made[part], made[f"{part}_test"]]) for part in ("x", "y"))
    return {"signals": signals.astype(np.float32), "labels": labels.astype(np.int32)}
