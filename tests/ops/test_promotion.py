"""Result dtypes of two operands, against torch for every pair."""

import itertools

import jax
import jax.numpy as jnp
import pytest
import torch

from esper.jax_backend.promotion import float_type, in_float32, promote, result_type, sum_type

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64")
SHAPES = ((2,), ())
NUMBERS = (True, 2, 2.5, 1j)


def carried(dtype):
    """JAX's name of a torch dtype, 64-bit ones narrowed; JAX has no complex of halves."""
    name = str(dtype).removeprefix("torch.")
    return jax.dtypes.canonicalize_dtype("complex64" if name == "complex32" else name)


@pytest.mark.parametrize("left", DTYPES)
def test_pairs_of_tensors(left):
    for right, a, b in itertools.product(DTYPES, SHAPES, SHAPES):
        wanted = torch.result_type(
            torch.ones(a, dtype=getattr(torch, left)), torch.ones(b, dtype=getattr(torch, right))
        )
        found = result_type(jnp.ones(a, carried(left)), jnp.ones(b, carried(right)))
        assert found == carried(wanted), (left, a, right, b)


@pytest.mark.parametrize("number", NUMBERS)
def test_tensors_and_numbers(number):
    for dtype, shape in itertools.product(DTYPES, SHAPES):
        wanted = torch.result_type(torch.ones(shape, dtype=getattr(torch, dtype)), number)
        assert result_type(jnp.ones(shape, carried(dtype)), number) == carried(wanted), (dtype, shape)


def test_three_kinds_together():
    # A tensor with dimensions outranks one without, and that a number, within a category.
    ints, half = jnp.ones(2, "int32"), jnp.ones((), "float16")
    assert result_type(ints, half, 2.5) == "float16"
    assert result_type(ints, 2.5) == "float32"
    assert result_type(jnp.ones(2, "bool"), jnp.ones((), "int8"), 2) == "int8"
    assert result_type(None, ints) == "int32"


def test_nothing_weak_comes_out():
    for x in promote(jnp.ones(2, "bfloat16"), 2.5, jnp.asarray(3)):
        assert x.dtype == "bfloat16"
        assert not x.weak_type


def test_without_operands():
    with pytest.raises(TypeError):
        result_type(None)


def test_division_and_sums():
    assert float_type(jnp.ones(2, "int8"), 2) == "float32"
    assert float_type(jnp.ones(2, "float16"), 2) == "float16"
    assert sum_type(jnp.ones(2, "bool"), None) == carried("int64")
    assert sum_type(jnp.ones(2, "bfloat16"), None) == "bfloat16"


def test_half_precision_is_computed_in_float32():
    seen = []

    @in_float32
    def double(x):
        seen.append(x.dtype)
        return 2 * x, x

    outputs = double(jnp.ones(2, "float16"))
    assert [out.dtype for out in outputs] == ["float16", "float16"]
    double(jnp.ones(2, "int32"))
    assert seen == ["float32", "int32"]


def test_symbolic_sizes_count_as_integers():
    def scale(x):
        return jnp.multiply(*promote(x, x.shape[0]))

    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(jax.jit(scale))(jax.ShapeDtypeStruct((batch,), jnp.float16))
    assert exported.out_avals[0].dtype == "float16"
    assert (exported.call(jnp.ones(3, jnp.float16)) == 3).all()
