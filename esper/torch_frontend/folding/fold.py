"""Kernels merged into the layers beside which they grew, where that is exact algebra.

With h what the layer gives and k what a kernel gives, both affine in what the layer reads, h + a k and h + a (k - h)
are one layer of the same kind. A kernel that is fed h scales, shifts or mixes what the layer gives. Hidden units beside
a block of two layers become units of the block. Sums are taken in float64 and rounded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from esper.torch_frontend.folding import blocks, kernels
from esper.torch_frontend.folding.affine import Affine, Norm, Pointwise, is_plain, read, takes_shift, write
from esper.torch_frontend.folding.blocks import Hidden
from esper.torch_frontend.grown import Branch, beside

SUMS = ("add", "lerp")
"""Blends that are sums of what the layer and the kernel give."""


_SCALES = (0.01, 1.0, 100.0, 10_000.0)
_EXACT = 1e-9
"""What float64 leaves between two ways to compute the same."""


class Unfoldable(Exception):
    """Why something stays a submodule."""


@dataclass
class _Sum:
    """A layer and what was merged into it.

    Attributes:
        own: The layer, as it was.
        now: The layer with what was merged.
        hidden: Units for the block that it ends.
    """

    own: Affine
    now: Affine
    hidden: list[Hidden] = field(default_factory=list)

    def join(self, branch: Branch, made: Affine | Hidden) -> None:
        """Adds what a branch gives."""
        kept = 1 - branch.alpha if branch.blend == "lerp" else 1.0
        self.now, self.hidden = self.now.times(kept), [units.times(kept) for units in self.hidden]
        if isinstance(made, Hidden):
            self.hidden.append(made.times(branch.alpha))
        else:
            self.now = self.now.plus(made.times(branch.alpha))


def fold(
    module: nn.Module,
    name: str,
    branches: Sequence[Branch],
    input: Sequence[int | str],
    read_elsewhere: Collection[int] = (),
) -> tuple[list[Branch], str]:
    """Merges branches into the layer `name`, whose parameters are replaced.

    Args:
        module: The whole module; layers within the layer have been folded, or have grown, before.
        name: The layer.
        branches: What grew beside it, in order.
        input: Shape of what the layer reads, symbolic sizes as text; empty if it is not known.
        read_elsewhere: Identities of parameters that others than their own layers read, as captures have shown.

    Returns:
        The branches that stay, in order, and why they do; "" if none does.
    """
    layer = module.get_submodule(name)
    if not input:
        return list(branches), "the layer has not been seen to run: call the model once"
    doubt = _doubt(layer, branches, input) if blocks.is_guess(layer) else ""
    return (list(branches), doubt) if doubt else _folded(module, layer, branches, read_elsewhere)


def _folded(
    module: nn.Module, layer: nn.Module, branches: Sequence[Branch], read_elsewhere: Collection[int]
) -> tuple[list[Branch], str]:
    last = blocks.tail(layer)
    try:
        own = _writable(module, layer, last)
        if any(id(parameter) in read_elsewhere for parameter in layer.parameters()):
            raise Unfoldable("others than the layer read its weights")
        total, left, why = _Sum(own, own), [], ""
        in_order = any(branch.blend != "add" for branch in branches)
        for branch in branches:
            try:
                if left and in_order:
                    raise Unfoldable(f"it joins after a kernel that stays, by {branch.blend}")
                total.join(branch, _made(branch, module, layer, last, own))
            except Unfoldable as reason:
                left, why = [*left, branch], why or str(reason)
        if any(branch.placement == "sequential" for branch in left):
            return list(branches), why  # it reads what the layer itself gives, which would not be there any more
        _write(layer, last, total, branches)
    except Unfoldable as reason:
        return list(branches), str(reason)
    return left, why


def _doubt(layer: nn.Module, branches: Sequence[Branch], input: Sequence[int | str]) -> str:
    """Why a block of one's own is not folded: tried on a copy, in float64, on random numbers; "" if it can be.

    Weights are drawn too, since a kernel that is zero shows nothing; inputs are small and large, for what saturates;
    and both modes are tried, dropout aside.
    """
    trial, grown = deepcopy(layer).double(), [deepcopy(branch).double() for branch in branches]
    draw = torch.Generator().manual_seed(0)
    whole = nn.ModuleList([trial, *grown])
    with torch.no_grad():
        for parameter in whole.parameters():
            fan = parameter.numel() / len(parameter) if parameter.dim() else 1.0
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) / fan**0.5)
    for part in whole.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
    sizes = [size if isinstance(size, int) else 2 for size in input]
    inputs = [scale * torch.randn(sizes, generator=draw, dtype=torch.float64) for scale in _SCALES]
    try:
        wanted = [_outputs(trial, grown, x) for x in inputs]
        left, why = _folded(trial, trial, grown, frozenset())
        found = [_outputs(trial, left, x) for x in inputs]
    except Exception as error:  # the user's own forward may raise anything
        return f"the block does not run by itself: {error}"
    if len(left) == len(grown):
        return why
    same = all(torch.allclose(a, b, _EXACT, _EXACT * float(b.abs().max())) for a, b in zip(found, wanted, strict=True))
    return "" if same else "the block does more than its two layers and the kernel's activation"


def _outputs(layer: nn.Module, branches: Sequence[Branch], x: torch.Tensor) -> torch.Tensor:
    """What a layer gives with its branches, in evaluation mode and in training mode."""
    with torch.no_grad():
        return torch.stack([beside(branches, x, layer.train(mode)(x)) for mode in (False, True)])


def fold_into_next(
    module: nn.Module, name: str, branches: Sequence[Branch], read_elsewhere: Collection[int] = ()
) -> bool:
    """Merges branches that are fed the layer's output into the layer that reads it; whether that could be done.

    The layer and its reader follow each other in an `nn.Sequential`.
    """
    parent, _, own = name.rpartition(".")
    row = module.get_submodule(parent)
    names = list(row._modules)
    if not name or not blocks.is_row(row) or own == names[-1]:
        return False
    layer, reader = row.get_submodule(own), row.get_submodule(names[names.index(own) + 1])
    if not is_plain(layer) or any(id(parameter) in read_elsewhere for parameter in reader.parameters()):
        return False
    map = _joint(branches)
    found = read(reader) if isinstance(reader, nn.Linear) or kernels.is_convolution(reader) else None
    if map is None or found is None or any(_uses(module)[id(each)] != 1 for each in (layer, reader)):
        return False
    if map.positions != kernels.positions(reader) or len(map.shift) != found.weight.shape[1] * found.groups:
        return False
    if _tied(module, reader) or (bool(map.shift.any()) and kernels.pads_zeros(reader)):
        return False
    fed = found.after(map)
    if fed.weight.numel() > found.weight.numel():
        return False
    write(reader, fed)
    return True


def _joint(branches: Sequence[Branch]) -> kernels.Pointwise | None:
    """Layer and branches as one map of the layer's output; None if they are none."""
    total: Pointwise | None = None
    for branch in branches:
        map = kernels.behind(branch.kernel) if branch.placement == "sequential" else None
        if map is None or branch.blend not in SUMS:
            return None
        if total is None:
            total = Pointwise(torch.ones_like(map.shift), torch.zeros_like(map.shift), map.positions)
        if total.positions != map.positions:
            return None
        total = total.weighed(1 - branch.alpha if branch.blend == "lerp" else 1.0, map, branch.alpha)
    return total


def _writable(module: nn.Module, layer: nn.Module, last: nn.Module) -> Affine:
    """The layer as arrays.

    Raises:
        Unfoldable: It is none that can be given others.
    """
    own = read(last)
    if own is None:
        raise Unfoldable(f"a {type(last).__name__} has no weights of its own to merge with")
    if _tied(module, last):
        raise Unfoldable("the layer shares its weights with others")
    if last is not layer and _uses(module)[id(last)] != 1:
        raise Unfoldable("the last layer of the block is used elsewhere too")
    return own


def _made(branch: Branch, module: nn.Module, layer: nn.Module, last: nn.Module, own: Affine) -> Affine | Hidden:
    """What a branch gives, in terms of what the layer reads."""
    kind = type(last).__name__
    if branch.blend not in SUMS:
        raise Unfoldable(f"the blend {branch.blend!r} is no sum")
    if branch.placement == "sequential":
        map = kernels.behind(branch.kernel)
        if map is None or not (isinstance(last, Norm) or map.positions == kernels.positions(last)):
            raise Unfoldable(f"the kernel is no linear map of what the {kind} gives")
        if isinstance(last, Norm) and not map.diagonal:
            raise Unfoldable(f"a {kind} has no place for a map that mixes features")
        if bool(map.shift.any()) and not takes_shift(last):
            raise Unfoldable(f"a {kind} adds nothing to what it gives, and the kernel does")
        return own.then(map)
    if layer is not last:
        units, parts = blocks.hidden(branch.kernel, layer), blocks.block(layer)
        if units is None or parts is None:
            raise Unfoldable("the kernel is no hidden units of the block")
        if _tied(module, parts[0]) or _uses(module)[id(parts[0])] != 1:
            raise Unfoldable("the first layer of the block is used elsewhere too")
        return units
    made = kernels.beside(branch.kernel, last)
    if made is None:
        raise Unfoldable(f"the kernel is no linear map of what the {kind} reads")
    return made


def _write(layer: nn.Module, last: nn.Module, total: _Sum, branches: Sequence[Branch]) -> None:
    """Gives the layer the sum."""
    held = total.own.weight.numel() + sum(p.numel() for branch in branches for p in branch.kernel.parameters())
    if total.now.weight.numel() > held:
        raise Unfoldable("the layer's groups would have to be joined, which takes more weights than layer and kernels")
    parts = blocks.block(layer)
    if total.hidden and parts is not None:
        total.now = blocks.widen(parts[0], total.now, total.hidden)
    if total.now is not total.own:
        write(last, total.now)


def _tied(module: nn.Module, layer: nn.Module) -> bool:
    """Whether another layer has one of this layer's parameters."""
    own = {id(parameter) for parameter in layer.parameters(recurse=False)}
    others = (each for each in module.modules() if each is not layer)
    return any(id(parameter) in own for each in others for parameter in each.parameters(recurse=False))


def _uses(module: nn.Module) -> Counter[int]:
    """How many places each submodule has."""
    return Counter(id(child) for each in module.modules() for child in each._modules.values() if child is not None)
