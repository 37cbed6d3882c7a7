"""Configurations to start from. What stands beside each field is the sentence that documents it everywhere."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from esper.configs.problems import did_you_mean
from esper.configs.reference import Section, sections
from esper.errors import ConfigError

_WIDTH = 100
_MORE = "`esper config check FILE` says what is wrong with it, `esper config reference` what every field means."


@dataclass(frozen=True)
class Template:
    """What a template is for and what it says, by dotted path of the section; other fields stay at their defaults.

    Attributes:
        about: One sentence on who wants it.
        given: Values, and text as it stands in the file where that is `${...}`.
        whole: Sections whose other fields are listed too, as comments.
    """

    about: str
    given: Mapping[str, Mapping[str, Any]]
    whole: tuple[str, ...] = ()


_TAMIYO = "components.tamiyo.config"
TEMPLATES: Mapping[str, Template] = {
    "laptop": Template(
        "A small network on this machine's CPU, seconds a run. No server: everything stays in files.",
        {
            "": {"name": "laptop", "environment": "development"},
            _TAMIYO: {"patience": 4, "min_delta": 0.005, "train_steps": 150, "blend_steps": 50, "hold_steps": 100},
            "training": {"data": "digits", "model": "mlp", "steps": 1600, "learning_rate": 0.01, "eval_every": 25}
            | {"validation_fraction": 0.25, "output_dir": "runs/laptop"},
            "logging": {"level": "INFO", "format": "text"},
        },
    ),
    "gpu": Template(
        'One machine with a GPU, which JAX finds after `pip install "jax[cuda12]"`. '
        "No server: everything stays in files.",
        {
            "": {"name": "gpu", "environment": "development"},
            _TAMIYO: {"patience": 5, "train_steps": 500, "blend_steps": 200, "hold_steps": 300, "max_kernels": 8},
            "training": {"data": "mnist", "model": "cnn", "steps": 10_000, "batch_size": 256, "learning_rate": 0.002}
            | {"eval_every": 200, "seeds_per_layer": 2, "cache_size_mb": 1024, "output_dir": "runs/gpu"},
            "logging": {"level": "INFO", "format": "text"},
        },
    ),
    "cluster": Template(
        "Many runs that share a catalogue, artifacts and a bus. Every secret is in a file that has to be there; "
        "docs/operations.md says how these and the servers are made.",
        {
            "": {"name": "cluster", "environment": "production"},
            "database": {"host": "${DB_HOST:-postgres}", "username": "urza"}
            | {"password": "${file:/run/secrets/esper/database_password}"}
            | {"ssl_mode": "verify-full", "ssl_root_cert": "/run/secrets/esper/ca.pem"},
            "redis": {"host": "${REDIS_HOST:-redis}", "username": "esper"}
            | {"password": "${file:/run/secrets/esper/redis_password}"}
            | {"tls": True, "ca_file": "/run/secrets/esper/ca.pem"},
            "storage": {"endpoint_url": "${S3_ENDPOINT:-https://minio:9000}"}
            | {"access_key": "${file:/run/secrets/esper/storage_access_key}"}
            | {"secret_key": "${file:/run/secrets/esper/storage_secret_key}"}
            | {"ca_file": "/run/secrets/esper/ca.pem"},
            _TAMIYO: {"patience": 5, "train_steps": 500, "blend_steps": 300, "hold_steps": 300, "min_gain": 0.001}
            | {"max_kernels": 8, "max_parameters": 2_000_000, "embargo_steps": 500},
            "components.urza.config": {"folder": "${LIBRARY_DIR:-runs/library}"},
            "training": {"data": "mnist", "model": "cnn", "steps": 10_000, "batch_size": 256, "eval_every": 200}
            | {"cache_size_mb": 512, "output_dir": "${OUTPUT_DIR:-runs/cluster}"},
            "logging": {"level": "INFO", "format": "structured"},
        },
        whole=("database", "redis", "storage"),
    ),
}


def template(name: str) -> str:
    """The text of a template.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in TEMPLATES:
        raise ConfigError(f"there is no template {name!r}; {did_you_mean(name, TEMPLATES)}")
    chosen, known = TEMPLATES[name], {section.path: section for section in sections()}
    lines = [
        *_comment(chosen.about, 0),
        *_comment("Every field: esper config reference; every value: ESPER_...", 0),
        "",
    ]
    opened: tuple[str, ...] = ()
    for path, values in chosen.given.items():
        steps = tuple(path.split(".")) if path else ()
        for depth, step in enumerate(steps):
            if steps[: depth + 1] != opened[: depth + 1]:
                lines += ["", f"{'  ' * depth}{step}:"] if depth == 0 else [f"{'  ' * depth}{step}:"]
        opened = steps
        lines += _fields(known[path], values, len(steps), path in chosen.whole)
    return "\n".join(lines) + "\n"


def _fields(section: Section, values: Mapping[str, Any], depth: int, whole: bool) -> Iterator[str]:
    pad = "  " * depth
    for field in section.fields:
        if field.name in values:
            yield from _comment(field.meaning, depth)
            yield f"{pad}{field.name}: {_value(values[field.name])}"
        elif whole and field.default is not None:
            yield from _comment(field.meaning, depth)
            yield f"{pad}# {field.name}: {field.default}"


def _value(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=_WIDTH * 10).removesuffix("\n...\n").rstrip("\n")


def _comment(text: str, depth: int) -> list[str]:
    pad = "  " * depth + "# "
    return textwrap.wrap(text, _WIDTH, initial_indent=pad, subsequent_indent=pad, break_long_words=False)
