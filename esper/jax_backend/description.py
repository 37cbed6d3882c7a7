"""A model as plain data that JSON can hold: its layers in order, what they cost, and what grew beside them.

The run folder's `network.json` is this, and what `model.show()` draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import jax
import numpy as np

from esper.drawing.network import SCHEMA_VERSION
from esper.errors import EsperError
from esper.jax_backend.evaluate import evaluate
from esper.jax_backend.flops import flops, flops_by_scope
from esper.jax_backend.kernels import kernel_output
from esper.jax_backend.slots import reserved_kernels
from esper.jax_backend.source import Kernel
from esper.lifecycle import SeedLifecycleState
from esper.program import Program
from esper.program.outline import Part, module_types, outline
from esper.program.sizes import value

_BATCH = 2  # the least that captures for any batch cover

# Counting traces the whole forward, and a run that grows is described again and again with the same one.
_WORK: MutableMapping[Program, list[int | None]] = WeakKeyDictionary()

Gains = Mapping[tuple[str, int], tuple[float, float]]
"""Held-out gain of kernels and its standard error, by layer and seed."""


def description(model: Any, gains: Gains | None = None) -> dict[str, Any]:
    """The model as plain data.

    Args:
        model: A MorphableModel; of one that was never called the order, shapes and FLOPs of layers are not known.
        gains: What is known of the kernels' worth.

    Returns:
        "schema_version"; "name": the class of the wrapped module; "captured": whether a capture shows the forward;
        "parameters" of the host; "grown_parameters" of the kernels, without those in reserve; "layers" in order of
        the forward, FLOPs being those of a forward for one example.
    """
    program = _forward(model)
    types = module_types(model.structure.source.description)
    layers = _from_program(model, program, types) if program else _from_sites(model)
    named = _kernels(model, gains or {})
    met: set[str] = set()
    for layer in layers:  # of a layer that is called more than once, kernels are drawn beside the first call
        first = layer["name"] not in met
        layer["kernels"] = named.get(layer["name"], []) if layer["kasmina"] and first else []
        met |= {layer["name"]} if layer["kasmina"] else set()
    # Of a layer that is called within a branch or a loop the Program shows the branch or the loop alone.
    inside = [layer for layer in _from_sites(model) if layer["name"] not in met and layer["name"] in named]
    layers += [layer | {"reads": [], "kernels": named[layer["name"]]} for layer in inside]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": types[""],
        "captured": program is not None,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params["host"])),
        "grown_parameters": sum(
            kernel["parameters"] for kernels in named.values() for kernel in kernels if not kernel["reserved"]
        ),
        "seeds_per_layer": model.structure.seeds_per_layer,
        "layers": layers,
    }


def _forward(model: Any) -> Program | None:
    """The latest capture, of evaluation mode if there is one."""
    captured = model.structure.source.programs
    return next((p for p in reversed(captured) if not p.train), captured[-1] if captured else None)


def _from_program(model: Any, program: Program, types: Mapping[str, str]) -> list[dict[str, Any]]:
    sites = {site.name for site in model.structure.sites}
    parts = outline(program)
    work = _work(model, program, parts)
    seen: set[str] = set()
    layers = []
    for part, own in zip(parts, work, strict=True):
        is_site = part.name in sites and "graft" in part.ops
        layers.append(
            {
                "name": part.name,
                "type": _kind(part, types),
                "ops": list(_told(part.ops)),
                "input": list(part.input),
                "output": list(part.output),
                "parameters": sum(_size(model, name) for name in part.params if name not in seen),
                "flops": own,
                "kasmina": is_site,
                "reads": list(part.reads),
            }
        )
        seen |= set(part.params)
    return layers


def _from_sites(model: Any) -> list[dict[str, Any]]:
    """The layers that can grow, where no capture has shown the forward."""
    host = model.params["host"]
    return [
        {
            "name": site.name,
            "type": site.type,
            "ops": [],
            "input": [],
            "output": [],
            "parameters": sum(host[name].size for name in host if name.rpartition(".")[0] == site.name),
            "flops": None,
            "kasmina": True,
            "reads": [row - 1],
        }
        for row, site in enumerate(model.structure.sites)
    ]


def _kind(part: Part, types: Mapping[str, str]) -> str:
    """The class of a module that computes by itself; what a module computes between others that it holds."""
    prefix = f"{part.name}." if part.name else ""
    holds = any(name.startswith(prefix) for name in types if name != part.name)
    if part.name not in types or (holds and not (part.name and part.params)):
        return ", ".join(_told(part.ops))
    return types[part.name]


def _told(ops: Sequence[str]) -> tuple[str, ...]:
    """The operators that say something: not the marker of kernels."""
    return tuple(dict.fromkeys(op for op in ops if op != "graft"))


def _size(model: Any, name: str) -> int:
    return int(model.params["host"][name].size) if name in model.params["host"] else 0


# ---- work ---------------------------------------------------------------------------------------------------------


def _work(model: Any, program: Program, parts: Sequence[Part]) -> list[int | None]:
    """Floating-point operations of each part for one example; None where a call cannot be traced for its sizes."""
    found = _WORK.get(program)
    if found is None:
        found = _WORK[program] = _counted(model, program, parts)
    return found


def _counted(model: Any, program: Program, parts: Sequence[Part]) -> list[int | None]:
    sizes = _sizes(program)
    if sizes is None:
        return [None] * len(parts)
    shaped = partial(jax.tree.map, lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    inputs = [
        jax.ShapeDtypeStruct(_bound(spec.type.shape, sizes), jax.dtypes.canonicalize_dtype(spec.type.dtype))
        for spec in program.user_inputs
    ]
    run = partial(evaluate, program, share_blocks=False)
    constants = shaped({**model.late_constants(), **model.constants})
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        counted = flops_by_scope(
            lambda params, buffers, tensors, key, held: run(params, buffers, tensors, key, constants=held),
            *(shaped(model.params["host"]), shaped(model.buffers), inputs, key, constants),
        )
    except (EsperError, TypeError, ValueError):  # sizes beyond what the lowerings take: nothing is known of the work
        return [None] * len(parts)
    return [own // max(1, math.prod(sizes.values())) for own in _by_part(counted, parts)]


def _sizes(program: Program) -> dict[str, int] | None:
    """The batch, if it is all that is open; None: other sizes are open too."""
    firsts = {spec.type.shape[0] for spec in program.user_inputs if spec.type.shape}
    symbols = {dim for spec in program.user_inputs for dim in spec.type.shape if isinstance(dim, str)}
    if not symbols <= firsts or len(symbols) > 1 or any(not symbol.isidentifier() for symbol in symbols):
        return None
    return {symbol: max(_BATCH, program.ranges.get(symbol, (0, None))[0]) for symbol in symbols}


def _bound(shape: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(value(dim, sizes) if isinstance(dim, str) else dim for dim in shape)


def _by_part(counted: Sequence[tuple[str, int]], parts: Sequence[Part]) -> list[int]:
    """Work in order of the trace given to the parts, which are in the same order; some of them do none."""
    found, at = [0] * len(parts), 0
    for scope, own in counted:
        name = "" if scope == "root" else scope
        ahead = next((place for place in range(at, len(parts)) if parts[place].name == name), at)
        at = ahead
        found[at] += own
    return found


# ---- kernels ------------------------------------------------------------------------------------------------------


def _kernels(model: Any, gains: Gains) -> dict[str, list[dict[str, Any]]]:
    states, alphas = (np.asarray(field) for field in (model.seeds.lifecycle, model.seeds.alpha))
    waiting = reserved_kernels(model)
    found: dict[str, list[dict[str, Any]]] = {}
    for kernel in model.structure.kernels:
        at = model.structure.row(kernel.layer), kernel.seed
        plain = _kernel(model, kernel, gains) | {
            "state": SeedLifecycleState(int(states[at])).name,
            "alpha": float(alphas[at]),
            "reserved": kernel in waiting,
        }
        found.setdefault(kernel.layer, []).append(plain)
    return found


def _kernel(model: Any, kernel: Kernel, gains: Gains) -> dict[str, Any]:
    arrays = model.params["kernels"][kernel.layer][kernel.seed]
    site = model.structure.site(kernel.layer)
    one = jax.ShapeDtypeStruct(*site.fed(kernel.placement))
    mean, stderr = gains.get((kernel.layer, kernel.seed), (math.nan, math.nan))
    return {
        "seed": kernel.seed,
        "blueprint": kernel.blueprint,
        "options": {name: held for name, held in kernel.options if isinstance(held, str | int | float | bool)},
        "placement": kernel.placement,
        "blend": kernel.blend,
        "parameters": sum(int(array.size) for array in jax.tree.leaves(arrays)),
        "flops": flops(partial(kernel_output, kernel.source, train=False), arrays, one),
        "gain": _finite(mean),
        "gain_stderr": _finite(stderr),
    }


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def gains_of(found: Mapping[tuple[str, int], Any]) -> dict[tuple[str, int], tuple[float, float]]:
    """`Gain`s as this module takes them."""
    return {place: (gain.mean, gain.stderr) for place, gain in found.items()}
