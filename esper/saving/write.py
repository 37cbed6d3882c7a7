"""`save`: a model as a folder of safetensors and JSON."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esper.errors import StateError
from esper.jax_backend.call import arguments, prepare
from esper.jax_backend.devices import fetched, is_main
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.registry import check_lowered
from esper.persistence.folder import write_folder
from esper.persistence.models import CLASSES, host_of, saved, state_of
from esper.persistence.plain import Writer, table, write_json
from esper.persistence.tensors import write_tensors
from esper.persistence.trees import plain_tree
from esper.program import Captured, Recipe, Signature, Static, TensorType, Tree
from esper.saving.recipes import Blueprints, recipes

KIND = "model"
PROGRAM_CLASSES = CLASSES | table(Signature, Static, TensorType, Tree, Recipe)

_PLAIN = (bool, int, float, complex, str, type(None))


def save(
    model: MorphableModel,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    blueprints: Blueprints = None,
    state: Any = None,
) -> Path:
    """Writes a model to a folder, from which `esper.load` reads it where there is no torch; atomic.

    The folder holds `host-*.safetensors`, parameters and buffers under their torch names for anybody to read; the other
    arrays; the Programs of every kind of call so far, in evaluation and in training mode, as JSON; and a manifest with
    sizes and SHA-256 digests, written last. What the folder held before is replaced at that moment, whole. No pickle.

    Args:
        model: The model; of one on several devices every process calls `save`, and the first one writes.
        path: The folder.
        example_inputs: As for `wrap`, for a model that has not been called so yet.
        blueprints: What the model can grow by where there is no torch, beside what it has grown by: names, or pairs of
            a name and options; "all" that fit its layers; None: "low_rank" and what esper's policy grows by unasked.
            Each is captured once for all layers that are alike, which takes about a tenth of a second.
        state: Any pytree to keep with it, such as `{"opt_state": opt_state, "key": key, "step": step}`.

    Returns:
        The folder.

    Raises:
        StateError: The model has never been called and there are no `example_inputs`, `state` holds something that is
            no array or plain value, or the folder cannot be written.
        UnknownBlueprintError, SeedError: A blueprint fits no layer.
        TraceError: A kernel that cannot be drawn, or run, without torch.

    Example:
        >>> import esper, tempfile, torch
        >>> model = esper.wrap(torch.nn.Linear(3, 2))
        >>> folder = esper.save(model, tempfile.mkdtemp(), example_inputs=torch.ones(5, 3))
        >>> esper.load(folder)(torch.ones(7, 3)).shape
        torch.Size([7, 2])
    """
    folder = Path(path)
    if example_inputs is not None:
        args, kwargs = arguments(example_inputs)
        check_lowered(prepare(model.structure.source, args, kwargs, train=False).program)
    captures = _writable(model)
    carried = recipes(model, captures, blueprints)
    writer, more = Writer(PROGRAM_CLASSES, "programs/"), Writer({}, "state/")
    programs = writer.plain((captures, carried), "the model")
    held = {"model": Writer(CLASSES).plain(saved(model), "the model"), "state": plain_tree(more, state, "state")}
    host, rest = host_of(model), state_of(model) | fetched({**writer.arrays, **more.arrays})
    if is_main():
        parts: dict[str, Callable[[Path], None]] = {
            "host.safetensors": lambda file: write_tensors(file, host),
            "rest.safetensors": lambda file: write_tensors(file, rest),
            "programs.json": lambda file: write_json(file, programs),
            "model.json": lambda file: write_json(file, held),
        }
        write_folder(folder, KIND, parts)
    return folder


def _writable(model: MorphableModel) -> tuple[Captured, ...]:
    """The calls that a file can hold."""
    found = model.structure.source.in_both_modes()
    plain = tuple(held for held in found if all(_is_plain(leaf) for leaf in held[0].leaves))
    if not found:
        raise StateError(
            "the model has not been called yet, so there is nothing to run without torch: give example_inputs"
        )
    if not plain:
        raise StateError(f"no call of the model can be written to a file: its arguments are {found[0][0]}")
    return plain


def _is_plain(leaf: TensorType | Static) -> bool:
    return isinstance(leaf, TensorType) or type(leaf.value) in _PLAIN
