"""The way back: a torch module from a skeleton, trained arrays, and what grew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from esper.errors import ArgumentError, EsperError
from esper.program import Growth, Program
from esper.torch_frontend.arrays import to_torch
from esper.torch_frontend.folding import fold, fold_into_next
from esper.torch_frontend.grown import Branch, grow
from esper.torch_frontend.skeleton import set_mode
from esper.torch_frontend.twins import twin_module

if TYPE_CHECKING:  # which makes its state of these functions
    from esper.torch_frontend.source import TorchSource


@dataclass
class Folding:
    """What became of the kernels that were to be merged into their layers.

    Attributes:
        merged: How many there are no more, by layer.
        kept: Why others are still there, by layer.
    """

    merged: dict[str, int] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def rebuild(source: TorchSource, arrays: Mapping[str, Any], into: nn.Module | None = None) -> nn.Module:
    """A module of the original class holding the values of `arrays`, in the mode of the original.

    Args:
        source: Where the model came from.
        arrays: Parameters and buffers by torch name; tied ones under their first name.
        into: An instance to write into; None: a new one.

    Raises:
        ArgumentError: `into` is not of that class, or has other parameters or buffers.
    """
    template = source.template()
    if into is not None:
        check_alike(into, template)
    module = template if into is None else into
    fill(module, {name: source.original(name, to_torch(array)) for name, array in arrays.items()})
    if into is None:
        set_mode(module, source.modes.get("", False), source.modes)
    return module


def put(
    module: nn.Module, growths: Sequence[Growth], *, merged: bool = False, programs: Sequence[Program] = ()
) -> Folding:
    """Puts every growth beside its layer, or merges it into the layer where that is exact algebra.

    Args:
        module: The module that the growths belong to.
        growths: The kernels that take part in the forward, ordered by layer and seed.
        merged: Whether to merge.
        programs: What has been captured of the module, by which is known who reads a layer's weights.
    """
    folding, by_layer = Folding(), defaultdict[str, list[Growth]](list)
    for growth in growths:
        by_layer[growth.layer].append(growth)
    elsewhere = _read_elsewhere(module, programs) if merged else set[int]()
    # From the last to the first: a layer may be merged into its parts and into its reader, which come after it.
    for layer in reversed([name for name, _ in module.named_modules() if name in by_layer]):
        branches, why = [_branch(growth, module.get_submodule(layer)) for growth in by_layer[layer]], ""
        left = branches
        if merged:
            left, why = fold(module, layer, branches, by_layer[layer][0].input, elsewhere)
            if len(left) == len(branches) and by_layer[layer][0].input:
                left = [] if fold_into_next(module, layer, branches, elsewhere) else left
        folding.merged[layer] = len(branches) - len(left)
        if left:
            folding.kept[layer] = why
        for branch in left:
            grow(module, layer, branch)
    return folding


def _read_elsewhere(module: nn.Module, programs: Sequence[Program]) -> set[int]:
    """Identities of parameters that a Program reads outside the layers that have them."""
    owners = defaultdict[int, set[str]](set)
    for path, part in module.named_modules(remove_duplicate=False):
        for parameter in part.parameters(recurse=False):
            owners[id(parameter)].add(path)
    named = {name: id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}
    found: set[int] = set()
    for program in programs:
        held = {spec.name: named[spec.target] for spec in program.inputs if spec.target in named}
        for node in program.nodes:
            own = (held[ref.name] for ref in node.refs() if ref.name in held)
            found |= {parameter for parameter in own if node.scope not in owners[parameter]}
    return found


def _branch(growth: Growth, layer: nn.Module) -> Branch:
    tensors = {name: to_torch(array) for name, array in growth.params.items()}
    if growth.twin is not None:
        kernel = twin_module(growth.twin, growth.blueprint, tensors)
    else:
        kernel = growth.source.template()
        fill(kernel, tensors)
    return Branch(kernel, growth.alpha, growth.placement, growth.blend, growth.seed).train(layer.training)


def check_alike(module: nn.Module, template: nn.Module) -> None:
    """Checks that the values of one module can be written into another.

    Raises:
        ArgumentError: They cannot; the message lists what differs.
    """
    if type(module) is not type(template):
        raise ArgumentError(f"into: a {type(module).__name__}, and the model was made of a {type(template).__name__}")
    theirs, ours = (
        {name: (tuple(t.shape), t.dtype) for name, t in _tensors(each).items()} for each in (module, template)
    )
    wrong = [
        f"{name}: {theirs.get(name, 'none')} for {ours.get(name, 'none')}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if wrong:
        raise ArgumentError(f"into: its parameters and buffers are not the model's: {'; '.join(wrong)}")


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes `tensors` into the module's parameters and buffers of the same names."""
    own = _tensors(module)
    lost = own.keys() - tensors.keys()
    if lost:
        raise EsperError(f"no values for {sorted(lost)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
