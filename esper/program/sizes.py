"""Conditions on sizes, as text in Python's syntax, evaluated without `eval`."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
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


def check(condition: str) -> None:
    """Raises ValueError if `condition` is not arithmetic on sizes."""
    for node in ast.walk(ast.parse(condition, mode="eval")):
        if isinstance(node, ast.Call) and _call_name(node) not in (*_CALLS, "size"):
            raise ValueError(f"not a condition on sizes: {condition}")
        if isinstance(node, ast.operator | ast.cmpop | ast.unaryop) and type(node) not in (*_BINARY, *_UNARY):
            raise ValueError(f"not a condition on sizes: {condition}")


def _call_name(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _evaluate(node: ast.AST, shapes: Sequence[tuple[int, ...]]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.BinOp(left, op, right):
            return _BINARY[type(op)](_evaluate(left, shapes), _evaluate(right, shapes))
        case ast.UnaryOp(op, operand):
            return _UNARY[type(op)](_evaluate(operand, shapes))
        case ast.BoolOp(op, values):
            found = (_evaluate(value, shapes) for value in values)
            return all(found) if isinstance(op, ast.And) else any(found)
        case ast.Compare(left, ops, comparators):
            return _compare(_evaluate(left, shapes), ops, [_evaluate(c, shapes) for c in comparators])
        case ast.Call(_, args) if _call_name(node) == "size":
            tensor, dimension = (_evaluate(arg, shapes) for arg in args)
            return shapes[tensor][dimension]
        case ast.Call(_, args) if _call_name(node) in _CALLS:
            return _CALLS[_call_name(node)](*(_evaluate(arg, shapes) for arg in args))
    raise ValueError(f"not a condition on sizes: {ast.unparse(node)}")


def _compare(left: Any, ops: Sequence[ast.cmpop], rights: Sequence[Any]) -> bool:
    for op, right in zip(ops, rights, strict=True):
        if not _BINARY[type(op)](left, right):
            return False
        left = right
    return True
