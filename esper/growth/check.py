"""Whether a blueprint keeps what every blueprint promises, tried on a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import SeedError
from esper.growth.cost import Cost, cost
from esper.growth.verbs import germinate, set_alpha, transition
from esper.jax_backend.interchange import to_array
from esper.jax_backend.kernels import kernel_output
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState

Kernel = dict[str, jax.Array]

_RATE = 0.1
_NOT_ZERO = "is not zero at birth: zero the output weights of its last layer"


def check_blueprint(
    model: MorphableModel,
    *inputs: Any,
    layer: str,
    blueprint: str,
    key: jax.Array,
    options: Mapping[str, Any] | None = None,
    blend: str = "add",
) -> Cost:
    """Tries a blueprint: shape and dtype, exact identity at birth, a gradient within two steps, all of it finite.

    Args:
        model: A model with a dormant seed 0 in the layer; it is left as it is.
        inputs: What the model takes.
        layer: Name of a KasminaLayer that the blueprint is for.
        blueprint: Its name.
        key: What the kernel's parameters are drawn from, and what the forward draws from.
        options: The recipe's options.
        blend: How it joins; the kernel must leave the layer's output as it is at alpha 1, but for "lerp".

    Returns:
        What it costs.

    Raises:
        SeedError: It breaks a promise; the message says which.

    Example:
        >>> import esper, jax, torch
        >>> from esper.growth.check import check_blueprint
        >>> host = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        >>> check_blueprint(
        ...     esper.wrap(host), jax.numpy.ones((3, 4)), layer="0", blueprint="low_rank", key=jax.random.key(0)
        ... ).parameters
        32
    """
    given = jax.tree.map(lambda leaf: to_array(model.structure.source, leaf, "an input"), inputs)
    jax.eval_shape(partial(model.__call__, key=key), *given)  # a capture, so that the layer's shapes are known
    grown, _ = germinate(model, None, layer=layer, blueprint=blueprint, key=key, options=options, blend=blend)
    on = set_alpha(transition(grown, layer=layer, to=SeedLifecycleState.GRAFTING), layer=layer, alpha=1.0)
    born = "" if blend == "lerp" or _is_zero(on, layer, key) else _NOT_ZERO
    problem = _problem(*_two_steps(on, given, layer, key)) or born
    if problem:
        raise SeedError(f"blueprint {blueprint!r} at layer {layer!r} {problem}")
    return cost(model, layer=layer, blueprint=blueprint, options=options, blend=blend)


@dataclass(frozen=True)
class _Step:
    """One step: the loss, and its gradient in the kernel's parameters."""

    loss: np.ndarray
    gradient: dict[str, np.ndarray]


def _is_zero(model: MorphableModel, layer: str, key: jax.Array) -> bool:
    """Whether the kernel by itself gives zeros, to the last bit, which compiling the whole model might hide."""
    kernel = next(kernel for kernel in model.structure.kernels if (kernel.layer, kernel.seed) == (layer, 0))
    example = jax.ShapeDtypeStruct(*kernel.site.fed(kernel.placement))
    arrays = model.params["kernels"][layer][0]
    return not np.any(kernel_output(kernel.source, arrays, _target(example), train=False, key=key))


def _two_steps(on: MorphableModel, given: tuple[Any, ...], layer: str, key: jax.Array) -> tuple[_Step, _Step]:
    """Two steps of gradient descent for the kernel, at alpha 1."""

    @jax.jit
    def step(kernel: Kernel) -> Any:
        def loss(kernel: Kernel) -> jax.Array:
            whole = on.replace(params={**on.params, "kernels": {**on.params["kernels"], layer: {0: kernel}}})
            out = whole(*given, key=key)
            floats = [leaf for leaf in jax.tree.leaves(out) if jnp.issubdtype(leaf.dtype, jnp.floating)]
            return sum((jnp.mean((leaf - _target(leaf)) ** 2) for leaf in floats), jnp.float32(0))

        value, gradient = jax.value_and_grad(loss)(kernel)
        return value, gradient, {name: array - _RATE * gradient[name] for name, array in kernel.items()}

    steps, kernel = [], on.params["kernels"][layer][0]
    for _ in range(2):
        *found, kernel = step(kernel)
        steps.append(_Step(*jax.device_get(found)))
    return steps[0], steps[1]


def _problem(first: _Step, second: _Step) -> str:
    """Which promise the steps break; empty if none."""
    for step in (first, second):
        broken = [name for name, gradient in step.gradient.items() if not np.all(np.isfinite(gradient))]
        if broken or not np.isfinite(step.loss):
            return f"is not finite: {', '.join(broken) or 'what it gives'}"
    dead = [name for name in first.gradient if not np.any(first.gradient[name]) and not np.any(second.gradient[name])]
    advice = "Zero the last layer or gate the kernel, not both, and give no zero input to a ReLU"
    return f"has parameters without a gradient in two steps: {', '.join(dead)}. {advice}" if dead else ""


def _target(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """Something that no layer gives, so that there is something to learn; zeros for indices."""
    return jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape).astype(leaf.dtype)
