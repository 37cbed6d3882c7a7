"""Moments of a layer, gathered as if they were gradients.

A tap is the identity in a layer's output. It takes the moments so far as an argument, and its backward gives
the batch's moments as that argument's cotangent. Reverse mode does the rest: a layer that is called several
times sums over its calls, one in a branch or in the body of a scan is gathered where it runs, and nothing of
the data's size leaves the pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Float32

from esper.growth.rows import input_rows, output_rows, row_sizes
from esper.program import LayerSite

Features = Callable[[Any, Float[Array, "rows in"]], Float[Array, "rows features"]]
"""From weights and a layer's rows to what is looked at instead; static, so it is compared and hashed."""


class Moments(struct.PyTreeNode):
    """Sums over rows; g is the gradient of an example's loss by a row of the layer's output.

    Attributes:
        rows: How many rows there were.
        second: Sum of [x; 1] [x; 1]^T, the one standing for a bias.
        cross: Sum of [x; 1] g^T.
        gradient: Sum of g g^T.
    """

    rows: Float32[Array, ""]
    second: Float32[Array, "in+1 in+1"]
    cross: Float32[Array, "in+1 out"]
    gradient: Float32[Array, "out out"]

    @classmethod
    def nothing(cls, inputs: int, outputs: int) -> Moments:
        """Those of no rows, as numpy arrays: making them compiles nothing."""
        shapes = ((), (inputs + 1, inputs + 1), (inputs + 1, outputs), (outputs, outputs))
        return cls(*(np.zeros(shape, np.float32) for shape in shapes))  # pyright: ignore[reportArgumentType]


class Tap(struct.PyTreeNode):
    """What stands at a layer's output and looks.

    Attributes:
        moments: What the gradient is taken by.
        weights: Those of `features`.
        site: The layer.
        examples: How many a batch has: the batch's loss is their mean, which is undone.
        features: What to look at instead of the layer's input; None: the input.
    """

    moments: Moments
    weights: Any
    site: LayerSite = struct.field(pytree_node=False)
    examples: int = struct.field(pytree_node=False)
    features: Features | None = struct.field(pytree_node=False, default=None)

    @classmethod
    def on(
        cls, site: LayerSite, examples: int, features: Features | None = None, weights: Any = None, width: int = 0
    ) -> Tap:
        """A tap that has seen nothing; `width` is how many features there are."""
        inputs, outputs = row_sizes(site)
        return cls(Moments.nothing(width if features else inputs, outputs), weights, site, examples, features)

    def __call__(self, output: jax.Array, input: jax.Array) -> jax.Array:
        """`output`."""
        return _observed(self, output, jax.lax.stop_gradient(input))

    def seen(self, input: jax.Array, cotangent: jax.Array) -> Moments:
        """The moments of one call."""
        x = input_rows(self.site, input)
        x = x if self.features is None else self.features(self.weights, x)
        x = jnp.concatenate([x, jnp.ones((x.shape[0], 1), jnp.float32)], axis=1)
        g = output_rows(self.site, cotangent) * self.examples
        return Moments(jnp.float32(x.shape[0]), _product(x, x), _product(x, g), _product(g, g))


@jax.custom_vjp
def _observed(tap: Tap, output: jax.Array, input: jax.Array) -> jax.Array:
    return output


def _observed_forward(tap: Tap, output: jax.Array, input: jax.Array) -> tuple[jax.Array, tuple[Tap, jax.Array]]:
    return output, (tap, input)


def _observed_backward(kept: tuple[Tap, jax.Array], cotangent: jax.Array) -> tuple[Tap, jax.Array, None]:
    tap, input = kept
    unmoved = jax.tree.map(jnp.zeros_like, tap.weights)
    return tap.replace(moments=tap.seen(input, cotangent), weights=unmoved), cotangent, None


_observed.defvjp(_observed_forward, _observed_backward)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left.T, right, precision=jax.lax.Precision.HIGHEST)
