"""Run folders that hold anything: a page, or an error that says what is wrong; never a traceback, never a hang."""

import copy
import json
import random
from xml.etree import ElementTree

import pytest
from report.run_folders import CERTIFICATE, EVIL, LEDGER, folder, history, kernel, layer, network, record

from esper.errors import EsperError
from esper.report import render, run

ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    1e308,
    -1e308,
    2**70,
    -(2**70),
    "",
    "x",
    EVIL,
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    [EVIL] * 3,
]


def changed(plain, draw, times):
    """A copy in which some values, wherever they stand, are odd ones, or gone."""
    plain = copy.deepcopy(plain)
    for _ in range(times):
        place = plain
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw.choice(keys)
            inner = place[key]
            if isinstance(inner, dict | list) and inner and draw.random() < 0.85:
                place = inner
                continue
            if draw.random() < 0.15:
                del place[key]
            else:
                place[key] = copy.deepcopy(draw.choice(ODD))
            break
    return plain


@pytest.mark.parametrize("seed", range(120))
def test_whatever_a_folder_holds_there_is_a_page_or_an_error_that_says_why(tmp_path, seed):
    draw = random.Random(seed)
    layers = [layer(kernels=[kernel(), kernel(seed=1, state="ACTIVE", alpha=0.5)]), layer("2", reads=[0, -1])]
    events = [*history(), record(60, "rollback", "diverged", back_to=40, culled="0[0]", validation_loss=9.0)]
    events = changed(events, draw, draw.randint(0, 40))
    place = folder(
        tmp_path / "run",
        [event for event in events if event is not None],
        network_=changed(network(layers), draw, draw.randint(0, 6)) or {"a": 1},
        ledger=changed(LEDGER, draw, draw.randint(0, 4)),
        certificate=changed(CERTIFICATE, draw, draw.randint(0, 3)),
    )
    try:
        found = run(place)
        text = render([found, found])
    except EsperError as error:
        assert len(str(error)) > 30
        return
    assert "<script>alert" not in text and len(text) < 3_000_000
    body = text[text.index("<body") : text.index("</body>")]
    for gone in ("nan", "inf"):
        assert f'="{gone}"' not in body and f" {gone}," not in body


def test_drawings_are_xml(tmp_path):
    found = run(folder(tmp_path / "run"))
    text = render([found])
    for at in range(text.count("<svg")):
        drawing = "<svg" + text.split("<svg")[at + 1].split("</svg>")[0] + "</svg>"
        ElementTree.fromstring(drawing)


@pytest.mark.parametrize(
    "junk", [b"\xff\xfe\x00", b"{}\n" * 5, b"\n\n", b"[" * 100_000, b'{"step": 1e999, "event": "x"}\n' * 2]
)
def test_bytes_that_are_no_history(tmp_path, junk):
    (tmp_path / "history.jsonl").write_bytes(junk)
    try:
        assert render([run(tmp_path)])
    except EsperError as error:
        assert "history" in str(error)


def test_deep_json_is_no_trouble(tmp_path):
    place = folder(tmp_path / "run")
    for name in ("ledger", "certificate", "network"):
        (place / f"{name}.json").write_text("[" * 100_000)
    found = run(place)
    assert len(found.notes) == 3
    (place / "ledger.json").write_text(json.dumps({"phases": {"train": {"flops": 10**400}}}))
    assert render([run(place)])
