"""The table of lowerings: one rule for each ATen operator, by its full overload name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeVar

from esper.errors import OpSite, UnsupportedOpError
from esper.program import Node, Program

Draws = bool | Callable[..., bool]
Rule = TypeVar("Rule", bound=Callable[..., Any])


@dataclass(frozen=True)
class Lowering:
    """A rule and what it needs besides the operator's own arguments.

    Attributes:
        rule: Takes ATen's arguments as JAX arrays, Python scalars and numpy dtypes; returns an array,
            or a tuple or list of arrays for operators that return several.
        draws: Whether the rule takes `key=`, a key of its own for each node; a function of the node's
            arguments decides for operators that draw only at times.
        grafts: Whether the rule takes `grafts=`, the kernels of the running model by layer name.
        bodies: Whether the operator's arguments hold Programs; the rule then takes `run=`, a function of a
            Program and its inputs, and `key=` where a body draws.
        takes_channel_axis: Whether the rule takes `channel_axis=`: -1 says that its first argument, and what it
            returns with as many dimensions, are (batch, *space, channels).
    """

    rule: Callable[..., Any]
    draws: Draws = False
    grafts: bool = False
    bodies: bool = False
    takes_channel_axis: bool = False

    def draws_at(self, node: Node) -> bool:
        """Whether the rule draws at this node."""
        if self.bodies:
            return any(draws(inner) for body in node.bodies() for inner in body.nodes)
        return self.draws(*node.args, **dict(node.kwargs)) if callable(self.draws) else self.draws


_TABLE: dict[str, Lowering] = {}


def lowers(*ops: str, draws: Draws = False, grafts: bool = False, bodies: bool = False) -> Callable[[Rule], Rule]:
    """Registers the decorated rule as the lowering of `ops`.

    Args:
        ops: Full overload names, such as "aten.add.Tensor".
        draws: The rule draws random numbers and takes `key=`; or a function of the operator's arguments
            that says when it does (it then takes no `key` otherwise).
        grafts: The rule takes `grafts=`.
        bodies: The rule takes `run=` (see `Lowering`).

    Raises:
        ValueError: A name without an overload, or one that has a lowering already.

    Example:
        >>> @lowers("mylib.double.default")
        ... def double(x):
        ...     return 2 * x
    """

    def register(rule: Rule) -> Rule:
        for op in ops:
            if op.count(".") != 2:
                raise ValueError(f"{op!r} is no full overload name such as 'aten.add.Tensor'")
            if op in _TABLE:
                raise ValueError(f"{op} has a lowering already: {_TABLE[op].rule.__module__}")
            _TABLE[op] = Lowering(rule, draws, grafts, bodies, _takes(rule, "channel_axis"))
        return rule

    return register


def _takes(rule: Callable[..., Any], name: str) -> bool:
    try:
        return name in signature(rule).parameters
    except ValueError:  # compiled functions, some of JAX's own among them, have no signature to read
        return False


def lowering(op: str) -> Lowering:
    """The lowering of `op`; KeyError if there is none."""
    return _TABLE[op]


def is_lowered(op: str) -> bool:
    """Whether `op` has a lowering."""
    return op in _TABLE


def draws(node: Node) -> bool:
    """Whether running `node` takes a random key."""
    return node.op in _TABLE and _TABLE[node.op].draws_at(node)


def may_draw(program: Program) -> bool:
    """Whether any operator of `program` draws at times; what every call asks, before anybody looks at each node."""
    return any(op in _TABLE and (_TABLE[op].draws or _TABLE[op].bodies) for op in program.ops)


def lowered_ops() -> tuple[str, ...]:
    """Every operator with a lowering, sorted."""
    return tuple(sorted(_TABLE))


def missing(programs: Iterable[Program]) -> list[OpSite]:
    """Every place where the Programs use an operator without a lowering."""
    sites = (
        OpSite(node.op, node.scope, node.source)
        for program in programs
        for node in program.walk()
        if node.op not in _TABLE
    )
    return list(dict.fromkeys(sites))


def check_lowered(program: Program) -> None:
    """Raises UnsupportedOpError listing every operator of `program` that has no lowering."""
    if program.ops.keys() - _TABLE.keys():
        raise UnsupportedOpError(missing([program]))
