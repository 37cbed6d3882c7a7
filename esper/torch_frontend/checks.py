"""Branches on data that only check it: `if labels.max() >= classes: raise ...`, `assert (x > 0).all()`.

A compiled program cannot raise. A branch that does nothing else than raise or warn is taken the way that goes on,
and its place is noted; any other branch on data stays what it is, an error.
"""

from __future__ import annotations

import ast
import dis
import linecache
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from types import FrameType
from unittest.mock import patch

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

_TALKS = ("warn", "warning", "warning_once", "warning_advice", "info", "debug", "error", "print")
_DROPPED: ContextVar[dict[str, None] | None] = ContextVar("dropped", default=None)


@contextmanager
def unchecked() -> Iterator[dict[str, None]]:
    """While open, `goes_on` answers.

    Yields:
        Places of the user's own checks that were left out, in order.
    """
    dropped: dict[str, None] = {}
    token = _DROPPED.set(dropped)
    truth = torch.SymBool.__bool__

    def decide(self: torch.SymBool) -> bool:
        try:
            return truth(self)
        except GuardOnDataDependentSymNode:
            found = goes_on(sys._getframe(1))
            if found is None:
                raise
            return found

    try:
        with patch.object(torch.SymBool, "__bool__", decide):
            yield dropped
    finally:
        _DROPPED.reset(token)


def goes_on(frame: FrameType) -> bool | None:
    """The truth of the expression that `frame` is testing for which a check passes; None if it is no mere check."""
    dropped = _DROPPED.get()
    at = _position(frame)
    if dropped is None or at is None:
        return None
    wanted = _passing(frame.f_code.co_filename, at)
    if wanted is not None and "site-packages" not in frame.f_code.co_filename:
        dropped[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] = None
    return wanted


def _position(frame: FrameType) -> tuple[int, int, int, int] | None:
    """Line, column, last line and last column of the expression whose truth is asked for."""
    before: dis.Instruction | None = None
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset >= frame.f_lasti:
            # A jump has the place of its statement; what it tests was made just before.
            made = before if instruction.opname.startswith(("POP_JUMP", "JUMP_IF", "TO_BOOL")) else instruction
            return _place(made.positions) if made is not None else None
        before = instruction
    return None


def _place(at: dis.Positions | None) -> tuple[int, int, int, int] | None:
    if at is None or None in at:
        return None
    return at.lineno, at.col_offset, at.end_lineno, at.end_col_offset  # pyright: ignore[reportReturnType]


@lru_cache(maxsize=256)
def _passing(path: str, at: tuple[int, int, int, int]) -> bool | None:
    """What the expression at this position must be for the check around it to pass."""
    source = "".join(linecache.getlines(path))
    try:
        chain = _chain(ast.parse(source), at)
    except SyntaxError:
        return None
    if _is_caught(chain):
        return None
    wanted_of_test, turned = None, False
    for parent, child in zip(chain[1:], chain, strict=False):
        if isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.Not):
            turned = not turned
        elif isinstance(parent, ast.stmt):
            wanted_of_test = _wanted(parent, child)
            break
        elif not (isinstance(parent, ast.BoolOp) or _is_bool(parent)):
            return None
    return None if wanted_of_test is None else wanted_of_test != turned


def _is_caught(chain: list[ast.AST]) -> bool:
    """Whether the function itself handles what is raised there, so that raising is a way to go on."""
    within = takewhile(lambda node: not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda), chain)
    return any(isinstance(node, ast.Try) and node.handlers for node in within)


def _chain(tree: ast.AST, at: tuple[int, int, int, int]) -> list[ast.AST]:
    """The innermost node at this position and those around it, outwards."""
    around: list[ast.AST] = []
    node: ast.AST | None = tree
    while node is not None:
        around.append(node)
        node = next((child for child in ast.iter_child_nodes(node) if _holds(child, at)), None)
    exact = [place for place, held in enumerate(around) if _span(held) == at]
    return around[exact[-1] :: -1] if exact else []


def _span(node: ast.AST) -> tuple[int, int, int, int] | None:
    if not isinstance(node, ast.expr | ast.stmt):
        return None
    return node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0


def _holds(node: ast.AST, at: tuple[int, int, int, int]) -> bool:
    span = _span(node)
    return span is not None and span[:2] <= at[:2] and at[2:] <= span[2:]


def _is_bool(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "bool"


def _wanted(statement: ast.stmt, test: ast.AST) -> bool | None:
    """The outcome of `test` with which `statement` goes on; None if it does more than check."""
    if isinstance(statement, ast.Assert):
        return True if test is statement.test else None
    if not isinstance(statement, ast.If) or test is not statement.test:
        return None
    if _only_complains(statement.body):
        return False
    return True if statement.orelse and _only_complains(statement.orelse) else None


def _only_complains(body: list[ast.stmt]) -> bool:
    """Whether a branch raises, whatever it prepares for that, or does no more than warn."""
    return isinstance(body[-1], ast.Raise) or all(_talks(statement) for statement in body)


def _talks(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    called = statement.value.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name in _TALKS
