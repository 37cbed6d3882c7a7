"""Which parts of a kernel's optimiser state are its own, and which are the run's, hence the host's.

The rule: a state that holds values of single parameters (Adam's moments) is about those parameters, so all
of it is the kernel's own, its step count included. A state that holds none (a schedule's step, injected
hyperparameters, a plateau's scale) is about the run, and is the host's at every step. The exceptions are the
tables below and random keys, which are nobody else's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

# Holds no parameter's values, but counts bad gradients of the part that it was given.
_OWN = (optax.ApplyIfFiniteState,)
# Holds parameters' values, and beside them a clock of the run: a window's length may be scheduled by it.
_RUNS_ON: dict[type, str] = {optax.MultiStepsState: "gradient_step"}
# Several calls make one optimiser step, and this counts the calls since the last one.
_WINDOWS: dict[type, str] = {optax.MultiStepsState: "mini_step", optax.contrib.SAMState: "steps_since_sync"}


def on_host_clock(tx: optax.GradientTransformation, params: dict[str, Any], own: Any, host: Any) -> Any:
    """A kernel's state with what is about the run taken from the host's state.

    Args:
        tx: What both are states of.
        params: The kernel's parameters.
        own: Its state.
        host: The host's state, for the host's parameters.
    """
    # What a state holds of parameters is what becomes more when there are more of them.
    more = {**params, **{f"~.{name}": leaf for name, leaf in params.items()}}
    return _settle(own, host, jax.eval_shape(tx.init, more), of_run=False)


def windows(state: Any) -> list[jax.Array]:
    """For each accumulation in a state, the calls since its window began; 0 is the start of one."""
    kinds = tuple(_WINDOWS)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    return [getattr(node, _WINDOWS[type(node)]) for node in nodes if isinstance(node, kinds)]


def is_key(leaf: Any) -> bool:
    """Whether an array is one random key, typed or raw."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or (leaf.dtype == jnp.uint32 and leaf.shape == (2,))


def unpack(node: Any) -> tuple[list[Any], Any]:
    """A pytree node's children and its own structure; a leaf is its only child."""
    return jax.tree.flatten(node, is_leaf=lambda child: child is not node)


def _settle(own: Any, host: Any, grown: Any, *, of_run: bool) -> Any:
    mine, shape = unpack(own)
    theirs, host_shape = unpack(host)
    others, grown_shape = unpack(grown)
    if not shape == host_shape == grown_shape:
        return own  # a collection over the parameters
    if _is_leaf(own, mine):
        return _shared(own, host) if of_run else own
    if _is_state(own):
        of_run = not isinstance(own, _OWN) and not _holds_parameters(own, grown)
    parts = [_settle(*three, of_run=of_run) for three in zip(mine, theirs, others, strict=True)]
    settled = jax.tree.unflatten(shape, parts)
    clock = _RUNS_ON.get(type(own))
    return settled._replace(**{clock: _shared(getattr(own, clock), getattr(host, clock))}) if clock else settled


def _holds_parameters(node: Any, grown: Any) -> bool:
    """Whether a state holds values of single parameters; the states inside it answer for themselves."""
    children, shape = unpack(node)
    others, grown_shape = unpack(grown)
    if shape != grown_shape:
        return True
    if _is_leaf(node, children):
        return jnp.shape(node) != jnp.shape(grown)
    pairs = zip(children, others, strict=True)
    return any(not _is_state(child) and _holds_parameters(child, other) for child, other in pairs)


def _is_leaf(node: Any, children: list[Any]) -> bool:
    return len(children) == 1 and children[0] is node


def _is_state(node: Any) -> bool:
    """Whether a node is a transformation's state rather than a plain container or a value."""
    if isinstance(node, Mapping | list) or (isinstance(node, tuple) and not hasattr(node, "_fields")):
        return False
    return not _is_leaf(node, unpack(node)[0])


def _shared(own: Any, host: Any) -> Any:
    # A copy: a step that consumes its state cannot be given one buffer twice.
    own = jnp.asarray(own)
    return own if is_key(own) or own.shape != jnp.shape(host) else jnp.array(host, own.dtype, copy=True)
