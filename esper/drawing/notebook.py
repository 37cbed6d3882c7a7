"""A drawing where a notebook shows it, and its text where a terminal does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from esper.drawing.amounts import counted, whole
from esper.drawing.markup import Markup, tag
from esper.drawing.network import gain, kernel_name, kernel_state, network, rows
from esper.drawing.states import patterns
from esper.drawing.style import css


@dataclass(frozen=True)
class Shown:
    """A network to look at: HTML in a notebook, a table of text everywhere else.

    Attributes:
        described: The network as `network.json` has it.
    """

    described: Mapping[str, Any]

    def _repr_html_(self) -> str:
        layers = self.described["layers"]
        name = "es-" + sha256(repr(self.described).encode()).hexdigest()[:10]
        style = tag("style", Markup(css() + ".esper{background:var(--es-paper);padding:12px;overflow-x:auto}"))
        return tag("div", style, patterns(), network(layers, 900, name=name), class_="esper")

    def __str__(self) -> str:
        grown = self.described.get("grown_parameters")  # files of earlier versions do not say
        beside = f", and {whole(grown)} grown" if grown else ""
        lines = [f"{self.described['name']}: {whole(self.described['parameters'])} parameters{beside}"]
        for row in rows(self.described["layers"]):
            work = "" if row.flops is None else f"{counted(row.flops)} FLOPs"
            lines.append(
                f"  {row.title:<28} {row.kind:<18} {row.shape:<24} {whole(row.parameters):>12}  {work}".rstrip()
            )
            for kernel in row.kernels:
                worth = f", gain {gain(kernel)}" if gain(kernel) else ""
                told = f"{whole(kernel['parameters'])} parameters, {kernel_state(kernel)}{worth}"
                lines.append(f"    + {kernel_name(kernel)}: {told}")
        return "\n".join(lines)

    __repr__ = __str__
