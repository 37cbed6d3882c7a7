"""Torch tensors on their way to and from other libraries: 64-bit honesty, real copies."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch

from esper.errors import DTypeError, PrecisionError

_NARROW = {torch.float64: torch.float32, torch.complex128: torch.complex64, torch.int64: torch.int32}
_CARRIED = frozenset(
    {
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    }
)

# numpy has no dtype of its own for these: they travel as bits.
_BY_BITS = {
    torch.bfloat16: (torch.int16, "bfloat16"),
    torch.float8_e4m3fn: (torch.uint8, "float8_e4m3fn"),
    torch.float8_e5m2: (torch.uint8, "float8_e5m2"),
}


def exportable(tensor: torch.Tensor, place: str, wide: bool) -> np.ndarray:
    """A dense numpy view of `tensor` (of a narrowed or contiguous copy where needed); the reader copies it.

    Args:
        tensor: Any dense CPU or device tensor.
        place: Its name in the user's model, for errors.
        wide: Whether 64-bit values are kept; otherwise they narrow, and must fit.

    Raises:
        DTypeError: A dtype or layout that cannot be carried.
        PrecisionError: A 64-bit value that does not fit in 32 bits.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.dtype not in _CARRIED:
        raise DTypeError(f"{place}: a {tensor.layout} tensor of {tensor.dtype} cannot be carried to JAX; make it dense")
    dense = tensor.detach().resolve_conj().resolve_neg()
    ready = (dense if wide else _narrow(dense, place)).contiguous().cpu()
    if ready.dtype not in _BY_BITS:
        return ready.numpy()
    bits, name = _BY_BITS[ready.dtype]
    return ready.view(bits).numpy().view(getattr(ml_dtypes, name))


def lend(tensor: torch.Tensor, place: str, wide: bool) -> torch.Tensor | np.ndarray:
    """What DLPack reads of `tensor` without a copy; as `exportable` where there is no such thing."""
    if tensor.layout is torch.strided and tensor.numel() and (wide or tensor.dtype not in _NARROW):
        dense = tensor.detach().resolve_conj().resolve_neg()
        if dense.is_contiguous() and dense.device.type == "cpu" and dense.dtype in _CARRIED:
            return dense
    return exportable(tensor, place, wide)


def borrow(array: Any, dtype: str | None = None) -> torch.Tensor:
    """A torch tensor on the memory of an array that nobody else has, cast if it is of another dtype."""
    tensor = torch.from_dlpack(array) if array.size else to_torch(array)
    return tensor if dtype is None else tensor.to(getattr(torch, dtype))


def _narrow(tensor: torch.Tensor, place: str) -> torch.Tensor:
    target = _NARROW.get(tensor.dtype)
    if target is None:
        return tensor
    narrow = tensor.to(target)
    if tensor.dtype is torch.int64:
        fits = bool((narrow.to(torch.int64) == tensor).all())
    else:
        fits = not bool((torch.isfinite(tensor) & ~torch.isfinite(narrow)).any())
    if not fits:
        raise PrecisionError(
            f"{place}: a value of {tensor.dtype} does not fit in {target} (64-bit mode is off); "
            'turn it on with jax.config.update("jax_enable_x64", True) before wrapping'
        )
    return narrow


def say_narrowed(tensors: Mapping[str, torch.Tensor]) -> None:
    """One warning that names the floating-point tensors which lose precision."""
    lost = [name for name, tensor in tensors.items() if tensor.dtype in (torch.float64, torch.complex128)]
    if lost:
        shown = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        warnings.warn(
            f"{len(lost)} tensors of 64-bit floats are carried in 32 bits because JAX's 64-bit mode is off: {shown}. "
            'For full precision: jax.config.update("jax_enable_x64", True) before wrapping.',
            stacklevel=4,
        )


def to_torch(array: Any, dtype: str | None = None) -> torch.Tensor:
    """A torch tensor with memory of its own.

    Args:
        array: A concrete array, such as a JAX or numpy one.
        dtype: torch's name of the dtype to return ("int64"), None to keep the array's.
    """
    own = np.array(array)  # a copy: JAX's memory must not be writable from torch
    bits = {name: (dtype, bits) for dtype, (bits, name) in _BY_BITS.items()}.get(own.dtype.name)
    if bits is None:
        tensor = torch.from_numpy(own)
    else:
        tensor = torch.from_numpy(own.view(str(bits[1]).removeprefix("torch."))).view(bits[0])
    return tensor if dtype is None else tensor.to(getattr(torch, dtype))
