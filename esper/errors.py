"""The error tree of esper.

Every error inherits `EsperError` and the builtin a caller would expect, and carries its data as
attributes. Messages name the thing, the place in the user's model and the next move.
Nothing but the standard library may be imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class EsperError(Exception):
    """Root of everything esper raises on purpose."""


class ConfigError(EsperError, ValueError):
    """A configuration that cannot be used; `problems` lists every reason found."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class MissingVariableError(ConfigError):
    """`${VAR}` without a default names environment variables that are not set."""


class WrapError(EsperError, TypeError):
    """The object given to `wrap` is not a module esper can hold."""


class ArgumentError(EsperError, ValueError):
    """An argument out of its range."""


class RunFolderError(EsperError, FileNotFoundError):
    """A run folder that is not there, or lacks what a run writes."""


class RunFinishedError(EsperError, ValueError):
    """A run is to be gone on with that has come to its end."""


class WriteError(EsperError, OSError):
    """Files that cannot be written; the message says what to do, `problems` why each of them could not."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class MissingExtraError(EsperError, ImportError):
    """An optional package is needed that is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        self.what, self.package, self.extra = what, package, extra
        super().__init__(f'{what} needs the package {package}: pip install "esper[{extra}]"')


class TargetError(EsperError, ValueError):
    """`target_layers` matches nothing, or names something that is not a layer."""


class UnknownLayerError(EsperError, KeyError):
    """A layer name that the model does not have."""

    def __init__(self, name: object, known: Iterable[str]) -> None:
        self.name, self.known = name, tuple(known)
        listed = ", ".join(repr(layer) for layer in self.known) or "none: the model has no seeds"
        super().__init__(f"no KasminaLayer named {name!r}; the model's layers are: {listed}")

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class UnknownBlueprintError(EsperError, KeyError):
    """A blueprint name that is not registered, or not for this kind of layer."""

    def __str__(self) -> str:
        return str(self.args[0])


class SeedError(EsperError, ValueError):
    """A growth verb was asked for something the seed cannot do."""


class IllegalTransitionError(SeedError):
    """A lifecycle move that the table does not allow."""

    def __init__(self, source: str, target: str, legal: Iterable[str], place: str = "") -> None:
        self.source, self.target, self.legal = source, target, tuple(legal)
        moves = ", ".join(self.legal) if self.legal else "none: it is terminal"
        where = f"{place}: " if place else ""
        super().__init__(f"{where}a seed cannot go from {source} to {target}; from {source} it can go to: {moves}")


class ArtifactError(SeedError):
    """A stored kernel that is not there, does not fit, or is not what its digest names."""


class LibraryError(EsperError, RuntimeError):
    """A kernel library that cannot be reached, read or written; the message says what to do, and no credentials."""


class NotInTorchError(EsperError, NotImplementedError):
    """Kernels that are written in Flax, where the model is to be a module of torch's.

    Attributes:
        kernels: Layer, seed and blueprint of each.
    """

    def __init__(self, kernels: Iterable[tuple[str, int, str]]) -> None:
        self.kernels = tuple(kernels)
        rows = "\n".join(f"  layer {layer!r}, seed {seed}: blueprint {name!r}" for layer, seed, name in self.kernels)
        super().__init__(
            f"kernels that take part in the forward are written in Flax, and torch cannot run them:\n{rows}\n"
            "Take them out first (esper.cull, or esper.unload_kernel, which keeps them; one that is FOSSILIZED stays), "
            "or register their blueprints with a twin in torch, flax_blueprint(..., torch=...): esper.unwrap makes a "
            "module of that, which has a state_dict and can be wrapped again, for esper.torch_module too."
        )


class StateError(EsperError, RuntimeError):
    """A checkpoint that does not match the model, or cannot be read."""


class CorruptFileError(StateError):
    """A file that is not what was written, or is none of esper's; nothing of it has been used."""


class EventError(EsperError, ValueError):
    """A line that is no telemetry event, or of a schema that this version does not read."""


class TelemetryError(EsperError, OSError):
    """A place of telemetry that cannot be written to or read; the message says what to do. Training goes on."""


class ChannelError(EsperError, ConnectionError):
    """A channel between a run and its controller that does not work now."""


class MessageError(EsperError, ValueError):
    """A message between a run and its controller that is not heeded.

    Attributes:
        kind: In a word, what is wrong with it, such as "signature".
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {message}")


class ShardingError(EsperError, ValueError):
    """Rules, a mesh or a batch that do not go together; `problems` lists every reason found."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class OptimizerStateError(EsperError, TypeError):
    """An optimiser state that cannot be migrated without more information."""


class TraceError(EsperError, RuntimeError):
    """The module could not be captured as a Program."""


class RefusedError(TraceError):
    """The module does something whose meaning a capture would lose; it is refused instead."""


class ExportError(EsperError, ValueError):
    """A forward that cannot be written as one artifact."""


class ProgramError(EsperError, ValueError):
    """A Program that is not well formed, or a file that does not hold one."""


class SignatureError(EsperError, TypeError):
    """Inputs that do not fit what the model takes."""


class DTypeError(EsperError, TypeError):
    """An array whose dtype cannot be carried."""


class PrecisionError(EsperError, OverflowError):
    """A 64-bit value that does not fit while JAX's 64-bit mode is off."""


class MissingKeyError(EsperError, TypeError):
    """The forward draws random numbers and no `key` was given."""


class ParityError(EsperError, ArithmeticError):
    """The unwrapped module and the wrapped model disagree beyond the stated tolerance."""


@dataclass(frozen=True)
class OpSite:
    """Where an operator stands in the user's model."""

    op: str
    scope: str
    source: str


class UnsupportedOpError(EsperError, NotImplementedError):
    """Operators without a lowering, all of them, each with its place."""

    def __init__(self, sites: Sequence[OpSite]) -> None:
        self.sites = tuple(sites)
        ops = list(dict.fromkeys(site.op for site in self.sites))
        width = max(len(site.op) for site in self.sites)
        rows = [
            f"  {site.op:<{width}}  {site.scope or '(root)'}  ({site.source or 'no source line'})"
            for site in self.sites
        ]
        noun = "operator has" if len(ops) == 1 else "operators have"
        super().__init__(f"{len(ops)} {noun} no lowering:\n" + "\n".join(rows) + "\n" + "\n".join(_moves(ops)))


# Operators whose result has a size that depends on the values of their input.
_SIZED_BY_DATA = ("nonzero", "masked_select", "_unique", "unique", "bincount", "repeat_interleave", "argwhere")


def _moves(ops: Sequence[str]) -> list[str]:
    """What to do about operators without a lowering."""
    sized = [op for op in ops if op.split(".")[1].startswith(_SIZED_BY_DATA)]
    others = [op for op in ops if op not in sized]
    moves = []
    if sized:
        moves.append(
            f"The size of what {', '.join(sized)} gives depends on values, which a compiled program does not know "
            "beforehand: use torch.where, a mask or sums by scatter_add instead."
        )
    if others:
        moves.append(f'Register one with `esper.lowers("{others[0]}")`, or rewrite that part of the model.')
    return moves
