"""Arrays by name as a safetensors file, which others read too, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save_file

from esper.errors import CorruptFileError, DTypeError

_OWN = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""safetensors' names of dtypes."""

# What safetensors has no dtype for travels as bytes, under its name in the file's metadata.
_AS_BYTES = {
    dtype.name: dtype
    for dtype in map(
        np.dtype,
        (
            np.complex128,
            ml_dtypes.int4,
            ml_dtypes.uint4,
            ml_dtypes.float8_e4m3fnuz,
            ml_dtypes.float8_e5m2fnuz,
            ml_dtypes.float8_e4m3b11fnuz,
        ),
    )
}
_METADATA = "esper.dtypes"


def write_tensors(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays under their names.

    Raises:
        DTypeError: An array of a dtype that has no name in a file.
    """
    bare: dict[str, Any] = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    others = {name: array.dtype.name for name, array in bare.items() if array.dtype not in _OWN.values()}
    for name, dtype in others.items():
        if dtype not in _AS_BYTES:
            raise DTypeError(f"{name} is of {dtype}, which cannot be written to a file")
        bare[name] = bare[name].reshape(-1).view(np.uint8).reshape(*bare[name].shape, -1)
    save_file(bare, file, metadata={_METADATA: json.dumps(others)} if others else None)


def read_tensors(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays of a file, on its memory.

    Args:
        data: The file.
        where: Its name, for messages.

    Raises:
        CorruptFileError: It is no such file.
    """
    try:
        found: Any = deserialize(data)
        others = _metadata(data)
        return {name: _array(held, others.get(name)) for name, held in found}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{where} is no safetensors file: {error}") from None


def _metadata(data: bytes) -> Mapping[str, str]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(_METADATA, "{}"))


def _array(held: Mapping[str, Any], other: str | None) -> np.ndarray:
    flat = np.frombuffer(held["data"], _OWN[held["dtype"]] if other is None else _AS_BYTES[other])
    return flat.reshape(held["shape"] if other is None else held["shape"][:-1])
