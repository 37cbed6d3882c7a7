"""Floor 5: what esper makes of a module: its Programs, its layers, its operators."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from esper.api import wrap
from esper.errors import ArgumentError, OpSite
from esper.growth.plans import blueprint_for
from esper.jax_backend.call import prepare
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.registry import missing
from esper.program import LayerSite, Program
from esper.program.catalogue import blueprints_for

_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)?:(?P<dtype>\w+)|(?P<bare>\d+(?:x\d+)*)")

EXAMPLES = {"cnn": ("2x1x28x28:float32",), "mlp": ("2x64:float32",)}
"""Inputs of the hosts that come with esper."""


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        model: The wrapped model.
        programs: Its Programs by mode, "eval" and "train".
        missing: Every place where an operator has no lowering.
    """

    model: MorphableModel
    programs: dict[str, Program]
    missing: tuple[OpSite, ...]


def inspect(name: str, inputs: tuple[str, ...]) -> Inspection:
    """Captures a module in both modes; nothing is run.

    Args:
        name: "cnn", "mlp", or "package.module:factory".
        inputs: One for each argument of forward, "1x3x32x32:float32", or "mask=1x16:bool" for one by name.

    Raises:
        ArgumentError: No such host, or inputs that cannot be read.
        TraceError: The module cannot be captured for these inputs.
    """
    from esper.torch_frontend.hosts import load_host

    host = load_host(name)
    args, kwargs = example_call(inputs or EXAMPLES.get(name, ()))
    if not args and not kwargs:
        raise ArgumentError(
            f"say what {name} takes, such as --input 1x3x32x32:float32 for each argument of its forward"
        )
    model = wrap(host)
    source = model.structure.source
    programs = {mode: prepare(source, args, kwargs, train=mode == "train").program for mode in ("eval", "train")}
    return Inspection(model, programs, tuple(missing(programs.values())))


def blueprints(site: LayerSite) -> tuple[str, ...]:
    """The blueprints that fit a layer, the one that Tamiyo takes by itself first."""
    default = blueprint_for(site, None)
    return tuple(sorted(blueprints_for(site.kind), key=lambda name: name != default))


def example_call(inputs: tuple[str, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keyword arguments of zeros, from their descriptions.

    Raises:
        ArgumentError: A description that cannot be read.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in inputs:
        name, tensor = _example(text)
        if name:
            kwargs[name] = tensor
        else:
            args.append(tensor)
    return tuple(args), kwargs


def _example(text: str) -> tuple[str | None, Any]:
    from esper.torch_frontend.probe import zeros

    found = _INPUT.fullmatch(text)
    if found is None:
        raise ArgumentError(
            f"--input {text}: a shape and a dtype are expected, such as 1x3x32x32:float32 or mask=1x16:bool"
        )
    sizes = found["shape"] or found["bare"]
    shape = [int(size) for size in sizes.split("x")] if sizes else []
    try:
        return found["name"], zeros(shape, found["dtype"] or "float32")
    except ArgumentError as error:
        raise ArgumentError(f"--input {text}: {error}") from None
