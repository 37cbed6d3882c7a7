"""Where the capacity went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esper.drawing.amounts import counted, whole
from esper.drawing.markup import Markup, tag
from esper.drawing.network import MOST_ROWS, gain, kernel_name, kernel_state, rows
from esper.drawing.network import network as draw
from esper.report.bounds import KERNELS
from esper.report.elements import Column, Place, chip, drawn, folded, section, table
from esper.report.read import RunData

_TALL = 24


def network(run: RunData, place: Place) -> Markup:
    """The section."""
    title = "Where the capacity went"
    if not run.network:
        return section(place, "network", title, lead="The run has not written network.json, which holds the network.")
    layers = run.network["layers"]
    if not layers:
        return section(place, "network", title, lead="The network has no layers that a capture has shown.")
    figure = drawn(
        place.id("drawing"),
        lambda width, own: draw(layers, width, name=own),
        tag("figcaption", _caption(run.network)),
        folded("The network as a table", _table(layers)),
        tall="The network's layers" if len(rows(layers)) > _TALL else "",
    )
    return section(place, "network", title, _kernels(layers), figure, lead=_lead(run))


def _lead(run: RunData) -> str:
    at = run.drawn_at
    when = "" if at is None else f"As it was at step {whole(at)}; what kernels gain is known when the run has ended. "
    return (
        f"{when}"
        "Layers in order of the forward. Bars are in proportion to parameters: grey for the host's own, "
        "coloured for kernels, each beside the layer that it grew in."
    )


def _caption(held: Mapping[str, Any]) -> str:
    count = len(held["layers"])
    less = (
        f" Of {whole(count)} layers, those beside which nothing grew are drawn together." if count > MOST_ROWS else ""
    )
    seen = "" if held.get("captured") else " No forward was captured, so only layers that can grow are known."
    return f"FLOPs are those of a forward for one example.{less}{seen}"


def _kernels(layers: list[Mapping[str, Any]]) -> Markup | None:
    held = [(str(layer.get("name") or "(root)"), kernel) for layer in layers for kernel in layer.get("kernels") or ()]
    if not held:
        return tag("p", "No kernel is in the network.", class_="note")
    body = [
        [
            f"{name}[{kernel.get('seed', 0)}]",
            kernel_name(kernel),
            chip(str(kernel.get("state", "")), kernel_state(kernel)),
            whole(int(kernel.get("parameters") or 0)),
            counted(kernel["flops"]) if isinstance(kernel.get("flops"), int) else "",
            gain(kernel),
        ]
        for name, kernel in held[:KERNELS]
    ]
    columns = [Column("seed"), Column("kernel"), Column("state"), Column("parameters", True), Column("FLOPs", True)]
    columns.append(Column("gain in validation loss", True))
    return table("Kernels in the network; a gain is what losing the kernel would cost", columns, body)


def _table(layers: list[Mapping[str, Any]]) -> Markup:
    body = [
        [
            row.title,
            row.kind,
            row.shape,
            whole(row.parameters),
            "" if row.flops is None else counted(row.flops),
            ", ".join(kernel_name(kernel) for kernel in row.kernels) or ("can grow" if row.grows else ""),
        ]
        for row in rows(layers)
    ]
    columns = [Column("layer"), Column("kind"), Column("shape"), Column("parameters", True), Column("FLOPs", True)]
    columns.append(Column("kernels"))
    return table("Layers in order of the forward", columns, body)
