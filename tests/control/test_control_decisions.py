"""What may be decided from outside, who remembers what, and how often a silent controller is asked."""

import logging
import math
import threading
from dataclasses import replace
from functools import cache

import jax
import pytest

from control.runs import GROWTH, KEY, KEYS, OTHER, PLAN, controlled, model, remote, run, seen
from esper.control import Controller, Keys, Post, RemotePolicy, serve
from esper.control.channel import CONTROLLER
from esper.control.exchange import DECIDE
from esper.control.legal import obstacle, unmeasurable
from esper.control.messages import Answer, Question, nonce, now, read, written
from esper.errors import ArgumentError, ChannelError, SeedError
from esper.growth.memory import Memory
from esper.growth.policy import (
    Asks,
    Cull,
    Hold,
    Load,
    SeedView,
    SetAlpha,
    Transition,
    act,
    witnessed,
)
from esper.growth.tamiyo import Tamiyo
from esper.lifecycle import SeedLifecycleState as S
from esper.train.observe import observed

STATES = tuple(S)


# ---- what is possible -----------------------------------------------------------------------------------


@cache
def grown():
    return act(model(), None, PLAN.germinate(("0", 0), "why"), key=KEY)[0]


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_what_is_taken_for_possible_is(state, holds):
    """On a model, action by action; a seed is only ever announced by the run itself."""
    held = grown() if holds else model()
    held = held.replace(seeds=held.seeds.set(0, 0, lifecycle=int(state)))
    views = observed(held, [1.0, 1.0], {"0": (PLAN,)})
    here = replace(seen(), layers=views)
    actions = [*(Transition("0", 0, to, "why") for to in STATES if to is not S.LOADING), Cull("0", 0, "why")]
    actions += [SetAlpha("0", 0, alpha, "why") for alpha in (0.0, 1.0, 1.1, -1.0, math.nan)]
    if state is not S.LOADING:  # no policy is asked then
        actions += [PLAN.germinate(("0", 0), "why")]
    for action in actions:
        try:
            act(held, None, action, key=KEY)
            possible = True
        except SeedError:
            possible = False
        assert (obstacle(here, (action,)) == "") == possible, action
    assert obstacle(here, (Transition("0", 0, S.LOADING, "why"),))


@pytest.mark.parametrize(
    ("actions", "reason"),
    [
        ((Hold("why"),), ""),
        ((Transition("0", 0, S.CULLED, "a"), Transition("0", 0, S.DORMANT, "b"), PLAN.germinate(("0", 0), "c")), ""),
        ((Cull("0", 0, "a"), Cull("0", 0, "b")), ""),
        ((Transition("0", 0, S.CULLED, "a"), Transition("0", 0, S.CULLED, "b")), "it cannot become CULLED"),
        ((Cull("0", 0, "a"), Transition("0", 0, S.DORMANT, "b"), Transition("0", 0, S.TRAINING, "c")), "cannot become"),
        ((Transition("0", 1, S.GRAFTING, "a"),), "no seed 1 in a layer '0'"),
        ((Transition("1", 0, S.GRAFTING, "a"),), "no seed 0 in a layer '1'"),
        ((PLAN.germinate(("0", 0), "a"),), "only a DORMANT seed"),
        ((Hold("x" * 5000),), "a line of at most"),
        ((Hold("a\x1b[2Jb"),), "printable"),
    ],
)
def test_actions_together(actions, reason):
    found = obstacle(seen(SeedView("0", 0, S.TRAINING, blueprint="mlp", parameters=53)), actions)
    assert (reason in found) if reason else found == ""


@pytest.mark.parametrize(
    "change",
    [{"blueprint": "conv"}, {"options": ()}, {"options": (("width", 5),)}, {"blend": "gate"}, {"init": "tiny"}],
)
def test_only_what_is_planned_germinates(change):
    action = PLAN.germinate(("0", 0), "why")
    assert obstacle(seen(), (action,)) == "" and "none of the layer's plans" in obstacle(
        seen(), (replace(action, **change),)
    )


def test_only_what_is_planned_is_loaded():
    drawn = replace(PLAN, artifact="sha256:" + "a" * 64)
    here = replace(seen(), layers=tuple(replace(layer, plans=(drawn, *layer.plans)) for layer in seen().layers))
    action = drawn.germinate(("0", 0), "why")
    assert isinstance(action, Load) and obstacle(here, (action,)) == ""
    assert obstacle(here, (action, SetAlpha("0", 0, 0.5, "why"), Cull("0", 0, "why"))) == ""
    for other in (replace(action, artifact="sha256:" + "b" * 64), replace(action, blueprint="conv")):
        assert "none of the layer's plans" in obstacle(here, (other,))
    assert "none of the layer's plans" in obstacle(seen(), (action,))


@pytest.mark.parametrize(
    ("asks", "possible"),
    [
        (Asks(), True),
        (Asks((("0", 0),), (("0", 0),), ("0",)), True),
        (Asks(gains=(("0", 1),)), False),
        (Asks(credits=(("1", 0),)), False),
        (Asks(scores=("1",)), False),
        (Asks(scores=("0", "0")), False),
    ],
)
def test_what_can_be_measured(asks, possible):
    assert (unmeasurable(seen(SeedView("0", 0, S.TRAINING)), asks) == "") == possible


# ---- who remembers what ---------------------------------------------------------------------------------


class Watched(Tamiyo):
    """Tamiyo with every call it gets."""

    calls = ()

    def __call__(self, observation, memory):
        found = super().__call__(observation, memory)
        object.__setattr__(self, "calls", (*self.calls, (observation, memory, found)))
        return found


@pytest.mark.parametrize("changes", [{}, {"start_step": 20}, {"max_kernels": 1}, {"race": 2}, {"patience": 3}])
def test_a_witness_remembers_of_its_own_decisions_what_a_call_remembers(changes):
    policy = Watched(GROWTH.model_copy(update=changes))
    run(policy, steps=60)
    assert len(policy.calls) > 8 and any(actions for _, _, (actions, _) in policy.calls)
    for observation, memory, (actions, after) in policy.calls:
        assert policy.witness(observation, actions, memory) == after


def test_a_witness_tends_what_another_has_germinated():
    policy, here = Tamiyo(OTHER), seen()
    memory = policy.witness(here, (PLAN.germinate(("0", 0), "why"),), policy.start())
    assert memory.tended == ((("0", 0), "mlp"),) and memory.culled == ()
    lost = policy.witness(here, (), memory)
    assert lost.tended == () and [one.blueprint for one in lost.culled] == ["mlp"]
    moves = (Transition("0", 0, S.LOADING, "a"), Transition("0", 0, S.TRAINING, "b"), Transition("0", 0, S.CULLED, "c"))
    assert policy.witness(here, moves, policy.start()).tended == ()


def test_a_policy_that_is_no_witness_believes_that_it_was_heeded():
    class Counting:
        def start(self):
            return 0

        def __call__(self, observation, memory):
            return (Hold("why"),), memory + 1

    assert witnessed(Counting(), seen(), (), 4) == 5


def question(**changes):
    given = {"run": "run-1", "sequence": 3, "nonce": nonce(), "time": now(), "observation": seen()}
    return Question(**{**given, **changes})


OWN, DEFAULT = Memory(best=0.5, stale=5), Memory(best=0.5, stale=7)


@pytest.mark.parametrize(
    ("theirs", "default", "missed", "stale"),
    [
        (None, None, 0, 0),
        (OWN, None, 0, 6),
        (OWN, DEFAULT, 0, 6),
        (OWN, DEFAULT, 2, 8),
        (None, DEFAULT, 0, 8),
        (OWN, (1, 2), 2, 6),
        ((1, 2), DEFAULT, 0, 8),
        ((1, 2), None, 0, 0),
    ],
)
def test_a_controller_goes_on_where_it_was(theirs, default, missed, stale):
    """A gap is filled by the local default's memory, if that is of the same kind. Every call adds one evaluation."""
    controller = Controller(Tamiyo(OTHER), KEYS)
    said = [controller_text(controller, memory) for memory in (theirs, default)]
    asked = question(theirs=said[0], default=said[1], missed=missed)
    answer = read(controller.answer(asked, DECIDE), Answer, DECIDE[1], KEYS)
    assert f'"stale":{stale}' in answer.memory
    assert (answer.to, answer.run, answer.sequence, answer.step) == (asked.nonce, "run-1", 3, 10)


def controller_text(controller, memory):
    from esper.control.text import to_text

    return "" if memory is None else to_text(memory, controller._classes)


@pytest.mark.parametrize("theirs", ['{"data":["os.system",{}]}', '{"array":"x"}', "nonsense", '{"program":{}}'])
def test_memory_that_is_none_is_not_gone_on_with(theirs, caplog):
    """Nothing is made of it, and the run is answered all the same: it would be asked with it for ever."""
    controller = Controller(Tamiyo(OTHER), KEYS)
    for default, stale in ((None, 0), (DEFAULT, 8)):
        asked = question(theirs=theirs, default=controller_text(controller, default))
        answer = read(controller.answer(asked, DECIDE), Answer, DECIDE[1], KEYS)
        assert f'"stale":{stale}' in answer.memory
    assert caplog.text.count("is no memory of Tamiyo") == 2


# ---- how often a silent controller is asked -------------------------------------------------------------


def asked_at(there, evaluations=80, **changes):
    """The evaluations at which the controller was asked, where it is there at some."""
    policy, at = remote(lambda message: [], **changes), []
    answers = controlled()
    channel = policy._line.channel
    memory = policy.start()
    for number in range(1, evaluations + 1):
        channel.answers = answers if number in there else lambda message: []
        before = channel.asked
        _, memory = policy(seen(step=5 * number), memory)
        at += [number] if channel.asked > before else []
    return at, memory


def test_an_unreachable_controller_is_asked_less_and_less_often():
    found, memory = asked_at(())
    assert found == [1, 2, 4, 7, 12, 21, 38, 55, 72] and (memory.missed, memory.sequence) == (80, 80)
    assert asked_at((), patience=3, longest_rest=2)[0][:8] == [1, 2, 3, 5, 8, 11, 14, 17]


def test_a_controller_that_returns_is_heard_again():
    found, memory = asked_at(range(30, 81))
    assert found[:8] == [1, 2, 4, 7, 12, 21, 38, 39] and found[-1] == 80
    assert (memory.missed, memory.failures, memory.rest) == (0, 0, 0)


def test_one_silence_is_not_waited_for_twice():
    policy = remote(lambda message: [], measure="remote")
    memory = policy.start()
    policy.asks(seen(), memory)
    _, memory = policy(seen(), memory)
    assert policy._line.channel.asked == 1 and memory.failures == 1


def test_an_observation_that_is_too_large_is_decided_locally():
    policy = remote(controlled())
    actions, _ = policy(seen(losses=(0.123456789,) * 400_000), policy.start())
    assert "oversized" in actions[0].reason and policy._line.channel.asked == 0


def test_runs_in_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ArgumentError, match="in one process"):
        remote(controlled()).start()


# ---- serving --------------------------------------------------------------------------------------------


class Picky:
    """A policy with a bug, for some runs."""

    def start(self):
        return ()

    def __call__(self, observation, memory):
        if observation.step == 13:
            raise ZeroDivisionError("a bug")
        return (Hold("why"),), memory


def served(policy, messages, channel=None):
    """What the controller sends when it finds these messages."""
    post, stop = Post(), threading.Event()
    own = channel or post.end(CONTROLLER)
    for message in messages:
        own.send(CONTROLLER, message)
    thread = threading.Thread(target=serve, args=(Controller(policy, KEYS), own, stop), kwargs={"poll": 0.01})
    thread.start()
    answers = {name: post.end(name).receive(60 if name == "last" else 0) for name in ("last", "run-1", "run-2")}
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    return {name: read(answer, Answer, DECIDE[1], KEYS) for name, answer in answers.items() if answer}


def asking(keys=KEYS, **changes):
    return written(question(**changes), DECIDE[0], keys)


def test_every_run_is_served_and_its_newest_question_answered(caplog):
    messages = [
        b"nonsense",
        b"more",
        asking(Keys("k1", {"k1": bytes(32)})),
        asking(run="run-1", sequence=1),
        asking(run="run-2"),
    ]
    messages += [asking(run="run-1", sequence=2), asking(run="last")]
    with caplog.at_level(logging.INFO, "esper.control"):
        found = served(Picky(), messages)
    assert {name: answer.sequence for name, answer in found.items()} == {"run-1": 2, "run-2": 3, "last": 3}
    said = [record.getMessage() for record in caplog.records]
    rejected = [line for line in said if line.startswith("rejected")]
    assert len(rejected) == 2 and "messages: 2, malformed" in rejected[0] and "messages: 1, signature" in rejected[1]
    assert not any(bytes(range(32)).hex() in line for line in said)


def test_one_run_that_the_policy_fails_for_is_no_reason_to_leave_the_others(caplog):
    found = served(Picky(), [asking(observation=seen(step=13)), asking(run="last")])
    assert set(found) == {"last"} and "run run-1, observation 3 is not answered" in caplog.text


def test_a_channel_that_does_not_work_is_tried_again(caplog, monkeypatch):
    monkeypatch.setattr("esper.control.service._PAUSE", 0.01)
    stop, tries = threading.Event(), []

    class Broken:
        def receive(self, timeout, about=""):
            tries.append(timeout)
            if len(tries) < 4:
                raise ChannelError("nobody there")
            stop.set()

    serve(Controller(Picky(), KEYS), Broken(), stop)
    assert len(tries) == 4 and caplog.text.count("nobody there") == 1


def test_a_controller_and_its_run_in_two_threads():
    post, stop = Post(), threading.Event()
    given = (Controller(Tamiyo(GROWTH), KEYS), post.end(CONTROLLER), stop)
    thread = threading.Thread(target=serve, args=given, kwargs={"poll": 0.01})
    thread.start()
    policy = RemotePolicy(post.end("run-1"), KEYS, local=Tamiyo(GROWTH), run="run-1", timeout=60)
    actions, memory = policy(seen(), policy.start())
    stop.set()
    thread.join(60)
    assert actions[0].reason == "the controller decides on observation 1" and memory.missed == 0


@pytest.mark.parametrize(
    ("actions", "problem"),
    [
        ([SetAlpha("0", 0, 0.5, "why")] * 2, "alpha of 0[0] is set 2 times"),
        ([Hold("why")] * 17, "more than 16 reasons"),
        ([Cull("0", 0, "why"), Transition("0", 0, S.DORMANT, "why")] * 20, "40 actions, and here at most 20"),
    ],
)
def test_nobody_decides_any_number_of_things_at_once(actions, problem):
    assert problem in obstacle(seen(SeedView("0", 0, S.GRAFTING, blueprint="mlp")), actions)


def test_a_checkpoint_of_the_local_default_goes_on_under_remote_control():
    local = Tamiyo(GROWTH)
    policy = remote(controlled(), measure="remote")
    policy.asks(seen(), local.start())
    _, memory = policy(seen(), local.start())
    assert memory.sequence == 1 and memory.local == witnessed(local, seen(), (), local.start())
