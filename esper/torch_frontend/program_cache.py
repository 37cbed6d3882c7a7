"""Programs on disk, so that a process need not capture what another one has. On where `ESPER_CACHE_DIR` names a folder.

An entry is found by a digest of all that its capture depends on (`digest.py`); where that cannot be told, nothing is
read and nothing is written. The folder may be deleted at any time, and any number of processes may share it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from esper.errors import ProgramError
from esper.program import Program, Signature, Static
from esper.program.codec import dumps, loads
from esper.program.verify import verify
from esper.torch_frontend.digest import digest
from esper.torch_frontend.provenance import Unknown, surroundings

VARIABLE = "ESPER_CACHE_DIR"
_LARGEST = 16 << 20  # bytes of tensors that a capture closed over
_LOG = logging.getLogger(__name__)
Tensors = Mapping[str, torch.Tensor]


def folder() -> Path | None:
    """Where Programs are kept; None if nowhere."""
    named = os.environ.get(VARIABLE, "")
    return Path(named).expanduser() / "programs" if named else None


def family(module: nn.Module, signature: Signature, supported: Callable[[str], bool], *settings: Any) -> Path | None:
    """The folder for the captures that one module can have for one kind of call; None if there is none to be had.

    Args:
        module: In the mode of the call.
        signature: The call.
        supported: Whether an operator has a lowering.
        settings: What else the capture depends on.
    """
    root = folder()
    if root is None:
        return None
    try:
        leaves = [
            leaf.value if isinstance(leaf, Static) else (leaf.dtype, len(leaf.shape)) for leaf in signature.leaves
        ]
        kinds = [isinstance(leaf, Static) for leaf in signature.leaves]
        call = [repr(signature.tree), leaves, kinds, signature.train]
        registered = [*module.parameters(), *module.buffers()]
        name = digest(surroundings(supported), call, list(settings), module, registered=registered)
    except (Unknown, RecursionError) as reason:
        _LOG.debug("captures of %s are not kept: %s", type(module).__name__, reason)
        return None
    return root / name[:2] / name


def read(place: Path) -> Iterator[tuple[Program, dict[str, torch.Tensor]]]:
    """The Programs in a folder, with the tensors that they close over; entries that are not whole are passed over."""
    try:
        files = sorted(place.glob("*.json"))
    except OSError:
        return
    for file in files:
        try:
            yield _decoded(file.read_bytes())
        except (OSError, ValueError, KeyError, TypeError, ProgramError, AssertionError) as error:
            _LOG.debug("%s is ignored: %s", file, error)


def write(place: Path, signature: Signature, program: Program, constants: Tensors) -> None:
    """Keeps a Program; where that fails, it is not kept."""
    if sum(tensor.nbytes for tensor in constants.values()) > _LARGEST:
        return
    name = hashlib.blake2b(repr(signature.shapes).encode(), digest_size=12).hexdigest()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place, suffix=".part", delete=False) as file:
            file.write(_encoded(program, constants))
        os.replace(file.name, place / f"{name}.json")
    except (OSError, ValueError) as error:
        _LOG.debug("%s is not kept: %s", place, error)


def _encoded(program: Program, constants: Tensors) -> bytes:
    body = json.dumps(
        {"program": dumps(program), "constants": {name: _array(t) for name, t in constants.items()}}
    ).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _decoded(data: bytes) -> tuple[Program, dict[str, torch.Tensor]]:
    checksum, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise ValueError("its checksum does not match")
    held = json.loads(body)
    return verify(loads(held["program"])), {name: _tensor(*found) for name, found in held["constants"].items()}


def _array(tensor: torch.Tensor) -> list[Any]:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), base64.b64encode(data).decode()]


def _tensor(dtype: str, shape: list[int], data: str) -> torch.Tensor:
    flat = (
        torch.frombuffer(bytearray(base64.b64decode(data)), dtype=torch.uint8)
        if data
        else torch.empty(0, dtype=torch.uint8)
    )
    return flat.view(getattr(torch, dtype)).reshape(shape).clone()
