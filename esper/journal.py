"""Floor 5: how far a run of the main job is, as a file in its folder, so that one that was killed can go on.

A run grows, and then trains its control; each keeps checkpoints of its own. What is between is done again: from the
same network it is the same.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from esper import __version__
from esper.configs import EsperConfig
from esper.control.messages import checked_run
from esper.errors import ConfigError, RunFinishedError, RunFolderError
from esper.jax_backend.devices import is_main
from esper.library.publishing import Published
from esper.persistence.folder import write_file
from esper.telemetry.bus import new_run_id
from esper.telemetry.folder import CHECKPOINTS, JOURNAL
from esper.train.keeping import Checkpoints

Stage = Literal["growth", "control", "ended"]
"""What a run is at."""

_SCHEMA_VERSION = 1
_KEPT = 2  # checkpoints: one is whole while the next is being written
_OTHERS = {"output_dir", "cache_size_mb", "checkpoint_every"}  # of `training`: what no step depends on
_LOG = logging.getLogger("esper.job")


@dataclass(frozen=True)
class Journal:
    """How far a run is.

    Attributes:
        place: Its folder.
        run_id: What it is called in all that it tells.
        settings: What its course depends on, by dotted path.
        every: Evaluations from one checkpoint to the next; 0: none are kept.
        stage: What it is at.
        resumed: Whether it was begun by another process, and goes on.
        published: What became of its kernels; None: it is not there yet, or none are to be published.
    """

    place: Path
    run_id: str
    settings: Mapping[str, Any]
    every: int
    stage: Stage = "growth"
    resumed: bool = False
    published: Published | None = None

    @property
    def is_kept(self) -> bool:
        """Whether it is in the folder; several processes would each go on from somewhere else."""
        return is_main() and jax.process_count() == 1

    def checkpoints(self, name: Stage) -> Checkpoints | None:
        """Where one of its runs keeps checkpoints; None: it does not."""
        if not self.is_kept or not self.every:
            return None
        return Checkpoints(self._folder(name), self.every, _KEPT, forgiving=True)

    def point(self, name: Stage) -> Path | None:
        """Where one of its runs looks for a checkpoint to go on from; None: it begins."""
        return self._folder(name) if self.resumed else None

    def reached(self, stage: Stage, published: Published | None = None) -> Journal:
        """The journal when the run has come to this stage, which the folder knows from then on."""
        at = replace(self, stage=stage, published=published or self.published)
        if at.write() and stage == "ended":
            shutil.rmtree(self.place / CHECKPOINTS, ignore_errors=True)
        return at

    def write(self) -> bool:
        """Puts it into the folder; where it cannot be, the run goes on, and may be gone on with from further back.

        Returns:
            Whether it is there.
        """
        if not self.is_kept:
            return False
        plain = {
            "schema_version": _SCHEMA_VERSION,
            "esper": __version__,
            "run_id": self.run_id,
            "stage": self.stage,
            "settings": self.settings,
            "published": self.published and asdict(self.published),
        }
        try:
            write_file(self.place / JOURNAL, (json.dumps(plain, indent=1, default=str) + "\n").encode())
        except OSError as error:
            _LOG.warning("%s cannot be written: %s", self.place / JOURNAL, error)
            return False
        return True

    def _folder(self, name: Stage) -> Path:
        return self.place / CHECKPOINTS / name


def begun(place: Path, config: EsperConfig) -> Journal:
    """The journal of a run that begins, which is not in the folder yet."""
    return Journal(place, new_run_id(), settings(config), config.training_settings().checkpoint_every)


def check_begun(place: Path) -> None:
    """Raises RunFolderError unless a run has begun in the folder that can be gone on with."""
    if jax.process_count() > 1:
        raise ConfigError("a run of several processes keeps no checkpoints: it cannot be resumed; begin another one")
    if not is_begun(place):
        raise RunFolderError(
            f"there is nothing to resume in {place}: no run has begun there that could go on; name the folder it "
            "wrote to (output_dir), or begin one without --resume or with --resume-if-begun"
        )


def is_begun(place: Path) -> bool:
    """Whether the folder holds a run that can be gone on with, or says that it is finished."""
    return jax.process_count() == 1 and (place / JOURNAL).is_file()


def found(place: Path, config: EsperConfig) -> Journal:
    """The journal of the run in this folder, to go on with.

    Raises:
        RunFinishedError: It has come to its end.
        ConfigError: It began with another configuration, or the journal is none.
    """
    run_id, stage, before, published = _read(place / JOURNAL)
    if stage == "ended":
        raise RunFinishedError(f"the run {run_id} in {place} is finished: nothing of it is left to do")
    now = settings(config)
    if problems := list(_differences(before, now)):
        raise ConfigError(
            f"the run in {place} began with another configuration:\n  "
            + "\n  ".join(problems)
            + "\ngo on with the one it began with, or begin another run without --resume",
            problems,
        )
    every = config.training_settings().checkpoint_every
    return Journal(place, run_id, now, every, stage, resumed=True, published=published)


def _read(path: Path) -> tuple[str, Stage, dict[str, Any], Published | None]:
    try:
        held = json.loads(path.read_bytes())
        if (version := held["schema_version"]) == _SCHEMA_VERSION:
            stage, published = _stage(held["stage"]), _published(held["published"])
            return checked_run(held["run_id"]), stage, dict(held["settings"]), published
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} does not say how far a run is ({error}): begin another without --resume") from error
    raise ConfigError(f"{path} is of version {version!r}, and this esper reads {_SCHEMA_VERSION}")


def _stage(held: Any) -> Stage:
    if held not in get_args(Stage):
        raise ValueError(f"there is no stage {held!r}")
    return held


def settings(config: EsperConfig) -> dict[str, Any]:
    """What the course of a run depends on, by dotted path; nothing of it is a secret."""
    tamiyo, urza = config.tamiyo_settings(), config.urza_settings()
    sections = {
        "training": config.training_settings().model_dump(mode="json", exclude=_OTHERS),
        "components.tamiyo.config": tamiyo.model_dump(mode="json", exclude={"remote"}),
        "components.urza.config": urza.model_dump(mode="json", include={"draw", "candidates"}),
    }
    found = {f"{section}.{name}": value for section, held in sections.items() for name, value in held.items()}
    return found | {"components.tamiyo.config.remote": "none" if tamiyo.remote is None else "a controller"}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What both have and is not the same; fields that another version of esper has say nothing."""
    for name, value in now.items():
        if name in before and before[name] != value:
            yield f"{name} was {json.dumps(before[name])} and is {json.dumps(value)}"


def _published(held: Any) -> Published | None:
    if held is None:
        return None
    waiting = tuple(Path(file) for file in held["waiting"])
    return Published(tuple(held["digests"]), waiting, str(held["problem"]), int(held["lost"]))
