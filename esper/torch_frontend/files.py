"""A trained module as files that torch and safetensors read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

NAMES = {"tensors": "model.safetensors", "state_dict": "state_dict.pt", "module": "trained.pt"}
"""Names of the files: of safetensors, of a `state_dict` for `weights_only=True`, and of a pickle."""


def contents(module: nn.Module, metadata: Mapping[str, str]) -> dict[str, Callable[[], bytes]]:
    """What makes the bytes of each of a module's files, by what it is, as in `NAMES`.

    They are made whole before anything is written: what libraries raise on a full disk names neither it nor the file.

    Args:
        module: What the files are to hold; its `state_dict` keys are the tensors' names.
        metadata: Text to put beside the tensors in the safetensors file.
    """
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    return {
        "tensors": lambda: save(tensors, {"format": "pt", **metadata}),
        "state_dict": lambda: _saved(tensors),
        "module": lambda: _saved(module),
    }


def _saved(held: Any) -> bytes:
    file = BytesIO()
    torch.save(held, file)
    return file.getvalue()
