"""Floor 5: the main job: a torch host, grown on real data, given back to torch as files."""

from __future__ import annotations

import json
import logging
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from esper import __version__
from esper.api import unwrap, wrap
from esper.configs import EsperConfig, TrainingSettings
from esper.control.connect import policy_of
from esper.errors import ConfigError, ParityError, WriteError
from esper.jax_backend.description import description, gains_of
from esper.jax_backend.devices import is_main
from esper.jax_backend.model import MorphableModel
from esper.journal import Journal, Stage, begun, check_begun, found, is_begun
from esper.library.publishing import Published
from esper.lifecycle import SeedLifecycleState
from esper.parity import Agreement, compare, tolerance
from esper.persistence.folder import write_file
from esper.shelf import shelf
from esper.telemetry.assemble import bus_of
from esper.telemetry.bus import Bus
from esper.telemetry.folder import CHECKPOINTS, claimed, set_aside, write_again
from esper.told import Listen, Told, told_before
from esper.train.data import SHAPES, Dataset, load
from esper.train.drawn import NetworkFile
from esper.train.history import Record
from esper.train.keeping import newest
from esper.train.loop import Result, grow

_LOG = logging.getLogger("esper.job")

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
    resume: bool | Literal["if begun"] = False,
    watch: Callable[[int], None] = lambda step: None,
    listen: Callable[[Record], None] = lambda record: None,
) -> Job:
    """Wraps the host, checks it against eager torch, trains and grows it, unwraps it, writes it.

    Events are written to `history.jsonl` in the folder while it runs, and go wherever else the configuration says;
    `network.json` is the network as it is at each evaluation.
    While it grows, `esper config set` may change settings of it by way of that folder. What an earlier run told there
    is renamed, `history.<run_id>.jsonl` and so on, once this one begins.

    Args:
        config: What to do; every section of it is checked first.
        control: Whether to train the host alone as well, for as many steps.
        output_dir: Where to write, instead of the configured directory.
        resume: Whether to go on with the run that was stopped in that folder, as if it had not been; "if begun": if one
            was, and else to begin.
        watch: Told the number of every step, both runs counted together.
        listen: Told every event.

    Raises:
        RunFinishedError: The run to go on with has come to its end.
        WriteError: What it came to cannot be written; it can be gone on with once that is seen to.
        EsperError: The configuration, the host or the data do not do, another run is writing to the folder, or it
            holds none to go on with, or one of another configuration.
    """
    config.check()
    place = Path(output_dir or config.training_settings().output_dir)
    if resume == "if begun":
        resume = is_begun(place)
    elif resume:
        check_begun(place)
    with claimed(place) if is_main() else nullcontext():
        journal = found(place, config) if resume else begun(place, config)
        return _run(config, journal, control=control, watch=watch, listen=listen)


def _run(config: EsperConfig, journal: Journal, *, control: bool, watch: Callable[[int], None], listen: Listen) -> Job:
    training = config.training_settings()
    host, data = _given(training)
    before = told_before(journal.place, journal.run_id) if journal.resumed else []
    with policy_of(config, journal.run_id) as policy, _bus(config, journal) as bus:
        told = Told(journal.place, bus, listen, before)
        grown = journal.stage != "growth"  # by a process before, which has told it
        # Then only what the history lacks is told; what comes before the first step, as about the library, is new talk.
        tell = (lambda record: told.recall([record] if record.step else [])) if grown else told
        with shelf(config, journal.run_id, tell) as library:
            model = wrap(
                host, training.target_layers, training.seeds_per_layer, training.cache_size_mb, library=library.opened
            )
            wanted = _answered(host, data, training)
            agreement = parity(wanted, model, data)
            look = _unseen if grown else watch
            kept = _kept(journal, "growth", told) | {"policy": policy, "draw": library.draw}
            growth = _grown(config, journal, model, data, watch=look, listen=tell, **kept)
            trained = unwrap(growth.model, probe=_tensor(data))
            certificate: Any = trained.esper_certificate
            files = _files(journal.place)
            problems = _write(files, trained, growth, certificate)  # before a library could disturb anything
            if problems:
                raise _not_written(journal, problems)
            if grown:
                growth = _with_published(growth, journal, tell)
            else:
                growth, published = library.publish(growth)
                journal = journal.reached("control", published)
        alone = None
        if control:
            still = config.tamiyo_settings().model_copy(update={"policy": "none"})
            kept = _kept(journal, "control", told)
            alone = grow(model, data, training, still, name="control", watch=watch, listen=told, **kept)
    lost = {name: counts.dropped for name, counts in bus.counts().items() if counts.dropped}
    if is_main() and not told.is_written():
        _LOG.warning("%s had lost events of this run: it is written again", files["history"])
        write_again(journal.place, told.events())
    journal = journal.reached("ended")
    return Job(agreement, growth, alone, certificate, files, journal.published, lost)


def _grown(config: EsperConfig, journal: Journal, model: MorphableModel, data: Dataset, **outside: Any) -> Result:
    """The run that grows; `network.json` shows its network meanwhile."""
    updates = journal.place if jax.process_count() == 1 else None  # several would meet a change at different steps
    settings = config.training_settings(), config.tamiyo_settings()
    if not is_main():
        return grow(model, data, *settings, updates=updates, **outside)
    with closing(NetworkFile(journal.place)) as drawn:
        return grow(model, data, *settings, updates=updates, callbacks=[drawn], **outside)


def _kept(journal: Journal, name: Stage, told: Told) -> dict[str, Any]:
    """What a run keeps, and what it goes on from."""
    return {"checkpoints": journal.checkpoints(name), "resume": journal.point(name), "recall": told.recall}


def _with_published(growth: Result, journal: Journal, tell: Listen) -> Result:
    """The result with the record of what a process before has published."""
    if journal.published is None:
        return growth
    record = Record(growth.records[-1].step, "library", str(journal.published))
    tell(record)
    return replace(growth, records=(*growth.records, record))


def _unseen(step: int) -> None:
    """Nobody counts it."""


def _given(training: TrainingSettings) -> tuple[Any, Dataset]:
    """The host and the data; the same for the same settings."""
    from esper.torch_frontend.hosts import load_host, wants_images

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
    return host, data


def _bus(config: EsperConfig, journal: Journal) -> Bus:
    """Where the run is told; one process of several tells it."""
    if not is_main():
        return Bus(run_id=journal.run_id)
    bus = bus_of(config, journal.place, journal.run_id, resume=journal.resumed)
    try:
        if not journal.resumed:
            _begin(journal)  # after what may keep the run from beginning
    except ConfigError:
        bus.close()
        raise
    return bus


def _begin(journal: Journal) -> None:
    """Puts what an earlier run left aside; the history is opened with its first event."""
    place = journal.place
    if (place / CHECKPOINTS).is_dir():
        _LOG.warning("the run that was stopped in %s is set aside; --resume would have gone on with it", place)
    set_aside(place)
    journal.write()


def _answered(host: Any, data: Dataset, training: TrainingSettings) -> np.ndarray:
    """What eager torch answers to the test part, in evaluation mode; it is the first that the host is called with.

    Raises:
        ConfigError: It does not take the data.
    """
    from esper.torch_frontend.places import user_line
    from esper.torch_frontend.probe import evaluating

    inputs = _tensor(data)
    with evaluating(host) as module:
        try:
            answers = module(inputs)
        except Exception as error:
            line = user_line("".join(traceback.format_tb(error.__traceback__)))
            sizes = ", ".join(map(str, inputs.shape[1:]))
            raise ConfigError(
                f"training.model {training.model!r} does not take training.data {training.data!r}, which are batches "
                f"of shape [batch, {sizes}]: {type(error).__name__}{f' at {line}' if line else ''}: {error}; give a "
                "model of that input, or other data"
            ) from error
    return answers.numpy()


def parity(wanted: np.ndarray, model: MorphableModel, data: Dataset) -> Agreement:
    """Eager torch's answers to the test part against the wrapped model's, in evaluation mode.

    Raises:
        ParityError: They disagree beyond the tolerance of float32.
    """
    agreement = compare(np.asarray(model(data.test.inputs)), wanted)
    if agreement.scaled > tolerance("float32"):
        raise ParityError(f"the wrapped model disagrees with eager torch before training: {agreement}")
    return agreement


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


def _files(place: Path) -> dict[str, Path]:
    from esper.torch_frontend.files import NAMES

    return {name: place / file for name, file in (NAMES | _PLAIN).items()}


def _write(files: Mapping[str, Path], trained: Any, growth: Result, certificate: dict[str, Any]) -> list[str]:
    """Writes what a run came to, each file whole or not at all; what could not be written, and why."""
    from esper.torch_frontend.files import contents

    metadata = {"esper": __version__, "seeds": json.dumps(seed_metadata(growth.model))}
    network = description(growth.model, gains_of(growth.gains))
    plain = {"ledger": growth.ledger.as_dict(), "network": network, "certificate": certificate}
    made = {name: lambda held=held: (json.dumps(held, indent=2) + "\n").encode() for name, held in plain.items()}
    problems = []
    for name, content in (contents(trained, metadata) | made).items():
        data = content()
        try:
            write_file(files[name], data)
        except OSError as error:  # others may be small enough
            problems.append(f"{files[name]}: {error.strerror or error}")
    return problems


def _not_written(journal: Journal, problems: Sequence[str]) -> WriteError:
    """What a run ends with whose files are not all there; it can be gone on with, and publishes its kernels then."""
    if not journal.is_kept:
        move = "see to that, such as by making room, and run it again"
    else:
        folder = journal.checkpoints("growth")
        kept = folder is not None and newest(Path(folder.folder)) is not None
        begin = "goes on from the last checkpoint" if kept else "does it again, since it kept no checkpoint"
        move = f"make room there, or see to what it says, and `esper grow CONFIG --resume` {begin}"
    listed = "\n  ".join(problems)
    return WriteError(f"the run has grown, and cannot write all that it came to:\n  {listed}\n{move}", problems)


def _tensor(data: Dataset) -> Any:
    from esper.torch_frontend.arrays import to_torch

    return to_torch(data.test.inputs)
