"""A wrapped model as a module of `flax.nnx`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from esper.errors import ArgumentError, MissingKeyError, WrapError
from esper.interop.trees import Tree, arrays_of, changed, check_model, copies_of, with_arrays
from esper.jax_backend.call import prepare
from esper.jax_backend.evaluate import needs_key
from esper.jax_backend.model import MorphableModel


class Seeds(nnx.Variable):
    """A field of the seeds' states."""


_TYPES: dict[str, type[nnx.Variable]] = {
    "host": nnx.Param,
    "kernels": nnx.Param,
    "buffers": nnx.BatchStat,
    "seeds": Seeds,
}


class NnxModel(nnx.Module):
    """A wrapped model as a submodule: what `to_nnx` makes.

    Attributes:
        host: The torch module's parameters by their torch names, each an `nnx.Param`.
        kernels: What has grown, by layer, seed and name, likewise.
        buffers: The torch module's buffers and frozen parameters, each an `nnx.BatchStat`.
        seeds: The seeds' states, each field a variable of type `Seeds`.
        deterministic: False in training, as of any nnx module; `train()` and `eval()` set it.
        use_running_average: Likewise. A torch module has one mode, so both must agree.
        rngs: The stream that dropout draws from, if it was given.
    """

    def __init__(self, model: MorphableModel, *, rngs: nnx.Rngs | None = None) -> None:
        check_model(model)
        self.deterministic = False
        self.use_running_average = False
        self.rngs = nnx.data(None) if rngs is None else rngs["dropout"].fork()
        self.replace_model(model)

    def __call__(self, *args: Any, train: bool | None = None, rngs: nnx.Rngs | None = None, **kwargs: Any) -> Any:
        """The torch module's outputs; its buffers, and in training the ages of seeds, move in place.

        Args:
            args: As for the torch module's forward.
            train: Whether it trains; None: as `train()` or `eval()` has set it.
            rngs: What dropout draws from, its stream "dropout"; None: the stream that the module was made with.
            kwargs: As for the torch module's forward.

        Raises:
            ArgumentError: `deterministic` and `use_running_average` disagree.
            MissingKeyError: The forward draws and there are no `rngs`.
        """
        present, train = self.model, self._mode(train)
        try:
            outputs, moved = present.apply(*args, train=train, key=self._key(rngs, args, kwargs, train), **kwargs)
        except MissingKeyError as error:
            raise MissingKeyError(f"{error}\nIn Flax: to_nnx(model, rngs=nnx.Rngs(0)), or rngs= in the call") from error
        for kind, arrays in changed(present, moved).items():
            for name, array in arrays.items():
                vars(getattr(self, kind))[name].set_value(array)
        return outputs

    @property
    def model(self) -> MorphableModel:
        """The model with the present values, to grow, to look at or to unwrap."""
        return with_arrays(self._frame.empty, {kind: _values(getattr(self, kind)) for kind in _TYPES})

    def replace_model(self, model: MorphableModel) -> None:
        """Puts another model in the place of this one, such as one that has grown from it.

        Variables that both have stay the same objects, with new values. After a change of structure an optimiser needs
        a state for the new parameters.

        Raises:
            WrapError: `model` is no wrapped model.
        """
        check_model(model)
        for kind, tree in copies_of(arrays_of(model)).items():
            setattr(self, kind, _group(vars(self).get(kind), tree, _TYPES[kind]))
        self._frame = _Frame(model)

    def set_view(
        self, deterministic: bool | None = None, use_running_average: bool | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What `nnx.view` sets.

        Args:
            deterministic: As the attribute; None leaves it.
            use_running_average: Likewise.
            kwargs: What is for other modules.
        """
        self.deterministic = self.deterministic if deterministic is None else deterministic
        self.use_running_average = self.use_running_average if use_running_average is None else use_running_average
        return kwargs

    def _mode(self, train: bool | None) -> bool:
        if train is not None:
            return train
        if self.deterministic != self.use_running_average:
            raise ArgumentError(
                f"deterministic is {self.deterministic}, use_running_average {self.use_running_average}, and a torch "
                "module has one mode: set both, as train() and eval() do; to freeze a part, put that part into eval() "
                "and the rest into training before it is wrapped"
            )
        return not self.deterministic

    def _key(self, rngs: nnx.Rngs | None, args: Any, kwargs: Any, train: bool) -> jax.Array | None:
        structure, stream = self._frame.empty.structure, self.rngs if rngs is None else rngs["dropout"]
        draws = (train and bool(structure.kernels)) or needs_key(prepare(structure.source, args, kwargs, train).program)
        return stream() if draws and stream is not None else None


class _Group(nnx.Module):
    """Variables by name, and groups of them; names are torch's, so they are read by `vars` only."""


class _Frame:
    """What a module of nnx keeps of a model besides variables: static, and equal where compiled programs are."""

    def __init__(self, model: MorphableModel) -> None:
        arrays = {"params": model.params, "buffers": model.buffers, "seeds": model.seeds}
        self.empty = model.replace(**jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arrays))

    def __deepcopy__(self, memo: Any) -> _Frame:
        return self  # nothing here ever changes, and a copy of the structure would be another one

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Frame):
            return False
        ours, theirs = self.empty.constants, other.empty.constants
        same = ours.keys() == theirs.keys() and all(array is theirs[name] for name, array in ours.items())
        return same and self.empty.structure == other.empty.structure

    def __hash__(self) -> int:
        return hash(self.empty.structure)

    def __repr__(self) -> str:
        return f"{len(self.empty.structure.sites)} layers"


def to_nnx(model: MorphableModel, *, rngs: nnx.Rngs | None = None) -> NnxModel:
    """A wrapped model as a module of `flax.nnx`, for use as any submodule.

    It is in training mode until `eval()` is called, as modules of nnx are. Its arrays are copies of the model's, which
    stays as it is; `.model` is a model with the present values, `replace_model` puts one
    that has grown back.

    Args:
        model: The model.
        rngs: What dropout draws from: its stream "dropout", forked as by `nnx.Dropout`. None: given at each call.

    Raises:
        WrapError: `model` is no wrapped model.

    Example:
        >>> import esper, jax, torch
        >>> from flax import nnx
        >>> from esper.interop import to_nnx
        >>> net = to_nnx(esper.wrap(torch.nn.Linear(3, 2)))
        >>> net(jax.numpy.ones((5, 3))).shape
        (5, 2)
        >>> [type(of).__name__ for of in nnx.to_flat_state(nnx.state(net, nnx.Param)).leaves]
        ['Param', 'Param']
    """
    return NnxModel(model, rngs=rngs)


def _group(old: Any, tree: Mapping[str, Any], kind: type[nnx.Variable]) -> _Group:
    """Variables for a tree of arrays; those of the old group that have the same names are used again."""
    made, known = _Group(), {} if old is None else vars(old)
    for name, of in tree.items():
        if hasattr(_Group, name) or name.startswith("_pytree__"):
            raise WrapError(
                f"modules of nnx have an attribute {name!r} of their own: rename that part of the torch module"
            )
        held = known.get(name)
        if isinstance(of, Mapping):
            setattr(made, name, _group(held, of, kind))
        elif isinstance(held, kind):
            held.set_value(of)
            setattr(made, name, held)
        else:
            setattr(made, name, kind(of))
    return made


def _values(group: _Group) -> Tree:
    found: Tree = {}
    for name, held in vars(group).items():
        if not name.startswith("_pytree__"):
            found[name] = _values(held) if isinstance(held, _Group) else held.get_value()
    return found
