"""Conditions on sizes, as text in Python's syntax, evaluated without `eval`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any


def _power(base: Any, exponent: Any) -> Any:
    """A power that a size can be: a file may hold any, and an exact power of a power of a power has no end."""
    if isinstance(base, int | float) and (abs(exponent) > 64 or abs(base) > 2**63):
        raise ValueError(f"{base} to the power {exponent} is no size")
    return base**exponent


_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_SIGNS: dict[type[ast.AST], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_UNARY: dict[type[ast.AST], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.Not: operator.not_}
_CALLS: dict[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "math.trunc": math.trunc,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
    "int": int,
}


def holds(condition: str, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether `condition` is true, `size(i, d)` being dimension d of `shapes[i]`.

    Raises:
        ValueError: The condition uses something else than arithmetic on sizes.
    """
    return bool(_evaluate(ast.parse(condition, mode="eval").body, shapes))


def value(expression: str, bound: Mapping[str, int]) -> int:
    """The size that an expression of symbols stands for, such as "2*s0".

    Raises:
        ValueError: It is no arithmetic on sizes, or of symbols that are not bound.
    """
    return int(_evaluate(ast.parse(expression, mode="eval").body, (), bound))


def comparisons(condition: str, shapes: Sequence[tuple[Any, ...]]) -> list[tuple[Any, str, Any]]:
    """The comparisons that all have to be true for `condition` to be: left side, operator, right side.

    Args:
        condition: As for `holds`.
        shapes: Sizes of any kind that does arithmetic.

    Raises:
        ValueError: The condition is no conjunction of comparisons.
    """
    return list(_comparisons(ast.parse(condition, mode="eval").body, shapes))


def _comparisons(node: ast.AST, shapes: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, str, Any]]:
    match node:
        case ast.BoolOp(ast.And(), values):
            for value in values:
                yield from _comparisons(value, shapes)
        case ast.Compare(left, ops, comparators):
            sides = [_evaluate(side, shapes) for side in (left, *comparators)]
            yield from zip(sides, [_SIGNS[type(op)] for op in ops], sides[1:], strict=False)
        case _:
            raise ValueError(f"no comparison of sizes: {ast.unparse(node)}")


def check(condition: str) -> None:
    """Raises ValueError if `condition` is not arithmetic on sizes."""
    for node in ast.walk(ast.parse(condition, mode="eval")):
        if isinstance(node, ast.Call) and _call_name(node) not in (*_CALLS, "size"):
            raise ValueError(f"not a condition on sizes: {condition}")
        if isinstance(node, ast.operator | ast.cmpop | ast.unaryop) and type(node) not in (*_BINARY, *_UNARY):
            raise ValueError(f"not a condition on sizes: {condition}")


def _call_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _evaluate(node: ast.AST, shapes: Sequence[tuple[int, ...]], bound: Mapping[str, int] | None = None) -> Any:
    def of(part: ast.AST) -> Any:
        return _evaluate(part, shapes, bound)

    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.Name(name) if bound and name in bound:
            return bound[name]
        case ast.BinOp(left, op, right):
            return _BINARY[type(op)](of(left), of(right))
        case ast.UnaryOp(op, operand):
            return _UNARY[type(op)](of(operand))
        case ast.BoolOp(op, values):
            found = (of(value) for value in values)
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.Compare(left, ops, comparators):
            return _compare(of(left), ops, [of(c) for c in comparators])
        case ast.Call(_, args) if _call_name(node) == "size":
            tensor, dimension = (of(arg) for arg in args)
            return shapes[tensor][dimension]
        case ast.Call(_, args) if _call_name(node) in _CALLS:
            return _CALLS[_call_name(node)](*(of(arg) for arg in args))
    raise ValueError(f"not a condition on sizes: {ast.unparse(node)}")


def _compare(left: Any, ops: Sequence[ast.cmpop], rights: Sequence[Any]) -> bool:
    for op, right in zip(ops, rights, strict=True):
        if not _BINARY[type(op)](left, right):
            return False
        left = right
    return True
