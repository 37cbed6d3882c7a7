"""Composite operators while a capture is traced again: those that have a lowering stay whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._export import utils
from torch.export import exported_program

Decomposition = Callable[..., Any]


@contextmanager
def composites_kept(table: Mapping[Any, Decomposition]) -> Iterator[Mapping[Any, Decomposition]]:
    """While open, composite operators stay whole in a trace, or are taken apart by `table`; yields the rest of it."""
    with quick_tables():
        composites, rest = exported_program._split_decomp_table_to_cia_and_python_decomp(dict(table))
        with exported_program._override_composite_implicit_decomp(composites):
            yield rest


@contextmanager
def quick_tables() -> Iterator[None]:
    """While open, torch prepares its tables of composite operators for the devices that a capture has, not for all."""
    utils._materialize_cpp_cia_ops()  # once: torch does it again for every namespace
    keys = torch._C.DispatchKey
    with (
        patch.object(utils, "_materialize_cpp_cia_ops", lambda: None),
        patch.object(
            exported_program, "_AUTOGRAD_ALIAS_BACKEND_KEYS_TO_OVERRIDE", [keys.AutogradCPU, keys.AutogradMeta]
        ),
        patch.object(exported_program, "_BACKEND_KEYS_TO_OVERRIDE", [keys.CPU, keys.Meta]),
    ):
        yield
