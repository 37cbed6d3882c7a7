"""Matrix products. Sums of 16-bit products are taken in float32, and rounded once."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from esper.errors import RefusedError
from esper.jax_backend.lowerings.conversion import cast
from esper.jax_backend.platform.bias import add_bias
from esper.jax_backend.platform.precision import PRECISION, accumulator, contract, widen
from esper.jax_backend.promotion import promote, result_type
from esper.jax_backend.registry import lowers


@lowers("aten.addbmm.default")
def addbmm(x, batch1, batch2, *, beta=1, alpha=1):
    """addbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return _add_product(x, contract(batch1, batch2, ((0, 2), (0, 1))), beta, alpha)


@lowers("aten.addmm.default")
def addmm(x, mat1, mat2, *, beta=1, alpha=1):
    """addmm(Tensor self, Tensor mat1, Tensor mat2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    if x.ndim == 1 and beta == alpha == 1 and x.shape[0] == mat2.shape[1]:  # a layer: x is its bias
        return linear(mat1, mat2.T, x)
    return _add_product(x, contract(mat1, mat2, ((1,), (0,))), beta, alpha)


@lowers("aten.addmv.default")
def addmv(x, mat, vec, *, beta=1, alpha=1):
    """addmv(Tensor self, Tensor mat, Tensor vec, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return _add_product(x, contract(mat, vec, ((1,), (0,))), beta, alpha)


@lowers("aten.addr.default")
def addr(x, vec1, vec2, *, beta=1, alpha=1):
    """addr(Tensor self, Tensor vec1, Tensor vec2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    dtype = result_type(x, vec1, vec2)
    outer = jnp.outer(vec1.astype(dtype), vec2.astype(dtype))
    return _add_product(x.astype(dtype), widen(outer), beta, alpha)


@lowers("aten.baddbmm.default")
def baddbmm(x, batch1, batch2, *, beta=1, alpha=1):
    """baddbmm(Tensor self, Tensor batch1, Tensor batch2, *, Scalar beta=1, Scalar alpha=1) -> Tensor"""
    return _add_product(x, contract(batch1, batch2, ((2,), (1,)), ((0,), (0,))), beta, alpha)


@lowers("aten.bilinear.default")
def bilinear(input1, input2, weight, bias=None):
    """bilinear(Tensor input1, Tensor input2, Tensor weight, Tensor? bias=None) -> Tensor"""
    out = _einsum("...i,oij,...j->...o", input1, weight, input2)
    return (out if bias is None else out + widen(bias)).astype(input1.dtype)


@lowers("aten.bmm.default")
def bmm(x, mat2):
    """bmm(Tensor self, Tensor mat2) -> Tensor"""
    return contract(x, mat2, ((2,), (1,)), ((0,), (0,))).astype(x.dtype)


@lowers("aten.chain_matmul.default", "aten.linalg_multi_dot.default")
def chain_matmul(matrices):
    """linalg_multi_dot(Tensor[] tensors) -> Tensor"""
    return jnp.linalg.multi_dot([widen(m) for m in matrices], precision=PRECISION).astype(matrices[0].dtype)


@lowers("aten.dot.default")
def dot(x, tensor):
    """dot(Tensor self, Tensor tensor) -> Tensor"""
    return contract(x, tensor, ((0,), (0,))).astype(x.dtype)


@lowers("aten.einsum.default")
def einsum(equation, tensors, *, path=None):
    """einsum(str equation, Tensor[] tensors, *, int[]? path=None) -> Tensor"""
    return _einsum(equation, *tensors).astype(tensors[0].dtype)


@lowers("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")
def grouped_mm(x, mat2, offs=None, bias=None, out_dtype=None):
    """_grouped_mm(Tensor self, Tensor mat2, Tensor? offs=None, Tensor? bias=None, ScalarType? out_dtype=None) -> Tensor"""  # noqa: E501
    if offs is None:
        out = contract(x, mat2, ((2,), (1,)), ((0,), (0,)))
    elif mat2.ndim == 3:
        out = _by_rows(x, mat2, offs)
    elif x.ndim == 3:  # groups of columns
        out = _by_rows(mat2.T, x.swapaxes(1, 2), offs).T
    else:  # groups of what is summed over
        place = lax.broadcasted_iota(offs.dtype, (len(offs), x.shape[1]), 1)
        starts = jnp.pad(offs[:-1], (1, 0))
        members = (place >= starts[:, None]) & (place < offs[:, None])
        rows, columns = jnp.where(members[:, None], widen(x), 0), jnp.where(members[..., None], widen(mat2), 0)
        out = jnp.matmul(rows, columns, precision=PRECISION)
    return (out if bias is None else out + widen(bias)).astype(out_dtype or x.dtype)


def _by_rows(x, mat2, offs):
    """The rows of `x` before the first of `offs` times the first matrix, and so on."""
    sizes = jnp.diff(offs, prepend=jnp.zeros(1, offs.dtype)).astype(jnp.int32)
    return lax.ragged_dot(widen(x), widen(mat2), sizes, precision=PRECISION)


@lowers("aten.inner.default")
def inner(x, other):
    """inner(Tensor self, Tensor other) -> Tensor"""
    if x.ndim == 0 or other.ndim == 0:
        return x * other
    return contract(x, other, ((x.ndim - 1,), (other.ndim - 1,))).astype(x.dtype)


@lowers("aten.kron.default")
def kron(x, other):
    """kron(Tensor self, Tensor other) -> Tensor"""
    return jnp.kron(*promote(x, other))


@lowers("aten.linalg_vecdot.default")
def linalg_vecdot(x, y, *, dim=-1):
    """linalg_vecdot(Tensor x, Tensor y, *, int dim=-1) -> Tensor"""
    return jnp.sum(widen(jnp.conj(x)) * widen(y), axis=dim).astype(result_type(x, y))


@lowers("aten.linear.default")
def linear(input, weight, bias=None):
    """linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor"""
    # One 2-D product: on inputs of more dimensions XLA transposes and copies the cotangent for the weight.
    rows = input.reshape(math.prod(input.shape[:-1]), input.shape[-1])
    out = contract(rows, weight, ((1,), (weight.ndim - 1,)))
    out = out if bias is None else add_bias(out, bias, out.ndim - bias.ndim)
    return out.astype(input.dtype).reshape(*input.shape[:-1], *weight.shape[:-1])


@lowers("aten.matmul.default", "aten.linalg_matmul.default")
def matmul(x, other):
    """matmul(Tensor self, Tensor other) -> Tensor"""
    if x.ndim > 2 and other.ndim == 2:
        return linear(x, other.T)
    wide = accumulator(x.dtype)
    return jnp.matmul(x, other, precision=PRECISION, preferred_element_type=wide).astype(x.dtype)


@lowers("aten.mm.default")
def mm(x, mat2):
    """mm(Tensor self, Tensor mat2) -> Tensor"""
    return contract(x, mat2, ((1,), (0,))).astype(x.dtype)


@lowers("aten.mv.default")
def mv(x, vec):
    """mv(Tensor self, Tensor vec) -> Tensor"""
    return contract(x, vec, ((1,), (0,))).astype(x.dtype)


@lowers("aten.ger.default", "aten.outer.default")
def outer(x, vec2):
    """outer(Tensor self, Tensor vec2) -> Tensor"""
    return jnp.outer(*promote(x, vec2))


@lowers("aten._scaled_mm.default")
def scaled_mm(x, mat2, scale_a, scale_b, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False):
    """_scaled_mm(Tensor self, Tensor mat2, Tensor scale_a, Tensor scale_b, Tensor? bias=None, Tensor? scale_result=None, ScalarType? out_dtype=None, bool use_fast_accum=False) -> Tensor"""  # noqa: E501
    scaled = [m.astype(jnp.float32) * jnp.asarray(s, jnp.float32) for m, s in ((x, scale_a), (mat2, scale_b))]
    out = contract(*scaled, ((1,), (0,)))
    out = out if bias is None else out + widen(bias)
    dtype = jnp.dtype(out_dtype or x.dtype)
    if scale_result is not None and dtype.itemsize == 1:
        out = out / scale_result
    return cast(out, dtype)


@lowers("aten._scaled_mm_v2.default")
def scaled_mm_v2(
    x,
    mat2,
    scale_a,
    recipe_a,
    swizzle_a,
    scale_b,
    recipe_b,
    swizzle_b,
    bias=None,
    out_dtype=None,
    contraction_dim=(),
    use_fast_accum=False,
):
    """_scaled_mm_v2(Tensor self, Tensor mat2, Tensor[] scale_a, int[] recipe_a, int[] swizzle_a, Tensor[] scale_b, int[] recipe_b, int[] swizzle_b, Tensor? bias, ScalarType? out_dtype, int[] contraction_dim=[], bool use_fast_accum=False) -> Tensor"""  # noqa: E501
    if not {*recipe_a, *recipe_b} <= {_TENSOR_WISE, _ROW_WISE} or any((*swizzle_a, *swizzle_b)):
        raise RefusedError("_scaled_mm_v2 is supported with one scale a tensor or a row, without swizzling")
    return scaled_mm(x, mat2, scale_a[0], scale_b[0], bias, None, out_dtype)


_TENSOR_WISE, _ROW_WISE = 0, 1


@lowers("aten.tensordot.default")
def tensordot(x, other, dims_self, dims_other):
    """tensordot(Tensor self, Tensor other, int[] dims_self, int[] dims_other) -> Tensor"""
    dims = [(i % x.ndim, j % other.ndim) for i, j in zip(dims_self, dims_other, strict=True)]
    for i, j in dims:  # a size of one meets any size
        if x.shape[i] == 1:
            other = other.sum(j, keepdims=True, dtype=other.dtype)
        elif other.shape[j] == 1:
            x = x.sum(i, keepdims=True, dtype=x.dtype)
    return contract(x, other, ([i for i, _ in dims], [j for _, j in dims])).astype(x.dtype)


@lowers("aten._trilinear.default")
def trilinear(i1, i2, i3, expand1, expand2, expand3, sumdim, unroll_dim=1):
    """_trilinear(Tensor i1, Tensor i2, Tensor i3, int[] expand1, int[] expand2, int[] expand3, int[] sumdim, int unroll_dim=1) -> Tensor"""  # noqa: E501
    factors = [jnp.expand_dims(widen(t), e) for t, e in ((i1, expand1), (i2, expand2), (i3, expand3))]
    return math.prod(factors[1:], start=factors[0]).sum(sumdim).astype(i1.dtype)


@lowers("aten.vdot.default")
def vdot(x, other):
    """vdot(Tensor self, Tensor other) -> Tensor"""
    return contract(jnp.conj(x), other, ((0,), (0,))).astype(x.dtype)


def _add_product(x, made, beta, alpha):
    """beta * x + alpha * made, in the dtype of the product `made`; beta = 0 ignores even the NaNs of x."""
    made = made if alpha == 1 else made * jnp.asarray(alpha, made.dtype)
    if beta != 0:
        made = made + (x if beta == 1 else x * jnp.asarray(beta, made.dtype)).astype(made.dtype)
    return made.astype(x.dtype)


def _einsum(equation, *operands):
    wide = accumulator(operands[0].dtype)
    return jnp.einsum(equation, *operands, precision=PRECISION, preferred_element_type=wide)
