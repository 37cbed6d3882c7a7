"""Runs that go back, to a sound state or to a checkpoint: what events say is what the model is."""

from functools import cache

import jax
import numpy as np
import optax
import pytest
import torch
from scripted import Script
from torch import nn

import esper
from esper.configs import TamiyoSettings
from esper.growth.policy import Cull, Germinate, SetAlpha, Transition
from esper.lifecycle import LEADS_TO
from esper.lifecycle import SeedLifecycleState as S
from esper.report import timeline
from esper.report.read import run as reported
from esper.telemetry import event_of, states
from esper.telemetry.events import KINDS, Seed
from esper.telemetry.seeds import SeedState
from esper.train.governor import Governor, Rollback, Sound, Watch
from esper.train.history import Record
from telemetry.samples import evaluation


def of(*told):
    events = [event_of(each, run_id="r", sequence=at, seconds=1e9) for at, each in enumerate(told)]
    (state,) = states(events).values()
    return state


def seed(step, event, layer="0", number=0, **figures):
    return Record(step, event, "why", layer, number, figures)


def rollback(step, to, culled="none"):
    return Record(step, "rollback", "it diverged", figures={"back_to": to, "retry": 1, "culled": culled})


BORN = (Record(0, "start"), evaluation(5), seed(5, "germinate", blueprint="mlp"), evaluation(10))


def test_every_event_of_a_seed_leads_to_a_state():
    assert {event for event, kind in KINDS.items() if kind is Seed} == {*LEADS_TO, "alpha"}


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ((), SeedState("training", 5, 0.0, "mlp")),
        ((seed(10, "grafting"),), SeedState("training", 5, 0.0, "mlp")),
        ((seed(7, "grafting"), seed(10, "alpha", alpha=0.5)), SeedState("grafting", 7, None, "mlp")),
        ((seed(7, "grafting"), seed(8, "alpha", alpha=0.5)), SeedState("grafting", 8 - 1, 0.5, "mlp")),
        ((seed(10, "culled"), seed(12, "remove")), SeedState("training", 5, 0.0, "mlp")),
    ],
    ids=["training", "grafting", "alpha", "alpha before", "removed"],
)
def test_a_rollback_shows_what_seeds_were_before_anything_was_decided_where_it_went(told, wanted):
    assert of(*BORN, *told, rollback(15, 10)).seeds == {("0", 0): wanted}


def test_a_seed_whose_kernel_came_later_is_dormant_again_even_if_it_is_blamed():
    state = of(*BORN, rollback(15, 5, "0[0]"))
    assert state.seeds == {("0", 0): SeedState("dormant", 0)} and (state.step, state.rollbacks) == (5, 1)


def test_whom_the_first_rollback_culled_the_next_one_to_the_same_step_brings_back():
    first = of(*BORN, rollback(15, 10, "0[0]"))
    assert first.seeds == {("0", 0): SeedState("culled", 10, 0.0, "mlp")}
    assert of(*BORN, rollback(15, 10, "0[0]"), rollback(15, 10)).seeds == {
        ("0", 0): SeedState("training", 5, 0.0, "mlp")
    }


def test_what_was_being_loaded_is_withdrawn():
    assert of(evaluation(5), seed(5, "loading"), rollback(15, 10)).seeds == {("0", 0): SeedState("dormant", 10)}


def test_kernels_that_failed_within_a_step_are_told_by_evaluations_and_have_failed_before_it_was_sound():
    failed = of(*BORN, seed(10, "grafting"), evaluation(20, **{"failed 0[0]": 15, "failed no number[x]": 3}))
    assert failed.seeds == {("0", 0): SeedState("error_recovery", 15, 0.0, "mlp")}
    back = of(*BORN, seed(10, "grafting"), evaluation(20, **{"failed 0[0]": 20}), rollback(25, 20))
    assert back.seeds == {("0", 0): SeedState("error_recovery", 20, 0.0, "mlp")}


def test_alpha_is_what_evaluations_find():
    """A kernel may be taken out again, or stay part of the way: what was asked for does not say how far alpha is."""
    graft = seed(10, "grafting"), evaluation(15, **{"alpha 0[0]": 0.25, "alpha no number[x]": 1.0})
    assert of(*BORN, *graft).seeds["0", 0] == SeedState("grafting", 10, 0.25, "mlp")
    stays = *graft, evaluation(20, **{"alpha 0[0]": 0.5}), seed(20, "active")
    assert of(*BORN, *stays).seeds["0", 0] == SeedState("active", 20, 0.5, "mlp")
    assert of(*BORN, *stays, seed(25, "fossilized")).seeds["0", 0] == SeedState("fossilized", 25, 0.5, "mlp")
    out = *stays, seed(30, "grafting"), evaluation(35, **{"alpha 0[0]": 0.0}), seed(35, "active")
    assert of(*BORN, *out).seeds["0", 0] == SeedState("active", 35, 0.0, "mlp")
    assert of(*BORN, *out, rollback(40, 20)).seeds["0", 0] == SeedState("grafting", 10, 0.25, "mlp")


def test_what_is_remembered_is_bounded():
    moves = [seed(20 + at, ("active", "grafting")[at % 2]) for at in range(1000)]
    state = of(*BORN, *moves)
    assert max(len(journal) for journal in state.past.journals.values()) < 100
    assert of(*BORN, *moves, rollback(1100, 1017)).seeds["0", 0] == SeedState("active", 1016, 1.0, "mlp")
    assert of(*BORN, *moves, rollback(1100, 100)).seeds == {}  # nobody knows any more
    assert len(of(*[rollback(5, 0)] * 100).undone) < 10


def test_what_telemetry_tells_of_itself_moves_no_run():
    assert of(*BORN, rollback(15, 10), Record(15, "sink_down", "start it", figures={"sink": "redis"})).step == 10


# ---- resumes --------------------------------------------------------------------------------------------


def resume(step, **figures):
    return Record(step, "resume", figures=figures)


ANEW = (seed(10, "grafting"), evaluation(15), seed(15, "active"))


@pytest.mark.parametrize(
    ("figures", "wanted"),
    [
        ({"rollbacks": 0, "undecided": True}, SeedState("training", 5, 0.0, "mlp")),
        ({"rollbacks": 0, "undecided": False}, SeedState("grafting", 10, None, "mlp")),
        ({}, SeedState("grafting", 10, None, "mlp")),
    ],
    ids=["from an evaluation", "from a run's end", "of an older version"],
)
def test_a_resume_shows_what_seeds_were_in_the_checkpoint(figures, wanted):
    assert of(*BORN, *ANEW, resume(10, **figures)).seeds == {("0", 0): wanted}


@pytest.mark.parametrize("undecided", [True, False])
def test_a_rollback_that_came_after_the_checkpoint_did_not_happen(undecided):
    """The run was suspicious at 15, which is no point to go back to, but has a checkpoint."""
    state = of(*BORN, *ANEW, rollback(20, 10, "0[0]"), resume(15, rollbacks=0, undecided=undecided))
    assert state.seeds["0", 0].state == ("grafting" if undecided else "active") and state.rollbacks == 0
    assert [step for step, _ in state.curves["train_loss"]] == [5, 10, 15]


def test_a_rollback_that_the_checkpoint_holds_did_happen():
    told = (*BORN, *ANEW, rollback(20, 10, "0[0]"), evaluation(15), seed(15, "remove"), evaluation(20))
    state = of(*told, resume(15, rollbacks=1, undecided=True))
    assert state.seeds["0", 0] == SeedState("culled", 10, 0.0, "mlp") and state.rollbacks == 1


def test_a_run_that_begins_again_had_no_checkpoint():
    state = of(*BORN, *ANEW, rollback(20, 10), Record(0, "start"))
    assert state.seeds == {} and state.curves == {} and state.rollbacks == 0 and state.status == "running"


# ---- beside a real run ----------------------------------------------------------------------------------


class Beside:
    """A callback: events as a bus would number them, and what they say beside what the model is."""

    def __init__(self):
        self.events, self.known, self.part, self.compared = [], {}, 0, []
        self.stop_at = None

    def __call__(self, record, run):
        event = event_of(record, run_id="r", sequence=len(self.events), seconds=1e9, part=self.part)
        self.events.append(event)
        self.known = states([event], self.known)
        if record.event in ("evaluate", "rollback", "give_up", "resume", "end"):
            step = record.step if record.event == "resume" else run.done
            assert self.told == real(run.model, step), record
            assert self.known["r", "growth"].step == step
            self.compared.append(record.event)
        if (record.event, record.step) == self.stop_at:
            self.stop_at, self.part = None, self.part + 1
            raise KeyboardInterrupt

    @property
    def told(self):
        seeds = self.known["r", "growth"].seeds
        return {place: (held.state, held.since) for place, held in seeds.items() if held.state != "dormant"}


def real(model, step):
    """The states of seeds and since when, of those that are not free, and not about to hold a kernel."""
    seeds = jax.device_get(model.seeds)
    found = {}
    for row, site in enumerate(model.structure.sites):
        for seed, state in enumerate(map(S, seeds.lifecycle[row])):
            if state not in (S.DORMANT, S.LOADING):
                since = step - int(seeds.age[row, seed] - seeds.last_update[row, seed])
                found[site.name, seed] = state.name.lower(), since
    return found


class Suspicious(Governor):
    """Suspects the reading at 20, and finds that at 25 failed, once: the run goes back to 15."""

    def judge(self, reading, memory):
        if memory.retry or reading.step not in (20, 25):
            return Sound(), memory
        if reading.step == 20:
            return Watch("for the test"), memory
        return Rollback("for the test", (("0", 0), ("2", 0), ("2", 1)), 1), type(memory)(retry=1)


def grow(layer, number):
    return Germinate(layer, number, "low_rank", (), "by the script")


def move(layer, number, to):
    return Transition(layer, number, to, "by the script")


LIFE = (
    (grow("0", 0), grow("0", 1)),
    (move("0", 0, S.GRAFTING), grow("2", 0)),
    (move("0", 0, S.ACTIVE), move("2", 0, S.GRAFTING), move("0", 1, S.GRAFTING)),
    (move("0", 0, S.FOSSILIZED), grow("2", 1), SetAlpha("0", 1, 0.5, "by the script")),
    (move("0", 1, S.GRAFTING), Cull("2", 0, "by the script")),
)


@cache
def examples():
    inputs = np.random.default_rng(5).standard_normal((96, 6)).astype(np.float32)
    return inputs, (inputs @ np.random.default_rng(6).standard_normal((6, 3))).argmax(-1)


TX = optax.adamw(0.01)


def fitted(told, folder):
    torch.manual_seed(0)
    return esper.fit(
        esper.wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), seeds_per_layer=2),
        examples(),
        tx=TX,
        steps=35,
        every=5,
        key=jax.random.key(7),
        batch_size=16,
        validation=examples(),
        growth=TamiyoSettings(blend_steps=4, kernel_warmup_steps=2, swap=0),
        policy=Script(LIFE),
        governor=Suspicious(),
        callbacks=[told],
        checkpoints=folder,
        resume=folder,
    )


@pytest.mark.parametrize("stop_at", [("rollback", 25), ("evaluate", 30)], ids=str)
def test_events_say_what_the_model_is_whatever_the_run_went_back_to(stop_at, tmp_path):
    told = Beside()
    told.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        fitted(told, tmp_path / "checkpoints")
    found = fitted(told, tmp_path / "checkpoints")
    assert "rollback" in told.compared and told.compared[-1] == "end"
    (tmp_path / "history.jsonl").write_bytes(b"".join(event.line for event in told.events))
    page = reported(tmp_path).events
    again = [event for event in page if event.event not in ("start", "resume")]
    wanted = [record for record in found.records if record.event not in ("start", "resume")]
    assert [(e.step, e.event, e.place) for e in again] == [
        (r.step, r.event, None if r.layer is None else (r.layer, r.seed)) for r in wanted
    ]
    spans = {life.place: life.spans[-1] for life in timeline.lives(page) if life.spans}
    lanes = {place: (span.state.lower(), span.start) for place, span in spans.items()}
    assert lanes == told.told and set(told.told) == {("0", 0), ("0", 1), ("2", 0)}
