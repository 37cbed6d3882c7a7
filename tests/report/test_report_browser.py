"""The page in a real browser: wide and narrow, light and dark, by keyboard, without scripts, without motion.

Needs Chromium (`apt-get install chromium`) and playwright; without them the tests are skipped, and fail where
ESPER_REQUIRE_BROWSER=1 says that they are to run.
"""

import os
import shutil
from contextlib import contextmanager

import pytest
from report.run_folders import EVIL, big, evaluation, folder, history, kernel, layer, life, network, record

from esper.report import write

CHROMIUM = os.environ.get("ESPER_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
REQUIRED = os.environ.get("ESPER_REQUIRE_BROWSER") == "1"
SIZES = {"wide": (1280, 900), "phone": (390, 844), "small": (360, 640)}
SCHEMES = ("light", "dark")

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    missing = (
        "Chromium is not installed: apt-get install chromium, or name it in ESPER_CHROMIUM" if not CHROMIUM else ""
    )
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = 'playwright is not installed: pip install "esper[dev]"'
    if missing:
        (pytest.fail if REQUIRED else pytest.skip)(missing)
    with sync_playwright() as playwright:
        # As root, which containers are, Chromium starts without its sandbox only; it opens this page alone.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Paths of three pages: of one run, of two, of a long one, and of one that holds what it should not."""
    place = tmp_path_factory.mktemp("pages")
    one, other = folder(place / "one"), folder(place / "other")
    layers = [layer(f"blocks.{n}.mlp.fc1", [kernel()], reads=[n - 1, n - 3]) for n in range(120)]
    long = folder(place / "long", big(400, 40, 3), network_=network(layers))
    events = [*history(), record(60, "hold", EVIL), record(61, "germinate", EVIL, EVIL, 0, blueprint=EVIL)]
    evil = folder(place / "evil", events, network_=network([layer(EVIL * 4, [kernel(blueprint=EVIL)])]))
    made = {"one": [one], "two": [one, other], "long": [long], "evil": [evil], "unbroken": [unbroken(place)]}
    return {name: write(runs, place / f"{name}.html") for name, runs in made.items()}


def unbroken(place):
    """A run whose names and reasons have no place to break at."""
    long = "w" * 160
    events = [*history(), *life(long), record(60, "hold", long * 4), record(61, long, long), record(99, "failed", long)]
    events += [evaluation(90, 0.5, **{f"validation_{long[:40]}": 0.5})]
    ledger = {"phases": {long: {"flops": 1, "seconds": 1}}, "kernels": [[long, 0, 1, 5]], "stayed": []}
    held = network([layer(long, [kernel(blueprint=long, options={long: long})], type=long)]) | {"name": long}
    certificate = {"max_rel": 0.1, "dtype": long}
    return folder(place / ("r" * 120), events, ledger=ledger, network_=held, certificate=certificate)


@contextmanager
def opened(browser, path, size="wide", scheme="light", **options):
    """The page, and what it logged and asked for."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
    page = context.new_page()
    page.said, page.asked, page.refused = [], [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("dialog", lambda dialog: (page.said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("requestfailed", lambda request: page.refused.append((request.url, request.failure)))
    try:
        page.goto(path.as_uri())
        yield page
    finally:
        context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["one", "two", "long", "evil", "unbroken"])
def test_the_page_is_quiet_asks_for_nothing_and_fits(browser, pages, name, size, scheme):
    with opened(browser, pages[name], size, scheme) as page:
        assert page.said == [] and page.asked == [pages[name].as_uri()]
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(OUTSIDE) == []


# What sticks out of the window though nothing that scrolls is around it.
OUTSIDE = """[...document.querySelectorAll('main *, header *, nav *')].filter(e => !e.closest('.scroll, .unseen, svg')
    && e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.stacked thead'))
    .map(e => e.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", ["wide", "phone"])
def test_text_stands_out_from_its_paper(browser, pages, size, scheme):
    with opened(browser, pages["two"], size, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert page.evaluate(FAINT) == []


# Elements with text of their own whose contrast with the first opaque background behind them is less than AA asks for.
FAINT = """(() => {
  const channels = c => { const m = c.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
      .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor);
    if (c[3] > .99) return c; } return [255, 255, 255, 1]; };
  const plate = e => { const p = e.previousElementSibling;
    if (!e.matches('svg text') || !p || !p.matches('rect, circle')) return null;
    return /es-on-/.test(e.getAttribute('class')) ? channels(getComputedStyle(p).fill) : null; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.matches('title, desc, script, style, option')) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    const a = light(channels(svg ? style.fill : style.color)), b = light(plate(e) || behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push([ratio.toFixed(2), e.outerHTML.slice(0, 90)]);
  }
  return found.slice(0, 8);
})()"""


def test_the_keyboard_reaches_every_control_in_the_order_of_the_page(browser, pages):
    wanted = """[...document.querySelectorAll('a[href], input, select, summary, [tabindex="0"]')]
        .filter(e => e.checkVisibility()).length"""
    for size in ("wide", "phone"):
        with opened(browser, pages["one"], size) as page:
            count, places = page.evaluate(wanted), []
            page.evaluate("document.activeElement.blur()")
            for _ in range(count):
                page.keyboard.press("Tab")
                places.append(page.evaluate(FOCUSED))
            assert len({place for place, _ in places}) == count, places
            assert all(seen for _, seen in places), "a control that has the focus does not show it"
            assert [place for place, _ in places] == sorted(place for place, _ in places)


# Where the focused element stands in the document, and whether its focus can be seen.
FOCUSED = """(() => { const e = document.activeElement, s = getComputedStyle(e);
    const seen = s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2;
    return [[...document.querySelectorAll('*')].indexOf(e), seen]; })()"""


def test_the_skip_link_leads_past_the_navigation(browser, pages):
    with opened(browser, pages["one"]) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.keyboard.press("Enter")
        assert page.url.endswith("#main")


@pytest.mark.parametrize("size", ["wide", "phone"])
def test_a_screen_reader_finds_landmarks_headings_and_names(browser, pages, size):
    with opened(browser, pages["one"], size) as page:
        session = page.context.new_cdp_session(page)
        nodes = session.send("Accessibility.getFullAXTree")["nodes"]
        seen = [node for node in nodes if not node["ignored"]]
        role = lambda node: node["role"]["value"]  # noqa: E731
        name = lambda node: node.get("name", {}).get("value", "")  # noqa: E731
        roles = {role(node) for node in seen}
        assert {"main", "navigation", "banner", "contentinfo", "heading", "region", "table", "slider"} <= roles
        images = [node for node in seen if role(node) in ("image", "img")]
        assert len(images) >= 6 and all(map(name, images))
        for kind in ("slider", "combobox", "searchbox", "link", "region", "table", "DisclosureTriangle"):
            assert all(name(node) for node in seen if role(node) == kind), kind
        headings = [name(node) for node in seen if role(node) == "heading"]
        assert headings[:3] == ["one", "What grew, and what it brought", "Curves"]
        # Blocks on a phone, and still a table: every row has its cells.
        cells = [node for node in seen if role(node) in ("cell", "gridcell", "rowheader")]
        assert len(cells) > 40


def test_the_slider_reads_the_curves(browser, pages):
    with opened(browser, pages["one"]) as page:
        slider, read = page.locator("#r0-curve0-step"), page.locator("#r0-curve0-read")
        assert "step 100" in read.inner_text().replace("\n", " ")
        slider.focus()
        page.keyboard.press("Home")
        assert "step 0" in read.inner_text().replace("\n", " ") and "test 2.3" in read.inner_text().replace("\n", " ")
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        text = read.inner_text().replace("\n", " ")
        assert "step 20" in text and "1 step 20: germinate mlp 0[0]" in text
        assert slider.get_attribute("aria-valuetext").startswith("step 20")
        assert page.locator("#r0-curve0 .wide .es-cursor").get_attribute("visibility") == "visible"
        curves = page.locator("#r0-curve0 .wide svg")
        box = curves.bounding_box()
        curves.hover(position={"x": box["width"] - 17, "y": box["height"] / 2})  # which waits until nothing scrolls
        read.filter(has_text="step 100").wait_for()


def test_the_decisions_can_be_filtered(browser, pages):
    with opened(browser, pages["one"]) as page:
        rows, count = page.locator("#r0-decisions tbody tr:visible"), page.locator("#r0-filter-count")
        assert rows.count() == 4 and count.inner_text() == "4 decisions"
        page.locator("#r0-filter-kind").select_option("grafting")
        assert rows.count() == 1 and count.inner_text() == "1 of 4 decisions"
        page.locator("#r0-filter-kind").select_option("")
        page.locator("#r0-filter-text").fill("A PLATEAU")
        assert rows.count() == 1 and "germinate" in rows.first.inner_text()


def test_without_scripts_the_page_says_the_same(browser, pages):
    with opened(browser, pages["one"], java_script_enabled=False) as page:
        assert page.said == []
        assert page.locator("#r0-decisions tbody tr").count() == 4
        # What only a script could serve is not offered.
        assert not page.locator("#r0-filter-kind").is_visible() and not page.locator("#r0-curve0-step").is_visible()
        page.locator("#r0-curve0 summary").click()
        assert page.locator("#r0-curve0 table").is_visible()


def test_nothing_moves_for_those_who_ask_for_that(browser, pages):
    moves = "getComputedStyle(document.documentElement).scrollBehavior"
    with opened(browser, pages["one"], reduced_motion="reduce") as page:
        assert page.evaluate(moves) == "auto"
    with opened(browser, pages["one"], reduced_motion="no-preference") as page:
        assert page.evaluate(moves) == "smooth"


def test_what_a_run_holds_cannot_run_even_if_it_were_markup(browser, pages):
    with opened(browser, pages["one"]) as page:
        ran = page.evaluate(
            """() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';
            document.body.append(s);
            const i = document.createElement('img'); i.src = 'https://example.org/x.png'; document.body.append(i);
            return window.ran || 0 }"""
        )
        page.wait_for_function("document.images[0].complete")
        assert ran == 0 and page.refused == [("https://example.org/x.png", "csp")]
        assert any("Content Security Policy" in said or "violates" in said for said in page.said)


def test_on_paper_the_page_is_light_whole_and_without_controls(browser, pages):
    with opened(browser, pages["long"], scheme="dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible() and not page.locator("#r0-filter-kind").is_visible()
        assert page.evaluate(
            "[...document.querySelectorAll('.scroll.tall')].every(e => e.scrollHeight <= e.clientHeight + 1)"
        )
