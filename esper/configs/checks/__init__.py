"""`esper config check`: whether what a configuration names is there, and lets esper do what it has to.

| module | asks |
|---|---|
| `findings` | nothing: what was found, within what time, without secrets |
| `database`, `cache`, `storage` | PostgreSQL, Redis and the object store themselves |
| `files` | components and secrets that nothing reads, folders that are written to, room on their disks, certificates |
| `run` | what a run imports, and the port it listens on |
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from esper.configs.checks import cache, database, files, run, storage
from esper.configs.checks.findings import Finding, Probe, within
from esper.configs.config import EsperConfig
from esper.configs.redaction import key_ids_of, secrets_of

__all__ = ["Finding", "examine"]

SECONDS = 20.0


def examine(config: EsperConfig, *, connect: bool = True, seconds: float = SECONDS) -> list[Finding]:
    """What is found where the configuration points, folder by folder and service by service.

    Services are asked at the same time; one that has not answered within `seconds` has failed. What is made to see
    whether it can be made is removed again.

    Args:
        config: The configuration; its sections are valid.
        connect: Whether to ask the services too.
        seconds: How long all of it may take.
    """
    found = [*files.examine(config), *run.examine(config)]
    if not connect:
        return found
    secrets, key_ids = secrets_of(config), key_ids_of(config)
    probes: list[Probe] = []
    if config.database is not None:
        probes.append(Probe("database", database.examine, config.database))
    if config.redis is not None:
        probes.append(Probe("redis", partial(cache.examine, prefix=config.oona_settings().prefix), config.redis))
    if config.storage is not None:
        probes.append(Probe("storage", storage.examine, config.storage))
    if not probes:
        return found
    with ThreadPoolExecutor(len(probes)) as pool:
        answers = pool.map(lambda probe: within(probe, seconds, secrets, key_ids), probes)
        return [*found, *(finding for answer in answers for finding in answer)]
