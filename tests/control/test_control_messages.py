"""What is said comes out exactly, and nothing else is ever accepted."""

import json
import math
import random
from dataclasses import fields, replace

import pytest

from control.runs import KEYS, refusal
from esper.control.keys import Keys, new_key
from esper.control.messages import CLASSES, Answer, Question, nonce, now, read, written
from esper.control.seal import MAX_BYTES, opened, sealed
from esper.control.text import to_text
from esper.errors import ConfigError, MessageError
from esper.growth.credit import Gain
from esper.growth.policy import (
    Asks,
    Cull,
    Germinate,
    Hold,
    LayerView,
    Load,
    Note,
    Observation,
    Plan,
    SeedView,
    SetAlpha,
    Transition,
)
from esper.growth.scores import FirstOrder
from esper.lifecycle import SeedLifecycleState as S

PURPOSES = ("run asks to decide", "run asks what to measure", "controller decides", "controller asks to measure")
ASK, DECIDE = PURPOSES[0], PURPOSES[2]
ODD = (math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2, 1.7976931348623157e308)
OPTIONS = (
    ("width", 4),
    ("act", "gelu \ud800 \u2028"),
    ("size", (3, (3, None))),
    ("bias", True),
    ("p", math.nan),
    ("n", 2**70),
)

GAIN = Gain(math.nan, -0.0, 1.0, math.inf, 16)
SEED = SeedView("", 0, S.TRAINING, 7, 0.1 + 0.2, 53, GAIN, 10**12, 4, 1, "mlp", Gain(1.0, 2.0, 3.0, 4.0, 5))
LAYER = LayerView(
    "a.b",
    "Linear",
    math.nan,
    (SEED, replace(SEED, seed=1, gain=None)),
    (Plan("mlp", OPTIONS, 3),),
    FirstOrder(1.0, None, 8, 3),
)
SEEN = Observation(
    10, 100, 5, ODD, (LAYER, replace(LAYER, name="", score=None, plans=())), math.nan, (("x", math.inf),)
)
ACTIONS = (
    Germinate("a", 0, "mlp", OPTIONS, "why \u00b1", "gate", "tiny"),
    Load("a", 1, "sha256:" + "0" * 64, "why", "mlp"),
    *(Transition("a", 0, state, "why") for state in S),
    *(SetAlpha("a", 0, value, "") for value in ODD),
    Cull("a", 0, "why"),
    Hold("why"),
)
QUESTION = Question("run-1", 3, nonce(), now(), SEEN, '{"a":1}', "", 2)
ANSWER = Answer("run-1", 3, 10, nonce(), nonce(), now(), ACTIONS, "memory", Asks((("a", 0),), (("a", 1),), ("a",)))


@pytest.mark.parametrize(("message", "purpose"), [(QUESTION, ASK), (ANSWER, DECIDE)])
def test_what_is_said_comes_out_exactly(message, purpose):
    found = read(written(message, purpose, KEYS), type(message), purpose, KEYS)
    assert repr(found) == repr(message)  # NaN is no equal of itself, and -0.0 is one of 0.0
    assert written(found, purpose, KEYS) == written(message, purpose, KEYS)


def test_every_action_and_view_is_said():
    said = {type(action) for action in ACTIONS} | {Asks, Answer, Question, Observation, LayerView, SeedView, Plan, Gain}
    assert said | {FirstOrder, S} == set(CLASSES.values())


@pytest.mark.parametrize("said", PURPOSES)
@pytest.mark.parametrize("expected", PURPOSES)
def test_a_message_is_for_one_purpose(said, expected):
    message = sealed("{}", said, KEYS)
    assert refusal(opened, message, expected, KEYS) == ("accepted" if said == expected else "signature")


def test_keys_are_changed_without_a_pause():
    old, new = Keys.parse(new_key("old")), Keys.parse(new_key("new"))
    both = Keys("old", {**old.secrets, **new.secrets})
    after = Keys("new", both.secrets)
    ways = [(old, both, True), (both, old, True), (both, after, True), (after, both, True), (new, both, True)]
    for says, hears, heard in [*ways, (after, old, False), (new, old, False), (old, new, False)]:
        assert (refusal(opened, sealed("{}", ASK, says), ASK, hears) == "accepted") == heard
    renamed = Keys("new", {"new": old.secrets["old"], "old": new.secrets["new"]})  # a key counts under its own id only
    assert refusal(opened, sealed("{}", ASK, renamed), ASK, both) == "signature"


@pytest.mark.parametrize(
    "text",
    ["", "# none", "k1", "k1 00", f"k1 {'0' * 62}", f"k1 {'x' * 64}", f"k/1 {'0' * 64}", f"k1 {'0' * 64} more"]
    + [f"k1 {'0' * 64}\nk1 {'1' * 64}", "\u00e9 0"],
)
def test_text_that_holds_no_keys(text, tmp_path):
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="new-key ID") as error:
        Keys.from_file(file)
    assert "000000" not in str(error.value) and "xxxxxx" not in str(error.value)


def test_keys_are_not_shown():
    keys = Keys.parse(f"# the keys\n\n{new_key('k1')}\n{new_key('k2')}\n")
    assert repr(keys) == "Keys(signing='k1')" and list(keys.secrets) == ["k1", "k2"]
    with pytest.raises(ConfigError, match="cannot read the keys"):
        Keys.from_file("/nowhere/keys")
    with pytest.raises(ConfigError, match="not among the keys"):
        Keys("k3", keys.secrets)


WRONG = {str: 5, int: "5", float: "1.0", bool: 2, tuple: ["x"], S: 5, Observation: None, Gain: 1.0, type(None): 1}


def wrong(value):
    """Something of another type."""
    return WRONG.get(type(value), math.pi)


@pytest.mark.parametrize(
    "value",
    [QUESTION, ANSWER, *(action for action in ACTIONS[:1] + ACTIONS[-2:])],
    ids=lambda value: type(value).__name__,
)
def test_every_field_has_its_type(value):
    def holding(held):
        if isinstance(held, Question | Answer):
            return held
        return replace(ANSWER, actions=(held,))

    for own in fields(value):
        odd = holding(replace(value, **{own.name: wrong(getattr(value, own.name))}))
        purpose = ASK if isinstance(odd, Question) else DECIDE
        with pytest.raises(MessageError, match="unsayable"):
            written(odd, purpose, KEYS)
        try:
            forged = sealed(to_text(odd, CLASSES), purpose, KEYS)
        except MessageError:
            continue
        assert refusal(read, forged, type(odd), purpose, KEYS) == "malformed", own.name


@pytest.mark.parametrize("held", [replace(ANSWER, actions=(Note("end", "why"),)), replace(ANSWER, actions=(SEED,))])
def test_a_controller_cannot_say_what_only_happens_inside_a_run(held):
    assert refusal(written, held, DECIDE, KEYS) == "unsayable"


def test_a_message_is_of_bounded_size():
    assert refusal(sealed, "x" * MAX_BYTES, ASK, KEYS) == "oversized"
    assert refusal(opened, b"x" * (MAX_BYTES + 1), ASK, KEYS) == "oversized"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{}",
        "null",
        "[" * 100_000,
        "NaN",
        '{"data":["messages.Answer",{}]}',
        '{"data":["messages.Answer"]}',
        '{"data":{}}',
    ]
    + ['{"data":["messages.Answer",[]]}', '{"program":{}}', '{"array":"x"}', '{"key":["x","y"]}', '{"enum":["x",1]}']
    + ['{"enum":[]}', '{"enum":[{},1]}', '{"enum":["lifecycle.SeedLifecycleState",99]}', '{"float":[]}', "9" * 5000]
    + [
        '{"data":{}}',
        '{"data":["policy.Hold",{"reason":"a","reason":"b"}]}',
        '{"list":[]}',
        '{"dict":[]}',
        '{"a":1,"b":2}',
    ],
)
def test_signed_bodies_that_are_no_messages(body):
    assert refusal(read, sealed(body, DECIDE, KEYS), Answer, DECIDE, KEYS) == "malformed"


def mutated(draw, text):
    """The bytes with a few of them changed, removed, doubled or cut off."""
    held = bytearray(text)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(held) + 1)
        match draw.randrange(5):
            case 0:
                held[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del held[at : at + draw.randint(1, 20)]
            case 2:
                held[at:at] = held[at : at + draw.randint(1, 20)]
            case 3:
                held[at:at] = draw.choice([b"[", b"{", b'"', b"}", b"]", b"null", b"-1", b"1e999", b"\\u0000", b","])
            case 4:
                del held[at:]
    return bytes(held)


def test_no_bytes_are_accepted_that_were_not_signed():
    draw = random.Random(1)
    valid = written(ANSWER, DECIDE, KEYS)
    for _ in range(1500):
        assert refusal(read, draw.randbytes(draw.randrange(200)), Answer, DECIDE, KEYS) != "accepted"
    for _ in range(1500):
        changed = mutated(draw, valid)
        assert changed == valid or refusal(read, changed, Answer, DECIDE, KEYS) != "accepted"


def test_a_signed_body_of_any_kind_is_a_message_or_malformed():
    """Of one who has the key: what is accepted has every field of its type."""
    draw = random.Random(2)
    valid = to_text(ANSWER, CLASSES).encode()
    accepted = 0
    for _ in range(2500):
        body = mutated(draw, valid).decode("ascii", "replace").encode("ascii", "replace").decode()
        if not all(" " <= letter <= "~" for letter in body):
            continue
        message = sealed(body, DECIDE, KEYS)
        kind = refusal(read, message, Answer, DECIDE, KEYS)
        assert kind in ("accepted", "malformed")
        if kind == "accepted":
            accepted += 1
            found = read(message, Answer, DECIDE, KEYS)
            assert repr(read(written(found, DECIDE, KEYS), Answer, DECIDE, KEYS)) == repr(found)
    assert accepted < 500


def test_the_form_of_a_message():
    version, key, mac, body = written(QUESTION, ASK, KEYS).decode("ascii").split(" ", 3)
    assert (version, key, len(mac)) == ("esper-control/1", "k1", 64)
    assert json.loads(body)["data"][0] == "messages.Question"
