"""Folders that are written to, room on their disks, and the files of certificates."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from esper.configs.checks.findings import Finding
from esper.configs.config import EsperConfig
from esper.configs.redaction import redacted
from esper.configs.schema import COMPONENTS

SCARCE, TOO_LITTLE = 2**30, 64 * 2**20  # bytes free
_CERTIFICATES = {
    "database": ("ssl_root_cert", "ssl_cert", "ssl_key"),
    "redis": ("ca_file", "cert_file", "key_file"),
    "storage": ("ca_file",),
}
_KEYS = {"ssl_key", "key_file"}


def examine(config: EsperConfig) -> list[Finding]:
    """What is found on this machine."""
    return [*_components(config), *_secrets(config), *_folders(config), *_library(config), *_certificates(config)]


def _components(config: EsperConfig) -> Iterator[Finding]:
    for name in config.unread_components():
        move = f"esper reads {', '.join(COMPONENTS)}: correct the name, or leave it for whom it is meant for"
        yield Finding("warning", f"components.{name}", "nothing reads it", move)


def _secrets(config: EsperConfig) -> Iterator[Finding]:
    for section, place in config.idle_secrets():
        yield Finding("ok", section, f"off: {place} is left alone, since a secret by itself switches nothing on")


def _folders(config: EsperConfig) -> Iterator[Finding]:
    yield from _folder("training.output_dir", config.training_settings().output_dir)
    if uses_library(config):
        yield from _folder("components.urza.config.folder", config.urza_settings().folder)
    remote = config.tamiyo_settings().remote
    if remote is not None and remote.channel == "folder" and remote.folder is not None:
        yield from _folder("components.tamiyo.config.remote.folder", remote.folder)


def uses_library(config: EsperConfig) -> bool:
    """Whether a run has anything to do with the kernel library."""
    settings = config.urza_settings()
    return settings.draw or settings.publish


def _library(config: EsperConfig) -> Iterator[Finding]:
    given = [name for name in ("database", "storage") if getattr(config, name) is not None]
    if given and not uses_library(config):
        told = f"off: runs neither draw kernels from the library in {' and '.join(given)} nor publish any"
        yield Finding("warning", "components.urza", told, "switch it on: components: {urza: {config: {}}}")


def _folder(subject: str, given: str) -> Iterator[Finding]:
    folder = redacted(given)
    try:
        place = _nearest(Path(given).absolute())
        if not place.is_dir():
            told = f"{place if folder == given else folder} is no folder"
            yield Finding("failed", subject, told, "move it away, or name another folder")
            return
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"esper")
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(place).free
    except OSError as error:
        problem = error.strerror or type(error).__name__
        move = f"let this account (uid {os.geteuid()}) write there, or name another folder"
        yield Finding("failed", subject, f"cannot write in {folder}: {problem}", move)
        return
    told = f"{folder} can be written to, {free / 2**30:.1f} GiB free"
    if free < TOO_LITTLE:
        yield Finding("failed", subject, told, "make room: a model and its checkpoints will not fit")
    elif free < SCARCE:
        yield Finding("warning", subject, told, "make room: checkpoints of a larger model will not fit")
    else:
        yield Finding("ok", subject, told)


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists: where it would be made."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _certificates(config: EsperConfig) -> Iterator[Finding]:
    for section, names in _CERTIFICATES.items():
        for name in names:
            given = getattr(getattr(config, section), name, None)
            if given is not None:
                yield _certificate(f"{section}.{name}", given, name in _KEYS)


def _certificate(subject: str, given: str, is_key: bool) -> Finding:
    path, file = redacted(given), Path(given)
    try:
        text = file.read_bytes()
        mode = file.stat().st_mode
    except OSError as error:
        problem = f"cannot read {path}: {error.strerror or type(error).__name__}"
        return Finding("failed", subject, problem, "write the path of a PEM file that this account can read")
    if b"-----BEGIN" not in text:
        return Finding("failed", subject, f"{path} is no PEM file", "convert it: openssl x509 -inform der")
    if is_key and mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
        return Finding("failed", subject, f"others can read {path}", f"chmod 600 {path}: drivers refuse such a key")
    return Finding("ok", subject, path)
