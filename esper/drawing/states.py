"""How the states of a seed look, everywhere: a colour, and a pattern for those who do not tell colours apart.

The colours are Okabe and Ito's, which differ in lightness too (Okabe, Ito: Color Universal Design, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass

from esper.drawing.markup import Markup, join, tag


@dataclass(frozen=True)
class Look:
    """How a state looks.

    Attributes:
        label: What people read.
        colour: Of its area.
        edge: Of its outline, dark enough to stand out from white.
        ink: Of text on it.
        pattern: "none", "lines", "rising", "dots" or "cross".
        about: What it means, in a sentence.
    """

    label: str
    colour: str
    edge: str
    ink: str
    pattern: str
    about: str


STATES = {
    "DORMANT": Look("dormant", "#e3e6ea", "#8a929c", "#1c2430", "none", "the seed holds no kernel"),
    "LOADING": Look("loading", "#f0e442", "#7d7400", "#1c2430", "dots", "a kernel is being built and compiled"),
    "TRAINING": Look("training", "#56b4e9", "#1f6f9e", "#10161d", "lines", "it trains; the network does not feel it"),
    "GRAFTING": Look("grafting", "#e69f00", "#8f6200", "#10161d", "rising", "it is blended in along alpha"),
    "ACTIVE": Look("active", "#2bb58c", "#00694c", "#10161d", "none", "it is part of the network, on trial"),
    "FOSSILIZED": Look("fossilized", "#0072b2", "#004a75", "#ffffff", "none", "it is part of the network for good"),
    "CULLED": Look("culled", "#b8bdc4", "#6a727c", "#10161d", "cross", "it was taken out; the seed rests"),
    "ERROR_RECOVERY": Look("error recovery", "#d55e00", "#8a3c00", "#000000", "dots", "it failed and was set aside"),
}
"""By the state's name, in order of a seed's life."""

SERIES = ("#0072b2", "#c45500", "#00835f", "#b8578c", "#9a6b00", "#3d8fc0")
SERIES_ON_DARK = ("#57b0ea", "#f58b4c", "#35c499", "#e59ac6", "#f0b94a", "#9bd5f7")
"""Colours of runs beside each other, on white paper and on dark, which differ from it by 3 to 1 at least."""


def look(state: str) -> Look:
    """How a state looks; one that is not known looks dormant and is named as it is."""
    known = STATES.get(state)
    return known or Look(state.lower().replace("_", " ")[:40], *_unknown())


def _unknown() -> tuple[str, str, str, str, str]:
    plain = STATES["DORMANT"]
    return plain.colour, plain.edge, plain.ink, plain.pattern, "a state that this version does not know"


def css_class(state: str) -> str:
    """The class of a state's areas."""
    return f"es-{state.lower().replace('_', '-')}" if state in STATES else "es-dormant"


def ink_class(state: str) -> str:
    """The class of text on a state's areas."""
    return css_class(state).replace("es-", "es-on-", 1)


def patterns() -> Markup:
    """Patterns that lie on top of a state's colour, for every drawing of a page; once a page."""
    return tag(
        "svg",
        tag(
            "defs",
            _pattern("lines", 6, tag("path", d="M-1,7 L7,-1 M-1,1 L1,-1 M5,7 L7,5")),
            _pattern("rising", 5, tag("path", d="M1.5,0 V5")),
            _pattern("dots", 5, tag("circle", cx=1.5, cy=1.5, r=0.9, class_="es-dot")),
            _pattern("cross", 6, tag("path", d="M0,0 L6,6 M6,0 L0,6")),
            *(
                tag("symbol", _swatch(state), id=f"es-swatch-{css_class(state)[3:]}", viewBox="0 0 14 14")
                for state in STATES
            ),
        ),
        class_="es-defs",
        width=0,
        height=0,
        aria_hidden="true",
        focusable="false",
    )


def area(state: str, x: float, y: float, width: float, height: float, title: Markup | None = None) -> Markup:
    """A rectangle in a state's colour and pattern."""
    shape = {"x": x, "y": y, "width": max(1.0, width), "height": height, "rx": 2}
    covers = look(state).pattern != "none" and width >= 3
    cover = tag("rect", **shape, fill=f"url(#es-{look(state).pattern})", stroke="none") if covers else None
    return join([tag("rect", title, **shape, class_=f"es-area {css_class(state)}"), cover])


def swatch(state: str) -> Markup:
    """A small sample of a state's look; `patterns` is to be in the page."""
    sample = tag("use", href=f"#es-swatch-{css_class(state)[3:]}")
    return tag("svg", sample, width=14, height=14, aria_hidden="true", class_="swatch")


def _swatch(state: str) -> Markup:
    shape = {"x": 0.5, "y": 0.5, "width": 13, "height": 13, "rx": 3}
    base = tag("rect", **shape, class_=f"es-area {css_class(state)}")
    return (
        base
        if look(state).pattern == "none"
        else join([base, tag("rect", **shape, fill=f"url(#es-{look(state).pattern})")])
    )


def _pattern(name: str, size: int, inside: Markup) -> Markup:
    units = {"patternUnits": "userSpaceOnUse"}
    return tag("pattern", inside, id=f"es-{name}", width=size, height=size, class_="es-pattern", **units)
