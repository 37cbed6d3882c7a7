"""What happened, worked out from events: rollbacks, lives of seeds, alpha."""

import math
import re
from dataclasses import replace
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from report.run_folders import evaluation, history, life, record

from esper.drawing.curves import Panel, Series, curves
from esper.drawing.lanes import Lane, Span, lanes, told
from esper.drawing.scale import value_scale
from esper.growth.schedule import SCHEDULES
from esper.lifecycle import SeedLifecycleState
from esper.report import timeline
from esper.report.facts import facts
from esper.report.read import Event, RunData, gone_on

START = record(0, "start", steps=100, every=10, blend_steps=10, schedule="linear")


def events(*plain):
    fields = ("step", "event", "reason", "layer", "seed", "figures", "run")
    return tuple(Event(**{name: held[name] for name in fields}) for held in plain)


def only(*plain):
    (found,) = timeline.lives(events(*plain))
    return found


def test_a_life_is_its_states_in_order():
    found = only(START, *life(at=20), record(100, "end"))
    assert [(s.start, s.end, s.state) for s in found.spans] == [
        (10, 20, "LOADING"),
        (20, 40, "TRAINING"),
        (40, 50, "GRAFTING"),
        (50, 70, "ACTIVE"),
        (70, 100, "FOSSILIZED"),
    ]
    assert found.blueprints == ("mlp",) and found.place == ("0", 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alpha_is_what_the_schedule_makes_of_the_steps(schedule):
    start = record(0, "start", blend_steps=10, schedule=schedule)
    drawn = only(start, *life(at=20), record(100, "end")).alpha
    steps, values = np.array(drawn).T
    assert (np.diff(steps) >= 0).all()
    for step, value in drawn:
        if 40 < step < 50:
            wanted = float(SCHEDULES[schedule](jnp.float32((step - 40) / 10)))
            assert value == pytest.approx(wanted, abs=1e-5)
    assert max(values[steps <= 40]) == 0 and (values[steps >= 50] == 1).all()


def test_alpha_that_was_measured_is_believed_where_the_schedule_is_not_known():
    start = record(0, "start")
    seen = [evaluation(44, 1.0, **{"alpha 0[0]": 0.3}), evaluation(48, 1.0, **{"alpha 0[0]": 0.9})]
    born, grafting, *rest = life(at=20)[1:]
    drawn = only(start, born, grafting, *seen, *rest, record(100, "end")).alpha
    assert (44, 0.3) in drawn and (48, 0.9) in drawn and drawn[-1] == (100, 1.0)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_alpha_that_was_measured_and_is_not_finite_is_no_alpha(odd):
    born, grafting, *rest = life(at=20)[1:]
    seen = [evaluation(step, 1.0, **{"alpha 0[0]": odd}) for step in (45, 50)]
    assert (
        only(START, born, grafting, *seen, *rest, record(100, "end")).alpha
        == only(START, *life(at=20)[1:], record(100, "end")).alpha
    )


def test_a_kernel_may_stay_part_of_the_way():
    _, born, grafting, *rest = life(at=20)
    part = evaluation(50, 1.0, **{"alpha 0[0]": 0.75})
    drawn = only(START, born, grafting, part, *rest, record(100, "end")).alpha
    assert dict(drawn)[50] == 0.75 and drawn[-1] == (100, 0.75)


def test_alpha_follows_what_was_set_and_falls_when_the_kernel_goes():
    drawn = only(
        START,
        *life(at=20)[:4],
        record(60, "alpha", "less", "0", 0, alpha=0.4),
        record(80, "culled", "no gain", "0", 0),
        record(100, "end"),
    ).alpha
    at = dict(drawn)  # the last value at each step
    assert at[60] == 0.4 and at[80] == 0 and at[100] == 0 and (80, 0.4) in drawn


def test_a_ramp_down_goes_to_nothing():
    drawn = only(START, *life(at=20)[:4], record(60, "grafting", "out", "0", 0), record(100, "end")).alpha
    assert drawn[-3:] == ((60, 1.0), (70, 0.0), (100, 0.0))


def test_a_seed_that_holds_nothing_has_no_span():
    found = only(
        START, *life(at=20)[:2], record(30, "culled", "", "0", 0), record(40, "dormant", "", "0", 0), record(90, "end")
    )
    assert found.spans[-1] == Span(30, 40, "CULLED") and found.alpha == ()
    removed = [record(40, "remove", "", "0", 0), record(50, "dormant", "", "0", 0), record(90, "end")]
    found = only(START, *life(at=20)[:2], record(30, "culled", "", "0", 0), *removed)
    assert found.spans[-1] == Span(30, 50, "CULLED")
    declined = only(START, record(10, "prepare"), record(20, "declined", "none", "0", 0), record(90, "end"))
    assert declined.spans == (Span(10, 20, "LOADING"),)


def test_a_change_at_the_last_step_is_a_span_that_can_be_seen():
    *grown, kept = life(at=20)
    found = only(START, *grown, kept | {"step": 100}, record(100, "end"))
    assert found.spans[-2:] == (Span(50, 100, "ACTIVE"), Span(100, 100, "FOSSILIZED"))
    assert sum(span.start == span.end for span in only(START, *grown, kept, record(100, "end")).spans) == 0
    few = Lane("0[0]", found.spans)
    assert told(few).endswith("active from step 50 to 100; fossilized at step 100.")
    for lane in (few, Lane("0[0]", (Span(0, 10, "ACTIVE"),) * 30 + found.spans)):
        drawn = lanes([lane], 100, 350, name="a")
        (wide,) = re.findall(r'width="([\d.]+)"[^>]*es-fossilized|h([\d.]+)v20h-[\d.]+z" class="es-band es-foss', drawn)
        assert float("".join(wide)) >= 2


def test_a_rollback_takes_back_what_came_after_and_culls_whom_it_blames():
    found = events(
        START,
        *life(at=20)[:3],
        record(40, "prepare", "new kernels: mlp at 2[0]"),
        record(50, "active", "", "0", 0),
        evaluation(50, 1.0),
        record(50, "germinate", "too early", "2", 0, blueprint="mlp"),
        evaluation(60, 9.0),
        record(70, "rollback", "diverged", back_to=50, retry=1, culled="0[0]", validation_loss=99.0),
        evaluation(60, 0.9),
        record(100, "end"),
    )
    kept = timeline.curve(found, "validation_loss")
    assert kept.points == ((50, 1.0), (60, 0.9)) and kept.lost == (((50, 1.0), (60, 9.0), (70, 99.0)),)
    seed, gone = timeline.lives(found)
    # What was decided at step 50 was decided after the state to go back to had been kept.
    assert [(s.state, s.start, s.end) for s in seed.spans[-2:]] == [("GRAFTING", 40, 50), ("CULLED", 50, 100)]
    assert gone.place == ("2", 0) and gone.spans == (Span(40, 50, "LOADING"),)
    undone = [found[at] for at in sorted(timeline.thrown_away(found))]
    assert [event.event for event in undone] == ["active", "germinate"]


def test_what_was_decided_about_the_run_stands_though_its_network_goes_back():
    decided = [record(60, event, "asked for") for event in (*timeline.STANDING, "culled")]
    found = events(START, evaluation(50, 1.0), *decided, record(70, "rollback", "diverged", back_to=50))
    assert [found[at].event for at in timeline.thrown_away(found)] == ["culled"]


def test_a_kernel_that_a_rollback_took_back_has_not_stayed():
    grown = [START, *life(at=20), record(90, "rollback", "diverged", back_to=60), record(100, "end")]
    found = RunData("a", "a", events(*grown))
    assert (facts(found).germinated, facts(found).stayed) == (1, 0)
    assert facts(replace(found, events=events(START, *life(at=20), record(100, "end")))).stayed == 1


def test_the_lanes_of_a_seed_that_moved_while_another_was_prepared_do_not_overlap():
    found = only(
        START,
        *life(at=20)[1:4],
        record(60, "prepare", "new kernels: mlp at 2[0]"),
        record(65, "culled", "no gain", "0", 0),
        record(80, "germinate", "a plateau", "0", 0, blueprint="mlp"),
        record(100, "end"),
    )
    assert all(one.end <= next_.start for one, next_ in pairwise(found.spans))
    assert found.spans[-2:] == (Span(65, 80, "CULLED"), Span(80, 100, "TRAINING"))


def test_a_kernel_that_failed_within_a_step_is_seen_from_there_on():
    failed = {"failed 0[0]": 44.0}
    found = only(
        START,
        *life(at=20)[:3],
        evaluation(50, 1.0, **failed),
        evaluation(60, 1.0, **failed),
        record(60, "training", "tried again", "0", 0),
        record(90, "end"),
    )
    assert [(s.state, s.start, s.end) for s in found.spans[2:]] == [
        ("GRAFTING", 40, 44),
        ("ERROR_RECOVERY", 44, 60),
        ("TRAINING", 60, 90),
    ]
    assert dict(found.alpha)[44] == 0


def test_a_run_that_was_given_up_ends_where_it_went_back_to():
    found = events(START, evaluation(10, 1.0), record(30, "give_up", "diverged", back_to=10), record(10, "end"))
    assert timeline.end_step(found) == 10 and timeline.planned_steps(found) == 100


def test_what_happened_again_after_a_resume_is_told_once():
    before = [START, evaluation(10, 1.0), record(10, "hold", "not yet"), evaluation(20, 0.9), record(20, "end")]
    after = [record(10, "resume"), record(10, "hold", "not yet"), evaluation(20, 0.9), evaluation(30, 0.8)]
    found = gone_on(events(*before, *after))
    assert [(e.step, e.event) for e in found] == [
        (0, "start"),
        (10, "evaluate"),
        (10, "hold"),
        (10, "resume"),
        (20, "evaluate"),
        (30, "evaluate"),
    ]


WATCHED = [START, *life(at=20)[1:], evaluation(80, 1.0), record(80, "culled", "no gain", "0", 0), evaluation(90, 1.5)]
BACK = record(100, "rollback", "diverged", back_to=80, culled="none")


def lane(*plain):
    found = gone_on(events(*plain))
    (seed,) = timeline.lives(found)
    return seed.spans[-1].state, [(e.step, e.event) for e in found][len(WATCHED) - 2 :]


def test_what_the_run_did_after_the_checkpoint_it_goes_on_from_did_not_happen():
    """The checkpoint at 90 was kept before the run went back to 80, from where it had come to 85 again."""
    lost = [*WATCHED, record(90, "hold", "odd"), BACK, evaluation(85, 1.0)]
    resumed = record(90, "resume", rollbacks=0, undecided=True)
    after = [evaluation(100, 1.0), record(100, "end")]
    kept = [(80, "culled"), (90, "evaluate"), (90, "resume"), (100, "evaluate"), (100, "end")]
    assert lane(*lost, resumed, *after) == ("CULLED", kept)


def test_what_was_decided_where_the_run_goes_on_is_decided_again():
    lost = record(90, "germinate", "answered so", "0", 0, blueprint="mlp")
    told = [*WATCHED, lost, record(90, "resume", rollbacks=0, undecided=True)]
    assert lane(*told, record(90, "hold", "answered otherwise"), record(100, "end"))[0] == "CULLED"
    told[-1] = record(90, "resume", rollbacks=0, undecided=False)
    assert lane(*told, record(100, "end"))[1][1:] == [(90, "evaluate"), (90, "germinate"), (90, "resume"), (100, "end")]


def test_a_rollback_that_the_checkpoint_holds_stays_though_its_step_comes_later():
    told = [*WATCHED, BACK, record(80, "end"), record(80, "resume", rollbacks=1, undecided=False)]
    state, kept = lane(*told, evaluation(90, 1.0), record(100, "end"))
    assert state == "FOSSILIZED" and (100, "rollback") in kept


def test_what_was_undone_and_happens_again_after_a_resume_is_told_again():
    active = record(50, "active", "alpha has risen to 1.00", "0", 0)
    told = [START, *life(at=20)[1:3], evaluation(50, 1.8), active, record(60, "rollback", "diverged", back_to=40)]
    told += [life(at=20)[2], evaluation(50, 1.8), record(50, "resume", rollbacks=1, undecided=True)]
    found = gone_on(events(*told, active, evaluation(60, 1.7), record(100, "end")))
    assert [event.event for event in found if event.step == 50] == [
        "evaluate",
        "active",
        "evaluate",
        "resume",
        "active",
    ]
    (seed,) = timeline.lives(found)
    assert seed.spans[-1] == Span(50, 100, "ACTIVE")


def test_a_rollback_that_the_checkpoint_holds_stays_though_its_evaluation_was_not_told():
    told = [*WATCHED, evaluation(100, 9.0), BACK, record(90, "resume", rollbacks=1, undecided=True)]
    found = gone_on(events(*told, evaluation(100, 1.0), record(100, "end")))
    assert [(e.step, e.event) for e in found][-4:] == [
        (100, "rollback"),
        (90, "resume"),
        (100, "evaluate"),
        (100, "end"),
    ]


def test_a_step_that_is_reached_again_after_a_resume_and_a_rollback_is_told_again():
    told = [*WATCHED, record(90, "resume"), BACK, evaluation(90, 1.5), record(100, "end")]
    assert [step for step, _ in timeline.curve(gone_on(events(*told)), "validation_loss").points] == [80, 90]


def test_a_run_that_began_again_is_told_from_its_last_start():
    library = record(0, "library", "3 kernels fit")
    told = [library, *WATCHED, library, START, evaluation(10, 2.0)]
    assert [(e.step, e.event) for e in gone_on(events(*told))] == [(0, "library"), (0, "start"), (10, "evaluate")]
    assert len(gone_on(events(library, library, START))) == 3


def test_a_kernel_that_failed_before_it_was_sound_has_failed_after_going_back():
    told = [START, *life(at=20)[1:3], evaluation(50, 1.0, **{"failed 0[0]": 50.0}), evaluation(60, 9.0)]
    found = only(*told, record(70, "rollback", "diverged", back_to=50), record(100, "end"))
    assert found.spans[-1] == Span(50, 100, "ERROR_RECOVERY")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again():
    fits = record(0, "library", "2 validated kernels fit")
    before = [fits, START, evaluation(10, 1.0), record(10, "hold", "not yet")]
    found = gone_on(events(*before, fits, START, evaluation(10, 1.0), evaluation(20, 0.9)))
    assert [(e.step, e.event) for e in found] == [(0, "library"), (0, "start"), (10, "evaluate"), (20, "evaluate")]


def test_the_curves_and_scores_of_a_run():
    held = [plain for plain in history() if plain["run"] == "growth"]
    found = events(*held)
    assert timeline.names_measured(found)[:2] == ["test_loss", "test_accuracy"]
    assert len(timeline.curve(found, "train_loss").points) == 10
    assert set(timeline.scores(found)) == {"untrained", "before growth", "end"}
    assert timeline.curve(found, "nothing").points == ()


@pytest.mark.parametrize(
    "values",
    [
        (5e-324, 1.0),
        (5e-324, 1e-323),
        (8e-323, 1e-322),
        (5e-324, 1.7e308),
        (1e-280, 1e300),
        (-1.7e308, 1.7e308),
        (1e-300, 2e-280),
        (1e300, 1e300),
    ],
)
def test_a_scale_holds_whatever_a_float_does(values):
    scale = value_scale(values, 100.0, 0.0)
    assert all(-1e-6 < scale(value) < 100 + 1e-6 for value in values)
    ticks = scale.ticks(6)
    assert ticks and all(scale.low <= tick <= scale.high for tick in ticks)


@pytest.mark.parametrize("size", [1e-6, 1.25e-6, 1e-300, -1e-9, 1.0, 3e5, 2.5e7])
@pytest.mark.parametrize("width", [350, 1000])
def test_the_numbers_of_an_axis_have_room(width, size):
    panel = Panel("Loss", (Series("training", ((0, size), (10, 1.3 * size)), "es-train"),), steps=10)
    drawn = curves(panel, width, 300, name="a")
    numbers = re.findall(r'<text x="([\d.]+)" [^>]*text-anchor="end" class="es-tick">([^<]*)<', drawn)
    shown = [text for x, text in numbers if float(x) < width / 2]
    assert len(shown) > 1 and len(set(shown)) == len(shown)
    # A digit is as wide as 0.64 of its size in the widest of usual fonts.
    assert all(float(x) >= 12 * 0.64 * len(text) for x, text in numbers)
    assert not any("0e" in text for text in shown), "an axis' numbers are round"


def test_the_report_knows_every_state():
    from esper.drawing.states import STATES

    assert set(STATES) == {state.name for state in SeedLifecycleState}
    assert set(timeline.LOOKS.values()) <= set(STATES)
    assert math.isnan(Event(0, "evaluate").number("nothing"))
