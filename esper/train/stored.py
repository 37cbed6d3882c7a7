"""A checkpoint as a folder, and back."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from esper.growth.credit import Gain
from esper.growth.memory import Culled
from esper.growth.memory import Memory as TamiyoMemory
from esper.growth.policy import (
    Cull,
    Germinate,
    Hold,
    LayerView,
    Load,
    Observation,
    Plan,
    Policy,
    SeedView,
    SetAlpha,
    Transition,
)
from esper.growth.scores import FirstOrder
from esper.jax_backend.devices import fetched, is_main
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import SeedLifecycleState
from esper.persistence import reading
from esper.persistence.folder import read_folder, write_folder
from esper.persistence.models import CLASSES, SavedModel, host_of, restored, saved, state_of
from esper.persistence.plain import Classes, Reader, Writer, held_classes, read_json, table, write_json
from esper.persistence.tensors import read_tensors, write_tensors
from esper.persistence.trees import plain_tree, tree_like
from esper.train.change import Change
from esper.train.checkpoint import Checkpoint, SoundPoint
from esper.train.governor import Memory as GovernorMemory
from esper.train.history import Record
from esper.train.ledger import Ledger, Spent
from esper.train.step import Learner, TrainState

KIND = "checkpoint"

_CLASSES = CLASSES | table(
    *(Record, Ledger, Spent, GovernorMemory, TamiyoMemory, Culled, SeedLifecycleState),
    *(Observation, LayerView, SeedView, Plan, Gain, FirstOrder),
    *(Change, Germinate, Load, Transition, SetAlpha, Cull, Hold),
)

_SUMS = ("key", "step", "loss", "pull")
_HOST, _SOUND_HOST, _SOUND_REST = "host/", "sound host/", "sound rest/"


@dataclass(frozen=True)
class Fetched:
    """A checkpoint in this process's own memory, ready to be written.

    Attributes:
        run: All that JSON can hold.
        host: Parameters and buffers by torch name.
        rest: The other arrays by name.
    """

    run: Any
    host: Mapping[str, np.ndarray]
    rest: Mapping[str, np.ndarray]


def fetch(checkpoint: Checkpoint, policy: Policy[Any] | None) -> Fetched:
    """Waits for a checkpoint's arrays, and takes it apart.

    Raises:
        StateError: Something that no file can hold, such as the memory of a policy that is no plain data.
    """
    writer, sound = Writer(_classes(policy), "run/"), checkpoint.sound
    run = {
        "state": _plain_state(writer, checkpoint.state),
        "run": {name: writer.plain(getattr(checkpoint, name), f"the run's {name}") for name in _names(Checkpoint)},
        "sound": sound
        and {
            "state": _plain_state(writer, sound.state),
            "run": {
                name: writer.plain(getattr(sound, name), f"the sound point's {name}") for name in _names(SoundPoint)
            },
        },
    }
    host, rest = host_of(checkpoint.state.model), state_of(checkpoint.state.model) | fetched(writer.arrays)
    for prefix, arrays in _sound_arrays(sound).items():
        rest |= {prefix + name: array for name, array in arrays.items()}
    run["same"] = _same(host, rest)
    return Fetched(run, host, {name: array for name, array in rest.items() if name not in run["same"]})


def _same(host: Mapping[str, np.ndarray], rest: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Which arrays are equal to one before them: most of what a sound point holds is what the run holds."""
    first: dict[Any, str] = {}
    found = {}
    for name, array in [*((_HOST + name, array) for name, array in host.items()), *rest.items()]:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        other = first.setdefault((array.dtype.name, array.shape, hashlib.sha256(content).digest()), name)
        if other != name and name in rest:
            found[name] = other
    return found


def _names(of: type[Checkpoint] | type[SoundPoint]) -> list[str]:
    """What is plain data of it."""
    return [own.name for own in dataclasses.fields(of) if own.name not in ("state", "sound")]


def _plain_state(writer: Writer, state: TrainState) -> dict[str, Any]:
    return {
        "model": writer.plain(saved(state.model), "the model"),
        "opt_state": plain_tree(writer, state.opt_state, "the optimiser's state"),
        "sums": {name: writer.plain(getattr(state, name), name) for name in _SUMS},
    }


def _sound_arrays(sound: SoundPoint | None) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of the model there, by what their names begin with."""
    if sound is None:
        return {}
    return {_SOUND_HOST: host_of(sound.state.model), _SOUND_REST: state_of(sound.state.model)}


def write(folder: Path, content: Fetched) -> None:
    """Writes a checkpoint, by one process of several; atomic.

    Raises:
        StateError: The folder cannot be written.
    """
    if is_main():
        parts = {
            "host.safetensors": lambda file: write_tensors(file, content.host),
            "rest.safetensors": lambda file: write_tensors(file, content.rest),
            "run.json": lambda file: write_json(file, content.run),
        }
        write_folder(folder, KIND, parts)


def parts_of(folder: Path) -> Mapping[str, memoryview]:
    """The parts of what `write` has written, byte for byte.

    Raises:
        CorruptFileError: A byte is not what was written.
        StateError: They cannot be read, or are of something else.
    """
    return read_folder(folder, KIND)


def read(
    folder: Path,
    parts: Mapping[str, memoryview],
    model: MorphableModel,
    learner: Learner,
    policy: Policy[Any] | None,
) -> Checkpoint:
    """A checkpoint from its parts, on a model of the same module.

    Args:
        folder: Where they are, for messages.
        parts: What `parts_of` gives.
        model: A model as it was before the run: its source builds the kernels anew.
        learner: How the run learns, which gives the form of the optimiser's state.
        policy: What decides on growth in the run.

    Raises:
        CorruptFileError: They hold what `write` does not write.
        StateError: The checkpoint is of another model, optimiser or policy.
    """
    with reading(folder):
        host, rest = (read_tensors(parts[f"{name}.safetensors"], f"{folder}: {name}") for name in ("host", "rest"))
        held = read_json(parts["run.json"])
        known = {**{_HOST + name: array for name, array in host.items()}, **rest}
        rest |= {name: known[other] for name, other in held["same"].items()}
        reader = Reader(_classes(policy), rest)
        state = _state(reader, held["state"], model, learner, host, rest)
        sound = held["sound"]
        if sound:
            there = _state(reader, sound["state"], model, learner, _under(_SOUND_HOST, rest), _under(_SOUND_REST, rest))
            sound = SoundPoint(there, **{name: reader.value(value) for name, value in sound["run"].items()})
        return Checkpoint(state, **{name: reader.value(value) for name, value in held["run"].items()}, sound=sound)


def _state(
    reader: Reader,
    held: Mapping[str, Any],
    model: MorphableModel,
    learner: Learner,
    host: Mapping[str, np.ndarray],
    rest: Mapping[str, np.ndarray],
) -> TrainState:
    kept = reader.value(held["model"])
    if not isinstance(kept, SavedModel):
        raise TypeError("there is no model")
    grown = restored(model, kept, host, rest)
    opt_state = tree_like(reader, held["opt_state"], _form(learner, grown), "the optimiser's state")
    return TrainState(grown, opt_state, **{name: reader.value(held["sums"][name]) for name in _SUMS})


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _form(learner: Learner, model: MorphableModel) -> Any:
    """An optimiser's state as it would be here: its form, and where its arrays lie if the model's lie on several."""
    init = learner.tx.init
    return jax.eval_shape(init, model.params) if model.structure.placement is None else init(model.params)


def _classes(policy: Policy[Any] | None) -> Classes:
    """What may be in a file: plain data of esper's, and the dataclasses that the policy's memory begins with."""
    return _CLASSES | (held_classes(policy.start()) if policy is not None else {})
