"""What a failed capture says to the user: which module, which line, why, and what to do."""

from __future__ import annotations

import traceback
from types import TracebackType

from torch import nn

from esper.torch_frontend.places import user_line

# Words of torch's own errors, and the next move.
_ADVICE = (
    (
        ("data-dependent", "Cannot cast FakeTensor", "_local_scalar_dense", "is not tracked with proxy"),
        "A size or a branch depends on the values of a tensor, which a compiled program does not know beforehand: "
        "use torch.where, torch.cond or a mask of fixed size there.",
    ),
    (
        ("torch._C.Generator",),
        "A torch.Generator cannot be carried: draws come from the call's `key`.",
    ),
)


def explain(error: Exception, module: nn.Module) -> str:
    """One message for whatever torch.export raised while it captured `module`."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    line = user_line(text) or user_line("".join(traceback.format_tb(error.__traceback__)))
    place = " at ".join(part for part in (_running(error.__traceback__, module), line) if part)
    advice = next((advice for words, advice in _ADVICE if any(word in text for word in words)), "")
    return f"the module could not be captured{f' at {place}' if place else ''}: {first}" + (advice and f" {advice}")


def _running(trace: TracebackType | None, module: nn.Module) -> str:
    """The innermost submodule whose method was running, as "encoder.0 (Attention)"."""
    names = {id(sub): name for name, sub in module.named_modules()}
    found = ""
    for frame, _ in traceback.walk_tb(trace):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(id(owner)):
            found = f"{names[id(owner)]} ({type(owner).__name__})"
    return found
