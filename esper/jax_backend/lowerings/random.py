"""Random tensors and dropout (aten/src/ATen/native/TensorFactories.cpp, Distributions.cpp, Dropout.cpp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.errors import PrecisionError
from esper.jax_backend.promotion import default_float, default_int
from esper.jax_backend.registry import lowers


@lowers("aten.bernoulli.default", draws=True)
def bernoulli(x, *, key):
    """bernoulli(Tensor self, *, Generator? generator=None) -> Tensor"""
    return _coin(key, jax.lax.stop_gradient(x), x.shape).astype(x.dtype)


@lowers("aten.bernoulli.p", "aten.bernoulli.Tensor", draws=True)
def bernoulli_p(x, p, *, key):
    """bernoulli.p(Tensor self, float p, *, Generator? generator=None) -> Tensor"""
    return _coin(key, jax.lax.stop_gradient(p), x.shape).astype(x.dtype)


def _coin(key, p, shape):
    return jax.random.bernoulli(key, jnp.asarray(p, jnp.float32), shape)


@lowers("aten.cauchy.default", draws=True)
def cauchy(x, median=0.0, sigma=1.0, *, key):
    """cauchy(Tensor self, float median=0., float sigma=1., *, Generator? generator=None) -> Tensor"""
    return median + sigma * jax.random.cauchy(key, x.shape, x.dtype)


@lowers("aten.exponential.default", draws=True)
def exponential(x, lambd=1.0, *, key):
    """exponential(Tensor self, float lambd=1., *, Generator? generator=None) -> Tensor"""
    return jax.random.exponential(key, x.shape, x.dtype) / lambd


@lowers("aten.geometric.default", draws=True)
def geometric(x, p, *, key):
    """geometric(Tensor self, float p, *, Generator? generator=None) -> Tensor"""
    return jax.random.geometric(key, p, x.shape).astype(x.dtype)


@lowers("aten.log_normal.default", draws=True)
def log_normal(x, mean=1.0, std=2.0, *, key):
    """log_normal(Tensor self, float mean=1., float std=2., *, Generator? generator=None) -> Tensor"""
    return jnp.exp(mean + std * jax.random.normal(key, x.shape, x.dtype))


@lowers("aten.multinomial.default", draws=True)
def multinomial(x, num_samples, replacement=False, *, key):
    """multinomial(Tensor self, SymInt num_samples, bool replacement=False, *, Generator? generator=None) -> Tensor"""
    shape = (num_samples, *x.shape[:-1])
    drawn = jax.random.categorical(key, jnp.log(x.astype(jnp.float32)), shape=shape, replace=replacement)
    return jnp.moveaxis(drawn, 0, -1).astype(default_int())


@lowers("aten.native_dropout.default", draws=lambda x, p, train: train is not False and p > 0)
def native_dropout(x, p, train, *, key=None):
    """native_dropout(Tensor input, float p, bool? train) -> (Tensor, Tensor)"""
    if key is None:
        return x, jnp.ones(x.shape, bool)
    mask = jax.random.bernoulli(key, 1 - p, x.shape)
    return jnp.where(mask, x * (1 / (1 - p) if p < 1 else 0.0), 0), mask


@lowers("aten.normal.Tensor_float", "aten.normal.Tensor_Tensor", draws=True)
def normal(mean, std=1.0, *, key):
    """normal.Tensor_float(Tensor mean, float std=1., *, Generator? generator=None) -> Tensor"""
    shape = jnp.broadcast_shapes(mean.shape, jnp.shape(std))
    return jax.lax.stop_gradient(mean + std * jax.random.normal(key, shape, mean.dtype))


@lowers("aten.normal.float_Tensor", draws=True)
def normal_of_std(mean, std, *, key):
    """normal.float_Tensor(float mean, Tensor std, *, Generator? generator=None) -> Tensor"""
    return jax.lax.stop_gradient(mean + std * jax.random.normal(key, std.shape, std.dtype))


@lowers("aten.normal.float_float", draws=True)
def normal_of_size(mean, std, size, *, dtype=None, key):
    """normal.float_float(float mean, float std, SymInt[] size, *, ScalarType? dtype=None, ...) -> Tensor"""
    return mean + std * jax.random.normal(key, size, dtype or default_float())


@lowers("aten.normal_functional.default", draws=True)
def normal_functional(x, mean=0.0, std=1.0, *, key):
    """normal_functional(Tensor self, float mean=0., float std=1., *, Generator? generator=None) -> Tensor"""
    return mean + std * jax.random.normal(key, x.shape, x.dtype)


@lowers("aten.poisson.default", draws=True)
def poisson(x, *, key):
    """poisson(Tensor self, Generator? generator=None) -> Tensor"""
    return jax.random.poisson(key, jax.lax.stop_gradient(x), x.shape).astype(x.dtype)


@lowers("aten.rand.default", draws=True)
def rand(size, *, dtype=None, key):
    """rand(SymInt[] size, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jax.random.uniform(key, size, dtype or default_float())


@lowers("aten.rand_like.default", draws=True)
def rand_like(x, *, dtype=None, key):
    """rand_like(Tensor self, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jax.random.uniform(key, x.shape, dtype or x.dtype)


@lowers("aten.randint.default", draws=True)
def randint(high, size, *, dtype=None, key):
    """randint(SymInt high, SymInt[] size, *, ScalarType? dtype=long, ...) -> Tensor"""
    return randint_low(0, high, size, dtype=dtype, key=key)


@lowers("aten.randint.low", draws=True)
def randint_low(low, high, size, *, dtype=None, key):
    """randint.low(SymInt low, SymInt high, SymInt[] size, *, ScalarType? dtype=long, ...) -> Tensor"""
    drawn, dtype = default_int(), dtype or default_int()
    limits = jnp.iinfo(drawn)
    if low < limits.min or high - 1 > limits.max:
        raise PrecisionError(f"numbers up to {high - 1} are drawn: turn JAX's 64-bit mode on (jax_enable_x64)")
    if high <= limits.max:
        return jax.random.randint(key, size, low, high, drawn).astype(dtype)
    return (low + _offset(key, size, high - low).astype(drawn)).astype(dtype)


def _offset(key, size, count):
    # To the end of int32, which is no bound of its own: unsigned numbers count as far.
    if count > jnp.iinfo(jnp.uint32).max:
        return jax.random.bits(key, size, jnp.uint32)
    return jax.random.randint(key, size, 0, jnp.asarray(count, jnp.uint32), jnp.uint32)


@lowers("aten.randint_like.default", draws=True)
def randint_like(x, high, *, dtype=None, key):
    """randint_like(Tensor self, SymInt high, *, ScalarType? dtype=None, ...) -> Tensor"""
    return randint_low(0, high, x.shape, dtype=dtype or x.dtype, key=key)


@lowers("aten.randint_like.low_dtype", draws=True)
def randint_like_low(x, low, high, *, dtype=None, key):
    """randint_like.low_dtype(Tensor self, SymInt low, SymInt high, *, ScalarType? dtype=None, ...) -> Tensor"""
    return randint_low(low, high, x.shape, dtype=dtype or x.dtype, key=key)


@lowers("aten.randn.default", draws=True)
def randn(size, *, dtype=None, key):
    """randn(SymInt[] size, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jax.random.normal(key, size, dtype or default_float())


@lowers("aten.randn_like.default", draws=True)
def randn_like(x, *, dtype=None, key):
    """randn_like(Tensor self, *, ScalarType? dtype=None, ...) -> Tensor"""
    return jax.random.normal(key, x.shape, dtype or x.dtype)


@lowers("aten.random.from", draws=True)
def random_from(x, from_, to, *, key):
    """random.from(Tensor self, int from, int? to, *, Generator? generator=None) -> Tensor"""
    return randint_low(from_, to, x.shape, dtype=x.dtype, key=key)


@lowers("aten.random.to", draws=True)
def random_to(x, to, *, key):
    """random.to(Tensor self, int to, *, Generator? generator=None) -> Tensor"""
    return randint_low(0, to, x.shape, dtype=x.dtype, key=key)


@lowers("aten.randperm.default", draws=True)
def randperm(n, *, dtype=None, key):
    """randperm(SymInt n, *, ScalarType? dtype=long, ...) -> Tensor"""
    return jax.random.permutation(key, jnp.arange(n, dtype=dtype or default_int()))


@lowers("aten.rrelu_with_noise_functional.default", draws=lambda x, noise, lower, upper, training=False: training)
def rrelu_with_noise_functional(x, noise, lower=1 / 8, upper=1 / 3, training=False, *, key=None):
    """rrelu_with_noise_functional(Tensor self, Tensor noise, Scalar lower=0.125, Scalar upper=0.3333333333333333, bool training=False, Generator? generator=None) -> (Tensor, Tensor noise_out)"""  # noqa: E501
    if key is None:
        return jnp.where(x > 0, x, x * jnp.asarray((lower + upper) / 2, x.dtype)), noise
    slopes = jax.random.uniform(key, x.shape, x.dtype, lower, upper)
    factor = jnp.where(x <= 0, slopes, jnp.ones_like(x))
    return x * factor, factor


@lowers("aten._sample_dirichlet.default", draws=True)
def sample_dirichlet(x, *, key):
    """_sample_dirichlet(Tensor self, Generator? generator=None) -> Tensor"""
    return jax.random.dirichlet(key, x, dtype=x.dtype)


@lowers("aten._standard_gamma.default", draws=True)
def standard_gamma(x, *, key):
    """_standard_gamma(Tensor self, Generator? generator=None) -> Tensor"""
    return jax.random.gamma(key, x, dtype=x.dtype)


@lowers("aten.uniform.default", draws=True)
def uniform(x, from_=0.0, to=1.0, *, key):
    """uniform(Tensor self, float from=0., float to=1., *, Generator? generator=None) -> Tensor"""
    return from_ + (to - from_) * jax.random.uniform(key, x.shape, x.dtype)
