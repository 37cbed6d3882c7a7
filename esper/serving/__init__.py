"""Floor 5: a model's forward as one artifact of `jax.export`, which serves with JAX alone. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal, get_args

import jax
from jax import export as jax_export

from esper.errors import ArgumentError, EsperError, ExportError, MissingExtraError, ShardingError, WrapError
from esper.jax_backend.interchange import is_traced
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.registry import check_lowered
from esper.serving.calls import choose
from esper.serving.files import write_whole
from esper.serving.forward import (
    Forward,
    capture_kernels,
    excluded_size,
    has_native,
    living,
    opened,
    state_of,
    takes_key,
    with_known_kernels,
)
from esper.serving.symbols import UnprovedError, names, prove, shapes

Parameters = Literal["inside", "argument"]
Sizes = Literal["symbolic", "fixed"]
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_ROUNDS = 8  # of constraints that lead to others


def export(
    model: MorphableModel,
    path: str | os.PathLike[str] | None = None,
    *,
    example_inputs: Any = None,
    parameters: Parameters = "inside",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    sizes: Sizes = "symbolic",
    constraints: Sequence[str] = (),
    train: bool = False,
    vjp: bool = False,
) -> jax_export.Exported:
    """The model's forward as one artifact, which runs with JAX alone: neither torch nor esper is needed.

    `jax.export.deserialize(open(path, "rb").read()).call(x)` gives what `model(x)` gives for arrays. Kernels that take
    part in the forward are part of it, with their alphas as they are. `exported.mlir_module()` is its StableHLO.

    Inputs are what the module's forward takes, by place and by name, in tuples, lists and dictionaries. What is no
    array (a flag, a number) is as in the example; None stands in its place, and as a keyword it is left out. Outputs
    are in tuples, lists and dictionaries too: dataclasses become dictionaries, namedtuples tuples, numbers and sizes
    arrays without dimensions. A forward that writes into buffers or parameters, as BatchNorm does in training mode,
    gives a pair: the outputs, and {torch name: array} of what it writes. A forward that draws takes `key=`, the raw
    data of a key (`jax.random.key_data`).

    Args:
        model: A wrapped model.
        path: Where the artifact is written: the bytes of `Exported.serialize`, all or nothing. None: nowhere.
        example_inputs: The call to export, as for `wrap`. None: the only kind of call captured so far in the mode.
        parameters: "inside": parameters and buffers are constants. "argument": they are the first argument, as
            `esper.serving.state_of` gives them.
        platforms: Which it is compiled for, of "cpu", "cuda", "rocm" and "tpu".
        sizes: "symbolic": those that the capture keeps open stay open, `batch` if it is one, from 1 upwards; what the
            capture assumes of them becomes constraints, which are checked for every batch. "fixed": those of the
            example.
        constraints: More constraints on open sizes, as `jax.export.symbolic_shape` takes them: "batch <= 64".
        train: Training mode.
        vjp: Whether the file holds the derivative too, so that what is loaded can be differentiated, once.

    Returns:
        The artifact.

    Raises:
        ExportError: The call is unclear, what the capture assumes of its sizes cannot be said in an artifact, an output
            is no array, jax.export refuses the forward, or the file cannot be written.
        ShardingError: The model lies on several devices.
        ArgumentError: `parameters`, `sizes` or `platforms` are none that there are.
        MissingExtraError: A file is asked for without the package flatbuffers.

    Example:
        >>> import esper, jax.numpy as jnp, torch
        >>> model = esper.wrap(torch.nn.Linear(3, 2))
        >>> artifact = esper.export(model, example_inputs=torch.ones(5, 3))
        >>> artifact.in_avals[0].str_short(), artifact.call(jnp.ones((7, 3))).shape
        ('float32[batch,3]', (7, 2))
    """
    _check(model, parameters, sizes, platforms, constraints)
    if path is not None and find_spec("flatbuffers") is None:
        raise MissingExtraError("writing an artifact", "flatbuffers", "serve")
    source = model.structure.source
    chosen = choose(source, example_inputs, train)
    if sizes == "symbolic":
        chosen = opened(source, chosen)
    check_lowered(chosen.program)
    model = living(model)
    capture_kernels(model, chosen, chosen.signature.shapes)
    forward = Forward(model, chosen, parameters == "inside", takes_key(model, chosen))
    if sizes == "symbolic" and chosen.symbols:
        exported = _for_all_sizes(forward, tuple(platforms), constraints)
    elif constraints:
        raise ExportError("constraints= are for symbolic sizes, and this call has none: every size is fixed")
    else:
        exported = _exported(forward, tuple(platforms), chosen.signature.shapes)
    if path is not None:
        write_whole(path, _serialized(exported, vjp))
    return exported


def _for_all_sizes(forward: Forward, platforms: tuple[str, ...], constraints: Sequence[str]) -> jax_export.Exported:
    """The artifact for all sizes that the capture covers: constraints are added until they prove what it assumes."""
    chosen, kept = forward.chosen, list(constraints)
    if has_native(forward.model):  # it may decide by `batch == 1`, which is False of a size that is not known
        kept += [f"{name} >= 2" for name in dict.fromkeys(names(chosen.program).values())]
    is_like_others = excluded_size(forward.model.structure.source, chosen)
    known = Forward(with_known_kernels(forward.model, chosen), chosen, forward.inside, forward.drawing)
    for _ in range(_ROUNDS):
        given = shapes(chosen.program, kept)
        try:
            prove(chosen.program, given, is_like_others)
            return _exported(known, platforms, given)
        except UnprovedError as error:
            new = [constraint for constraint in error.constraints if constraint not in kept]
            if not new:
                unproved = ", ".join(error.constraints) or "a kernel's capture for other sizes than the example's"
                break
            kept += new
    else:
        unproved = f"more than {', '.join(kept)}"
    raise ExportError(
        f"the capture assumes of its sizes what jax.export cannot prove ({unproved}): export it for one size "
        "(sizes='fixed'), or narrow the sizes with constraints="
    )


def _exported(forward: Forward, platforms: tuple[str, ...], shapes: Sequence[tuple[Any, ...]]) -> jax_export.Exported:
    args, kwargs = forward.specs(shapes)

    def run(*args: Any, **kwargs: Any) -> Any:  # of its own each time: what was traced before is not looked up
        return forward(*args, **kwargs)

    try:
        return jax_export.export(jax.jit(run), platforms=platforms)(*args, **kwargs)
    except (EsperError, UnprovedError):
        raise
    except jax.errors.InconclusiveDimensionOperation as error:
        raise ExportError(
            f"an operator needs to know more of the sizes: {_first_line(error)}. Export it for one size "
            "(sizes='fixed'), or narrow the sizes with constraints="
        ) from error
    except Exception as error:
        raise ExportError(
            f"jax.export refuses this forward for {', '.join(platforms)}: {_first_line(error)}. Operators that some "
            "platform lacks need fewer platforms=, those that need known sizes sizes='fixed'"
        ) from error


def _serialized(exported: jax_export.Exported, vjp: bool) -> bytes:
    try:
        return bytes(exported.serialize(vjp_order=int(vjp)))
    except EsperError:
        raise
    except Exception as error:
        what = "the artifact, with its derivative," if vjp else "the artifact"
        raise ExportError(f"{what} cannot be written: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _are(values: Any, known: Sequence[str]) -> bool:
    return isinstance(values, Sequence) and all(value in known for value in values)


def _check(model: Any, parameters: str, sizes: str, platforms: Any, constraints: Any) -> None:
    if not isinstance(model, MorphableModel):
        raise WrapError(f"export takes a wrapped model, not a {type(model).__name__}: use esper.wrap first")
    for name, value, known in (("parameters", parameters, Parameters), ("sizes", sizes, Sizes)):
        if value not in get_args(known):
            raise ArgumentError(f"{name} is one of {', '.join(map(repr, get_args(known)))}, not {value!r}")
    if isinstance(platforms, str) or not _are(platforms, _PLATFORMS) or not platforms:
        raise ArgumentError(f"platforms is a sequence of some of {', '.join(_PLATFORMS)}, not {platforms!r}")
    if isinstance(constraints, str) or not isinstance(constraints, Sequence):
        raise ArgumentError(f"constraints is a sequence of texts such as 'batch <= 64', not {constraints!r}")
    if not all(isinstance(constraint, str) for constraint in constraints):
        raise ArgumentError(f"constraints is a sequence of texts such as 'batch <= 64', not {constraints!r}")
    if model.structure.placement is not None:
        raise ShardingError(
            "an artifact is for one device, and this model is split over several: export the model before esper.shard"
        )
    if any(map(is_traced, jax.tree.leaves(model))):
        raise ExportError("the model is abstract, inside a JAX transformation: export it between steps")


__all__ = ["Parameters", "Sizes", "export", "state_of"]
