"""A wrapped model as a module of `flax.linen`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen
from flax.core import FrozenDict

from esper.errors import ArgumentError, MissingKeyError, StateError
from esper.interop.trees import Tree, arrays_of, changed, check_model, copies_of, with_arrays
from esper.jax_backend.call import prepare
from esper.jax_backend.evaluate import needs_key
from esper.jax_backend.model import MorphableModel

_COLLECTIONS = {"host": "params", "kernels": "params", "buffers": "batch_stats"}
"""Where Flax keeps each kind of array; each is one variable of its kind's name, but for seeds."""

_SEEDS = "seeds"
"""The collection of the seeds' states, which are variables of their own."""


class _Held:
    """A model as one value that is what it is, as Flax asks of a module's attributes: equal only to itself."""

    def __init__(self, model: MorphableModel) -> None:
        self.model = model

    def __deepcopy__(self, memo: Any) -> _Held:
        return self

    def __repr__(self) -> str:
        return repr(self.model)


class LinenModel(linen.Module):
    """A wrapped model as a submodule: what `to_linen` makes.

    Attributes:
        held: The model whose values `init` gives.
    """

    held: _Held

    @linen.compact
    def __call__(self, *args: Any, train: bool = False, **kwargs: Any) -> Any:
        """The torch module's outputs.

        Args:
            args: As for the torch module's forward.
            train: As for the model: dropout draws, BatchNorm uses the batch. Buffers move if "batch_stats" is mutable,
                seeds age if "seeds" is.
            kwargs: As for the torch module's forward.

        Raises:
            StateError: The variables are not those of this model.
            MissingKeyError: The forward draws and there is no stream "dropout".
            ArgumentError: A forward in training writes into parameters (`nn.Embedding(max_norm=...)`), and "params" is
                not mutable.
        """
        present = with_arrays(self.held.model, self._variables())
        try:
            outputs, moved = present.apply(*args, train=train, key=self._key(args, kwargs, train), **kwargs)
        except MissingKeyError as error:
            raise MissingKeyError(f'{error}\nIn Flax: apply(..., rngs={{"dropout": key}})') from error
        if not self.is_initializing():
            self._keep(changed(present, moved), train)
        return outputs

    @linen.nowrap
    def from_variables(self, variables: Mapping[str, Any], *path: str) -> MorphableModel:
        """The model with the values of these variables, to grow or to unwrap.

        Args:
            variables: Those of the whole Flax model, all collections.
            path: Names of the submodules on the way to this one, such as "backbone".

        Raises:
            StateError: They are not those of this model.
        """
        model, found = self.held.model, {}
        for kind in _needed(model):
            where = (_SEEDS, *path) if kind == "seeds" else (_COLLECTIONS[kind], *path, kind)
            found[kind] = _at(variables, where)
            if found[kind] is None:
                raise StateError(
                    f"there are no variables {'/'.join(where)}: give all collections of the whole Flax model, and the "
                    "names on the way to this module"
                )
        return with_arrays(model, found)

    @linen.nowrap
    def into_variables(self, variables: Mapping[str, Any], *path: str) -> dict[str, Any]:
        """The variables with those of this module at its path replaced by the values of its model.

        Args:
            variables: Those of the whole Flax model.
            path: Names of the submodules on the way to this one.
        """
        given = _plain(variables)
        for collection, held in _variables_of(self.held.model).items():
            given = _put(given, (collection, *path), copies_of(held))
        return given

    def _variables(self) -> Tree:
        found: Tree = {}
        if not self.is_initializing():
            self._check_there()
        for kind, tree in _needed(self.held.model).items():
            if kind == "seeds":
                found[kind] = {
                    name: self.variable(_SEEDS, name, lambda a=array: copies_of(a)).value
                    for name, array in tree.items()
                }
            elif _COLLECTIONS[kind] == "params":
                if self.is_initializing():
                    held = self.param(kind, lambda key, tree=tree: copies_of(tree))
                else:
                    held = self.get_variable("params", kind)
                found[kind] = _plain(held)
            else:
                found[kind] = _plain(self.variable(_COLLECTIONS[kind], kind, lambda tree=tree: copies_of(tree)).value)
        return found

    def _check_there(self) -> None:
        """Raises StateError where variables are missing: linen would put those of the model in their places."""
        for kind, tree in _needed(self.held.model).items():
            named = [(_SEEDS, name) for name in tree] if kind == "seeds" else [(_COLLECTIONS[kind], kind)]
            lost = [f"{collection}/{name}" for collection, name in named if not self.has_variable(collection, name)]
            if lost:
                raise StateError(
                    f"there are no variables {', '.join(lost)}; `init` makes them, and `into_variables` puts those of "
                    "a model that has grown into variables of before"
                )

    def _key(self, args: Any, kwargs: Any, train: bool) -> jax.Array | None:
        structure = self.held.model.structure
        draws = (train and bool(structure.kernels)) or needs_key(prepare(structure.source, args, kwargs, train).program)
        has = self.has_rng("dropout") or self.has_rng("params")
        return self.make_rng("dropout") if draws and has else None

    def _keep(self, moved: Tree, train: bool) -> None:
        if "host" in moved and train and not self.is_mutable_collection("params"):
            raise ArgumentError(
                f"the forward writes into the parameters {sorted(moved['host'])}: in training let them be mutable, "
                'apply(..., mutable=["params", "batch_stats"])'
            )
        for kind, arrays in moved.items():
            collection = _COLLECTIONS.get(kind, _SEEDS)
            if not self.is_mutable_collection(collection):
                continue
            if kind == "seeds":
                for name, array in arrays.items():
                    self.put_variable(collection, name, array)
            else:
                self.put_variable(collection, kind, {**_plain(self.get_variable(collection, kind)), **arrays})


def to_linen(model: MorphableModel, *, name: str | None = None) -> LinenModel:
    """A wrapped model as a module of `flax.linen`, for use as any submodule.

    `init` gives the model's present values, whatever the key. Variables are of the usual collections: "params" has
    {"host": {torch name: array}} and, if something has grown, {"kernels": {layer: {seed: {name: array}}}};
    "batch_stats" has {"buffers": {torch name: array}}; "seeds" has the state of the seeds, if there are kernels.
    The model itself stays as it is: growth is for `from_variables` and a new module (see `LinenModel`).

    Args:
        model: The model.
        name: The submodule's name, as of any linen module.

    Raises:
        WrapError: `model` is no wrapped model.

    Example:
        >>> import esper, jax, torch
        >>> from esper.interop import to_linen
        >>> net = to_linen(esper.wrap(torch.nn.Linear(3, 2)))
        >>> variables = net.init(jax.random.key(0), jax.numpy.ones((5, 3)))
        >>> sorted(variables["params"]["host"])
        ['bias', 'weight']
        >>> net.apply(variables, jax.numpy.ones((5, 3))).shape
        (5, 2)
    """
    check_model(model)
    return LinenModel(_Held(model), name=name)


def _variables_of(model: MorphableModel) -> dict[str, Tree]:
    found: dict[str, Tree] = {"params": {}, "batch_stats": {}, _SEEDS: {}}
    for kind, tree in _needed(model).items():
        if kind == "seeds":
            found[_SEEDS] = tree
        else:
            found[_COLLECTIONS[kind]][kind] = tree
    return found


def _needed(model: MorphableModel) -> Tree:
    """The model's arrays; seeds that hold nothing need none."""
    grown = bool(model.structure.kernels)
    return {kind: tree for kind, tree in arrays_of(model).items() if tree and (grown or kind != "seeds")}


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return _plain(tree)


def _put(tree: Mapping[str, Any], path: tuple[str, ...], value: Tree) -> dict[str, Any]:
    """The tree with a value at a path; nothing there where the value is empty."""
    first, *rest = path
    made = dict(tree)
    made[first] = _put(tree.get(first, {}), tuple(rest), value) if rest else value
    if not made[first]:
        del made[first]
    return made


def _plain(tree: Any) -> Any:
    return tree.unfreeze() if isinstance(tree, FrozenDict) else tree
