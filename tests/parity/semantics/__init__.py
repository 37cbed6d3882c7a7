"""Program semantics: what a torch model may do besides calling operators, one small module a case."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from parity.case import Case
from parity.semantics import table


def cases() -> list[Case]:
    """Every case of the modules beside this one."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return table.cases()
