"""Layers in JAX as most of its users write them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.speed.idiomatic.arrays import Arrays

MOMENTUM = 0.1
_ORDERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


class Net:
    """Layers by the names of their parameters; `moved` has the statistics after the call."""

    def __init__(self, params: Arrays, stats: Arrays, train: bool) -> None:
        self.params, self.moved, self.train = params, dict(stats), train

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        return x @ self.params[f"{name}.weight"] + self.params[f"{name}.bias"]

    def conv(
        self, name: str, x: jax.Array, stride: int = 1, padding: int = 0, groups: int = 1, dilation: int = 1
    ) -> jax.Array:
        rank = x.ndim - 2
        y = lax.conv_general_dilated(
            x,
            self.params[f"{name}.weight"],
            (stride,) * rank,
            [(padding, padding)] * rank,
            rhs_dilation=(dilation,) * rank,
            dimension_numbers=_ORDERS[rank],
            feature_group_count=groups,
        )
        return y + self.params[f"{name}.bias"] if f"{name}.bias" in self.params else y

    def conv_transpose(self, name: str, x: jax.Array, stride: int) -> jax.Array:
        """Of images, without padding."""
        grown = lax.conv_transpose(x, self.params[f"{name}.weight"], (stride, stride), "VALID")
        return grown + self.params[f"{name}.bias"]

    def batch_norm(self, name: str, x: jax.Array) -> jax.Array:
        mean, variance = self.moved[f"{name}.running_mean"], self.moved[f"{name}.running_var"]
        if self.train:
            axes = tuple(range(x.ndim - 1))
            old_mean, old_variance = mean, variance
            mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
            self.moved[f"{name}.running_mean"] = (1 - MOMENTUM) * old_mean + MOMENTUM * mean
            self.moved[f"{name}.running_var"] = (1 - MOMENTUM) * old_variance + MOMENTUM * variance
        return self._scaled(name, (x - mean) * lax.rsqrt(variance + 1e-5))

    def layer_norm(self, name: str, x: jax.Array, eps: float = 1e-5) -> jax.Array:
        mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
        return self._scaled(name, (x - mean) * lax.rsqrt(variance + eps))

    def group_norm(self, name: str, x: jax.Array, groups: int) -> jax.Array:
        grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
        mean, variance = jnp.mean(grouped, (1, 3), keepdims=True), jnp.var(grouped, (1, 3), keepdims=True)
        return self._scaled(name, ((grouped - mean) * lax.rsqrt(variance + 1e-5)).reshape(x.shape))

    def embed(self, name: str, ids: jax.Array) -> jax.Array:
        return self.params[f"{name}.weight"][ids]

    def mlp(self, name: str, x: jax.Array) -> jax.Array:
        return self.dense(f"{name}.reduce", self.gelu(self.dense(f"{name}.expand", x)))

    def attention(self, name: str, x: jax.Array, heads: int, mask: jax.Array | None = None) -> jax.Array:
        """`mask` broadcasts to (batch, heads, queries, keys), true where a key is seen."""
        batch, length, width = x.shape
        qkv = self.dense(f"{name}.qkv", x).reshape(batch, length, 3, heads, width // heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width // heads)
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return self.dense(f"{name}.out", mixed.reshape(batch, length, width))

    def block(self, name: str, x: jax.Array, heads: int, mask: jax.Array | None = None) -> jax.Array:
        x = x + self.attention(f"{name}.attention", self.layer_norm(f"{name}.norm1", x), heads, mask)
        return x + self.mlp(f"{name}.mlp", self.layer_norm(f"{name}.norm2", x))

    def _scaled(self, name: str, x: jax.Array) -> jax.Array:
        return x * self.params[f"{name}.weight"] + self.params[f"{name}.bias"]

    def unembed(self, name: str, x: jax.Array) -> jax.Array:
        return x @ self.params[f"{name}.weight"].T

    def gelu(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)

    def max_pool(self, x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
        pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), pads)

    def avg_pool(self, x: jax.Array, size: int) -> jax.Array:
        """Over the one spatial axis."""
        return lax.reduce_window(x, 0.0, lax.add, (1, size, 1), (1, size, 1), "VALID") / size

    def lstm(self, place: str, x: jax.Array) -> jax.Array:
        """(time, batch, features) to (time, batch, width)."""
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        by_input, by_state, bias1, bias2 = (self.params[place.format(part)] for part in parts)

        def cell(carry, x):
            h, c = carry
            i, f, g, o = jnp.split(x @ by_input + h @ by_state + bias1 + bias2, 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[1], by_state.shape[0]))
        return lax.scan(cell, (zeros, zeros), x)[1]

    def gru(self, place: str, x: jax.Array, reverse: bool) -> jax.Array:
        """(time, batch, features) to (time, batch, width)."""
        parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        by_input, by_state, bias1, bias2 = (self.params[place.format(part)] for part in parts)

        def cell(h, x):
            from_input, from_state = (jnp.split(part, 3, -1) for part in (x @ by_input + bias1, h @ by_state + bias2))
            r = jax.nn.sigmoid(from_input[0] + from_state[0])
            z = jax.nn.sigmoid(from_input[1] + from_state[1])
            h = (1 - z) * jnp.tanh(from_input[2] + r * from_state[2]) + z * h
            return h, h

        zeros = jnp.zeros((x.shape[1], by_state.shape[0]))
        return lax.scan(cell, zeros, x, reverse=reverse)[1]
