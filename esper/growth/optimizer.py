"""Optimiser states that follow the model's structure: survivors keep everything, newcomers start afresh.

A plain optax state is migrated in place (`migrate`), exactly so if the transformation is known too. It has one
step count for all parameters, so a newcomer's first Adam step is up to 3.2 times the learning rate; `per_kernel`
gives every kernel a state, a step count and a warm-up of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from esper.errors import OptimizerStateError
from esper.growth.host_clock import unpack
from esper.growth.kernel_states import GrowthOptState, KernelOptState, Optimizer, per_kernel, strong
from esper.jax_backend.devices import beside
from esper.jax_backend.interchange import is_traced

__all__ = ["GrowthOptState", "KernelOptState", "Optimizer", "migrate", "per_kernel", "restarted"]

State = TypeVar("State")
Path = tuple[Any, ...]

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


class _Change(NamedTuple):
    """From which parameters to which, and the kernels (layer, seed) that are new or gone."""

    before: dict[str, Any]
    after: dict[str, Any]
    new: set[tuple[str, int]]
    gone: set[tuple[str, int]]


def migrate(
    opt_state: State,
    before: dict[str, Any],
    after: dict[str, Any],
    *,
    tx: Optimizer | None = None,
) -> State:
    """An optimiser state for `before` as one for `after`; None stays None.

    Args:
        opt_state: A state of `per_kernel`, or a plain optax state.
        before: `model.params` that it is for.
        after: `model.params` that it shall be for.
        tx: What made the state. With it any transformation migrates: new kernels get what `tx.init` gives them.
            Without it, and needless for `per_kernel`, only states that are known to start at zero do.

    Raises:
        OptimizerStateError: What new parameters start with cannot be known.
    """
    if opt_state is None:
        return opt_state
    was, now = _places(before), _places(after)
    change = _Change(before, after, now - was, was - now)
    if tx is None or isinstance(opt_state, GrowthOptState):
        return beside(_walk(opt_state, change, parent=None), after)
    return beside(_merged(opt_state, tx.init(after), change), after)


def restarted(
    opt_state: State, before: dict[str, Any], after: dict[str, Any], at: tuple[str, int], *, tx: Optimizer | None = None
) -> State:
    """An optimiser state after a kernel has entered its seed, where it starts afresh whatever the seed held.

    Args:
        opt_state: As for `migrate`.
        before: `model.params` that it is for.
        after: `model.params` with the kernel.
        at: The kernel's layer and seed.
        tx: As for `migrate`.

    Raises:
        OptimizerStateError: As `migrate`.
    """
    layer, seed = at
    if seed in before["kernels"].get(layer, {}):
        held = {other: tree for other, tree in before["kernels"][layer].items() if other != seed}
        rest = {name: tree for name, tree in before["kernels"].items() if name != layer}
        emptied = {**before, "kernels": {**rest, layer: held} if held else rest}
        opt_state, before = migrate(opt_state, before, emptied, tx=tx), emptied
    return migrate(opt_state, before, after, tx=tx)


def _places(params: dict[str, Any]) -> set[tuple[str, int]]:
    return {(layer, seed) for layer, held in params["kernels"].items() for seed in held}


def _merged(opt_state: Any, fresh: Any, change: _Change) -> Any:
    """`fresh`, a state for the new parameters, with all that `opt_state` has of it."""
    old, new = _by_name(opt_state), _by_name(fresh)
    moved = change.new | change.gone
    strange = [name for name in old.keys() ^ new.keys() if not _names_one_of(name, moved)]
    strange += [name for name in old.keys() & new.keys() if jnp.shape(old[name]) != jnp.shape(new[name])]
    if strange:
        raise OptimizerStateError(
            f"{_spelt(min(strange, key=str))} of the optimiser state does not go by the parameters' names, or `tx` is "
            "not what made the state: give the `tx` of this state, build the optimiser with "
            "`esper.growth.optimizer.per_kernel(tx)`, or start again with `tx.init(model.params)`"
        )
    for now, then in zip(_accumulations(opt_state), _accumulations(fresh), strict=True):
        if any(_names_one_of(name, change.new) for name in _by_name(then.acc_grads)):
            _check_window(now)
    leaves = [old[name] if name in old else strong(leaf) for name, leaf in new.items()]
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def _by_name(state: Any) -> dict[Path, Any]:
    """A state's leaves by their place in it, in order."""
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    return {tuple(_step(key) for key in path): leaf for path, leaf in found}


def _step(key: Any) -> Any:
    return next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind))


def _names_one_of(name: Path, places: set[tuple[str, int]]) -> bool:
    """Whether a place in a state is that of a parameter of one of these kernels."""
    return any(step == "kernels" and name[i + 1 : i + 3] in places for i, step in enumerate(name))


def _spelt(name: Path) -> str:
    return ".".join(str(step) for step in name) or "the whole"


def _walk(node: Any, change: _Change, *, parent: Any) -> Any:
    """A state of unknown making, changed where it is known how."""
    if isinstance(node, GrowthOptState):
        return node.follow(change.after)
    if _is_by_name(node):
        if change.new:
            _check_start(node, change, parent)
        return {"host": node["host"], "kernels": _carry(node["kernels"], change.after["kernels"])}
    if (isinstance(node, optax.MaskedState) and change.new) or _is_nameless(node, change.before):
        raise _unknown(parent if jax.tree_util.all_leaves([node]) else node)
    children, structure = unpack(node)
    if len(children) == 1 and children[0] is node:
        return node
    return jax.tree.unflatten(structure, [_walk(child, change, parent=node) for child in children])


def _is_by_name(node: Any) -> bool:
    """Whether this is shaped as the parameters; of a partition by side, the states are under these names too."""
    return isinstance(node, dict) and node.keys() == {"host", "kernels"} and isinstance(node["kernels"], dict)


def _check_start(held: dict[str, Any], change: _Change, parent: Any) -> None:
    """Refuses values of parameters whose start for new ones is not known to be zero."""
    if not isinstance(parent, _ZERO_BORN) or jax.tree.structure(held) != jax.tree.structure(change.before):
        raise _unknown(parent)
    if isinstance(parent, optax.MultiStepsState):
        _check_window(parent)


def _is_nameless(node: Any, params: dict[str, Any]) -> bool:
    """Whether this is all parameters' values as one vector or one sequence, whose places shift with the kernels."""
    leaves = jax.tree.leaves(params)
    if jax.tree_util.all_leaves([node]):
        total = sum(leaf.size for leaf in leaves)
        return jnp.ndim(node) > 0 and total > 0 and jnp.size(node) % total == 0
    children = unpack(node)[0]
    flat = bool(leaves) and jax.tree_util.all_leaves(children)
    return flat and [jnp.shape(child) for child in children] == [leaf.shape for leaf in leaves]


def _unknown(state: Any) -> OptimizerStateError:
    name = "this optimiser state" if state is None else type(state).__name__
    return OptimizerStateError(
        f"{name} holds parameter-shaped values whose start for a new kernel cannot be known from the state alone; "
        "give what made it to `germinate` and `cull` as `tx=`, or build the optimiser with "
        "`esper.growth.optimizer.per_kernel(tx)`, which starts every kernel by `tx.init`"
    )


def _check_window(state: optax.MultiStepsState) -> None:
    """Refuses newcomers within an accumulation window: their average would count calls that they did not see."""
    call = state.mini_step
    if not is_traced(call) and jnp.any(call != 0):
        raise OptimizerStateError(
            f"MultiStepsState is at call {call} of an accumulation window, whose average a new kernel "
            "would have wrong; germinate where `mini_step` is 0, or build the optimiser with "
            "`esper.growth.optimizer.per_kernel(tx)`, where a new kernel waits for the next window"
        )


def _accumulations(state: Any) -> list[optax.MultiStepsState]:
    kinds = (optax.MultiStepsState, GrowthOptState)
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    return [node for node in nodes if isinstance(node, optax.MultiStepsState)]


def _carry(held: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    return {
        layer: {
            seed: held[layer][seed] if seed in held.get(layer, {}) else jax.tree.map(jnp.zeros_like, tree)
            for seed, tree in seeds.items()
        }
        for layer, seeds in wanted.items()
    }
