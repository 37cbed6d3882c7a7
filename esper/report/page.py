"""The page: one file that asks for nothing, from anywhere.

A content security policy forbids every request and every script but the page's own, which is named by its hash, so
what a run folder holds can neither load nor run anything even if it were taken for markup.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files

from esper.drawing.markup import Markup, join, tag
from esper.drawing.states import patterns
from esper.drawing.style import css
from esper.errors import ArgumentError
from esper.report.bounds import RUNS
from esper.report.elements import Place
from esper.report.read import RunData
from esper.report.sections.books import certificate, ledger
from esper.report.sections.charts import charts
from esper.report.sections.comparison import comparison
from esper.report.sections.decisions import decisions
from esper.report.sections.headline import headline, progress
from esper.report.sections.network import network
from esper.report.sections.seeds import seeds

Section = Callable[[RunData, Place], Markup]

SECTIONS: dict[str, tuple[str, Section]] = {
    "headline": ("Headline", headline),
    "curves": ("Curves", charts),
    "seeds": ("Seeds", seeds),
    "network": ("Network", network),
    "decisions": ("Decisions", decisions),
    "ledger": ("Ledger", ledger),
    "certificate": ("Certificate", certificate),
}
"""By the end of its id: what the navigation calls a section, and what makes it."""


def render(runs: Sequence[RunData]) -> str:
    """The report of some runs as HTML.

    Raises:
        ArgumentError: There is no run, or more than a page can hold.
    """
    if not 1 <= len(runs) <= RUNS:
        raise ArgumentError(f"a report is of 1 to {RUNS} runs, not {len(runs)}: name fewer, or write several reports")
    many = len(runs) > 1
    title = f"{len(runs)} runs" if many else runs[0].name
    articles = [_article(run, number, many) for number, run in enumerate(runs)]
    beside = comparison(runs, Place("all", 2)) if many else None
    head = tag(
        "header",
        tag("p", "esper growth report", class_="kind"),
        tag("h1", title),
        None if many else _about(runs[0]),
    )
    body = tag(
        "body",
        tag("a", "Skip to the report", href="#main", class_="skip"),
        patterns(),
        tag("div", head, _navigation(runs, many), tag("main", beside, *articles, id="main"), _footer(), class_="page"),
        tag("script", _asset("script.js")),
        class_="esper",
    )
    return f"<!doctype html>\n{tag('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Markup:
    style = Markup(css() + _asset("style.css"))
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(_asset('script.js'))}'"
    )
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=Markup(policy)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="generator", content="esper"),
        tag("title", f"{title} \u2013 esper growth report"),
        tag("style", style),
    )


def _navigation(runs: Sequence[RunData], many: bool) -> Markup:
    if many:
        links = [("#all-comparison", "Comparison"), *((f"#r{at}", run.name) for at, run in enumerate(runs))]
    else:
        links = [(f"#r0-{name}", title) for name, (title, _) in SECTIONS.items()]
    items = [tag("li", tag("a", said, href=where)) for where, said in links]
    return tag("nav", tag("ul", *items), aria_label="Sections" if not many else "Runs")


def _article(run: RunData, number: int, many: bool) -> Markup:
    place = Place(f"r{number}", 3 if many else 2)
    parts = [make(run, place) for _, make in SECTIONS.values()]
    notes = [tag("li", note) for note in run.notes]
    said = tag("ul", *notes, class_="notes") if notes else None
    if not many:
        return join([said, *parts])
    heading = tag("h2", run.name, id=f"r{number}-h")
    return tag("article", heading, _about(run), said, *parts, id=f"r{number}", aria_labelledby=f"r{number}-h")


def _about(run: RunData) -> Markup:
    network = run.network or {}
    held = [str(network.get("name", ""))[:80], progress(run), run.folder]
    return tag("p", " \u00b7 ".join(part for part in held if part), class_="about")


def _footer() -> Markup:
    said = "Written by esper. This page is one file: it loads nothing and sends nothing."
    return tag("footer", tag("p", said))


@cache
def _asset(name: str) -> Markup:
    return Markup(files("esper.report").joinpath("assets", name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
