"""`load`: a model from a folder that `save` has written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from esper.errors import CorruptFileError, StateError
from esper.jax_backend.cache import KernelCache
from esper.jax_backend.loading import check_library
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.seeds import SeedState
from esper.jax_backend.source import Structure
from esper.persistence import reading
from esper.persistence.folder import read_folder
from esper.persistence.models import CLASSES, Arrays, SavedModel, check_wide, restored
from esper.persistence.plain import Reader, read_json
from esper.persistence.tensors import read_tensors
from esper.persistence.trees import tree_like
from esper.program import Captured, Program, Recipe, verify
from esper.saving.source import SavedSource
from esper.saving.write import KIND, PROGRAM_CLASSES

if TYPE_CHECKING:
    from esper.library import Library
    from esper.torch_frontend.hosted import Module

_CONSTANTS = "constants/"


@dataclass(frozen=True)
class _Content:
    """A folder's content, checked."""

    model: SavedModel
    state: Any
    reader: Reader
    captures: tuple[Captured, ...]
    recipes: tuple[Recipe, ...]
    host: Arrays
    rest: Arrays


def load(
    path: str | os.PathLike[str], *, module: Module | None = None, state: Any = None, library: Library | None = None
) -> Any:
    """A model from a folder that `esper.save` has written.

    Every byte is checked against the manifest first, and nothing of a file is executed. Without `module` neither torch
    nor the user's code is needed: the model runs by the Programs that were saved with it, for other batch sizes too,
    trains, and grows by the blueprints that came along, whose first values are then drawn by JAX.

    Args:
        path: The folder.
        module: An instance of the torch module that the model was made of, whose parameters and buffers may have any
            values: calls of other kinds are captured then, all blueprints are there, and `unwrap` gives a torch module.
        state: What tells the form of the `state` that was saved: a pytree like it, or a function of the loaded model
            that gives one, such as `lambda model: {"opt_state": tx.init(model.params), "key": key, "step": 0}`. Its
            values do not matter.
        library: Where kernels are loaded from that the model's cache does not hold, as for `esper.wrap`.

    Returns:
        The model; with `state`, the model and what was saved.

    Raises:
        ArgumentError: `library` is none that is open.
        CorruptFileError: A byte is not what was written, or the folder is none of esper's.
        StateError: There is no such folder, or it does not fit `module`, `state`, or JAX's 64-bit mode.

    Example:
        >>> import esper, optax, tempfile, torch
        >>> model, tx = esper.wrap(torch.nn.Linear(3, 2), example_inputs=torch.ones(5, 3)), optax.adam(1e-3)
        >>> folder = esper.save(model, tempfile.mkdtemp(), state=tx.init(model.params))
        >>> model, opt_state = esper.load(folder, state=lambda model: tx.init(model.params))
    """
    check_library(library)
    folder = Path(path)
    parts = read_folder(folder, KIND)
    with reading(folder):
        content = _content(folder, parts)
        check_wide(content.model)
        empty = _empty(content) if module is None else _wrapped(content, module)
        model = restored(empty, content.model, content.host, content.rest)
        model = model.replace(structure=replace(model.structure, library=library))
    if state is None:
        return model
    like = state(model) if callable(state) else state
    with reading(folder):
        return model, tree_like(content.reader, content.state, like, "state")


def _content(folder: Path, parts: Mapping[str, memoryview]) -> _Content:
    host, rest = (read_tensors(parts[f"{name}.safetensors"], f"{folder}: {name}") for name in ("host", "rest"))
    reader, held = Reader(PROGRAM_CLASSES, rest), read_json(parts["model.json"])
    captures, recipes = reader.value(read_json(parts["programs.json"]))
    model = Reader(CLASSES, rest).value(held["model"])
    content = _Content(model, held["state"], reader, captures, recipes, host, rest)
    _check(content)
    return content


def _check(content: _Content) -> None:
    """Checks that Programs are well formed, and that the arrays which they read are there.

    Raises:
        ProgramError, CorruptFileError: They are not.
    """
    held = {**content.host, **_constants(content)}
    for _, program in content.captures:
        _check_inputs(verify(program), held)
    for recipe in content.recipes:
        for program in (recipe.birth, *(program for _, program in recipe.captures)):
            verify(program)
    if not isinstance(content.model, SavedModel) or not content.captures:
        raise CorruptFileError("there is no model, or no call of it")
    shape = (len(content.model.sites), content.model.seeds_per_layer)
    if content.rest["seeds/lifecycle"].shape != shape:
        raise CorruptFileError(f"the seeds are {content.rest['seeds/lifecycle'].shape}, and the layers have {shape}")


def _constants(content: _Content) -> dict[str, np.ndarray]:
    """What the Programs close over."""
    named = ((name, array) for name, array in content.rest.items() if name.startswith(_CONSTANTS))
    return {name.removeprefix(_CONSTANTS): array for name, array in named}


def _check_inputs(program: Program, held: Mapping[str, np.ndarray]) -> None:
    for spec in program.inputs:
        if spec.kind != "user" and held[spec.target].shape != spec.type.shape:
            raise CorruptFileError(
                f"{spec.target} is {list(held[spec.target].shape)}, and its Program reads {spec.type}"
            )


def _empty(content: _Content) -> MorphableModel:
    """A model of what was saved, without kernels."""
    saved = content.model
    # Of their own: what is kept beyond the load does not lie in the file, which others may write into.
    constants = {name: np.array(array) for name, array in _constants(content).items()}
    source = SavedSource(saved.description, content.captures, constants, content.recipes, saved.modes)
    return MorphableModel(
        params={"host": {name: jnp.array(content.host[name]) for name in saved.trained}, "kernels": {}},
        buffers={name: jnp.array(array) for name, array in content.host.items() if name not in set(saved.trained)},
        seeds=SeedState.dormant(len(saved.sites), saved.seeds_per_layer),
        constants={name: jnp.array(array) for name, array in constants.items()},
        structure=Structure(
            source=source,
            sites=saved.sites,
            seeds_per_layer=saved.seeds_per_layer,
            cache=KernelCache(saved.cache_bytes),
            remat=saved.remat,
            share_blocks=saved.share_blocks,
        ),
    )


def _wrapped(content: _Content, module: Module) -> MorphableModel:
    """A model of the module, as the saved one was wrapped."""
    from esper.api import wrap

    saved = content.model
    names = [escape(site.name) for site in saved.sites]
    model = wrap(module, names, saved.seeds_per_layer, saved.cache_bytes >> 20)
    ours = model.structure.source.description
    if ours != saved.description:
        lines = zip(ours.splitlines(), saved.description.splitlines(), strict=False)
        first = next((pair for pair in lines if pair[0] != pair[1]), (ours[-80:], saved.description[-80:]))
        raise StateError(
            f"module is not what was saved: it has {first[0].strip()!r} where {first[1].strip()!r} was saved"
        )
    for name, array in model.constants.items():
        if not np.array_equal(array, content.rest[_CONSTANTS + name], equal_nan=array.dtype.kind == "f"):
            raise StateError(f"the tensor {name} has other values in module than were saved: give it those first")
    source: Any = model.structure.source
    source.modes = dict(saved.modes)
    return model
