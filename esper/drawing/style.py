"""The CSS of drawings: for light and dark paper, and for print, which is always light."""

from __future__ import annotations

from esper.drawing.states import SERIES, SERIES_ON_DARK, STATES, css_class, ink_class

_DASHES = ("none", "9 4", "2 4", "12 3 2 3", "5 3", "1 6")
_LIGHT = """--es-paper:#ffffff;--es-ink:#1c2430;--es-soft:#525c69;--es-line:#dde1e7;--es-rail:#8a929c;--es-card:#f6f7f9;
--es-train:#6d7682;--es-validation:#0067a3;--es-control:#a3510a;--es-test:#1c2430;--es-host:#9aa3ae;--es-area-edge:1"""
_DARK = """--es-paper:#14181e;--es-ink:#e8ebef;--es-soft:#a9b2bd;--es-line:#2e3641;--es-rail:#7d8793;--es-card:#1c222a;
--es-train:#98a2ae;--es-validation:#6cc0f0;--es-control:#f0a95a;--es-test:#f2f4f7;--es-host:#6d7682;--es-area-edge:1"""

_RULES = """
.es-defs{position:absolute}
.es-drawing{display:block;font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
font-variant-numeric:tabular-nums}
.es-drawing text{fill:var(--es-ink);font-size:13px}
.es-drawing .es-tick,.es-drawing .es-small{fill:var(--es-soft);font-size:12px}
.es-drawing .es-strong{font-weight:600}
.es-drawing .es-mono{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;font-size:12.5px}
.es-grid{stroke:var(--es-line);stroke-width:1}
.es-axis,.es-rail{stroke:var(--es-rail);stroke-width:1.25;fill:none}
.es-rail-dot{fill:var(--es-paper);stroke:var(--es-rail);stroke-width:1.5}
.es-card{fill:var(--es-card);stroke:var(--es-line);stroke-width:1}
.es-card-grown{stroke:#0072b2;stroke-width:1.5}
.es-host{fill:var(--es-host)}
.es-series{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.es-lost{opacity:.45;stroke-dasharray:1 4}
.es-train{stroke:var(--es-train)}.es-validation{stroke:var(--es-validation);stroke-width:2.4}
.es-control{stroke:var(--es-control);stroke-dasharray:7 4}
.es-point{stroke:var(--es-paper);stroke-width:1.5}
.es-point-test{fill:var(--es-test)}.es-point-control{fill:var(--es-control)}
.es-mark{fill:none;stroke:var(--es-soft);stroke-width:1;stroke-dasharray:2 3}
.es-drawing .es-badge-text{font-size:10.5px;font-weight:700}
.es-area{stroke-width:1}.es-drawing .es-band{stroke-width:.4}.es-drawing .es-label{font-size:12px;font-weight:600}
.es-alpha-area{fill:var(--es-ink);fill-opacity:.1}
.es-alpha{fill:none;stroke:var(--es-ink);stroke-width:1.6;stroke-linejoin:round}
.es-pattern path{stroke:#10161d;stroke-width:1;opacity:.38;fill:none}.es-pattern .es-dot{fill:#10161d;opacity:.42}
.es-cursor{stroke:var(--es-ink);stroke-width:1}
"""


def css() -> str:
    """All of it."""
    states = "".join(
        f".{css_class(name)}{{fill:{look.colour};stroke:{look.edge}}}.es-drawing .{ink_class(name)}{{fill:{look.ink}}}"
        for name, look in STATES.items()
    )
    runs = "".join(
        f".es-run-{at}{{stroke:var(--es-run-{at});stroke-dasharray:{dashes}}}.es-fill-{at}{{fill:var(--es-run-{at})}}"
        for at, dashes in enumerate(_DASHES)
    )
    dark = f"@media screen and (prefers-color-scheme:dark){{.esper{{{_DARK};{_variables(SERIES_ON_DARK)}}}}}"
    return f".esper{{{_LIGHT};{_variables(SERIES)}}}{dark}{_RULES}{states}\n{runs}"


def _variables(colours: tuple[str, ...]) -> str:
    return ";".join(f"--es-run-{at}:{colour}" for at, colour in enumerate(colours))
