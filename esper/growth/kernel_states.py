"""`per_kernel`: the host's optimiser state, and one of its own for every kernel.

How a state follows a changed model is in `optimizer`; what a kernel takes from the host is in `host_clock`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import optax
from flax import struct

from esper.errors import OptimizerStateError
from esper.growth.host_clock import is_key, on_host_clock, windows
from esper.jax_backend.devices import beside

Asleep = Mapping[str, Mapping[int, jax.Array]]
"""Whether each kernel sleeps: {layer: {seed: bool}}."""
Optimizer = optax.GradientTransformation | optax.MultiSteps


class KernelOptState(struct.PyTreeNode):
    """One kernel's optimiser state, and how many optimiser steps it has taken."""

    inner: Any
    steps: jax.Array


class GrowthOptState(struct.PyTreeNode):
    """The host's optimiser state, and one for each kernel: {layer: {seed: KernelOptState}}."""

    host: Any
    kernels: dict[str, dict[int, KernelOptState]]
    tx: optax.GradientTransformationExtraArgs = struct.field(pytree_node=False)

    def follow(self, params: dict[str, Any]) -> GrowthOptState:
        """The state for changed parameters: kernels that stay keep theirs, new ones start, others go."""
        kernels = {
            layer: {
                seed: self.kernels.get(layer, {}).get(seed) or _newborn(self.tx, tree, self.host, f"{layer}/{seed}")
                for seed, tree in held.items()
            }
            for layer, held in params["kernels"].items()
        }
        return self.replace(kernels=kernels)


def per_kernel(tx: Optimizer, *, warmup_steps: int = 20) -> optax.GradientTransformation:
    """`tx` for the host, and a `tx` of its own, with a linear warm-up, for every kernel.

    A kernel starts as `tx.init` starts it. What is about the run and not about parameters is the host's at
    every step: schedules, injected hyperparameters (set them in `opt_state.host`), `reduce_on_plateau`.

    The host trains bit for bit as it would without kernels. So what spans parameters spans one part, the host
    or a kernel: `clip_by_global_norm` clips the host by the host's norm and each kernel by its own, a trust
    ratio or `apply_if_finite` judges each part alone. Under `MultiSteps` a kernel takes its first average over
    the host's next whole window and is not updated before that.

    Args:
        tx: An optax transformation. Its masks and labels are functions of parameters, since they are asked about
            each part; line searches, which need a function of all parameters, are refused.
        warmup_steps: Optimiser steps until a new kernel's updates reach full size, 0 for none. 0 is also right
            for those whose state says where the parameters will be (`schedule_free`, SAM).

    Returns:
        A transformation for `model.params`, whose state `germinate` and `cull` migrate. Its `update` takes one more
        argument, `asleep`, from `esper.growth.reserve.asleep(model)`: kernels that sleep are skipped, their parameters
        and states bit-equal.
    """
    if isinstance(tx, optax.MultiSteps):  # takes extra arguments; its own `gradient_transformation()` would not
        inner = optax.GradientTransformationExtraArgs(tx.init, tx.update)  # pyright: ignore[reportArgumentType]
    else:
        inner = optax.with_extra_args_support(tx)

    def init(params: dict[str, Any]) -> GrowthOptState:
        return beside(GrowthOptState(strong(inner.init(params["host"])), {}, inner).follow(params), params)

    def kernel_step(
        grads: Any, own: KernelOptState, tree: Any, *, host: Any, extra: dict[str, Any]
    ) -> tuple[Any, KernelOptState]:
        clocked = own.replace(inner=on_host_clock(inner, tree, own.inner, host))
        raw, after = inner.update(grads, clocked.inner, tree, **extra)
        scale = jnp.minimum(1.0, (own.steps + 1) / max(1, warmup_steps))
        scaled = jax.tree.map(lambda u: (u * scale).astype(u.dtype), raw)
        return _awaited(clocked, host, scaled, KernelOptState(strong(after), own.steps + _closed(after)))

    def update(
        updates: dict[str, Any],
        state: GrowthOptState,
        params: dict[str, Any] | None = None,
        *,
        asleep: Asleep | None = None,
        **extra: Any,
    ) -> tuple[dict[str, Any], GrowthOptState]:
        if params is None:
            raise ValueError("per_kernel needs the parameters: tx.update(grads, opt_state, model.params)")
        _check(updates, state, extra)
        host_updates, host = inner.update(updates["host"], state.host, params["host"], **_part(extra, "host"))
        step = partial(_each, partial(kernel_step, host=state.host), asleep=asleep or {}, extra=extra)
        if asleep and jax.tree.structure(asleep) == jax.tree.structure(state.kernels, is_leaf=_is_one):
            # One choice instead of many while all sleep.
            step = partial(_unless, jnp.stack(jax.tree.leaves(asleep)).all(), step)
        kernel_updates, kernels = step(updates["kernels"], state.kernels, params["kernels"])
        return {"host": host_updates, "kernels": kernel_updates}, state.replace(host=strong(host), kernels=kernels)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _is_one(node: Any) -> bool:
    return isinstance(node, KernelOptState)


def strong(state: Any) -> Any:
    """A state without weak types: one that a step makes strong would mean a second compile."""

    def typed(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        return jax.lax.convert_element_type(leaf, leaf.dtype) if getattr(leaf, "weak_type", False) else leaf

    return jax.tree.map(typed, state)


def _newborn(tx: optax.GradientTransformation, tree: Any, host: Any, place: str) -> KernelOptState:
    try:
        fresh = strong(tx.init(tree))
        inner = on_host_clock(tx, tree, fresh, host)
    except (KeyError, TypeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise OptimizerStateError(
            f"the optimiser cannot start the kernel at {place!r}, whose parameters are {', '.join(tree)}: {reason}. "
            "per_kernel asks it about each part alone: give masks and labels as functions of the parameters, "
            "such as mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)"
        ) from error
    # Kernels of one shape would otherwise draw the same noise, at every step.
    apart = crc32(place.encode())
    inner = jax.tree.map(lambda leaf: jax.random.fold_in(leaf, apart) if is_key(leaf) else leaf, inner)
    return KernelOptState(inner, jnp.zeros((), jnp.int32))


def _each(
    kernel_step: Callable[..., tuple[Any, KernelOptState]],
    grads: Any,
    states: Any,
    params: Any,
    *,
    asleep: Asleep,
    extra: dict[str, Any],
) -> tuple[Any, Any]:
    """A step of every kernel that is awake."""
    updates: dict[str, Any] = {}
    after: dict[str, dict[int, KernelOptState]] = {}
    for layer, held in grads.items():
        updates[layer], after[layer] = {}, {}
        for seed, own in held.items():
            step = partial(kernel_step, extra=_part(extra, "kernels", layer, seed))
            if seed in asleep.get(layer, {}):
                step = partial(_unless, asleep[layer][seed], step)
            updates[layer][seed], after[layer][seed] = step(own, states[layer][seed], params[layer][seed])
    return updates, after


def _unless(
    sleeps: jax.Array, step: Callable[..., tuple[Any, Any]], grads: Any, own: Any, tree: Any
) -> tuple[Any, Any]:
    """A step of one kernel or of many, or none while they sleep."""
    updates = jax.eval_shape(step, grads, own, tree)[0]

    def rest(grads: Any, own: Any, tree: Any) -> tuple[Any, Any]:
        # To add -0 changes no number; 0 would make a 0 of -0.
        return jax.tree.map(lambda leaf: -jnp.zeros(leaf.shape, leaf.dtype), updates), own

    return jax.lax.cond(sleeps, rest, step, grads, own, tree)


def _closed(state: Any) -> jax.Array | int:
    """1 if this call made an optimiser step, 0 within an accumulation window."""
    held = windows(state)
    return jnp.all(jnp.stack(held) == 0).astype(jnp.int32) if held else 1


def _awaited(before: KernelOptState, host: Any, updates: Any, after: KernelOptState) -> tuple[Any, KernelOptState]:
    """A step, or no step for a newborn while the host is within an accumulation window."""
    if not windows(host):
        return updates, after
    begun = (before.steps > 0) | jnp.any(jnp.stack(windows(before.inner)) != 0)
    steps = begun | jnp.all(jnp.stack(windows(host)) == 0)
    updates = jax.tree.map(lambda u: jnp.where(steps, u, jnp.zeros_like(u)), updates)
    return updates, jax.tree.map(lambda new, old: jnp.where(steps, new, old), after, before)


def _check(updates: dict[str, Any], state: GrowthOptState, extra: dict[str, Any]) -> None:
    places, held = (
        {(layer, seed) for layer, seeds in kernels.items() for seed in seeds}
        for kernels in (updates["kernels"], state.kernels)
    )
    if places != held:
        layer, seed = min(places ^ held)
        knows = "holds a kernel that the gradients lack" if (layer, seed) in held else "lacks a kernel"
        raise OptimizerStateError(
            f"the optimiser state {knows}, at layer {layer!r}, seed {seed}: give the state to `germinate` and `cull` "
            "and go on with the one they return, or start again with `tx.init(model.params)`"
        )
    functions = [name for name, value in extra.items() if callable(value)]
    if functions:
        raise OptimizerStateError(
            f"{functions[0]} is a function of all parameters, and per_kernel updates the host and each kernel alone; "
            "use the optimiser itself, and give it to `germinate` and `cull` as `tx=`"
        )


def _part(extra: dict[str, Any], *place: Any) -> dict[str, Any]:
    """Extra arguments for one part: of those shaped as the parameters, such as `grad`, its own."""

    def of(value: Any) -> Any:
        for step in place if isinstance(value, dict) and value.keys() == {"host", "kernels"} else ():
            value = value[step]
        return value

    return {name: of(value) for name, value in extra.items()}
