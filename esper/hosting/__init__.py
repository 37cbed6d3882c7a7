"""Floor 5: what JAX runs as modules of torch: forwards on XLA, backwards by JAX, everything else torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from esper.errors import WrapError
from esper.hosting.functions import FunctionRunner, parts_of
from esper.hosting.models import ModelRunner, kind_of
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.state import host_arrays, live_growths


def torch_module(
    model: MorphableModel | Callable[..., Any], params: Any = None, *, trained: Callable[[str], bool] | None = None
) -> Any:
    """A wrapped model, or a function of JAX's, as a `torch.nn.Module`: its forward runs on XLA, its backward is JAX's.

    Parameters and buffers are torch's: any optimiser, scheduler, gradient clipping, training loop or trainer takes
    them, and `state_dict` and `load_state_dict` are torch's own. XLA and torch read the same memory. What is drawn
    follows `torch.manual_seed`. There are no second derivatives. `torch.compile` and `torch.export` do not see
    through the module.

    Of a model it is the unwrapped module, of the original class, with another forward: names, attributes, hooks and
    methods are there. Its submodules are not called by the forward, so hooks on them do not run, and to change them
    has no effect; where that can be told it is refused. Parameters that no gradient reaches have None. Kernels that
    take part in the forward train with the host; those still TRAINING rest. `module.esper_model()` is a model with the
    module's present values.

    A function takes its parameters first, then what the module is called with: JAX arrays for tensors. Where it has an
    argument `key` it is given one, where it has an argument `train` the module's mode. It must be pure.

    Args:
        model: The model, or the function. A model stays as it is; the module has arrays of its own.
        params: The function's parameters, a pytree of arrays. Of Flax, the variables of `linen`, or the state of
            `nnx.split`.
        trained: Which of a function's arrays are parameters, by their names in torch; the rest, and all that are no
            floats, are buffers. None: all; of variables of `flax.linen` the collection "params".

    Returns:
        The module, in the mode of the one that was wrapped.

    Raises:
        WrapError: The model lies on several devices, `model` is neither a model nor a function, or the wrapped module
            was a script.

    Example:
        >>> import esper, torch
        >>> module = esper.torch_module(esper.wrap(torch.nn.Linear(3, 2)))
        >>> module(torch.ones(5, 3)).sum().backward()
        >>> module.weight.grad.shape
        torch.Size([2, 3])
        >>> import jax.numpy as jnp
        >>> scaled = esper.torch_module(lambda params, x: params["scale"] * x, {"scale": jnp.ones(3)})
        >>> list(scaled.state_dict())
        ['scale']
    """
    from esper.torch_frontend.hosted import hosted
    from esper.torch_frontend.rebuild import put, rebuild

    if not isinstance(model, MorphableModel):
        if not callable(model):
            raise WrapError(f"torch_module takes a wrapped model or a function, not a {type(model).__name__}")
        return hosted(parts_of(params, trained), FunctionRunner(model, params))
    if model.structure.placement is not None:
        raise WrapError("torch has no arrays on several devices: take the model before esper.shard")
    source: Any = model.structure.source
    parts = rebuild(source, host_arrays(model))
    put(parts, live_growths(model))
    tensors = {**dict(parts.named_parameters()), **dict(parts.named_buffers())}
    return hosted(parts, ModelRunner(model, {name: kind_of(tensor) for name, tensor in tensors.items()}))


__all__ = ["torch_module"]
