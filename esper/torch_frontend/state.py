"""State that a forward changes: its buffers and parameters move on with the model, its Python attributes cannot."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace

from esper.errors import RefusedError
from esper.program import OutputSpec, Program, Ref


def settled(program: Program, changed: Mapping[str, int | float]) -> Program:
    """`program`, given what its forward changed of the module's Python attributes.

    Every call sees those as they were at wrapping. So a parameter that is written into only until a flag is set is
    written anew in every call, and must start from the same value each time: the write stays inside the call.

    Args:
        program: A capture.
        changed: Attributes that the forward changed, {dotted name: the value every call sees}.

    Raises:
        RefusedError: The forward initialises a parameter from its input, and notes that in an attribute.
    """
    writes = [spec for spec in program.outputs if spec.kind != "user"]
    told = [name for name, value in changed.items() if writes or not isinstance(value, bool)]
    written = [spec for spec in writes if spec.kind == "param"]
    if changed and written:
        _refuse_initialisation(program, written, changed)
        program = replace(program, outputs=tuple(spec for spec in program.outputs if spec.kind != "param"))
    if told:
        warnings.warn(
            f"the forward changes Python numbers or flags of the module ({', '.join(told)}): every call sees the "
            "value that they had at wrapping. Keep what changes in a buffer.",
            stacklevel=2,
        )
    return program


def _refuse_initialisation(program: Program, written: list[OutputSpec], changed: Mapping[str, int | float]) -> None:
    reached = {spec.name for spec in program.user_inputs}
    for node in program.nodes:
        if any(ref.name in reached for ref in node.refs()):
            reached.update(node.outputs)
    for spec in written:
        if isinstance(spec.value, Ref) and spec.value.name in reached:
            raise RefusedError(
                f"the forward writes into parameter {spec.target!r} from its input and changes {', '.join(changed)}, "
                "as layers do that initialise themselves at the first call: call the module once before wrapping it"
            )
