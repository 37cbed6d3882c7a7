"""Floor 5: the main job: a torch host, grown on real data, given back to torch as files."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from esper import __version__
from esper.api import unwrap, wrap
from esper.configs import EsperConfig, TrainingSettings
from esper.control.connect import policy_of
from esper.errors import ConfigError, ParityError
from esper.jax_backend.description import description, gains_of
from esper.jax_backend.devices import is_main
from esper.jax_backend.model import MorphableModel
from esper.library.publishing import Published
from esper.lifecycle import SeedLifecycleState
from esper.parity import Agreement, compare, tolerance
from esper.shelf import shelf
from esper.telemetry.assemble import bus_of
from esper.telemetry.bus import Bus, new_run_id
from esper.telemetry.convert import event_of
from esper.telemetry.folder import claimed, set_aside, write_again
from esper.train.data import SHAPES, Dataset, load
from esper.train.history import Record
from esper.train.loop import Result, grow

_PLAIN = {
    "history": "history.jsonl",
    "certificate": "certificate.json",
    "ledger": "ledger.json",
    "network": "network.json",
}


@dataclass(frozen=True)
class Job:
    """What the main job did.

    Attributes:
        parity: Eager torch against the wrapped model, on the test part, before training.
        growth: The run that grows.
        control: The same run without growth, if it was asked for.
        certificate: The model against the unwrapped module, on the test part, after training.
        files: What was written, by what it is.
        published: What became of the kernels that are to be in the library; None: none are to be.
        lost: How many events places of telemetry missed, by place; of the history none are missing at the end.
    """

    parity: Agreement
    growth: Result
    control: Result | None
    certificate: dict[str, Any]
    files: dict[str, Path]
    published: Published | None = None
    lost: Mapping[str, int] = field(default_factory=dict)


def run(
    config: EsperConfig,
    *,
    control: bool = True,
    output_dir: str | Path | None = None,
    watch: Callable[[int], None] = lambda step: None,
    listen: Callable[[Record], None] = lambda record: None,
) -> Job:
    """Wraps the host, checks it against eager torch, trains and grows it, unwraps it, writes it.

    Events are written to `history.jsonl` in the folder while it runs, and go wherever else the configuration says.
    While it grows, `esper config set` may change settings of it by way of that folder. What an earlier run told there
    is renamed, `history.<run_id>.jsonl` and so on, once this one begins.

    Args:
        config: What to do; every section of it is checked first.
        control: Whether to train the host alone as well, for as many steps.
        output_dir: Where to write, instead of the configured directory.
        watch: Told the number of every step, both runs counted together.
        listen: Told every event.

    Raises:
        EsperError: The configuration, the host or the data do not do, or another run is writing to the folder.
    """
    config.check()
    place = Path(output_dir or config.training_settings().output_dir)
    with claimed(place) if is_main() else nullcontext():
        return _run(config, place, control=control, watch=watch, listen=listen)


def _run(
    config: EsperConfig, place: Path, *, control: bool, watch: Callable[[int], None], listen: Callable[[Record], None]
) -> Job:
    from esper.torch_frontend.hosts import load_host, wants_images

    training, tamiyo = config.training_settings(), config.tamiyo_settings()
    host_key, data_key = jax.random.split(jax.random.key(training.key))
    entropy = int(jax.random.bits(host_key, dtype="uint32"))
    host = load_host(training.model, shape=SHAPES[training.data], entropy=entropy)
    data = load(
        training.data,
        "image" if wants_images(host) else "flat",
        key=data_key,
        test_fraction=training.test_fraction,
        validation_fraction=training.validation_fraction,
    )
    run_id = new_run_id()
    said: list[tuple[Record, float]] = []
    with policy_of(config, run_id) as policy, _bus(config, place, run_id) as bus:

        def told(record: Record) -> None:
            bus.publish(record)
            said.append((record, time.time()))
            listen(record)

        with shelf(config, run_id, told) as library:
            model = wrap(
                host, training.target_layers, training.seeds_per_layer, training.cache_size_mb, library=library.opened
            )
            agreement = parity(host, model, data)
            updates = place if jax.process_count() == 1 else None  # several would meet a change at different steps
            outside = {"policy": policy, "draw": library.draw, "updates": updates}
            growth = grow(model, data, training, tamiyo, watch=watch, listen=told, **outside)
            trained = unwrap(growth.model, probe=_tensor(data))
            certificate: Any = trained.esper_certificate
            files = _write(place, trained, growth, certificate)  # before anything that a library could disturb
            growth, published = library.publish(growth)
        alone = None
        if control:
            still = tamiyo.model_copy(update={"policy": "none"})
            alone = grow(model, data, training, still, name="control", watch=watch, listen=told)
    lost = {name: counts.dropped for name, counts in bus.counts().items() if counts.dropped}
    if "jsonl" in lost:
        pairs = enumerate(said)
        write_again(place, [event_of(one, run_id=run_id, sequence=at, seconds=when) for at, (one, when) in pairs])
    return Job(agreement, growth, alone, certificate, files, published, lost)


def _bus(config: EsperConfig, place: Path, run_id: str) -> Bus:
    """Where the run is told; one process of several tells it."""
    if not is_main():
        return Bus(run_id=run_id)
    bus = bus_of(config, place, run_id)
    try:
        set_aside(place)  # after what may keep the run from beginning; the history is opened with its first event
    except ConfigError:
        bus.close()
        raise
    return bus


def parity(host: Any, model: MorphableModel, data: Dataset) -> Agreement:
    """Eager torch against the wrapped model on the test part, in evaluation mode.

    Raises:
        ParityError: They disagree beyond the tolerance of float32.
    """
    from esper.torch_frontend.probe import evaluating

    with evaluating(host) as module:
        wanted = module(_tensor(data))
    found = compare(np.asarray(model(data.test.inputs)), wanted.numpy())
    if found.scaled > tolerance("float32"):
        raise ParityError(f"the wrapped model disagrees with eager torch before training: {found}")
    return found


def steps_of(training: TrainingSettings, *, control: bool) -> int:
    """How many steps `run` will take in all."""
    return training.steps * (2 if control else 1)


def seed_metadata(model: MorphableModel) -> list[dict[str, Any]]:
    """The state of every seed, and the recipe of its kernel, as plain data."""
    kernels = {(kernel.layer, kernel.seed): kernel for kernel in model.structure.kernels}
    seeds = jax.device_get(model.seeds)
    return [
        _seed(site.name, seed, jax.tree.map(lambda field, at=(row, seed): field[at], seeds), kernels)
        for row, site in enumerate(model.structure.sites)
        for seed in range(model.structure.seeds_per_layer)
    ]


def _seed(layer: str, seed: int, state: Any, kernels: dict[tuple[str, int], Any]) -> dict[str, Any]:
    health = float(state.health)
    plain: dict[str, Any] = {
        "layer": layer,
        "seed": seed,
        "lifecycle": SeedLifecycleState(int(state.lifecycle)).name,
        "alpha": float(state.alpha),
        "health": health if math.isfinite(health) else None,
        "age": int(state.age),
    }
    kernel = kernels.get((layer, seed))
    if kernel is not None:
        plain |= {"blueprint": kernel.blueprint, "options": dict(kernel.options), "placement": kernel.placement}
    return plain


def _write(place: Path, trained: Any, growth: Result, certificate: dict[str, Any]) -> dict[str, Path]:
    from esper.torch_frontend.files import save_module

    place.mkdir(parents=True, exist_ok=True)
    metadata = {"esper": __version__, "seeds": json.dumps(seed_metadata(growth.model))}
    files = save_module(trained, place, metadata)
    files |= {name: place / file for name, file in _PLAIN.items()}
    files["ledger"].write_text(json.dumps(growth.ledger.as_dict(), indent=2) + "\n", encoding="utf-8")
    network = description(growth.model, gains_of(growth.gains))
    files["network"].write_text(json.dumps(network, indent=1) + "\n", encoding="utf-8")
    files["certificate"].write_text(json.dumps(certificate, indent=2) + "\n", encoding="utf-8")
    return files


def _tensor(data: Dataset) -> Any:
    from esper.torch_frontend.arrays import to_torch

    return to_torch(data.test.inputs)
