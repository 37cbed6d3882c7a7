"""Where code comes from: packages whose code counts by its version, and what code must not ask to be cached."""

from __future__ import annotations

import dis
import hashlib
import platform
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._decomp import decomposition_table
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_ESPER = Path(__file__).parent.parent
_ROOTS = tuple(
    str(Path(found).resolve()) + "/" for found in (Path(torch.__file__).parent, Path(np.__file__).parent, _ESPER)
)
_LIBRARY = tuple(str(Path(sysconfig.get_path(name)).resolve()) + "/" for name in ("stdlib", "platstdlib"))
_VOLATILE = frozenset(
    (
        "os",
        "posix",
        "sys",
        "random",
        "_random",
        "time",
        "datetime",
        "secrets",
        "uuid",
        "socket",
        "subprocess",
        "platform",
    )
)
_READS = frozenset(("open", "exec", "eval", "compile", "__import__", "globals", "locals", "input", "id", "hash"))
_CHANCE = frozenset(("initial_seed", "get_rng_state", "default_generator", "seed", "environ", "getenv"))


class Unknown(Exception):
    """Something whose behaviour a digest cannot tell."""


def is_known(value: Any) -> bool:
    """Whether a function, class or module is torch's, numpy's, esper's or Python's own."""
    if isinstance(value, types.FunctionType):
        return _is_known_file(value.__code__.co_filename)
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return _is_known_module(name)


def origin(value: Any) -> str:
    """The name of something known.

    Raises:
        Unknown: It asks for time, chance or the process's surroundings.
    """
    if value.__module__ and value.__module__.split(".")[0] in _VOLATILE:
        raise Unknown(f"{value.__module__}.{value.__qualname__}")
    return f"{value.__module__}.{value.__qualname__}"


@lru_cache(maxsize=4096)
def _is_known_file(path: str) -> bool:
    if path.startswith("<frozen "):
        return True
    found = str(Path(path).resolve()) if not path.startswith("<") else path
    ours = found.startswith(_LIBRARY) and "-packages/" not in found
    return ours or found.startswith(_ROOTS)


def _is_known_module(name: str | None) -> bool:
    module = sys.modules.get(name or "")
    if module is None:
        return False
    path = getattr(module, "__file__", None)
    if path is not None:
        return _is_known_file(path)
    root = str(name).split(".")[0]
    return root in sys.stdlib_module_names or root in ("torch", "numpy")


@lru_cache(maxsize=4096)
def names_of(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The globals, the attributes and the modules that code names, each sorted."""
    found: dict[str, set[str]] = {"global": set(), "import": set()}
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found["global"].add(step.argval)
        elif step.opname == "IMPORT_NAME":
            found["import"].add(step.argval)
    return tuple(sorted(found["global"])), tuple(sorted(set(code.co_names))), tuple(sorted(found["import"]))


def refuse_volatile(
    globals_: Iterable[str], attributes: Iterable[str], imports: Iterable[str], names: Mapping[str, Any]
) -> None:
    """Raises Unknown where code asks for time, chance or the process's surroundings."""
    modules = {names[name].__name__ for name in globals_ if isinstance(names.get(name), types.ModuleType)}
    asked = {name.split(".")[0] for name in (*modules, *imports)} & _VOLATILE
    read = {name for name in globals_ if name in _READS and name not in names}
    chance = _CHANCE.intersection(attributes)
    numpy_random = "numpy" in modules and "random" in attributes
    if asked or read or chance or numpy_random:
        raise Unknown(f"code that asks for {', '.join(sorted((*asked, *read, *chance))) or 'numpy.random'}")


def surroundings(supported: Callable[[str], bool]) -> list[Any]:
    """What every capture depends on: versions, the operators with lowerings, and how torch is set.

    Raises:
        Unknown: Something is set that looks at every operator or module.
    """
    hooks = torch.nn.modules.module
    if any((hooks._global_forward_hooks, hooks._global_forward_pre_hooks, hooks._global_backward_hooks)):
        raise Unknown("hooks on all modules")
    if _get_current_function_mode_stack() or _get_current_dispatch_mode_stack():
        raise Unknown("a mode that sees every function")
    autocast = [(torch.is_autocast_enabled(kind), str(torch.get_autocast_dtype(kind))) for kind in ("cpu", "cuda")]
    return [
        (_own_code(), str(torch.__version__), str(torch.version.git_version), str(np.__version__)),
        (sys.version, platform.machine(), sys.flags.optimize),
        _operators(supported),
        (str(torch.get_default_dtype()), str(torch.get_default_device()), torch.cuda.is_available()),
        (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.is_inference_mode_enabled()),
        autocast,
    ]


@cache
def _own_code() -> str:
    """A hash of esper's files that a capture runs."""
    found = hashlib.blake2b(digest_size=16)
    for folder in ("torch_frontend", "program"):
        for path in sorted((_ESPER / folder).rglob("*.py")):
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def _operators(supported: Callable[[str], bool]) -> str:
    """A hash of the operators there are, of those with a lowering, and of the decompositions."""
    found = hashlib.blake2b(digest_size=16)
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        space, _, rest = name.partition("::")
        op, _, overload = rest.partition(".")
        known = supported(f"{space}.{op}.{overload or 'default'}")
        found.update(f"{name} {known}\n".encode())
    for op, rule in sorted(decomposition_table.items(), key=lambda item: str(item[0])):
        found.update(f"{op} {rule.__module__} {getattr(rule, '__qualname__', '')}\n".encode())
    return found.hexdigest()
