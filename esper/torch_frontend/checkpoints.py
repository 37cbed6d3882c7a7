"""Checkpoints of torch's, as `torch.nn.Module.load_state_dict` reads them."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from esper.errors import StateError
from esper.program import Growth
from esper.torch_frontend.grown import Branch


def load(module: nn.Module, given: Any, strict: bool) -> Any:
    """Writes a checkpoint into a module; torch's report of the keys that did not match.

    Args:
        module: The module, whose own hooks and versions see to old checkpoints.
        given: A mapping of keys to tensors, or the path of a file that holds one.
        strict: Whether keys that do not match are an error.

    Raises:
        StateError: They do not match, shapes differ, or there is no such mapping.
    """
    state = opened(given)
    _check_extra(module, state)
    try:
        report = module.load_state_dict(state, strict=strict)
    except RuntimeError as error:  # torch's own words name every key
        raise StateError(str(error)) from error
    return report


def opened(given: Any) -> Mapping[str, Any]:
    """The mapping that a checkpoint is.

    Raises:
        StateError: There is none; the message says what was found.
    """
    where = "the state"
    if isinstance(given, str | os.PathLike):
        where, given = f"{given}", _read(Path(given))
    if not isinstance(given, Mapping):
        raise StateError(f"{where} is a {type(given).__name__}, and a mapping of keys to tensors is expected")
    inner = [key for key, value in given.items() if isinstance(value, Mapping) and value]
    if inner and not any(isinstance(value, torch.Tensor) or _is_array(value) for value in given.values()):
        raise StateError(f"{where} holds mappings under {', '.join(map(repr, inner))}: give the one with the tensors")
    state: Any = OrderedDict((key, torch.as_tensor(v) if _is_array(v) else v) for key, v in given.items())
    state._metadata = getattr(given, "_metadata", None)  # versions, by which modules know old checkpoints
    return state


def _check_extra(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Checks that what modules have besides tensors is in the checkpoint what it is here.

    Raises:
        StateError: It is not; it went into the captures, which a checkpoint does not change.
    """
    own = module.state_dict()
    for key, value in state.items():
        if key.endswith("_extra_state") and key in own and not _equal(own[key], value):
            raise StateError(
                f"{key} is {value!r:.80} in the checkpoint, and {own[key]!r:.80} in the model, and Programs may depend "
                "on it: load the checkpoint into the module before you wrap it"
            )


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)
    return bool(one == other)


def growths_of(module: nn.Module, growths: Sequence[Growth]) -> list[dict[str, torch.Tensor]]:
    """The parameters of kernels that were put into a module."""
    found: list[dict[str, torch.Tensor]] = []
    for growth in growths:
        layer: Any = module.get_submodule(growth.layer)
        branch = next(each for each in layer.grown if isinstance(each, Branch) and each.seed == growth.seed)
        found.append({name: parameter.detach() for name, parameter in branch.kernel.named_parameters()})
    return found


def _read(path: Path) -> Any:
    if not path.is_file():
        raise StateError(f"{path}: there is no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise StateError(f"{path} cannot be read as a checkpoint: {error}") from error


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, torch.Tensor)
