"""Arithmetic on sizes and Python numbers that capture leaves in the graph."""

from __future__ import annotations

import math
import operator

from esper.jax_backend.registry import lowers

for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge"):
    lowers(f"python.operator.{_name}")(getattr(operator, _name))
for _name in ("and_", "or_", "not_"):
    lowers(f"python.operator.{_name}")(getattr(operator, _name))
for _name in ("ceil", "floor", "trunc", "sqrt"):
    lowers(f"python.math.{_name}")(getattr(math, _name))
lowers("python.builtins.max")(max)
lowers("python.builtins.min")(min)
lowers("python.builtins.round")(round)


@lowers("aten.sym_size.int")
def sym_size(x, dim):
    """sym_size.int(Tensor self, int dim) -> SymInt"""
    return x.shape[dim]


@lowers("aten.sym_numel.default")
def sym_numel(x):
    """sym_numel(Tensor self) -> SymInt"""
    return math.prod(x.shape)
