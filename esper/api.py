"""Floor 5: `wrap` and `unwrap`, the only place where the torch half and the JAX half meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from esper.certify import Certificate, certificate, check_twins
from esper.errors import ArgumentError, ParityError, WrapError
from esper.growth.reserve import Reserve, reserved
from esper.jax_backend.cache import KernelCache
from esper.jax_backend.interchange import adopt, constants, wide
from esper.jax_backend.loading import check_library
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.registry import is_lowered
from esper.jax_backend.remat import NOTHING, Remat
from esper.jax_backend.seeds import SeedState
from esper.jax_backend.source import Structure
from esper.jax_backend.state import host_arrays, live_growths

if TYPE_CHECKING:
    from torch import nn

    from esper.library import Library
    from esper.torch_frontend.targets import Target


def wrap(
    module: nn.Module,
    target_layers: Sequence[Target] | Target | None = None,
    seeds_per_layer: int = 4,
    cache_size_mb: int = 128,
    *,
    example_inputs: Any = None,
    reserve: Reserve | None = None,
    remat: Sequence[Target] | Target | bool = False,
    remat_policy: str = NOTHING,
    share_blocks: bool = True,
    library: Library | None = None,
) -> MorphableModel:
    """A PyTorch module as an immutable JAX pytree whose forward is one XLA program.

    The module is neither held nor changed: parameters and buffers are copied. Programs are captured at the
    first call of each kind of input; a new batch size needs no new capture.

    Args:
        module: Any `torch.nn.Module` with dense parameters. If it is in training mode now, `train=True`
            keeps the mode of each submodule; otherwise `train=True` means `module.train()`.
        target_layers: The layers that can grow: types (subclasses match), names, globs, predicates of
            (name, module), or a mixture. None: every linear and convolution layer. []: none.
        seeds_per_layer: Growth slots of each of them, >= 0.
        cache_size_mb: Budget for trained kernels that are kept on the device, in MiB, >= 0; 0 keeps none.
        example_inputs: A tuple of arguments, a dict of keyword arguments, or one tensor: traces now, and
            reports everything that cannot be lowered now. Tensors that the forward takes from elsewhere than the
            module are then arguments of compiled programs; found while one is compiled, they are copied into it.
        reserve: Kernels whose arrays stand ready in dormant seeds, so that to germinate them is data only: by layer
            name, glob over names or kind of layer, a blueprint, a pair of a blueprint and its options, or a sequence
            of these, one for each seed. Recipes that need the layer's shapes need `example_inputs` too.
        remat: The blocks whose insides a backward computes again instead of keeping them, which takes time and saves
            memory: as `target_layers`, where a list of modules stands for its members. True: what is repeated in the
            model's lists and sequences.
        remat_policy: What of them is kept all the same, by its name in `jax.checkpoint_policies`: "nothing_saveable",
            "dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable".
        share_blocks: Whether calls of equal submodules, such as the layers of a transformer, are traced,
            differentiated and lowered once and not each for itself. No result depends on it but in the last bits.
        library: Where kernels are loaded from that the cache does not hold (`esper.library.open_library`). The model
            and all that it becomes refer to it; what is saved does not.

    Returns:
        The model, in the state of the module.

    Raises:
        WrapError: `module` is no module, or holds what cannot be copied.
        TargetError: An explicit target, or an entry of `reserve` or `remat`, matches nothing.
        ArgumentError: No `remat_policy` of that name; `library` is none that is open.
        PrecisionError: A 64-bit value that does not fit while JAX's 64-bit mode is off.

    Example:
        >>> import esper, torch
        >>> model = esper.wrap(torch.nn.Linear(3, 2))
        >>> model(torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """
    from esper.torch_frontend.arrays import say_narrowed
    from esper.torch_frontend.repeated import find_blocks
    from esper.torch_frontend.source import TorchSource
    from esper.torch_frontend.targets import describe, find_layers

    _check_arguments(module, seeds_per_layer, cache_size_mb)
    check_library(library)
    layers, again = find_layers(module, target_layers), Remat(frozenset(find_blocks(module, remat)), remat_policy)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    source = TorchSource(module, supported=is_lowered, layers=tuple(layers), wide=wide())
    arrays = {name: adopt(source, tensor, name) for name, tensor in tensors.items()}
    if not wide():
        say_narrowed(tensors)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    model = MorphableModel(
        params={"host": {name: arrays[name] for name in arrays if name in trained}, "kernels": {}},
        buffers={name: arrays[name] for name in arrays if name not in trained},
        seeds=SeedState.dormant(len(layers), seeds_per_layer),
        constants=dict(constants(source)),
        structure=Structure(
            source=source,
            sites=tuple(describe(name, layer) for name, layer in layers.items()),
            seeds_per_layer=seeds_per_layer,
            cache=KernelCache(cache_size_mb << 20),
            remat=again if again.blocks else None,
            share_blocks=share_blocks,
            library=library,
        ),
    )
    if example_inputs is not None:
        _trace_now(model, example_inputs)
        model = model.replace(constants=dict(constants(source)))
    return reserved(model, reserve) if reserve else model


def unwrap(
    model: MorphableModel, *, probe: Any = None, verify: bool = True, fold: bool = False, into: nn.Module | None = None
) -> nn.Module:
    """The model as a plain `torch.nn.Module`, trained, with everything that grew.

    Args:
        model: A wrapped model.
        probe: Inputs to compare on (as `example_inputs` of `wrap`); None draws random ones for each
            evaluation-mode Program captured so far.
        verify: Whether to compare the outputs at all; `esper.certificate` compares gradients too.
        fold: Whether kernels become part of the layers beside which they grew, where that is exact algebra: linear ones
            in linear layers, convolutions and embeddings, scales and shifts in those, in norms and in what reads the
            layer in an `nn.Sequential`, hidden units in blocks of two layers. A layer is left as it is if that would
            take more weights than layer and kernels have, if others read its weights too, if it is not all that torch's
            own class is, or if it has not been seen to run. Where folding changes the outputs, nothing is folded.
        into: An instance of the model's class to write into, whose mode stays as it is; None makes a new one. Layers
            that were folded have new parameters, which an optimiser of the old ones does not know.

    Returns:
        A module of the original class, with the original `state_dict` keys; kernels that take part in
        the forward (GRAFTING, ACTIVE, FOSSILIZED with alpha above 0) and are not folded are submodules `grown` of their
        layer. Kernels still TRAINING are no part of the model's function and are left out. The attribute
        `esper_certificate` holds what the comparison measured, as a plain dict; `esper_folding` how many kernels of
        each layer were merged, and why others were kept.

    Raises:
        ParityError: The two disagree beyond the tolerance of the dtype; `into` has been written to then. Or the twin
            in torch of a kernel that is written in Flax does something else than the kernel.
        NotInTorchError: A kernel that takes part is written in Flax, and has no twin in torch.
        WrapError: A layer that keeps its kernels has an attribute `grown` of its own.
        ArgumentError: `into` has other parameters or buffers than the model, or is of another class.

    Example:
        >>> import esper, jax, torch
        >>> model = esper.wrap(torch.nn.Linear(3, 2))
        >>> model, _ = esper.germinate(model, None, layer="", blueprint="low_rank", key=jax.random.key(0))
        >>> for state in (esper.SeedLifecycleState.GRAFTING, esper.SeedLifecycleState.ACTIVE):
        ...     model = esper.transition(model, layer="", seed=0, to=state)
        >>> esper.unwrap(model, fold=True)
        Linear(in_features=3, out_features=2, bias=True)
    """
    from esper.torch_frontend.rebuild import put, rebuild

    source: Any = model.structure.source
    growths = live_growths(model, twins=True)
    check_twins(growths)
    module = rebuild(source, host_arrays(model), into)
    folding = put(module, growths, merged=fold, programs=source.programs)
    if fold:
        object.__setattr__(module, "esper_folding", asdict(folding))
    found = certificate(model, module, probe, gradients=False) if verify else None
    if found is None:
        return module
    object.__setattr__(module, "esper_certificate", asdict(found))
    if found.holds:
        return module
    if fold and into is None and any(folding.merged.values()):
        return _unfolded(model, probe, folding.merged, found)
    raise ParityError(f"the unwrapped module disagrees with the model: {found}")


def _unfolded(model: MorphableModel, probe: Any, merged: dict[str, int], found: Certificate) -> nn.Module:
    """The module with its kernels beside their layers, where folding them changed what it does."""
    module = unwrap(model, probe=probe)
    reason = f"the module does other things with its layers than run them: folded, it is {found.max_abs:.2g} off"
    kept = {"merged": dict.fromkeys(merged, 0), "kept": dict.fromkeys(merged, reason)}
    object.__setattr__(module, "esper_folding", kept)
    return module


def _check_arguments(module: Any, seeds_per_layer: Any, cache_size_mb: Any) -> None:
    from torch import nn

    if isinstance(module, MorphableModel):
        raise WrapError("this model is wrapped already")
    if not isinstance(module, nn.Module):
        raise WrapError(f"wrap takes a torch.nn.Module instance, not {type(module).__name__}: {module!r:.80}")
    for name, value in (("seeds_per_layer", seeds_per_layer), ("cache_size_mb", cache_size_mb)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise WrapError(f"{name} is a whole number, not {value!r}")
        if value < 0:
            raise ArgumentError(f"{name} is at least 0, not {value}")


def _trace_now(model: MorphableModel, example_inputs: Any) -> None:
    from esper.jax_backend.call import arguments, prepare
    from esper.jax_backend.registry import check_lowered

    args, kwargs = arguments(example_inputs)
    check_lowered(prepare(model.structure.source, args, kwargs, train=False).program)
