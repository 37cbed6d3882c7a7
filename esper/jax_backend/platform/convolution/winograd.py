"""3x3 convolutions by fewer multiplications: Winograd's F(2x2, 3x3), channels last.

Every tile of 4x4 inputs makes 2x2 outputs by 16 products instead of 36. Tiles, weights and outputs are brought into
the form in which those are products of matrices, and back, by additions, subtractions and halves alone, so that little
is lost in rounding: about as much as a sum in another order. An input takes part in those outputs alone whose window
sees it, so a NaN goes where it goes in torch; an infinity there may come out as NaN.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015; the names of the matrices are theirs.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esper.jax_backend.platform.convolution.patches import pad
from esper.jax_backend.platform.convolution.spec import Spec
from esper.jax_backend.platform.fence import fenced, turned
from esper.jax_backend.platform.precision import contract

_POINTS = 16
_AT_ONCE = 2**25  # elements of tiles and products; more images are taken one part after the other
# Row i of B is one element of a tile plus or minus another: which two, and the sign.
_FIRST, _SECOND, _SIGN = (0, 1, 2, 1), (2, 2, 1, 3), (-1, 1, -1, -1)
_G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
_A = ((1, 1, 1, 0), (0, 1, -1, -1))


def convolve(x: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """Outputs of 2x2 at a time."""
    return _convolve(x, weight, spec, False)


def input_gradient(cotangent: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """The convolution of the cotangent with the flipped weight."""
    return _convolve(cotangent, weight, spec.flipped(), True)


def weight_gradient(x: jax.Array, cotangent: jax.Array, *, spec: Spec) -> jax.Array:
    """Sums over tiles of products, brought back into 3x3."""
    return _weight_gradient(x, cotangent, spec)


def applies(spec: Spec) -> bool:
    """Whether it is a convolution of this kind."""
    return spec.kernel == (3, 3) and spec.stride == spec.dilation == (1, 1) and spec.groups == 1


def tiles(spec: Spec) -> tuple[int, int]:
    """How many tiles there are of an image; the last row and column may make outputs that are not wanted."""
    high, wide = spec.results
    return (high + 1) // 2, (wide + 1) // 2


def _whole(x: jax.Array, weight: jax.Array, spec: Spec, flipped: bool) -> jax.Array:
    u, at = _transformed(weight, flipped), 1 if flipped else 2
    of_image = _POINTS * math.prod(tiles(spec)) * (u.shape[1] + u.shape[2])
    batch = x.shape[0]
    images = next(n for n in range(batch, 0, -1) if batch % n == 0 and (n == 1 or n * of_image <= _AT_ONCE))
    if images == batch:
        return _multiplied(x, u, at, spec)
    parts = x.reshape(batch // images, images, *x.shape[1:])
    made = lax.map(lambda part: _multiplied(part, u, at, spec), parts)
    return made.reshape(batch, *made.shape[2:])


def _multiplied(x: jax.Array, u: jax.Array, at: int, spec: Spec) -> jax.Array:
    """Tiles times weights, whose dimension `at` is summed over."""
    m = contract(_tiles(_padded(x, spec), spec), u, ((2,), (at,)), ((0,), (0,)))
    (high, wide), outputs = tiles(spec), m.shape[-1]
    parts = list(m.reshape(_POINTS, x.shape[0], high, wide, outputs))
    rows = [_combined(parts[row * 4 : row * 4 + 4]) for row in range(4)]
    columns = [_combined([row[q] for row in rows]) for q in range(2)]
    made = jnp.stack([jnp.stack([column[p] for column in columns], 3) for p in range(2)], 2)
    made = made.reshape(x.shape[0], 2 * high, 2 * wide, outputs)
    return made[:, : spec.results[0], : spec.results[1]]


def _sums(x: jax.Array, cotangent: jax.Array, spec: Spec) -> jax.Array:
    (high, wide), outputs, inputs = tiles(spec), cotangent.shape[-1], x.shape[-1]
    padded = _padded(x, spec)
    whole = pad(cotangent, [(0, 2 * n - size, 0) for n, size in zip((high, wide), spec.results, strict=True)])
    whole = whole.reshape(-1, high, 2, wide, 2, outputs)
    a = jnp.asarray(_A, x.dtype)

    def add(point: jax.Array, du: jax.Array) -> jax.Array:
        of_rows, of_columns = a[:, point // 4], a[:, point % 4]
        halves = [of_rows[0] * whole[:, :, 0, :, q] + of_rows[1] * whole[:, :, 1, :, q] for q in range(2)]
        dm = (of_columns[0] * halves[0] + of_columns[1] * halves[1]).reshape(-1, outputs)
        product = contract(turned(dm), _tile(padded, point, spec), ((1,), (0,)))
        return lax.dynamic_update_index_in_dim(du, product, point, 0)

    du = lax.fori_loop(0, _POINTS, add, jnp.zeros((_POINTS, outputs, inputs), x.dtype))
    back = contract(du.reshape(_POINTS, -1), jnp.asarray(_kron(_G), x.dtype), ((0,), (0,)))
    return back.reshape(outputs, inputs, 3, 3)


# XLA compiles what is fenced once for all layers of a shape.
_convolve = fenced(_whole, static=(2, 3))
_weight_gradient = fenced(_sums, static=(2,))


def _padded(x: jax.Array, spec: Spec) -> jax.Array:
    """`x` with all that the tiles see, and no more."""
    places = zip(spec.pads, spec.space, tiles(spec), strict=True)
    return lax.optimization_barrier(pad(x, [(low, 2 * n + 2 - size - low, 0) for (low, _), size, n in places]))


def _tiles(padded: jax.Array, spec: Spec) -> jax.Array:
    """B^T d B of all tiles, (16, tiles, channels)."""
    high, wide = tiles(spec)
    rows = _differences([padded[:, i : i + 2 * high - 1 : 2] for i in range(4)], 0)
    both = _differences([rows[:, :, :, i : i + 2 * wide - 1 : 2] for i in range(4)], 1)
    return both.reshape(_POINTS, -1, padded.shape[-1])


def _differences(d: list[jax.Array], axis: int) -> jax.Array:
    """B^T d along a new axis."""
    rows = zip(_FIRST, _SECOND, _SIGN, strict=True)
    return jnp.stack([d[i] + d[j] if sign > 0 else d[i] - d[j] for i, j, sign in rows], axis)


def _tile(padded: jax.Array, point: jax.Array, spec: Spec) -> jax.Array:
    """One of the 16."""
    first, second = (jnp.asarray(each)[jnp.stack([point // 4, point % 4])] for each in (_FIRST, _SECOND))
    sign = jnp.asarray(_SIGN, padded.dtype)[jnp.stack([point // 4, point % 4])]
    high, wide = tiles(spec)

    def taken(at: Any, axis: int, x: jax.Array, count: int) -> jax.Array:
        return lax.slice_in_dim(lax.dynamic_slice_in_dim(x, at, 2 * count - 1, axis), 0, None, 2, axis)

    def row(at: Any) -> jax.Array:
        x = taken(at, 1, padded, high)
        return taken(first[1], 2, x, wide) + sign[1] * taken(second[1], 2, x, wide)

    return (row(first[0]) + sign[0] * row(second[0])).reshape(-1, padded.shape[-1])


def _transformed(weight: jax.Array, flipped: bool) -> jax.Array:
    """G w G^T, (16, out, in)."""
    outputs, inputs = weight.shape[:2]
    g = _kron(_G)[:, ::-1] if flipped else _kron(_G)
    u = contract(jnp.asarray(g, weight.dtype), weight.reshape(outputs * inputs, 9), ((1,), (1,)))
    return u.reshape(_POINTS, outputs, inputs)


def _combined(m: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """A^T m."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _kron(matrix: Any) -> np.ndarray:
    return np.kron(np.asarray(matrix), np.asarray(matrix))
