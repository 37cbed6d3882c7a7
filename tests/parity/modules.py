"""PyTorch's own module database (`module_db`): every entry, each mode it knows, every sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from parity.case import Call, Case

# Their inputs come with random samples in float64, which eager torch takes with nothing else.
WIDE = frozenset(("nn.FractionalMaxPool2d", "nn.FractionalMaxPool3d"))


def cases() -> list[Case]:
    """One case for every entry and mode."""
    from torch.testing._internal.common_modules import module_db

    found = []
    for info in module_db:
        for train in (False, True):
            if train or info.train_and_eval_differ:
                found.append(Case(f"{info.name}{'' if train else ' (eval)'}", _build(info, train)))
    return found


def _build(info: Any, train: bool) -> Any:
    def build() -> list[Call]:
        dtype = torch.float64 if info.name in WIDE else torch.float32
        made = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=train)
        return [_call(info.module_cls, entry, train, info.name in WIDE) for entry in made]

    return build


def _call(cls: type[nn.Module], entry: Any, train: bool, wide: bool) -> Call:
    torch.manual_seed(0)
    init = entry.constructor_input
    module = cls(*init.args, **init.kwargs)
    drawn = train and any(
        "Dropout" in type(m).__name__ or isinstance(m, nn.RReLU) or getattr(m, "dropout", 0) for m in module.modules()
    )
    given = entry.forward_input
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        module(*given.args, **given.kwargs)  # which gives its parameters their shapes
    return Call(module, given.args, given.kwargs, train=train, drawn=drawn, wide=wide)
