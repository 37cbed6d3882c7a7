"""What of a configuration may change while a run goes on, and what is wrong with a change that is asked for.

Only what is looked at anew at every evaluation may: the compiled step, and what each layer can grow by, are made once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from esper.configs.base import ConfigModel
from esper.configs.problems import did_you_mean
from esper.configs.settings import LoggingSettings, TamiyoSettings, TrainingSettings
from esper.errors import ConfigError

TAMIYO, TRAINING, LOGGING = "components.tamiyo.config", "training", "logging"

CHANGEABLE: Mapping[str, tuple[str, ...]] = {
    TAMIYO: (
        *("trigger", "start_step", "stop_fraction", "patience", "min_delta", "stability", "where"),
        *("gain_per_parameter", "grafts", "confidence", "train_steps", "hold_steps", "min_gain", "max_kernels"),
        *("max_parameters", "max_flops", "max_bytes", "max_retries", "embargo_steps"),
    ),
    TRAINING: ("eval_every",),
    LOGGING: ("level",),
}
"""The fields that may change in a run, by section."""

_MODELS: Mapping[str, type[ConfigModel]] = {
    TAMIYO: TamiyoSettings,
    TRAINING: TrainingSettings,
    LOGGING: LoggingSettings,
}
_COMPILED = "the compiled step holds it"
_LAID_OUT = "what each layer can grow by was laid out with it"
_REASONS = {
    (TAMIYO, "blend_steps"): _COMPILED,
    (TAMIYO, "schedule"): _COMPILED,
    (TAMIYO, "race"): _COMPILED,
    (TAMIYO, "kernel_warmup_steps"): _COMPILED,
    (TAMIYO, "blueprints"): _LAID_OUT,
    (TAMIYO, "rank"): _LAID_OUT,
    (TAMIYO, "blend"): _LAID_OUT,
    (TAMIYO, "init"): _LAID_OUT,
}


@dataclass(frozen=True)
class Change:
    """A field, by the dotted path of its section and its name, and its new value, validated."""

    section: str
    name: str
    value: Any

    @property
    def field(self) -> str:
        """The dotted path of the field."""
        return f"{self.section}.{self.name}"


def change(field: str, value: Any) -> Change:
    """A change that is in order.

    Args:
        field: Its dotted path, or only its name where that says enough.
        value: The new value, as YAML would give it.

    Raises:
        ConfigError: The field does not exist or may not change in a run, or the value is refused.

    Example:
        >>> change("patience", 5).field
        'components.tamiyo.config.patience'
    """
    section, name = _place(field)
    model = _MODELS[section]
    if name not in CHANGEABLE[section]:
        reason = _REASONS.get((section, name), "the run began with it")
        raise ConfigError(f"{section}.{name} cannot change in a run: {reason}; stop it and begin another")
    try:
        found = model.model_validate({name: value})
    except ConfigError as error:
        problems = [f"{section}.{problem}" for problem in error.problems]
    else:
        return Change(section, name, getattr(found, name))
    raise ConfigError("\n".join(problems), problems)


def parsed(assignments: Iterable[str]) -> list[Change]:
    """The changes that a command line asks for, such as `patience=5`.

    Raises:
        ConfigError: One of them is none, or is not in order; all of them are looked at.
    """
    changes, problems = [], []
    for assignment in assignments:
        field, sign, text = assignment.partition("=")
        try:
            if not sign:
                raise ConfigError(f"{assignment!r} is no FIELD=VALUE")
            changes.append(change(field.strip(), yaml.safe_load(text)))
        except ConfigError as error:
            problems.append(str(error))
        except (yaml.YAMLError, ValueError):  # such as a date that there is not
            problems.append(f"{field}: the value is not understood; quote it as in YAML")
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return changes


def _place(field: str) -> tuple[str, str]:
    section, _, name = field.rpartition(".")
    if section in _MODELS and name in _MODELS[section].model_fields:
        return section, name
    places = [found for found, model in _MODELS.items() if not section and name in model.model_fields]
    if len(places) == 1:
        return places[0], name
    known = [f"{found}.{name}" for found, names in CHANGEABLE.items() for name in names]
    raise ConfigError(f"there is no field {field!r} that a run looks at; {did_you_mean(field, known)}")
