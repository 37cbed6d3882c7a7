"""Whether a Program is well formed."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from esper.errors import ProgramError
from esper.program import sizes
from esper.program.graph import DType, Program, Ref

_INPUT_KINDS = ("param", "buffer", "constant", "user")
_OUTPUT_KINDS = ("user", "buffer", "param")
_LITERALS = (bool, int, float, complex, str, DType, Ref, Program, type(None))


def verify(program: Program) -> Program:
    """Returns the Program if it is well formed.

    Raises:
        ProgramError: Listing every defect: a value read before it is made, made twice, an unknown
            kind, a literal that is not plain data, a region in several pieces, an output structure that does not fit.
    """
    defects = _defects(program)
    if defects:
        raise ProgramError("the Program is not well formed:\n  " + "\n  ".join(defects))
    return program


def _defects(program: Program) -> list[str]:
    return [*_inputs(program), *_nodes(program), *_regions(program), *_outputs(program), *_guards(program)]


def _inputs(program: Program) -> list[str]:
    names = [spec.name for spec in program.inputs]
    defects = [f"input {name!r} is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
    return defects + [f"input {s.name!r} is of kind {s.kind!r}" for s in program.inputs if s.kind not in _INPUT_KINDS]


def _nodes(program: Program) -> list[str]:
    defects, known = [], {spec.name for spec in program.inputs}
    for node in program.nodes:
        defects += [f"{node.op} reads %{ref.name} before it is made" for ref in node.refs() if ref.name not in known]
        defects += [f"{node.op} makes %{name} again" for name in node.outputs if name in known]
        defects += [f"{node.op} has an argument that is not plain data: {v!r}" for v in _strange(node.args)]
        defects += [f"{node.op} has an argument that is not plain data: {v!r}" for v in _strange(node.kwargs)]
        for body in node.bodies():
            defects += [f"in a body of {node.op}: {defect}" for defect in _defects(body)]
        known.update(node.outputs)
    return defects


def _regions(program: Program) -> list[str]:
    runs = [region for region, _ in groupby(node.region for node in program.nodes) if region]
    return [f"region {region!r} is interrupted" for region in sorted({r for r in runs if runs.count(r) > 1})]


def _outputs(program: Program) -> list[str]:
    known = {spec.name for spec in program.inputs} | {name for node in program.nodes for name in node.outputs}
    held = {(spec.kind, spec.target) for spec in program.inputs}
    defects = []
    for spec in program.outputs:
        if spec.kind not in _OUTPUT_KINDS:
            defects.append(f"an output is of kind {spec.kind!r}")
        if isinstance(spec.value, Ref) and spec.value.name not in known:
            defects.append(f"output %{spec.value.name} is never made")
        if spec.kind != "user" and (spec.kind, spec.target) not in held:
            defects.append(f"the updated {spec.kind} {spec.target!r} is not an input")
    returned = sum(spec.kind == "user" for spec in program.outputs)
    if returned != program.out_tree.leaves:
        defects.append(f"{returned} outputs for a structure of {program.out_tree.leaves} leaves")
    return defects


def _guards(program: Program) -> list[str]:
    defects = []
    for guard in program.guards:
        try:
            sizes.check(guard)
        except (ValueError, SyntaxError) as error:
            defects.append(str(error))
    return defects


def _strange(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return [found for item in value for found in _strange(item)]
    return [] if isinstance(value, _LITERALS) else [value]
