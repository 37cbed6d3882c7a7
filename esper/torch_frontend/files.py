"""A trained module as files that torch and safetensors read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


def save_module(module: nn.Module, place: Path, metadata: Mapping[str, str]) -> dict[str, Path]:
    """Writes a module's tensors and the module itself into the directory `place`.

    Args:
        module: What to write; its `state_dict` keys are the tensors' names.
        place: An existing directory.
        metadata: Text to put beside the tensors in the safetensors file.

    Returns:
        The files: "tensors" (safetensors), "state_dict" (`weights_only=True` reads it), "module" (a pickle).
    """
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    files = {
        "tensors": place / "model.safetensors",
        "state_dict": place / "state_dict.pt",
        "module": place / "trained.pt",
    }
    save_file(tensors, files["tensors"], {"format": "pt", **metadata})
    torch.save(tensors, files["state_dict"])
    torch.save(module, files["module"])
    return files
