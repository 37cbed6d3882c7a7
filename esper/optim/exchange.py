"""A run's optimiser on its way between PyTorch and optax: options, groups, moments and steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from esper.errors import OptimizerStateError
from esper.growth.kernel_states import GrowthOptState
from esper.jax_backend.devices import whole
from esper.jax_backend.interchange import wide
from esper.optim.mapping import FIELDS, rule

if TYPE_CHECKING:
    from esper.torch_frontend.hosted import Module
    from esper.torch_frontend.optimizers import Group, Optimizer
    from esper.torch_frontend.probe import Place

RESTING = "resting"
"""The label of parameters that the optimiser does not move."""


def from_torch(optimizer: Optimizer, module: Module | None = None) -> tuple[optax.GradientTransformationExtraArgs, Any]:
    """A PyTorch optimiser as an optax transformation and its state: a run that is half done goes on as it would have.

    Groups become parts of `optax.partition`, and parameters that have made different numbers of steps parts of their
    own. Rates are those of the moment: a scheduler of torch's is not seen. Parameters that no group has, and those that
    have never had a gradient while others have, rest, as they do in torch; a warning names the latter.

    Args:
        optimizer: A `torch.optim.SGD`, `Adam`, `AdamW`, `RMSprop` or `Adagrad`, before its first step or after any.
        module: The module whose parameters it optimises, before it is wrapped; not needed for an optimiser that was
            made of `named_parameters()`.

    Returns:
        `tx` and `opt_state`, for `esper.wrap(module).params`.

    Raises:
        OptimizerStateError: Another kind of optimiser, an option that is not mapped, or parameters without names.

    Example:
        >>> import esper, torch
        >>> net = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
        >>> model = esper.wrap(net)
        >>> tx, opt_state = esper.optim.from_torch(optimizer, net)
        >>> updates, opt_state = tx.update(model.params, opt_state, model.params)
    """
    from esper.torch_frontend.optimizers import parameters, read

    groups = read(optimizer, module, wide())
    labels = _labels(groups)
    host = {name: _zeros(tensor) for name, tensor in parameters(optimizer, module).items()}
    resting = [name for name, label in labels.items() if label == RESTING]
    if resting:
        warnings.warn(f"parameters that have had no gradient yet rest: {', '.join(resting)}", stacklevel=2)
    parts = {labels[name]: group for group in groups for name in group.members if labels[name] != RESTING}
    tx = _joined({name: labels.get(name, RESTING) for name in host}, parts)
    return tx, _filled(tx.init({"host": host, "kernels": {}}), parts, labels)


def into_torch(opt_state: Any, optimizer: Optimizer, module: Module) -> None:
    """Writes the moments and steps of an optax state into a PyTorch optimiser, whose options stay as they are.

    Args:
        opt_state: A state of a transformation that `from_torch` gave, or of an optax optimiser that keeps the same
            moments (`optax.adam`, `adamw`, `sgd` with momentum, `rmsprop` with momentum or without).
        optimizer: Of the module's parameters, of the same kind.
        module: What `esper.unwrap` made of the model, not folded; kernels that take part in it have their moments too.

    Raises:
        OptimizerStateError: The state has other moments than the optimiser, or is one of `per_kernel`.
    """
    from esper.torch_frontend.optimizers import KINDS, Moments, write

    if isinstance(opt_state, GrowthOptState):
        raise OptimizerStateError("a state of per_kernel has a step count for every kernel, and its own warm-ups")
    kind = KINDS.get(type(optimizer))
    if kind is None:
        raise OptimizerStateError(f"a {type(optimizer).__name__} is not mapped from optax")
    arrays: dict[Place, dict[str, np.ndarray]] = {}
    steps: dict[str, int] = {}
    label_of: dict[Place, str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        field, label, place = _read_path(path)
        if field == "count":
            steps.setdefault(label, int(leaf))
        elif place is not None and field in FIELDS[kind]:
            arrays.setdefault(place, {})[FIELDS[kind][field]] = np.asarray(whole(leaf))
            label_of[place] = label
    # RMSprop has no use for its count, and optax counts none.
    moments = {place: Moments(steps.get(label_of[place], 1), held) for place, held in arrays.items()}
    write(optimizer, module, moments, set(FIELDS[kind].values()))


def _labels(groups: Sequence[Group]) -> dict[str, str]:
    """By parameter, the part of the transformation that it belongs to: its group's, and its steps'."""
    begun = any(moments is not None for group in groups for moments in group.members.values())
    labels: dict[str, str] = {}
    for number, group in enumerate(groups):
        for name, moments in group.members.items():
            rests = moments is None and begun and (group.kind != "sgd" or bool(group.options["momentum"]))
            labels[name] = RESTING if rests else f"group {number}, step {moments.step if moments else 0}"
    return labels


def _joined(labels: Mapping[str, str], parts: Mapping[str, Group]) -> optax.GradientTransformationExtraArgs:
    """One rule for all, or each part by its own."""
    rules = {label: rule(group.kind, group.options) for label, group in parts.items()}
    if len(rules) == 1 and RESTING not in labels.values():
        return optax.with_extra_args_support(*rules.values())
    return optax.partition({**rules, RESTING: optax.set_to_zero()}, partial(_labelled, labels))


def _labelled(labels: Mapping[str, str], params: Any) -> Any:
    """A label for each parameter; a kernel has that of the layer beside which it grew."""
    moving = next((label for label in labels.values() if label != RESTING), RESTING)

    def label_of(layer: str) -> str:
        own = (label for name, label in labels.items() if name.startswith(f"{layer}." if layer else ""))
        return next((label for label in own if label != RESTING), moving)

    def alike(label: str, held: Any) -> Any:
        return jax.tree.map(lambda _: label, held)

    return {
        "host": {name: labels.get(name, RESTING) for name in params["host"]},
        "kernels": {layer: alike(label_of(layer), held) for layer, held in params["kernels"].items()},
    }


def _filled(state: Any, parts: Mapping[str, Group], labels: Mapping[str, str]) -> Any:
    """A fresh state with torch's moments and steps."""

    def value(path: Any, leaf: jax.Array) -> jax.Array:
        field, label, place = _read_path(path)
        label = label or next(iter(parts))
        if field == "count":
            held = (parts[label].members[name] for name, own in labels.items() if own == label)
            return jnp.asarray(max(moments.step if moments else 0 for moments in held), leaf.dtype)
        moments = parts[label].members[place[2]] if place else None
        found = moments.arrays.get(FIELDS[parts[label].kind].get(field, "")) if moments else None
        return leaf if found is None else jnp.asarray(found, leaf.dtype)

    return jax.tree_util.tree_map_with_path(value, state)


def _read_path(path: Sequence[Any]) -> tuple[str, str, Place | None]:
    """Of a leaf of an optimiser state: its field, the label of its part, and the parameter that it is of."""
    fields = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    field = fields[-1] if fields else ""
    label = keys[0] if "inner_states" in fields else ""
    match keys[1:] if label else keys:
        case ["host", name]:
            return field, label, ("", None, name)
        case ["kernels", layer, seed, name]:
            return field, label, (layer, seed, name)
    return field, label, None


def _zeros(tensor: Any) -> jax.Array:
    from esper.torch_frontend.arrays import exportable

    held = exportable(tensor, "a parameter", wide())
    return jnp.zeros(held.shape, held.dtype)
