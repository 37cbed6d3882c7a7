"""What the instructions of a compiled program are, read from its text."""

from __future__ import annotations

import re
from dataclasses import dataclass

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_OPERAND = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_COMMENTS = re.compile(r"/\*.*?\*/|\{[\d,]*(?::[^}]*)?\}")
_DULL = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "broadcast", "fusion", "call"}


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        name: As traces have it.
        kind: Its operation; of fusions and calls those inside, the costly ones first.
        shape: Of its result.
        operands: Shapes of what it is given.
        origin: The JAX operation it comes from, with the scopes around it.
    """

    name: str
    kind: str
    shape: str
    operands: tuple[str, ...]
    origin: str

    @property
    def primitive(self) -> str:
        """The JAX primitive alone, and whether it belongs to the backward pass."""
        last = self.origin.rpartition("/")[2] or self.kind
        return f"{last} (backward)" if "transpose(" in self.origin else last

    @property
    def scope(self) -> str:
        """The origin without what every operation of a step has in common."""
        steps = [part for part in self.origin.split("/") if not part.startswith(("jit(", "jvp()", "transpose(jvp())"))]
        return "/".join(steps)


@dataclass(frozen=True)
class _Line:
    computation: str
    shape: str
    opcode: str
    rest: str


def instructions(text: str) -> dict[str, Instruction]:
    """The instructions of a program, as `Compiled.as_text` prints it, by name."""
    lines, computation = {}, ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            computation = header[1]
        elif found := _INSTRUCTION.match(line):
            name, shape, opcode, rest = found.groups()
            lines[name] = _Line(computation, _COMMENTS.sub("", shape), opcode, rest)
    inside: dict[str, list[str]] = {}
    for name, line in lines.items():
        inside.setdefault(line.computation, []).append(name)
    return {name: _instruction(name, line, lines, inside) for name, line in lines.items()}


def _instruction(name: str, line: _Line, lines: dict[str, _Line], inside: dict[str, list[str]]) -> Instruction:
    given = line.rest.partition("), ")[0]
    operands = tuple(lines[operand].shape for operand in _OPERAND.findall(given) if operand in lines)
    origin = _OP_NAME.search(line.rest)
    kind = _kind(line, lines, inside)
    return Instruction(name, kind, line.shape, operands, origin[1] if origin else "")


def _kind(line: _Line, lines: dict[str, _Line], inside: dict[str, list[str]]) -> str:
    called = _CALLED.search(line.rest)
    if called is None or line.opcode not in ("fusion", "call"):
        return line.opcode
    held = [_kind(lines[name], lines, inside) for name in inside.get(called[1], [])]
    parts = [part for kind in held for part in kind.split("+") if part not in _DULL]
    counts = {part: parts.count(part) for part in parts}
    costly = ("convolution", "dot", "reduce-window", "select-and-scatter", "scatter", "gather", "sort", "reduce")
    order = sorted(counts, key=lambda part: (part not in costly, -counts[part]))
    return "+".join(order[:4]) or line.opcode
