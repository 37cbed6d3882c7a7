"""Twins in torch of kernels that are written in another framework."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from esper.errors import SeedError
from esper.program import Twin
from esper.torch_frontend.blueprints.registry import Gated

_OF_KERNEL, _OF_GATE = "kernel.", "gate."


def twin_module(twin: Twin, blueprint: str, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The kernel as a module of torch's, with these values.

    Raises:
        SeedError: The recipe returns no module, or one with buffers, or one that has other values.
    """
    held = {name: tensor.clone() for name, tensor in tensors.items()}
    gate = {name.removeprefix(_OF_GATE): held.pop(name) for name in tensors if twin.gated and name.startswith(_OF_GATE)}
    own = {name.removeprefix(_OF_KERNEL) if twin.gated else name: tensor for name, tensor in held.items()}
    where = f"the twin of blueprint {blueprint!r}"
    try:
        kernel = twin.recipe(twin.site, own, **dict(twin.options))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SeedError(f"{where} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(kernel, nn.Module):
        raise SeedError(f"{where} is a {type(kernel).__name__}; its `torch=` returns an nn.Module")
    if any(True for _ in kernel.buffers()):
        raise SeedError(f"{where} keeps buffers, which kernels cannot")
    kernel = kernel.to(next((tensor.dtype for tensor in own.values() if tensor.is_floating_point()), None))
    if not gate:
        return kernel
    site = twin.site
    gated = Gated(kernel, site.features_out if twin.placement == "sequential" else site.features_in, site)
    gated.gate.load_state_dict(gate)
    return gated.to(gate["weight"].dtype)


def twin_output(twin: Twin, blueprint: str, arrays: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """What the twin gives for these values, in evaluation mode."""
    module = twin_module(twin, blueprint, {name: torch.from_numpy(array) for name, array in arrays.items()})
    with torch.no_grad():
        try:
            made = module.eval()(torch.from_numpy(x))
        except Exception as error:  # it is the user's code
            raise SeedError(f"the twin of blueprint {blueprint!r} fails on {list(x.shape)}: {error}") from error
    if not isinstance(made, torch.Tensor):
        raise SeedError(f"the twin of blueprint {blueprint!r} returns a {type(made).__name__}, not a tensor")
    return made.numpy()
