"""Symbolic sizes: what a capture assumes of them as constraints of an artifact's, and whether that is all it assumes.

Everything that a capture assumes is proved from the constraints before a Program runs on symbolic sizes, and XLA checks
the constraints for each batch that the artifact meets. What cannot be said as a constraint, or proved, is refused.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import export as jax_export

from esper.errors import ExportError
from esper.program import Program
from esper.program.sizes import comparisons

_EQUAL = re.compile(r"size\((\d+), (\d+)\) == size\((\d+), (\d+)\)")
_STEP = re.compile(r"\s*mod\((\w+), *(\d+)\) *== *0\s*")
_MULTIPLE = re.compile(r"mod\((?:(\d+)\*)?([a-zA-Z_]\w*), (\d+)\)")
Shape = tuple[Any, ...]
Condition = tuple[Any, str, Any]
_MOVE = "export it for one size (sizes='fixed'), or narrow the sizes with constraints="
# What they give of a size that is not known yet would be False for some sizes and True for others.
_DECISIONS = ("python.operator.eq", "python.operator.ne", "python.operator.not_", "python.torch.sym_not")


class UnprovedError(Exception):
    """Constraints that a Program needs and that its sizes do not have yet."""

    def __init__(self, constraints: Sequence[str]) -> None:
        super().__init__(", ".join(constraints))
        self.constraints = tuple(constraints)


def names(program: Program) -> dict[str, str]:
    """The symbols of the user's tensors, and what the artifact calls them: one name for those that are to be equal.

    Raises:
        ExportError: A size is an expression of others.
    """
    found = dict.fromkeys(d for spec in program.user_inputs for d in spec.type.shape if isinstance(d, str))
    for symbol in found:
        if not symbol.isidentifier():
            raise ExportError(f"an input's size is {symbol}, which a symbolic size of jax.export cannot be; {_MOVE}")
    called = {symbol: symbol for symbol in found}
    for one, other in _equal(program):
        called = {symbol: called[one] if name == called[other] else name for symbol, name in called.items()}
    return dict.fromkeys(called, "batch") if len(set(called.values())) == 1 else called


def _equal(program: Program) -> Iterator[tuple[str, str]]:
    """Pairs of symbols of which the capture assumed that they are equal."""
    for guard in filter(None, map(_EQUAL.fullmatch, program.guards)):
        places = [int(number) for number in guard.groups()]
        one, other = (program.user_inputs[i].type.shape[d] for i, d in (places[:2], places[2:]))
        if isinstance(one, str) and isinstance(other, str):
            yield one, other


def shapes(program: Program, constraints: Sequence[str]) -> list[Shape]:
    """The shapes of the user's tensors, with sizes of one scope.

    A size that is to be a multiple, `mod(batch, 2) == 0`, is one: JAX can tell more of `2*batch_by_2`.

    Raises:
        ExportError: The constraints are none of jax.export's, or exclude every size.
    """
    called = names(program)
    steps = _steps(called.values(), constraints)
    multiples = {name: f"{step}*{name}_by_{step}" for name, step in steps.items()}
    others = [_replaced(text, multiples) for text in constraints if not _is_step(text, steps)]
    try:
        scope = jax_export.SymbolicScope(others)
        symbols = {
            symbol: jax_export.symbolic_shape(multiples.get(name, name), scope=scope)[0]
            for symbol, name in called.items()
        }
    except (ValueError, NotImplementedError) as error:
        raise ExportError(f"these constraints on sizes cannot be kept: {list(constraints)}: {error}") from error
    return [
        tuple(symbols[dim] if isinstance(dim, str) else dim for dim in spec.type.shape) for spec in program.user_inputs
    ]


def _steps(called: Iterable[str], constraints: Sequence[str]) -> dict[str, int]:
    """The numbers that sizes are multiples of, by the size's name."""
    known, steps = set(called), dict[str, int]()
    for found in filter(None, map(_STEP.fullmatch, constraints)):
        name, step = found[1], int(found[2])
        if name in known and step > 1:
            steps[name] = math.lcm(steps.get(name, 1), step)
    return steps


def _is_step(constraint: str, steps: Mapping[str, int]) -> bool:
    found = _STEP.fullmatch(constraint)
    return found is not None and found[1] in steps


def _replaced(constraint: str, multiples: Mapping[str, str]) -> str:
    for name, multiple in multiples.items():
        if re.search(rf"\b{name}\s*\^", constraint):
            raise ExportError(f"the constraint {constraint} has a power of {name}, which is the multiple {multiple}")
        constraint = re.sub(rf"\b{name}\b", multiple, constraint)
    return constraint


def prove(program: Program, given: Sequence[Shape], is_like_others: Callable[[str, int], bool]) -> None:
    """Proves all that a Program assumes of these sizes.

    Args:
        program: What is to run on them.
        given: The shapes of its tensors.
        is_like_others: Whether the Program holds for a size that it excludes: the symbol's name in the artifact, and
            the size.

    Raises:
        UnprovedError: More constraints are needed.
        ExportError: Something cannot be said as a constraint, or holds for no size.
    """
    decisions = [op for op in program.ops if op in _DECISIONS]
    if decisions:
        raise ExportError(f"the forward decides by its sizes ({', '.join(decisions)}); {_MOVE}")
    needed = list(dict.fromkeys(_needed(program, given, is_like_others)))
    if needed:  # what a size is a multiple of changes how the rest is said
        raise UnprovedError([text for text in needed if _STEP.fullmatch(text)] or needed)


def _needed(program: Program, given: Sequence[Shape], is_like_others: Callable[[str, int], bool]) -> Iterator[str]:
    for condition in _conditions(program, given):
        left, sign, right = condition
        if sign == "!=" and isinstance(right, int) and str(left).isidentifier() and is_like_others(str(left), right):
            continue
        if not _is_proved(condition):
            yield from _as_constraints(condition)


def _conditions(program: Program, given: Sequence[Shape]) -> Iterator[Condition]:
    bound = {
        symbol: size
        for spec, shape in zip(program.user_inputs, given, strict=True)
        for symbol, size in zip(spec.type.shape, shape, strict=True)
        if isinstance(symbol, str)
    }
    for symbol, (low, high) in program.ranges.items():
        if symbol in bound:
            yield bound[symbol], ">=", low
            if high is not None:
                yield bound[symbol], "<=", high
    for guard in program.guards:
        try:
            found = comparisons(guard, given)
        except (ValueError, TypeError, KeyError, jax.errors.InconclusiveDimensionOperation) as error:
            raise ExportError(f"the capture assumed {guard}, which jax.export cannot say; {_MOVE}") from error
        for left, sign, right in found:
            if not all(isinstance(side, int) or jax_export.is_symbolic_dim(side) for side in (left, right)):
                raise ExportError(f"the capture assumed {guard}, which jax.export cannot say; {_MOVE}")
            yield left, sign, right


def _is_proved(condition: Condition) -> bool:
    left, sign, right = condition
    match sign:
        case "==":
            return left == right or (_at_least(left, right) and _at_least(right, left))
        case "!=":
            return _at_least(left, right + 1) or _at_least(right, left + 1)
        case ">=":
            return _at_least(left, right)
        case ">":
            return _at_least(left, right + 1)
        case "<=":
            return _at_least(right, left)
        case _:
            return _at_least(right, left + 1)


def _divides_by_sizes(expression: str) -> bool:
    """Whether a divisor is no number: XLA's compiler ends the process where it computes such a size with divisor 0."""
    calls = [node for node in ast.walk(ast.parse(expression, mode="eval")) if isinstance(node, ast.Call)]
    return any(
        ast.unparse(call.func) in ("floordiv", "mod") and not isinstance(call.args[1], ast.Constant) for call in calls
    )


def _at_least(left: Any, right: Any) -> bool:
    try:
        return bool(left >= right)
    except jax.errors.InconclusiveDimensionOperation:
        return False


def _as_constraints(condition: Condition) -> list[str]:
    """The condition in jax.export's words."""
    left, sign, right = condition
    if isinstance(left, int) and isinstance(right, int):
        raise ExportError(f"the capture assumed {left} {sign} {right}, which holds for no size")
    if any(map(_divides_by_sizes, (str(left), str(right)))):
        raise ExportError(f"the capture assumed {left} {sign} {right}, which may divide by 0; {_MOVE}")
    match sign:
        case "==" if right == 0 and (found := _MULTIPLE.fullmatch(str(left))):
            factor, divisor = int(found[1] or 1), int(found[3])
            return [f"mod({found[2]}, {divisor // math.gcd(factor, divisor)}) == 0"]
        case "==":  # JAX would take a general equation for a rule to rewrite sizes by
            return [f"{left} >= {right}", f"{left} <= {right}"]
        case "!=" if _at_least(left, right):
            return [f"{left} >= {right + 1}"]
        case "!=" if _at_least(right, left):
            return [f"{left} <= {right - 1}"]
        case "!=":
            raise ExportError(f"the capture assumed {left} != {right}, in the midst of the sizes it allows; {_MOVE}")
        case ">":
            return [f"{left} >= {right + 1}"]
        case "<":
            return [f"{left} <= {right - 1}"]
        case _:
            return [f"{left} {sign} {right}"]
