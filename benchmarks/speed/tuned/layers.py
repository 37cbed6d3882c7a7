"""The layers of `idiomatic/layers.py` as an expert writes them; which way a convolution goes is chosen by its sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from torch import nn

from benchmarks.speed.contenders.jitted import to_jax
from benchmarks.speed.idiomatic import layers as idiomatic
from benchmarks.speed.idiomatic.arrays import Arrays
from benchmarks.speed.idiomatic.arrays import converted as usual
from benchmarks.speed.tuned import closed, products, recurrent, signals
from benchmarks.speed.tuned.closed import cross_entropy
from benchmarks.speed.tuned.depthwise import depthwise
from benchmarks.speed.tuned.pooling import max_pool

SMALL_MAP = 8
"""Up to this height, 3x3 convolutions are faster as matrix products."""


class Net(idiomatic.Net):
    """Linear weights are (out, in), as torch has them."""

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        return products.dense(x, self.params[f"{name}.weight"], self.params[f"{name}.bias"])

    def conv(
        self, name: str, x: jax.Array, stride: int = 1, padding: int = 0, groups: int = 1, dilation: int = 1
    ) -> jax.Array:
        weight, bias = self.params[f"{name}.weight"], self.params.get(f"{name}.bias")
        if x.ndim == 3:
            y = signals.conv(x, weight, stride, padding, dilation)
        else:
            y = _conv(x, weight, stride, padding, groups)
        return y if bias is None else _shifted(y, bias)

    def conv_transpose(self, name: str, x: jax.Array, stride: int) -> jax.Array:
        return _shifted(products.unpatchify(x, self.params[f"{name}.weight"]), self.params[f"{name}.bias"])

    def batch_norm(self, name: str, x: jax.Array) -> jax.Array:
        if not self.train:
            return super().batch_norm(name, x)
        y, *found = closed.batch_norm(x, self.params[f"{name}.weight"], self.params[f"{name}.bias"])
        for which, new in zip(("running_mean", "running_var"), found, strict=True):
            old = self.moved[f"{name}.{which}"]
            self.moved[f"{name}.{which}"] = old + idiomatic.MOMENTUM * (new - old)
        return y

    def layer_norm(self, name: str, x: jax.Array, eps: float = 1e-5) -> jax.Array:
        return closed.layer_norm(x, self.params[f"{name}.weight"], self.params[f"{name}.bias"], eps)

    def group_norm(self, name: str, x: jax.Array, groups: int) -> jax.Array:
        return closed.group_norm(x, self.params[f"{name}.weight"], self.params[f"{name}.bias"], groups)

    def attention(self, name: str, x: jax.Array, heads: int, mask: jax.Array | None = None) -> jax.Array:
        batch, length, width = x.shape
        qkv = self.dense(f"{name}.qkv", x).reshape(batch, length, 3, heads, width // heads)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        mixed = closed.attend(q, k, v, mask).transpose(0, 2, 1, 3)
        return self.dense(f"{name}.out", mixed.reshape(batch, length, width))

    def unembed(self, name: str, x: jax.Array) -> jax.Array:
        return products.times(x, self.params[f"{name}.weight"])

    def gelu(self, x: jax.Array) -> jax.Array:
        return closed.gelu(x)

    def max_pool(self, x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
        return max_pool(x, size, stride, padding)

    def avg_pool(self, x: jax.Array, size: int) -> jax.Array:
        batch, length, channels = x.shape
        return jnp.mean(x[:, : length // size * size].reshape(batch, length // size, size, channels), 2)

    def lstm(self, place: str, x: jax.Array) -> jax.Array:
        return recurrent.lstm(x, *self._recurrent(place))

    def gru(self, place: str, x: jax.Array, reverse: bool) -> jax.Array:
        return recurrent.gru(x, *self._recurrent(place), reverse=reverse)

    def _recurrent(self, place: str) -> list[jax.Array]:
        return [self.params[place.format(part)] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]


def converted(module: nn.Module) -> tuple[Arrays, Arrays]:
    """As for the idiomatic layers, but for what products take as torch has it: linear weights and the input weights of
    recurrent layers stay (out, in), those of transposed convolutions are (*space, out, in)."""
    params, stats = usual(module)
    for prefix, part in module.named_modules():
        kept = ["weight"] if isinstance(part, nn.Linear) else []
        if isinstance(part, nn.RNNBase):
            kept = [name for name, _ in part.named_parameters() if name.startswith("weight_ih")]
        for name in kept:
            params[f"{prefix}.{name}" if prefix else name] = to_jax(getattr(part, name))
        if isinstance(part, nn.ConvTranspose2d):
            params[f"{prefix}.weight"] = to_jax(part.weight).transpose(2, 3, 1, 0)
    return params, stats


def _conv(x: jax.Array, weight: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    size, channels, outputs = weight.shape[0], x.shape[3], weight.shape[3]
    if groups > 1:
        assert groups == channels
        return depthwise(x, weight[:, :, 0], stride, padding)
    if size == 1:
        return products.times(x[:, ::stride, ::stride], weight[0, 0].T)
    if stride == size and not padding:
        return products.patchify(x, weight)
    height = (x.shape[1] + 2 * padding - size) // stride + 1
    if height > SMALL_MAP and channels > 4:
        pads = [(padding, padding)] * 2
        return lax.conv_general_dilated(x, weight, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    if stride == 1:
        return products.same_conv(x, weight, padding)
    windows = products.patches(x, size, stride, padding)
    return products.times(windows, weight.reshape(-1, outputs).T)


@jax.custom_vjp
def _shifted(y: jax.Array, bias: jax.Array) -> jax.Array:
    return y + bias


_shifted.defvjp(lambda y, bias: (y + bias, None), lambda _, g: (g, products.column_sums(g)))

__all__ = ["Net", "converted", "cross_entropy"]
