"""Where a network's capacity lies: its layers in order of the forward, what grew beside each, all in proportion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esper.drawing.amounts import counted, signed, sized, whole
from esper.drawing.curves import drawing
from esper.drawing.markup import Markup, join, tag
from esper.drawing.states import area, look

SCHEMA_VERSION = 1
"""Of `network.json`. Readers take what they know of files with the same number, and refuse others."""

MOST_ROWS = 80
"""Layers drawn one by one; of more, those beside which nothing grew are drawn together."""

MOST_KERNELS = 4
"""Kernels of a line that are drawn one by one."""

MOST_ARCS = 240
"""Connections over other layers that are drawn."""


@dataclass(frozen=True)
class Row:
    """A line of the drawing: a layer, or several together.

    Attributes:
        title: Its name.
        kind: What it is.
        shape: What it makes of what.
        parameters: Of the host.
        flops: Of the host's forward for one example; None: not known.
        kernels: What grew there.
        grows: Whether it can.
        reads: The rows it reads; -1: what the caller gave.
    """

    title: str
    kind: str
    shape: str
    parameters: int
    flops: int | None
    kernels: tuple[Mapping[str, Any], ...]
    grows: bool
    reads: tuple[int, ...]


@dataclass(frozen=True)
class _Place:
    """Where things lie: wide paper has bars beside the cards, narrow paper has them in the cards."""

    width: float
    rail: float
    card: float
    card_width: float
    bars: float
    bars_width: float
    narrow: bool


def rows(layers: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The lines of the drawing of a network's layers."""
    groups = _grouped(layers)
    of = {place: number for number, group in enumerate(groups) for place in group}
    made = []
    for number, group in enumerate(groups):
        reads = {of.get(at, -1) for place in group for at in layers[place].get("reads", ())}
        made.append(_row([layers[place] for place in group], tuple(sorted(reads - {number}))))
    return made


def network(layers: Sequence[Mapping[str, Any]], width: float, *, name: str) -> Markup:
    """The network as SVG.

    Args:
        layers: As `network.json` has them.
        width: Of the paper.
        name: Unique in the page.
    """
    lines, at = rows(layers), _place(width)
    largest = max([1, *(row.parameters + sum(_parameters(k) for k in row.kernels) for row in lines)])
    tops, top = [], 22.0
    for row in lines:
        tops.append(top)
        top += _height(row, at) + 10
    inner = [_rail(lines, tops, at, top), *_skips(lines, tops, at)]
    inner += [_layer(row, place, at, largest) for row, place in zip(lines, tops, strict=True)]
    inner.append(tag("text", "input", x=at.card, y=12, class_="es-small"))
    inner.append(tag("text", "output", x=at.card, y=top + 12, class_="es-small"))
    about = " ".join(told(row) for row in lines[:60]) + (" And more." if len(lines) > 60 else "")
    return drawing(inner, width, top + 20, name=name, title="Where the network's capacity lies", about=about)


def told(row: Row) -> str:
    """A line of the drawing in a sentence."""
    own = f"{row.title}, {row.kind}, {whole(row.parameters)} parameters"
    grown = [f"{kernel_name(k)} with {whole(_parameters(k))} parameters, {kernel_state(k)}" for k in _drawn(row)]
    return f"{own}; beside it {'; '.join(grown)}." if grown else f"{own}."


def kernel_name(kernel: Mapping[str, Any]) -> str:
    """A kernel's recipe, such as "mlp(width=16)"."""
    options = ", ".join(f"{name}={value}" for name, value in dict(kernel.get("options") or {}).items())
    return f"{kernel.get('blueprint', '?')}({options})" if "options" in kernel else str(kernel.get("blueprint", "?"))


def kernel_state(kernel: Mapping[str, Any]) -> str:
    """Its state, and how far it is blended in while that is not all or nothing."""
    if kernel.get("reserved"):
        return "reserved"
    alpha, state = kernel.get("alpha"), look(str(kernel.get("state", ""))).label
    partly = isinstance(alpha, int | float) and 0 < alpha < 1
    return f"{state}, alpha {alpha:.2f}" if partly else state


def gain(kernel: Mapping[str, Any]) -> str:
    """What it is worth; empty: not measured."""
    mean, stderr = kernel.get("gain"), kernel.get("gain_stderr")
    if not isinstance(mean, int | float):
        return ""
    return f"{signed(mean)} ± {stderr:.2g}" if isinstance(stderr, int | float) else signed(mean)


# ---- rows ---------------------------------------------------------------------------------------------------------


def _grouped(layers: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Places of the layers of each line."""
    if len(layers) <= MOST_ROWS:
        return [[place] for place in range(len(layers))]
    kept = [place for place, layer in enumerate(layers) if layer.get("kernels")]
    alone, groups = set(kept[:MOST_ROWS]), []
    # What remains is cut into stretches, so that the drawing has about as many lines whatever the network.
    longest = max(3, len(layers) // MOST_ROWS)
    for place in range(len(layers)):
        joins = groups and place not in alone and groups[-1][-1] not in alone and len(groups[-1]) < longest
        groups[-1].append(place) if joins else groups.append([place])
    return groups


def _row(layers: Sequence[Mapping[str, Any]], reads: tuple[int, ...]) -> Row:
    first, last = layers[0], layers[-1]
    name, known = str(first.get("name") or ""), [layer.get("flops") for layer in layers]
    kinds = list(dict.fromkeys(str(layer.get("type", "")) for layer in layers))
    shapes = [sized(first.get("input")), sized(last.get("output"))]
    return Row(
        title=(name or "(root)") if len(layers) == 1 else f"{name or '(root)'} … {last.get('name') or '(root)'}",
        kind=", ".join(kinds[:4]) + (" …" if len(kinds) > 4 else "") if len(layers) > 1 else kinds[0],
        shape=" → ".join(shape for shape in dict.fromkeys(shapes) if shape),
        parameters=sum(int(layer.get("parameters") or 0) for layer in layers),
        flops=None if None in known else sum(int(own or 0) for own in known),
        kernels=tuple(kernel for layer in layers for kernel in layer.get("kernels") or ()),
        grows=any(layer.get("kasmina") for layer in layers),
        reads=reads,
    )


def _drawn(row: Row) -> list[Mapping[str, Any]]:
    """The kernels of a line; the smallest of many as one."""
    if len(row.kernels) <= MOST_KERNELS:
        return list(row.kernels)
    ordered = sorted(row.kernels, key=_parameters, reverse=True)
    rest = ordered[MOST_KERNELS - 1 :]
    together = {"blueprint": f"{len(rest)} more kernels", "parameters": sum(map(_parameters, rest)), "state": "ACTIVE"}
    return [*ordered[: MOST_KERNELS - 1], together]


def _parameters(kernel: Mapping[str, Any]) -> int:
    return int(kernel.get("parameters") or 0)


# ---- paper --------------------------------------------------------------------------------------------------------


def _place(width: float) -> _Place:
    if width < 600:
        return _Place(width, 12.0, 26.0, width - 30.0, 38.0, width - 56.0, True)
    return _Place(width, 44.0, 74.0, 326.0, 440.0, width - 456.0, False)


def _is_slim(row: Row) -> bool:
    return not row.parameters and not row.kernels


def _height(row: Row, at: _Place) -> float:
    if _is_slim(row):
        return 26.0
    if at.narrow:
        return 46.0 + 34.0 + _each(at) * len(_drawn(row))
    return max(50.0, 44.0 + _each(at) * len(_drawn(row)))


def _each(at: _Place) -> float:
    """Height of a kernel: on narrow paper what is said of it takes two lines."""
    return 58.0 if at.narrow else 44.0


def _rail(lines: Sequence[Row], tops: Sequence[float], at: _Place, bottom: float) -> Markup:
    dots = [
        tag("circle", cx=at.rail, cy=top + _height(row, at) / 2, r=3.5, class_="es-rail-dot")
        for row, top in zip(lines, tops, strict=True)
    ]
    return join([tag("line", x1=at.rail, x2=at.rail, y1=8, y2=bottom + 8, class_="es-axis"), *dots])


def _skips(lines: Sequence[Row], tops: Sequence[float], at: _Place) -> list[Markup]:
    """Arcs from layers to later ones that read them over others, the shortest ones where there are very many."""
    found: list[tuple[int, Markup]] = []
    middles = [top + _height(row, at) / 2 for row, top in zip(lines, tops, strict=True)]
    for number, row in enumerate(lines):
        for read in row.reads:
            if number - read > 1:
                start = 8.0 if read < 0 else middles[read]
                out = at.rail - min(at.rail - 3, 8 + 4 * (number - read))
                curve = f"M{at.rail - 4:.1f},{start:.1f} C{out:.1f},{start:.1f} {out:.1f},{middles[number]:.1f} "
                arc = tag("path", d=f"{curve}{at.rail - 4:.1f},{middles[number]:.1f}", class_="es-rail")
                found.append((number - read, arc))
    return [arc for _, arc in sorted(found, key=lambda pair: pair[0])[:MOST_ARCS]]


def _layer(row: Row, top: float, at: _Place, largest: int) -> Markup:
    height, parts = _height(row, at), []
    grown = " es-card-grown" if row.kernels else ""
    parts.append(tag("rect", x=at.card, y=top, width=at.card_width, height=height, rx=6, class_=f"es-card{grown}"))
    parts.append(tag("line", x1=at.rail + 4, x2=at.card, y1=top + height / 2, y2=top + height / 2, class_="es-axis"))
    letters = int((at.card_width - 20) / 7.4)
    if _is_slim(row):
        said = row.kind if row.title == "(root)" else f"{row.title} · {row.kind}"
        parts.append(tag("text", _cut(said, letters), x=at.card + 10, y=top + 17, class_="es-small"))
        return tag("g", tag("title", told(row)), join(parts))
    about = " · ".join(part for part in (row.kind, row.shape, "can grow" * (row.grows and not row.kernels)) if part)
    parts.append(tag("text", _cut(row.title, letters), x=at.card + 10, y=top + 19, class_="es-mono es-strong"))
    parts.append(tag("text", _cut(about, letters), x=at.card + 10, y=top + 37, class_="es-small"))
    first = top + (46 if at.narrow else 4)
    parts.append(_bar(row.parameters, _amount(row.parameters, row.flops), first, at, largest))
    below = first + (34 if at.narrow else 40)
    parts += [_kernel(k, top, below + _each(at) * place, at, largest) for place, k in enumerate(_drawn(row))]
    return tag("g", tag("title", told(row)), join(parts))


def _bar(parameters: int, said: str, top: float, at: _Place, largest: int) -> Markup:
    long = max(1.0, parameters / largest * at.bars_width)
    return join(
        [
            tag("rect", x=at.bars, y=top, width=long, height=13, rx=2, class_="es-host"),
            tag("text", said, x=at.bars, y=top + 27, class_="es-small"),
        ]
    )


def _kernel(kernel: Mapping[str, Any], layer: float, top: float, at: _Place, largest: int) -> Markup:
    long = max(2.0, _parameters(kernel) / largest * at.bars_width)
    state = "DORMANT" if kernel.get("reserved") else str(kernel.get("state", ""))
    worth = f" · gain {gain(kernel)}" if gain(kernel) else ""
    flops = kernel.get("flops")
    letters = int(at.bars_width / 6.6)
    named = f"{kernel_name(kernel)} · {kernel_state(kernel)}{worth}"
    start = at.card + at.card_width
    elbow = f"M{start:.1f},{layer + 22:.1f} H{start + 18:.1f} V{top + 7:.1f} H{at.bars:.1f}"
    parts = [] if at.narrow else [tag("path", d=elbow, class_="es-rail")]
    parts.append(area(state, at.bars, top, long, 14))
    said = _amount(_parameters(kernel), flops if isinstance(flops, int) and not at.narrow else None)
    if at.narrow:
        first = f"{kernel_name(kernel)} · {kernel_state(kernel)}"
        parts.append(tag("text", _cut(first, letters), x=at.bars, y=top + 28, class_="es-small"))
        parts.append(tag("text", _cut(f"{said}{worth}", letters), x=at.bars, y=top + 44, class_="es-small"))
        return join(parts)
    parts.append(tag("text", _cut(f"{named} · {said}", letters), x=at.bars, y=top + 29, class_="es-small"))
    return join(parts)


def _amount(parameters: int, flops: int | None) -> str:
    work = "" if flops is None else f" · {counted(flops)}FLOPs" if flops >= 1000 else f" · {flops} FLOPs"
    return f"{whole(parameters)} parameters{work}"


def _cut(said: str, letters: int) -> str:
    return said if len(said) <= letters else f"{said[: max(1, letters - 1)]}…"
