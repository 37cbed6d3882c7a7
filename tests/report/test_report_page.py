"""The page: what it says, what it never does, and how large it gets."""

import errno
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from report.run_folders import EVIL, LEDGER, big, evaluation, folder, history, kernel, layer, life, network, record

from esper.cli import main
from esper.errors import ArgumentError, RunFolderError
from esper.report import bounds, render, run, write
from esper.report.facts import facts
from esper.report.page import SECTIONS
from esper.report.write import names

VOID = {"meta", "link", "br", "hr", "input", "col"}


class Page(HTMLParser):
    """The elements of a page, and whether they are nested as they should be."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def ids(self):
        return [attrs["id"] for _, attrs in self.elements if "id" in attrs]

    def all(self, name):
        return [attrs for tag, attrs in self.elements if tag == name]

    @property
    def text(self):
        return " ".join(self.texts)


@pytest.fixture
def page(tmp_path):
    """The page of some run folders."""

    def made(*folders):
        return Page(render([run(place) for place in folders]))

    return made


def test_every_section_is_there_with_what_the_run_says(page, tmp_path):
    found = page(folder(tmp_path / "a"))
    assert {f"r0-{name}" for name in SECTIONS} <= set(found.ids())
    for wanted in (
        "1 kernel germinated and 1 stayed: test accuracy is 90.0 % at step 100, up from 60.0 % before growth; "
        "without growth it is 80.0 %.",
        "\u00b1 1.5 % (standard error)",
        "4 times the host's 100",
        "gain +0.1 \u00b1 0.01",
        "mlp(width=16)",
        "host, and kernels that are blended in",
        "2.00e-07",
        "3 more seeds were dormant throughout.",
    ):
        assert wanted in found.text


def test_the_page_is_well_formed_and_its_references_are_to_what_is_there(page, tmp_path):
    found = page(folder(tmp_path / "a"), folder(tmp_path / "b"))
    ids = found.ids()
    assert len(ids) == len(set(ids))
    for _, attrs in found.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            if name in attrs:
                assert attrs[name] in ids, (name, attrs[name])
        if attrs.get("href"):
            assert attrs["href"].startswith("#") and attrs["href"][1:] in ids
        for value in attrs.values():
            for reference in re.findall(r"url\(#([^)]*)\)", value or ""):
                assert reference in ids


def test_headings_go_down_one_step_at_a_time(page, tmp_path):
    for folders in ([folder(tmp_path / "a")], [folder(tmp_path / "a"), folder(tmp_path / "b")]):
        levels = [int(tag[1]) for tag, _ in page(*folders).elements if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_image_has_a_name_and_every_chart_a_table(page, tmp_path):
    found = page(folder(tmp_path / "a"))
    images = [attrs for attrs in found.all("svg") if attrs.get("role") == "img"]
    assert len(images) >= 8 and all(attrs["aria-labelledby"] for attrs in images)
    assert all(attrs.get("aria-hidden") == "true" for attrs in found.all("svg") if attrs.get("role") != "img")
    for wanted in ("Loss by step", "Accuracy by step", "States of the seeds", "Layers in order of the forward"):
        assert wanted in found.text


def test_the_page_asks_for_nothing_and_runs_nothing_but_its_own_script(tmp_path):
    text = render([run(folder(tmp_path / "a"))])
    found = Page(text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not {"img", "link", "iframe", "object", "embed", "base", "form", "audio", "video", "image"} & {
        tag for tag, _ in found.elements
    }
    for _, attrs in found.elements:
        assert not {"src", "srcset", "style", "xlink:href"} & attrs.keys()
        assert not any(name.startswith("on") for name in attrs)
    policy = next(a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert [a.get("type") for a in found.all("script")].count(None) == 1
    assert "@import" not in text and "url(http" not in text


def test_what_runs_hold_is_text_wherever_it_stands(tmp_path):
    events = history()
    events[0]["figures"] |= {EVIL: 1.0}
    for event in [*life(EVIL, 0, 30), record(60, EVIL, EVIL, EVIL, 0), record(61, "hold", EVIL)]:
        events.append(event | {"reason": EVIL})
    events.append(evaluation(70, 0.5, **{f"validation_{EVIL}": 0.5, f"gain {EVIL}[0]": 1.0}))
    events.append(record(80, "germinate", EVIL, "0", 0, blueprint=EVIL))
    events.append(record(90, "rollback", EVIL, back_to=70, culled=EVIL))
    events[3] |= {"time": EVIL, "run_id": EVIL}
    evil = kernel(blueprint=EVIL, options={EVIL: EVIL}, state=EVIL)
    place = folder(
        tmp_path / "a",
        events,
        network_=network([layer(EVIL, [evil], type=EVIL, input=[EVIL, EVIL])]) | {"name": EVIL},
        ledger={"phases": {EVIL: {"flops": 1, "seconds": 1}}, "kernels": [[EVIL, 0, 1, 5]], "stayed": []},
        certificate={"max_rel": EVIL, "dtype": EVIL},
    )
    text = render([run(place, EVIL), run(place, EVIL)])
    found = Page(text)
    assert "<script>alert" not in text and "<img" not in text and "\u202e" not in text and "\x00" not in text
    assert len(found.all("script")) == 1 + len([a for a in found.all("script") if a.get("type")])
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
    assert found.text.count("<img src=x onerror=alert(2)>") > 20
    for _, attrs in found.elements:
        if attrs.get("type") == "application/json":
            assert attrs.keys() == {"type", "id"}
    for held in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.S):
        assert json.loads(held)["steps"]


def test_a_history_cut_short_is_read_up_to_there(tmp_path):
    place = folder(tmp_path / "a", tail='{"step": 110, "event": "eval')
    found = run(place)
    assert found.notes == () and len(found.events) + len(found.control) == len(history())


def test_lines_that_are_no_events_are_left_out_and_said(tmp_path, page):
    events = history()
    place = folder(tmp_path / "a", events[:2])
    lines = "not json\n[1]\n" + "".join(json.dumps(event) + "\n" for event in events[2:])
    with (place / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(lines)
    assert "2 lines of history.jsonl are no events and were left out, the first of them line 3" in page(place).text


def test_an_envelope_and_unknown_fields_change_nothing(tmp_path):
    plain = run(folder(tmp_path / "a"))
    more = [
        event | {"schema_version": 1, "run_id": "x", "sequence": at, "time": "2026-01-01T00:00:00Z", "new": {"a": [1]}}
        for at, event in enumerate(history())
    ]
    enveloped = run(folder(tmp_path / "b", more), "a")
    assert [e.event for e in plain.events] == [e.event for e in enveloped.events]
    assert [e.figures for e in plain.events] == [e.figures for e in enveloped.events]
    assert enveloped.events[0].time == "2026-01-01T00:00:00Z"


def test_an_event_that_was_written_twice_and_one_of_another_run_are_left_out(tmp_path):
    mine = [event | {"run_id": "b", "sequence": at} for at, event in enumerate(history())]
    other = [event | {"run_id": "a", "sequence": at} for at, event in enumerate(history()[:5])]
    notice = record(90, "drops", "3 events were dropped") | {"run_id": "b", "sequence": len(mine)}
    found = run(folder(tmp_path / "a", [*other, *mine[:10], *mine[5:], notice]))
    assert len(found.events) + len(found.control) == len(history())
    assert "5 events of another run" in found.notes[0] and "drops 1" in found.notes[1]


@pytest.mark.parametrize(("run_id", "left_out"), [("this", False), ("earlier", True)])
def test_a_file_of_another_run_is_left_out(tmp_path, run_id, left_out):
    events = [event | {"run_id": "this", "sequence": at} for at, event in enumerate(history())]
    found = run(folder(tmp_path / "a", events, ledger=LEDGER | {"run_id": run_id}))
    assert (found.ledger is None) == left_out == ("ledger.json is of another run" in " ".join(found.notes))
    assert found.certificate is not None


def test_a_run_that_failed_says_of_what(tmp_path, page):
    events = [*[e for e in history() if e["run"] == "growth" and e["step"] < 60], record(55, "failed", "out of memory")]
    text = page(folder(tmp_path / "a", events)).text
    assert "The run ended with an error." in text and "It failed at step 55: out of memory" in text
    assert "Still running" not in text and "step 55 of 100" in text
    bare = page(folder(tmp_path / "b", events, ledger=None, certificate=None)).text
    for name in ("ledger.json", "certificate.json"):
        assert f"Not there: the run ended with an error before it has written {name}." in bare


def test_events_of_a_newer_version_are_among_the_decisions(tmp_path, page):
    events = [*history(), record(60, "moved_house", "there was no room", "0", 0)]
    text = page(folder(tmp_path / "a", events)).text
    assert "moved house" in text and "there was no room" in text


def test_events_of_a_later_schema_are_refused_with_what_to_do(tmp_path):
    place = folder(tmp_path / "a", [event | {"schema_version": 2} for event in history()])
    with pytest.raises(ArgumentError, match=r"line 1: events of schema version '2'.*reads 1; read it with the version"):
        run(place)


@pytest.mark.parametrize(
    "files, message",
    [
        (None, "no such run folder; `esper grow CONFIG` writes one"),
        ({}, r"holds history.jsonl, and this one does not \(it holds nothing\)"),
        ({"ledger.json": "{}"}, r"does not \(it holds ledger.json\); name the folder"),
    ],
)
def test_a_folder_without_a_run_is_an_error_that_says_what_to_do(tmp_path, files, message):
    place = tmp_path / "run"
    if files is not None:
        place.mkdir()
        for name, text in files.items():
            (place / name).write_text(text)
    with pytest.raises(RunFolderError, match=message):
        run(place)


def test_a_history_without_any_event_is_refused(tmp_path):
    place = folder(tmp_path / "a", [], tail="nothing\nof the kind\nat all\n")
    with pytest.raises(ArgumentError, match="no line of it is an event"):
        run(place)


def test_a_run_that_goes_on_is_reported_as_far_as_it_is(tmp_path, page):
    events = [event for event in history() if event["run"] == "growth" and event["step"] <= 60]
    place = folder(tmp_path / "a", events, ledger=None, certificate=None, network_={})
    (place / "network.json").unlink(missing_ok=True)
    found = run(place)
    assert found.is_running and found.network is None
    text = page(place).text
    for wanted in ("Still running", "at step 60 of 100", "has not written ledger.json", "network.json", "certificate"):
        assert wanted in text


def test_a_run_that_goes_on_shows_its_network_as_it_was_and_says_what_is_not_there_yet(tmp_path, page):
    events = [event for event in history() if event["run"] == "growth" and event["step"] <= 45]
    held = network([layer(kernels=[kernel(state="GRAFTING", alpha=0.5, gain=None, gain_stderr=None)]), layer("2")])
    place = folder(tmp_path / "a", events, ledger=None, certificate=None, network_=held | {"step": 40})
    text = page(place).text
    for wanted in (
        "1 kernel germinated and none stayed",  # which nobody knows before the end
        "Not there yet: the test scores at its end, the network at its end, where the work went, the certificate.",
        "As it was at step 40; what kernels gain is known when the run has ended.",
        "Not there yet: the run has not written ledger.json; it does so when it has grown to its end.",
        "Not there yet: the run has not written certificate.json; it does so when it gives the torch module back.",
        "3 more seeds have been dormant so far.",
        "mlp(width=16)",
    ):
        assert wanted in text
    assert "--resume" not in text
    (place / "job.json").write_text("{}")
    assert "If it was stopped, `esper grow CONFIG --resume` goes on with it." in page(place).text


def test_a_control_run_that_goes_on_is_all_that_is_missing(tmp_path, page):
    events = [event for event in history() if event["run"] == "growth" or event["step"] <= 30]
    text = page(folder(tmp_path / "a", events)).text
    assert "The control run is at step 30 of 100. Not there yet: the end of the control run." in text
    assert "Not there yet: the run has not" not in text


def test_a_headline_compares_only_scores_of_the_same_part(tmp_path, page):
    """Before its end a run has test scores of before growth, and only validation's of now."""
    grown = [event for event in history() if event["run"] == "growth"]
    going = facts(run(folder(tmp_path / "a", [event for event in grown if event["step"] <= 60])))
    assert (going.part, going.before.step, going.after.step) == ("validation", 20, 60)
    assert going.before.accuracy == pytest.approx(1 - (2 * math.exp(-20 / 40) + 0.1) / 3)
    ended = facts(run(folder(tmp_path / "b", grown)))
    assert (ended.part, ended.before.accuracy, ended.after.accuracy) == ("test", 0.6, 0.9)
    unscored = [event for event in grown if event["reason"] != "before growth"]
    assert facts(run(folder(tmp_path / "c", unscored))).before is None, "the untrained network is another comparison"
    assert "scored on" in page(tmp_path / "a", tmp_path / "b").text


def test_a_run_that_has_just_begun_has_a_page(tmp_path, page):
    place = folder(tmp_path / "a", history()[:1], ledger=None, certificate=None)
    assert "No evaluation has been recorded yet." in page(place).text


@pytest.mark.parametrize("held", ['{"phases"', "[]", '{"schema_version": 99, "layers": []}', '{"schema_version": 1}'])
def test_a_file_that_cannot_be_used_is_said_and_the_rest_is_there(tmp_path, page, held):
    place = folder(tmp_path / "a")
    (place / "network.json").write_text(held)
    found = run(place)
    assert found.network is None and "network.json" in " ".join(found.notes)
    assert "test accuracy is 90.0 %" in page(place).text


def test_values_that_are_not_finite_are_gaps(tmp_path, page):
    events = history()
    for event in events:
        if event["event"] == "evaluate" and event["step"] in (30, 40):
            event["figures"] = dict.fromkeys(event["figures"])
    text = page(folder(tmp_path / "a", events)).text
    assert "not a number" in text
    paths = re.findall(r'd="([^"]*)"', render([run(tmp_path / "a")]))
    assert not any("nan" in path or "inf" in path for path in paths)


def test_a_page_stays_small_however_long_the_run(tmp_path):
    place = folder(
        tmp_path / "a", big(), network_=network([layer(f"blocks.{n}.mlp.fc1", [kernel()]) for n in range(600)])
    )
    text = render([run(place)])
    assert len(text) < 3_000_000
    found = Page(text)
    assert "The first and last 300 of 24,000; history.jsonl has all of them." in found.text
    assert len([a for a in found.all("tr") if "data-event" in a]) == bounds.DECISIONS
    assert "more are not marked" in found.text


def test_several_runs_are_compared(tmp_path, page):
    folders = [folder(tmp_path / name / "seed0") for name in "abc"]
    found = Page(render([run(place, name) for place, name in zip(folders, names(folders), strict=True)]))
    assert "3 runs" in found.text and "Validation loss of the runs" in found.text
    assert {"r0", "r1", "r2", "all-comparison"} <= set(found.ids())
    assert "b/seed0" in found.text


def in_percent(events):
    figures = [{k: v * 100 if k.endswith("accuracy") else v for k, v in event["figures"].items()} for event in events]
    return [event | {"figures": own} for event, own in zip(events, figures, strict=True)]


def test_an_accuracy_in_percent_is_shown_as_it_was_measured(tmp_path, page):
    whole = folder(tmp_path / "a", in_percent(history()))
    said = page(whole).text
    assert "test accuracy is 90 at step 100, up from 60 before growth; without growth it is 80." in said
    assert "+10" in said and "better than control, 80" in said and "standard error" not in said
    assert not re.search(r"\d{4}\.\d %", said)
    assert re.search(r"accuracy\s+90\s", page(whole, whole).text)


def test_runs_beside_each_other_have_one_unit(tmp_path):
    share, whole = folder(tmp_path / "a"), folder(tmp_path / "b", in_percent(history()))
    ends = {
        (share, share): ["91.2 %", "91.2 %"],
        (share, whole): ["0.9119", "91.19"],
        (whole, whole): ["91.19", "91.19"],
    }
    for folders, wanted in ends.items():
        text = render([run(place) for place in folders])
        chart = text.split('<figure id="all-over-accuracy"')[1].split("</figure>")[0]
        read = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', chart, re.S).group(1))
        assert [own["values"][-1] for own in read["series"]] == wanted
        table = text.split("<span>Scores are accuracy and loss")[1].split("</table>")[0]
        assert ("%" in table) == ("%" in wanted[0])


def test_the_number_of_runs_is_bounded(tmp_path):
    held = run(folder(tmp_path / "a"))
    with pytest.raises(ArgumentError, match="1 to 24 runs, not 25"):
        render([held] * 25)
    with pytest.raises(ArgumentError, match="not 0"):
        render([])


def test_the_command_writes_the_page(tmp_path, capsys):
    place = folder(tmp_path / "a")
    assert main(["report", str(place)]) == 0
    assert "open it in a browser" in capsys.readouterr().out
    assert (place / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    target = tmp_path / "new" / "both.html"
    assert main(["report", str(place), str(place), "-o", str(target)]) == 0
    assert target.exists() and [found.name for found in target.parent.iterdir()] == ["both.html"]


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no such run folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_output_is_refused_with_the_file_to_name(tmp_path, capsys):
    place = folder(tmp_path / "a")
    (tmp_path / "out").mkdir()
    assert main(["report", str(place), "-o", str(tmp_path / "out")]) == 2
    assert f"{tmp_path}/out is a folder: name the file to write, such as" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_one_folder_may_be_given_by_itself(tmp_path):
    place = folder(tmp_path / "a")
    assert write(place, tmp_path / "one.html") == tmp_path / "one.html"


# ---- what was lost --------------------------------------------------------------------------------------


def numbered(events, part=0, first=0):
    return [event | {"run_id": "a", "part": part, "sequence": at} for at, event in enumerate(events, first)]


def test_events_that_a_history_lost_are_told_on_top_and_counts_are_at_least(page, tmp_path):
    events = numbered(history())
    kept = [event for event in events if event["sequence"] not in (0, 1, 2, 7)]
    found = page(folder(tmp_path / "a", kept))
    wanted = "4 events are missing from history.jsonl, by the gaps in the events' numbers"
    assert wanted in found.text and "At least 1 kernel germinated" in found.text
    assert found.text.index(wanted) < found.text.index("At least 1 kernel germinated")
    assert "are missing" not in page(folder(tmp_path / "b", events)).text


@pytest.mark.parametrize(
    ("events", "lost"),
    [
        (history(), 0),
        (numbered(history()), 0),
        (numbered(history())[3:], 3),
        (numbered(history())[:20] + numbered(history())[18:], 0),  # a sink wrote some again
        (numbered(history()[:20]) + numbered(history()[15:], part=1, first=15), 0),  # a resume gave some numbers again
        (numbered(history()[:20]) + numbered(history()[20:], part=1, first=20), 0),
        (numbered(history()[:20]) + numbered(history()[20:], part=1, first=22), 2),
        (numbered(history()[20:], part=1, first=20), 20),
        (history()[:5] + numbered(history()[5:], first=5), 0),  # the first are of before there were numbers
        ([event | {"sequence": number} for event in history() for number in (-1, True, 2**60, "x")], 0),
    ],
    ids=str,
)
def test_gaps_in_numbers_are_what_is_missing(tmp_path, events, lost):
    assert run(folder(tmp_path / "a", events)).missing == lost


def test_a_resume_that_gave_numbers_again_loses_none_of_its_events(tmp_path):
    events = history()
    again = numbered(events[:20]) + numbered([record(50, "resume"), *events[20:]], part=1, first=18)
    found = run(folder(tmp_path / "a", again))
    assert any(event.event == "resume" for event in found.events)
    assert len(found.control) == sum(event["run"] == "control" for event in events)


def test_what_a_run_told_after_its_end_is_told_again_when_it_goes_on_from_its_last_step(tmp_path):
    growth = [event for event in history() if event["run"] == "growth"]
    ended = [event for event in growth if event["event"] == "end" or event["reason"] == "end"]
    told = [*growth, record(100, "failed"), record(100, "resume", undecided=0, rollbacks=0), *ended]
    found = [event for event in run(folder(tmp_path / "a", told)).events if event.event != "resume"]
    assert found == list(run(folder(tmp_path / "b", growth)).events)


def test_a_failure_after_which_the_run_went_on_is_none_of_it(tmp_path):
    growth = [event for event in history() if event["run"] == "growth"]
    control = [event for event in history() if event["run"] == "control"]
    failed = numbered([*growth, record(100, "failed", "the run ended by WriteError")])
    assert run(folder(tmp_path / "a", failed)).failure
    found = run(folder(tmp_path / "b", failed + numbered(control, part=1, first=len(failed))))
    assert not found.failure and not found.is_running


def test_a_page_that_cannot_be_written_is_said_with_its_path(tmp_path, monkeypatch, capsys):
    place = folder(tmp_path / "a")
    page = place / "report.html"
    page.write_text("before")

    def full(*given, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    assert main(["report", str(place)]) == 2
    said = capsys.readouterr().err
    assert f"{page}: No space left on device" in said and "-o FILE" in said
    assert page.read_text() == "before" and sorted(path.name for path in place.glob(".*")) == []
    with pytest.raises(OSError, match="report cannot be written"):
        write(place, page)
