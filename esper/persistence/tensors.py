"""Arrays by name as a safetensors file, which others read too, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save, save_file

from esper.errors import CorruptFileError, DTypeError
from esper.persistence import MALFORMED

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
DTYPES = "esper.dtypes"
"""Where a file's metadata have the dtypes that safetensors has no name for."""
_LARGEST_HEADER = 100_000_000  # as safetensors has it


def write_tensors(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays under their names.

    Raises:
        DTypeError: An array of a dtype that has no name in a file.
    """
    bare, metadata = _bare(arrays)
    try:
        save_file(bare, file, metadata=metadata or None)
    except SafetensorError as error:  # what the system said is in its text only
        raise OSError(str(error)) from error


def tensor_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """What `write_tensors` writes, with text of one's own beside the arrays.

    Raises:
        DTypeError: An array of a dtype that has no name in a file.
    """
    bare, own = _bare(arrays)
    return save(bare, metadata={**own, **metadata})


def read_metadata(data: memoryview, where: str) -> dict[str, str]:
    """The text beside the arrays of a file, by name.

    Raises:
        CorruptFileError: It is no such file.
    """
    try:
        found = _split(data)[0].get("__metadata__", {})
        if not all(isinstance(value, str) for value in found.values()):
            raise TypeError("its metadata are no text")
        return found
    except MALFORMED as error:
        raise CorruptFileError(f"{where} is no safetensors file: {error}") from None


def _bare(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays as safetensors takes them, and what is to be noted of those that it has no dtype for."""
    bare: dict[str, Any] = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    others = {name: array.dtype.name for name, array in bare.items() if array.dtype not in _OWN.values()}
    for name, dtype in others.items():
        if dtype not in _AS_BYTES:
            raise DTypeError(f"{name} is of {dtype}, which cannot be written to a file")
        bare[name] = bare[name].reshape(-1).view(np.uint8).reshape(*bare[name].shape, -1)
    return bare, {DTYPES: json.dumps(others)} if others else {}


def read_tensors(data: memoryview, where: str) -> dict[str, np.ndarray]:
    """The arrays of a file, on its memory: nothing is copied.

    Args:
        data: The file: the header's length in 8 bytes, little-endian; the header, JSON; the arrays, one after another.
        where: Its name, for messages.

    Raises:
        CorruptFileError: It is no such file.
    """
    try:
        header, body = _split(data)
        others = json.loads(header.pop("__metadata__", {}).get(DTYPES, "{}"))
        placed = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        ends = [0, *(held["data_offsets"][1] for _, held in placed)]
        if [held["data_offsets"][0] for _, held in placed] != ends[:-1] or ends[-1] != len(body):
            raise ValueError("the arrays do not lie one after the other")
        return {name: _array(held, body, others.get(name)) for name, held in placed}
    except MALFORMED as error:
        raise CorruptFileError(f"{where} is no safetensors file: {error}") from None


def _split(data: memoryview) -> tuple[dict[str, Any], memoryview]:
    """The header, and what follows it."""
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(len(data) - 8, _LARGEST_HEADER):
        raise ValueError(f"its header would be {length} bytes")
    header = json.loads(bytes(data[8 : 8 + length]))
    if not isinstance(header, dict):
        raise TypeError("its header is no object")
    return header, data[8 + length :]


def _array(held: Mapping[str, Any], body: memoryview, other: str | None) -> np.ndarray:
    (start, end), shape = held["data_offsets"], held["shape"]
    dtype = _OWN[held["dtype"]] if other is None else _AS_BYTES[other]
    kept = shape if other is None else shape[:-1]
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(kept) * dtype.itemsize != end - start:
        raise ValueError(f"{end - start} bytes are no {dtype}{shape}")
    return np.frombuffer(body[start:end], dtype).reshape(kept)
