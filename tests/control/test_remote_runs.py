"""Runs under remote control: the same run bit for bit, without a controller too, and whatever else arrives."""

import time
from dataclasses import replace

import pytest

from control.runs import GROWTH, KEYS, OTHER, Direct, alone, bit_equal, controlled, remote, run, told
from esper.control import Keys, RemotePolicy
from esper.control.messages import Answer, Question, nonce, read, written
from esper.control.seal import MAX_BYTES, sealed
from esper.errors import ArgumentError, ChannelError, EsperError
from esper.growth.policy import Asks, Cull, Germinate, SetAlpha, Transition
from esper.growth.tamiyo import Tamiyo
from esper.lifecycle import SeedLifecycleState as S

pytestmark = pytest.mark.usefixtures("compiled_once")
ASK, DECIDE, MEASURE = "run asks to decide", "controller decides", "controller asks to measure"
STRANGER = Keys("k1", {"k1": bytes(32)})


def test_the_run_to_compare_with_grows():
    events = {record.event for record in alone().records}
    assert {"germinate", "grafting", "culled"} & events >= {"germinate"}


@pytest.mark.parametrize("measure", ["local", "remote"])
def test_a_remote_tamiyo_gives_the_same_run_bit_for_bit(measure):
    found = run(remote(controlled(), measure=measure))
    assert bit_equal(found, alone())
    assert told(found, "remote")[0] == "the controller decides on observation 1" and not told(found, "rejected")


def test_another_policy_decides_otherwise():
    found = run(remote(controlled(Tamiyo(OTHER)), measure="remote"))
    assert bit_equal(found, run(growth=GROWTH, policy=Tamiyo(OTHER))) and not bit_equal(found, alone())


def test_without_a_controller_the_local_default_decides():
    found = run(remote(lambda message: []))
    assert bit_equal(found, alone())
    assert told(found, "remote")[0].startswith("the local default decides: no answer within 2 s")


def test_a_channel_that_does_not_work_is_no_reason_to_stop():
    def broken(message):
        raise ChannelError("nobody there")

    found = run(remote(broken))
    assert bit_equal(found, alone()) and "nobody there" in told(found, "remote")[0]


# ---- who decides ----------------------------------------------------------------------------------------


class Cut:
    """A controller that is there for some questions only."""

    def __init__(self, answers, there):
        self.answers, self.there, self.count = answers, there, 0

    def __call__(self, message):
        self.count += 1
        return self.answers(message) if self.count in self.there else []


def test_a_controller_that_is_killed_leaves_a_run_that_the_local_default_goes_on_with():
    """What follows is what the local default alone would have done from there."""
    kept = []

    def keep(record, run):
        if record.event == "evaluate" and record.step == 20:
            kept.append(run.checkpoint())

    found = run(remote(Cut(controlled(Tamiyo(OTHER)), range(1, 4))), callbacks=[keep])
    (here,) = kept
    alone_from_here = run(Tamiyo(GROWTH), resume=replace(here, memory=here.memory.local))
    assert bit_equal(found, alone_from_here)
    who = [reason.split(":")[0] for reason in told(found, "remote")]
    assert who[:4] == [*(f"the controller decides on observation {n}" for n in (1, 2, 3)), "the local default decides"]


def test_a_controller_that_is_restarted_takes_over_again():
    found = run(remote(Cut(controlled(), (1, 2, 4, 5, 6, 7, 8)), patience=1, longest_rest=1))
    assert bit_equal(found, alone())
    who = [reason for reason in told(found, "remote") if reason.startswith("the controller")]
    assert who[-1] == "the controller decides on observation 8" and len(who) < 8


def test_a_controller_that_returns_knows_what_was_decided_without_it():
    """It is handed back what it remembered: that of another kind of policy is of no use to it."""
    seen = []

    class Counting:
        def start(self):
            return 0

        def __call__(self, observation, memory):
            seen.append(memory)
            return (), memory + 1

    run(remote(Cut(controlled(Counting()), (1, 3)), patience=9))
    assert seen == [0, 1]


def test_a_run_goes_on_from_a_checkpoint_under_remote_control(tmp_path):
    def pause(record, run):
        if record.event == "evaluate" and record.step == 20:
            run.stop("for now")

    future = []
    answers = controlled()

    def kept(message):
        future.extend(answers(message))
        return future[-1:]

    run(remote(kept), checkpoints=tmp_path, callbacks=[pause])
    run(remote(kept), resume=tmp_path, steps=30)  # a future that is discarded
    policy = remote(controlled())
    policy._line.channel.inbox.extend(future)
    found = run(policy, resume=tmp_path)
    assert bit_equal(found, alone())
    assert {reason.split(":")[0] for reason in told(found, "rejected")} <= {"stale", "duplicate"}
    assert len(told(found, "rejected")) == len(future) > 3 or told(found, "rejected")[-1].endswith("more messages")


def test_settings_of_the_local_default_change_on_the_way():
    def change(record, run):
        if record.event == "evaluate" and record.step == 10:
            run.update("components.tamiyo.config.max_kernels", 0)

    found, wanted = run(remote(lambda message: []), callbacks=[change]), run(callbacks=[change])
    assert bit_equal(found, wanted) and not bit_equal(wanted, alone())


# ---- what is rejected -----------------------------------------------------------------------------------


def answered(question, **changes):
    """A signed answer to a question, with these fields."""
    about = {"run": question.run, "sequence": question.sequence, "step": question.observation.step}
    given = {**about, "to": question.nonce, "nonce": nonce(), "time": question.time, "memory": question.default}
    return Answer(**{**given, **changes})


def sent(question, keys=KEYS, purpose=DECIDE, **changes):
    return written(answered(question, **changes), purpose, keys)


def body(message):
    return message.split(b" ", 3)[3].decode()


def acting(*actions):
    return lambda question, message, good, before: [sent(question, actions=actions)]


BAD = {
    "garbage": ("malformed", lambda question, message, good, before: [b"\xff\0{}", b"", b"{}"]),
    "too large": ("oversized", lambda question, message, good, before: [b"x" * (MAX_BYTES + 1)]),
    "another key": ("signature", lambda question, message, good, before: [sent(question, STRANGER)]),
    "unknown key": ("key", lambda question, message, good, before: [sent(question, Keys("k9", {"k9": bytes(32)}))]),
    "newer version": ("version", lambda question, message, good, before: [good.replace(b"l/1", b"l/2")]),
    "changed": ("signature", lambda question, message, good, before: [good.replace(b'"step":', b'"stop":')]),
    "unsigned": ("malformed", lambda question, message, good, before: [body(good).encode()]),
    "another purpose": ("signature", lambda question, message, good, before: [sent(question, purpose=MEASURE)]),
    "its own question": ("signature", lambda question, message, good, before: [message]),
    "another run": ("run", lambda question, message, good, before: [sent(question, run="run-2")]),
    "replayed": ("duplicate", lambda question, message, good, before: before[-1:]),
    "replayed, older": ("stale", lambda question, message, good, before: before[-2:-1]),
    "another nonce": ("stale", lambda question, message, good, before: [sent(question, to=nonce())]),
    "another step": ("malformed", lambda question, message, good, before: [sent(question, step=7)]),
    "another sequence": ("malformed", lambda question, message, good, before: [sent(question, sequence=1)]),
    "no time": ("malformed", lambda question, message, good, before: [sent(question, time="noon")]),
    "no nonce": ("malformed", lambda question, message, good, before: [sent(question, nonce="x")]),
    "unknown field": (
        "malformed",
        lambda question, message, good, before: [sealed(body(good).replace('"step"', '"x":1,"step"'), DECIDE, KEYS)],
    ),
    "unknown class": (
        "malformed",
        lambda question, message, good, before: [sealed('{"data":["os.system",{}]}', DECIDE, KEYS)],
    ),
    "another type": (
        "malformed",
        lambda question, message, good, before: [
            sealed(body(good).replace('"step":', '"step":1.5e0,"_":'), DECIDE, KEYS)
        ],
    ),
    "unknown layer": ("impossible", acting(Transition("nowhere", 0, S.GRAFTING, "why"))),
    "unknown seed": ("impossible", acting(Transition("0", 7, S.GRAFTING, "why"))),
    "illegal move": ("impossible", acting(Transition("0", 1, S.FOSSILIZED, "why"))),
    "announcing": ("impossible", acting(Transition("0", 1, S.LOADING, "why"))),
    "unplanned": ("impossible", acting(Germinate("0", 1, "mlp", (("width", 10**9),), "why"))),
    "unknown blueprint": ("impossible", acting(Germinate("0", 1, "nothing", (), "why"))),
    "no alpha": ("impossible", acting(SetAlpha("0", 1, float("nan"), "why"))),
    "nothing to cull": ("impossible", acting(Cull("0", 1, "why"))),
    "several lines": ("impossible", acting(SetAlpha("0", 1, 0.5, "why\nstep 7: rollback"))),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_is_rejected_and_recorded_and_changes_nothing(name):
    kind, make = BAD[name]
    answers, before = controlled(), []

    def beset(message):
        (good,) = answers(message)
        question = read(message, Question, ASK, KEYS)
        bad = make(question, message, good, before) if question.sequence == 3 else []
        before.append(good)
        return bad if bad and is_answer else [*bad, good]

    is_answer = kind == "impossible"  # no better one will come: the local default decides
    found = run(remote(beset))
    assert bit_equal(found, alone())
    assert {reason.split(":")[0] for reason in told(found, "rejected")} == {kind}
    assert any(reason.startswith("the local default") for reason in told(found, "remote")) == is_answer


def test_a_flood_is_no_flood_of_events():
    found = run(remote(lambda message: [b"nonsense"] * 500 + controlled()(message)), steps=10)
    assert len(told(found, "rejected")) == 18 and told(found, "rejected")[8] == "492 more messages"
    assert not any(reason.startswith("the local") for reason in told(found, "remote"))


@pytest.mark.parametrize("tolerance", [None, 60.0])
def test_a_clock_that_is_hours_off(tolerance, monkeypatch):
    monkeypatch.setattr("esper.control.service.now", lambda: "2001-01-01T00:00:00+00:00")
    found = run(remote(controlled(), clock_tolerance=tolerance))
    assert bit_equal(found, alone())
    assert ([] if tolerance is None else ["clock"]) == sorted({r.split(":")[0] for r in told(found, "rejected")})


def test_late_answers_are_rejected():
    late, answers = [], controlled()

    def slow(message):
        late.extend(answers(message))
        return late[-2:-1]

    found = run(remote(slow, patience=9))
    assert bit_equal(found, alone())
    assert [r.split(":")[0] for r in told(found, "rejected")] == ["stale"] * (len(late) - 1)


@pytest.mark.parametrize(
    "action",
    [Transition("0", 1, S.FOSSILIZED, "why"), Germinate("0", 1, "nothing", (), "why"), SetAlpha("0", 1, 2.0, "why")],
)
def test_an_action_that_proves_impossible_does_not_end_the_run(action, monkeypatch):
    monkeypatch.setattr("esper.control.policy.obstacle", lambda observation, actions: "")

    def odd(message):
        question = read(message, Question, ASK, KEYS)
        return [sent(question, actions=(action,) if question.sequence == 2 else ())]

    found = run(remote(odd))
    assert [reason.split(":")[0] for reason in told(found, "rejected")] == ["impossible"]
    assert set(found.model.seeds.lifecycle.ravel().tolist()) == {int(S.DORMANT)}
    with pytest.raises(EsperError):
        run(Once(action))


class Once:
    """A policy of the user's own: its mistakes are raised."""

    def __init__(self, action):
        self.action = action

    def start(self):
        return ()

    def __call__(self, observation, memory):
        return (self.action,), memory


def test_measurements_that_cannot_be_made_are_not_asked_for():
    def odd(message):
        try:
            question = read(message, Question, "run asks what to measure", KEYS)
        except ValueError:
            return controlled()(message)
        return [sent(question, purpose=MEASURE, asks=Asks(gains=(("nowhere", 0),)))]

    found = run(remote(odd, measure="remote", patience=9), steps=20)
    assert {reason.split(":")[0] for reason in told(found, "rejected")} == {"impossible"}


@pytest.mark.parametrize("changes", [{"timeout": 0}, {"patience": 0}, {"longest_rest": 0}, {"measure": "both"}])
def test_arguments_out_of_range(changes):
    with pytest.raises(ArgumentError):
        remote(controlled(), **changes)


@pytest.mark.parametrize("name", ["../x", "a b", ".x", "controller", "x" * 101])
def test_names_that_are_none(name):
    with pytest.raises(ArgumentError, match="a run's name"):
        RemotePolicy(Direct(controlled()), KEYS, local=Tamiyo(GROWTH), run=name)


def test_waiting_for_the_controller_is_no_time_of_training():
    def slow(message):
        time.sleep(0.2)
        return []

    began = time.perf_counter()
    found = run(remote(slow, patience=1, longest_rest=1))
    wall = time.perf_counter() - began
    spent = {row.phase: row.spent.seconds for row in found.ledger.table()}
    waited = sum(record.waited for record in found.records if record.event == "remote")
    assert waited >= 0.4 and spent["decision"] >= waited - 0.01
    assert sum(seconds for phase, seconds in spent.items() if phase != "compile") < wall  # nothing twice
