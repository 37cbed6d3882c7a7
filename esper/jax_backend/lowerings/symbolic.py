"""Arithmetic on sizes and Python numbers that capture leaves in the graph."""

from __future__ import annotations

import math
import operator

import jax.numpy as jnp

from esper.jax_backend.promotion import default_float
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

lowers("python.torch.sym_max")(max)
lowers("python.torch.sym_min")(min)
lowers("python.torch.sym_not")(operator.not_)


@lowers("python.torch.sym_float")
def sym_float(a):
    """torch.sym_float(a) -> float"""
    return float(a) if isinstance(a, int) else jnp.asarray(a, default_float())


@lowers("python.torch.sym_int")
def sym_int(a):
    """torch.sym_int(a) -> int"""
    return math.trunc(a)


@lowers("python.torch.sym_ite")
def sym_ite(b, t, f):
    """torch.sym_ite(b, t, f): `t` if `b`, else `f`"""
    return t if b else f


@lowers("aten.sym_size.int")
def sym_size(x, dim):
    """sym_size.int(Tensor self, int dim) -> SymInt"""
    return x.shape[dim]


@lowers("aten.sym_numel.default")
def sym_numel(x):
    """sym_numel(Tensor self) -> SymInt"""
    return math.prod(x.shape)
