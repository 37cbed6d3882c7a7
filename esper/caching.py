"""What the command keeps on disk between runs: captured Programs, and what XLA compiled."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "ESPER_CACHE_DIR"
_SHORTEST = 0.1  # seconds: what compiles sooner is not worth a file


@contextmanager
def caches() -> Iterator[None]:
    """While open, Programs and compiled programs are kept in `ESPER_CACHE_DIR`, or else in the user's cache folder.

    An empty variable switches both off; a compilation cache of JAX's that is set already stays what it is.
    """
    before = os.environ.get(VARIABLE)
    folder = before if before is not None else str(_users_folder())
    if not folder:
        yield
        return
    os.environ[VARIABLE] = folder
    try:
        with _compiled(Path(folder).expanduser() / f"xla-{_machine()}"):
            yield
    finally:
        if before is None:
            del os.environ[VARIABLE]


def _users_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "esper"


@contextmanager
def _compiled(folder: Path) -> Iterator[None]:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.jax_compilation_cache_dir is not None:  # pyright: ignore[reportAttributeAccessIssue]
        yield
        return
    shortest = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST)
    compilation_cache.reset_cache()  # JAX looks for a folder once
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", shortest)
        compilation_cache.reset_cache()


def _machine() -> str:
    """The kind of processor: code for one need not run on another that shares the folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        told = platform.processor()
    return hashlib.blake2b(f"{platform.machine()} {told}".encode(), digest_size=6).hexdigest()
