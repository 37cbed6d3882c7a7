"""The small linear algebra of initialisers, in float64: nothing here knows kernels or layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from esper.growth.statistics import Statistics

RIDGE = 1e-6  # of the mean eigenvalue
_NOISE = float(np.finfo(np.float32).eps)  # the moments were summed in float32


@dataclass(frozen=True, eq=False)
class Fit:
    """The linear map of x nearest to -g, by singular values: map = right diag(values) left^T whitening.

    Attributes:
        whitening: S^-1/2, [in, in].
        left: Directions of whitened inputs, [in, rank].
        values: Singular values, the largest first, [rank].
        right: Directions of outputs, [out, rank].
    """

    whitening: Float[np.ndarray, "in in"]
    left: Float[np.ndarray, "in rank"]
    values: Float[np.ndarray, " rank"]
    right: Float[np.ndarray, "out rank"]

    def factors(self, rank: int) -> tuple[Float[np.ndarray, "rank in"], Float[np.ndarray, "out rank"]]:
        """The best map of this rank as a product (out by rank, rank by in), each factor with half of the size."""
        half = np.sqrt(self.values[:rank])
        return (half * (self.whitening @ self.left[:, :rank])).T, half * self.right[:, :rank]


def expected(statistics: Statistics, *, ones: bool) -> tuple[Float[np.ndarray, "in in"], Float[np.ndarray, "in out"]]:
    """E[x x^T] and E[x g^T] over rows, with the one beside x or without it."""
    end = None if ones else -1
    second = statistics.second[:end, :end] / statistics.rows
    return (second + second.T) / 2, statistics.cross[:end] / statistics.rows


def best_linear(second: Float[np.ndarray, "in in"], cross: Float[np.ndarray, "in out"]) -> Fit:
    """Least squares for -g from its normal equations, in the metric of E[x x^T]; any rank of it is the best of that."""
    whitening = _inverse_root(second)
    left, values, right = np.linalg.svd(whitening @ -cross, full_matrices=False)
    return Fit(whitening, left, values, right.T)


def _inverse_root(second: Float[np.ndarray, "in in"]) -> Float[np.ndarray, "in in"]:
    """S^-1/2 with a ridge; 0 along what the data never shows."""
    values, vectors = np.linalg.eigh(second)
    shown = values > len(values) * _NOISE * values[-1]
    damped = np.where(shown, values + RIDGE * np.trace(second) / len(second), 1.0)
    return (vectors * (shown / np.sqrt(damped))) @ vectors.T
