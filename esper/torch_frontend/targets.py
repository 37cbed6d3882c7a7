"""Which layers of a module are meant by `target_layers`, and what each of them is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import jit, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from esper.errors import TargetError
from esper.program import LayerSite
from esper.torch_frontend.translate import dtype_name

Target = type[nn.Module] | str | Callable[[str, nn.Module], bool]

DEFAULT: tuple[type[nn.Module], ...] = (nn.Linear, _ConvNd)
_SHOWN = 12  # names in an error
_GEOMETRY = (
    "in_features",
    "out_features",
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "output_padding",
    "padding_mode",
    "num_embeddings",
    "embedding_dim",
    "normalized_shape",
    "num_features",
    "num_channels",
    "embed_dim",
)


def find_layers(module: nn.Module, targets: Sequence[Target] | Target | None) -> dict[str, nn.Module]:
    """The layers that `targets` selects, by dotted path; shared modules once, under their first name.

    Args:
        module: The user's module; it may itself be a target, under the name "".
        targets: Types (subclasses match), names, globs over names, predicates of (name, module), or a
            mixture; None for every linear and convolution layer with torch's own forward; an empty sequence for none.

    Raises:
        TargetError: An explicit target matches nothing, or a script; the message lists the layer types present.
    """
    named = dict(module.named_modules())
    if targets is None:
        return {name: layer for name, layer in named.items() if _is_default(layer)}
    chosen = matching(named, targets, "target_layers")
    scripts = [name or "(root)" for name in chosen if isinstance(named[name], jit.ScriptModule)]
    if scripts:
        raise TargetError(
            f"target_layers: {', '.join(sorted(scripts))} is scripted, and a script has no place for seeds: "
            "leave it out, or put the module itself there"
        )
    return {name: layer for name, layer in named.items() if name in chosen}


def matching(named: Mapping[str, nn.Module], targets: Sequence[Target] | Target, option: str) -> set[str]:
    """The names that any target means.

    Args:
        named: The modules there are, by dotted path.
        targets: As for `find_layers`.
        option: What the user calls them, for errors.

    Raises:
        TargetError: A target matches nothing, or is none.
    """
    wanted = [targets] if isinstance(targets, type | str) or callable(targets) else list(targets)
    matched = [{name for name, layer in named.items() if _matches(target, name, layer, option)} for target in wanted]
    idle = [_show(target) for target, names in zip(wanted, matched, strict=True) if not names]
    if idle:
        raise TargetError(f"{option}: nothing matches {', '.join(idle)}; {present(named.values())}{_called(named)}")
    return set().union(*matched)


def present(modules: Iterable[nn.Module]) -> str:
    """What kinds of modules there are, for errors."""
    counts = Counter(type(module).__name__ for module in modules)
    return "the model has: " + ", ".join(f"{kind} ({n})" for kind, n in sorted(counts.items()))


def _called(named: Mapping[str, nn.Module]) -> str:
    names = [repr(name) for name in named if name]
    more = ", ..." if len(names) > _SHOWN else ""
    return f"; by name: {', '.join(names[:_SHOWN])}{more}" if names else ""


def describe(name: str, layer: nn.Module) -> LayerSite:
    """The layer as plain data."""
    base = next(cls for cls in type(layer).__mro__ if cls.__module__.startswith("torch.nn.modules"))
    first = next((tensor for tensor in layer.parameters() if tensor.is_floating_point()), None)
    attributes = tuple((key, _plain(getattr(layer, key))) for key in _GEOMETRY if hasattr(layer, key))
    return LayerSite(
        name=name,
        kind=base.__name__,
        type=type(layer).__name__,
        dtype="float32" if first is None else dtype_name(first.dtype),
        attributes=attributes,
    )


def _is_default(layer: nn.Module) -> bool:
    # MultiheadAttention reads the weight of its output projection without ever calling it; a forward of the
    # user's own (a router's, say) may take and return other things than one tensor.
    if not isinstance(layer, DEFAULT) or isinstance(layer, NonDynamicallyQuantizableLinear):
        return False
    return (type(layer).forward.__module__ or "").startswith("torch.nn.modules")


def _matches(target: Target, name: str, layer: nn.Module, option: str) -> bool:
    if isinstance(target, type):
        if not issubclass(target, nn.Module):
            raise TargetError(f"{option}: {target.__name__} is no nn.Module class")
        return isinstance(layer, target) and not (target in DEFAULT and not _is_default(layer))
    if isinstance(target, str):
        return name == target or fnmatchcase(name, target)
    if callable(target):
        return bool(target(name, layer))
    raise TargetError(f"{option}: {target!r} is neither a type, a name, a glob nor a predicate")


def _show(target: Target) -> str:
    return target.__name__ if isinstance(target, type) else repr(target)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
