"""Optimiser states that follow the model's structure: survivors keep everything, newcomers start afresh.

A plain optax state is migrated in place (`migrate`). It has one step count for all parameters, so a
newcomer's first Adam step is up to 3.2 times the learning rate; `per_kernel` gives every kernel a state,
a step count and a warm-up of its own, and works with any optax transformation.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from esper.errors import OptimizerStateError

State = TypeVar("State")

# States whose parameter-shaped members start at zero, whatever the parameters are.
_ZERO_BORN = (
    optax.ScaleByAdamState,
    optax.ScaleByAmsgradState,
    optax.ScaleByBeliefState,
    optax.ScaleByLionState,
    optax.TraceState,
    optax.EmaState,
    optax.MultiStepsState,
)


class KernelOptState(struct.PyTreeNode):
    """One kernel's optimiser state and its own step count."""

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
                seed: self.kernels.get(layer, {}).get(seed) or _newborn(self.tx, tree, self.host)
                for seed, tree in held.items()
            }
            for layer, held in params["kernels"].items()
        }
        return self.replace(kernels=kernels)


def per_kernel(tx: optax.GradientTransformation, *, warmup_steps: int = 20) -> optax.GradientTransformation:
    """`tx` for the host, and a `tx` of its own, with a linear warm-up, for every kernel.

    Args:
        tx: Any optax transformation; its schedules stay on the host's clock.
        warmup_steps: Steps until a new kernel's updates reach full size, 0 for none.

    Returns:
        A transformation for `model.params`, whose state `germinate` and `cull` migrate.
    """
    inner = optax.with_extra_args_support(tx)

    def init(params: dict[str, Any]) -> GrowthOptState:
        return GrowthOptState(inner.init(params["host"]), {}, inner).follow(params)

    def update(
        updates: dict[str, Any], state: GrowthOptState, params: dict[str, Any] | None = None, **extra: Any
    ) -> tuple[dict[str, Any], GrowthOptState]:
        if params is None:
            raise ValueError("per_kernel needs the parameters: tx.update(grads, opt_state, model.params)")
        host_updates, host = inner.update(updates["host"], state.host, params["host"], **extra)
        kernel_updates: dict[str, Any] = {}
        kernels: dict[str, dict[int, KernelOptState]] = {}
        for layer, held in updates["kernels"].items():
            kernel_updates[layer], kernels[layer] = {}, {}
            for seed, grads in held.items():
                own = state.kernels[layer][seed]
                raw, after = inner.update(grads, own.inner, params["kernels"][layer][seed], **extra)
                scale = jnp.minimum(1.0, (own.steps + 1) / max(1, warmup_steps))
                kernel_updates[layer][seed] = jax.tree.map(lambda u, s=scale: (u * s).astype(u.dtype), raw)
                kernels[layer][seed] = KernelOptState(after, own.steps + 1)
        return {"host": host_updates, "kernels": kernel_updates}, state.replace(host=host, kernels=kernels)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def migrate(opt_state: State, before: dict[str, Any], after: dict[str, Any]) -> State:
    """An optimiser state for `before` as one for `after`; None stays None.

    Raises:
        OptimizerStateError: The state holds something whose start for new parameters cannot be known.
    """
    added = {(layer, seed) for layer, held in after["kernels"].items() for seed in held}
    added -= {(layer, seed) for layer, held in before["kernels"].items() for seed in held}
    return _walk(opt_state, jax.tree.structure(before), after, parent=None, growing=bool(added))


def _walk(node: Any, shape: Any, after: dict[str, Any], *, parent: Any, growing: bool) -> Any:
    if isinstance(node, GrowthOptState):
        return node.follow(after)
    if isinstance(node, dict) and node.keys() == {"host", "kernels"}:
        if growing and (jax.tree.structure(node) != shape or not isinstance(parent, _ZERO_BORN)):
            raise OptimizerStateError(
                f"{type(parent).__name__ if parent is not None else 'this optimiser state'} holds parameter-shaped "
                "values whose start for a new kernel cannot be known; build the optimiser with "
                "`esper.growth.optimizer.per_kernel(tx)`, which starts every kernel by `tx.init`"
            )
        return {"host": node["host"], "kernels": _carry(node["kernels"], after["kernels"])}
    children, structure = jax.tree.flatten(node, is_leaf=lambda child: child is not node)
    if len(children) == 1 and children[0] is node:
        return node
    moved = [_walk(child, shape, after, parent=node, growing=growing) for child in children]
    return jax.tree.unflatten(structure, moved)


def _carry(held: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        layer: {
            seed: held[layer][seed] if seed in held.get(layer, {}) else jax.tree.map(jnp.zeros_like, tree)
            for seed, tree in seeds.items()
        }
        for layer, seeds in wanted.items()
    }


def _newborn(tx: optax.GradientTransformation, tree: Any, host: Any) -> KernelOptState:
    return KernelOptState(_on_host_clock(tx.init(tree), host), jnp.zeros((), jnp.int32))


def _on_host_clock(own: Any, host: Any) -> Any:
    """A new state whose schedules and injected hyperparameters are where the host's are."""
    if isinstance(own, optax.ScaleByScheduleState):
        return host
    if hasattr(own, "hyperparams") and hasattr(own, "inner_state"):
        return host._replace(inner_state=_on_host_clock(own.inner_state, host.inner_state))
    if isinstance(own, tuple) and not hasattr(own, "_fields"):
        return tuple(_on_host_clock(mine, theirs) for mine, theirs in zip(own, host, strict=True))
    return own
