"""Which modules of a model are its blocks: what `remat` means by names, types, or simply by True."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from torch import nn

from esper.errors import TargetError
from esper.torch_frontend.targets import Target, matching, present

_LISTS = (nn.ModuleList, nn.ModuleDict)  # they are never called: their members are


def find_blocks(module: nn.Module, targets: Sequence[Target] | Target | bool) -> tuple[str, ...]:
    """Dotted paths of the modules that are meant; of nested ones the outermost.

    Args:
        module: The user's module.
        targets: As for `find_layers`; a list of modules stands for its members. True: the members of lists and
            sequences that are of one class, twice or more, and made of modules themselves. False: none.

    Raises:
        TargetError: Nothing is meant.
    """
    named = dict(module.named_modules())
    if isinstance(targets, bool):
        chosen = _repeated(named) if targets else set()
        if targets and not chosen:
            raise TargetError(f"remat=True: no block is repeated, so name what is meant; {present(named.values())}")
    else:
        chosen = matching(named, targets, "remat")
    while lists := [name for name in chosen if isinstance(named[name], _LISTS)]:
        members = {_path(name, child) for name in lists for child, _ in named[name].named_children()}
        chosen = (chosen - set(lists)) | (members & named.keys())
    return tuple(name for name in named if name in chosen and not _within(name, chosen - {name}))


def _repeated(named: dict[str, nn.Module]) -> set[str]:
    found = set()
    for name, module in named.items():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            kinds = Counter(type(child) for child in module.children() if any(True for _ in child.children()))
            members = {_path(name, child): type(part) for child, part in module.named_children()}
            found |= {path for path, kind in members.items() if kinds[kind] > 1 and path in named}
    return found


def _path(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _within(name: str, others: Collection[str]) -> bool:
    return any(not other or name.startswith(f"{other}.") for other in others)
