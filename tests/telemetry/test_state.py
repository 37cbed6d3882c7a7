"""What events say of a run, and what a terminal shows of it."""

import io
import math
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from rich.console import Console

from esper.cli import main, watch
from esper.telemetry import Bus, Jsonl, RunState, event_of, read, states
from esper.telemetry.events import KINDS
from esper.telemetry.showing import board, sentence
from esper.telemetry.state import SeedState, after
from esper.train.history import Record
from telemetry.samples import evaluation, record


def stamped(*told, run_id="r"):
    return [event_of(each, run_id=run_id, sequence=at, seconds=1e9 + at) for at, each in enumerate(told)]


def of(*told):
    (state,) = states(stamped(*told)).values()
    return state


def test_a_run_from_its_start_to_its_end():
    state = of(
        Record(0, "start", compiles=2, compile_seconds=1.5),
        evaluation(10, loss=2.0),
        Record(10, "hold", "too early"),
        evaluation(20, loss=1.0),
        Record(20, "end", "the last step is done", compiles=1, compile_seconds=0.5),
    )
    assert (state.status, state.step, state.why) == ("ended", 20, "the last step is done")
    assert state.curves == {"loss": ((10, 2.0), (20, 1.0))}
    assert (state.compiles, state.compile_seconds, state.missed) == (3, 2.0, 0)
    assert [event.reason for event in state.decisions] == ["too early"]
    assert (state.last - state.began).total_seconds() == 4


@pytest.mark.parametrize(
    ("told", "seed"),
    [
        (["germinate"], SeedState("training", 0, 0.0, "mlp")),
        (["germinate", "grafting"], SeedState("grafting", 1, None, "mlp")),
        (["germinate", "grafting", "alpha"], SeedState("grafting", 1, 0.5, "mlp")),
        (["germinate", "grafting", "active"], SeedState("active", 2, 1.0, "mlp")),
        (["germinate", "grafting", "active", "fossilized"], SeedState("fossilized", 3, 1.0, "mlp")),
        (["germinate", "culled"], SeedState("culled", 1, 0.0, "mlp")),
        (["germinate", "culled", "dormant"], SeedState("dormant", 2, 0.0, "mlp")),
        (["declined"], SeedState("dormant", 0)),
        (["germinate", "remove"], SeedState("culled", 1)),
        (["germinate", "culled", "remove"], SeedState("culled", 1)),
        (["germinate", "remove", "dormant"], SeedState("dormant", 2)),
    ],
    ids=str,
)
def test_a_seeds_life(told, seed):
    assert of(*[record(kind, step) for step, kind in enumerate(told)]).seeds == {("encoder.0", 1): seed}


def test_a_rollback_takes_back_what_came_after_and_culls_who_is_to_blame():
    culled = {"back_to": 10, "culled": "head[0], (root)[1]"}
    state = of(
        *[evaluation(step, loss=1.0) for step in (5, 10, 15)],
        Record(8, "active", "x", "head", 0),
        Record(8, "active", "x", "", 1),
        Record(8, "active", "x", "body", 0),
        Record(20, "rollback", "the loss is not finite", figures=culled),
    )
    assert state.curves == {"loss": ((5, 1.0), (10, 1.0))} and (state.step, state.rollbacks) == (10, 1)
    assert [seed.state for seed in state.seeds.values()] == ["culled", "culled", "active"]


def test_a_resume_goes_back_to_its_step():
    state = of(Record(0, "start"), evaluation(5, loss=1.0), evaluation(10, loss=1.0), Record(5, "resume"))
    assert state.curves == {"loss": ((5, 1.0),)} and state.status == "running" and state.step == 5


def test_events_that_come_twice_count_once_and_gaps_are_counted():
    told = stamped(*[evaluation(step, loss=1.0) for step in range(10)])
    twice = states([*told[:4], *told[2:6], *told[8:]])["r", "growth"]
    assert [step for step, _ in twice.curves["loss"]] == [0, 1, 2, 3, 4, 5, 8, 9] and twice.missed == 2


def test_sinks_that_are_down_and_what_they_missed():
    down = Record(1, "sink_down", "start it", figures={"sink": "redis"})
    drops = Record(1, "drops", "x", figures={"sink": "redis", "total": 5})
    assert of(down, drops).down == {"redis": "start it"} and of(down, drops).dropped == {"redis": 5}
    assert of(down, drops, Record(1, "sink_up", figures={"sink": "redis"})).down == {}


def test_what_is_of_all_runs_of_an_id_is_the_same_for_each():
    """The grown run and its control share a bus: its numbers, and what it says of its sinks."""
    down = Record(1, "sink_down", "start it", figures={"sink": "redis"})
    drops = Record(2, "drops", "x", figures={"sink": "redis", "total": 5}, run="control")
    up = Record(2, "sink_up", figures={"sink": "redis"}, run="control")
    first = [evaluation(1), down, Record(1, "start", run="control"), evaluation(2)]
    told = stamped(*first, drops, up, evaluation(3), Record(3, "evaluate", run="control"))
    growth, control = states(told).values()
    assert growth.missed == control.missed == 0 and growth.sequence == control.sequence == 7
    assert growth.down == control.down == {} and growth.dropped == control.dropped == {"redis": 5}
    assert (growth.step, control.step) == (3, 3) and len(growth.curves["train_loss"]) == 3
    assert [state.down for state in states(told[:3]).values()] == [{"redis": "start it"}] * 2
    assert [state.missed for state in states([*told[:2], *told[5:]]).values()] == [3, 3]
    known = {}
    for event in [*told, *told[3:]]:
        known = states([event], known)
    assert known == states(told)
    assert shown(states(told[:5])).count("redis missed 5 events") == 1


def test_a_run_that_goes_on_elsewhere_has_sinks_of_its_own():
    (down,) = stamped(Record(1, "sink_down", "start it", figures={"sink": "redis"}))
    resumed = event_of(Record(1, "resume"), run_id="r", sequence=1, seconds=1e9, part=1)
    assert states([down, resumed])["r", "growth"].down == {}


def test_several_runs_are_kept_apart():
    told = [*stamped(evaluation(1), run_id="a"), *stamped(evaluation(2), Record(3, "start", run="control"), run_id="b")]
    found = states(told)
    assert {key: state.step for key, state in found.items()} == {
        ("a", "growth"): 1,
        ("b", "growth"): 2,
        ("b", "control"): 3,
    }
    assert states(told[1:], states(told[:1])) == found


def test_long_curves_are_thinned_out_and_keep_their_ends():
    curve = of(*[evaluation(step, loss=float(step)) for step in range(3000)]).curves["loss"]
    assert len(curve) <= 512 and curve[0] == (0, 0.0) and curve[-1] == (2999, 2999.0)
    assert [step for step, _ in curve] == sorted({step for step, _ in curve})


def test_reducing_changes_nothing_it_was_given():
    state = of(evaluation(1, loss=1.0), record("germinate"))
    before = repr(state)
    for at, kind in enumerate([*KINDS, "a_kind_of_tomorrow"]):
        assert isinstance(after(state, event_of(record(kind), run_id="r", sequence=9 + at, seconds=1e9)), RunState)
    assert repr(state) == before


# ---- for a terminal -------------------------------------------------------------------------------------


def shown(found, **options):
    console = Console(width=100, file=io.StringIO(), force_terminal=False)
    console.print(board(found, now=datetime.fromtimestamp(1e9 + 90, UTC), **options))
    return console.file.getvalue()


def test_a_board_shows_what_matters():
    told = stamped(
        Record(0, "start"),
        *[evaluation(step, loss=float(step)) for step in range(8)],
        evaluation(8, loss=math.nan),
        Record(9, "grafting", "it gains 0.5 [bold]", "head", 0),
        Record(9, "drops", "x", figures={"sink": "redis", "total": 1234}),
    )
    text = shown(states(told))
    for wanted in ("r  growth", "running", "step 9", "1 min ago", "▁▂▃▄▅▆▇█", "head[0]",
                   "alpha moving", "it gains 0.5 [bold]", "redis missed 1,234 events"):  # fmt: skip
        assert wanted in text
    assert shown(states(told), unicode=False).count("_.-=+*#@") == 1
    assert "nothing has happened yet" in shown({})


def test_figures_at_the_ends_of_what_a_float_holds_are_shown():
    told = [evaluation(step, loss=loss) for step, loss in enumerate((1e308, -1e308, 0.0, 5e-324))]
    told.append(evaluation(4, **{f"alpha x[{'1' * 5000}]": 1.0, f"failed x[{'1' * 5000}]": 1}))
    assert "█▁▅▅" in shown(states(stamped(*told)))


def test_a_sentence_says_it_all():
    (event,) = stamped(Record(9, "germinate", "why", "", 0, {"width": 4, "gain": 0.123456}))
    assert sentence(event) == "r growth step 9: germinate (root)[0]: why, width 4, gain 0.1235"


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        with Bus(Jsonl(tmp_path / name / "history.jsonl"), run_id=f"run-{name}") as bus:
            bus.publish(Record(0, "start", "go"))
            bus.publish(evaluation(10, loss=0.5))
    return tmp_path


def test_watch_once_shows_several_runs(folder, capsys):
    assert main(["watch", "--once", str(folder / "a"), str(folder / "b" / "history.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "run-a" in out and "run-b" in out and out.count("running") == 2 and "0.5" in out
    assert main(["watch", "--once", str(folder)]) == 0
    assert capsys.readouterr().out.count("run-") == 2


def test_watch_finds_the_folder_of_a_configuration(folder, capsys):
    config = folder / "config.yaml"
    config.write_text(f"name: x\ntraining: {{output_dir: {folder / 'a'}}}\n")
    assert main(["watch", "--once", "--config", str(config)]) == 0
    assert "run-a" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to watch"),
        (["nowhere"], "no events yet of nowhere, which is not there"),
        (["."], "no events yet of .:"),
        (["--new", "nowhere"], "give one of them"),
    ],
)
def test_what_cannot_be_watched_is_one_message_and_2(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["watch", "--once", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_in_a_terminal_the_view_changes():
    told = stamped(Record(0, "start"), evaluation(10, loss=0.5), Record(20, "end", "done"))
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    assert watch._live(iter(told), console) == 0
    last = console.file.getvalue().rpartition("r  growth")[2]
    assert "ended" in last and "step 20" in last and "0.5" in last and "\x1b" in last


def test_watch_prints_lines_where_there_is_no_terminal_until_it_is_interrupted(folder):
    # A process that is started in the background may have been told to ignore the signal.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += "; from esper.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "watch", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(4)]
        with Bus(Jsonl(folder / "a" / "history.jsonl", resume=True)) as bus:
            bus.publish(Record(99, "end", "done"))
        lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert lines[-1] == "run-a growth step 99: end: done\n" and process.returncode == 0 and err == ""
    assert all(re.match(r"run-[ab] growth step \d+: (start: go|evaluate: loss 0\.5)$", line) for line in lines[:4])


def test_numbers_that_a_resumed_run_gives_again_are_other_events(tmp_path):
    path = tmp_path / "history.jsonl"
    known = [event_of(evaluation(step), run_id="r", sequence=step, seconds=1e9) for step in range(4)]
    path.write_bytes(known[0].line + known[1].line)  # the others went elsewhere, and were lost here
    with Bus(Jsonl(path, resume=True)) as bus:
        bus.publish(evaluation(8))
    resumed = read(path)[-1]
    assert (resumed.part, resumed.sequence) == (1, 2)
    state = states([*known, resumed, resumed])["r", "growth"]
    assert [step for step, _ in state.curves["train_loss"]] == [0, 1, 2, 3, 8] and state.missed == 0


def test_nothing_that_is_shown_steers_the_terminal():
    bad = "\x1b]0;x\x07\x1b[2J"
    events = [
        Record(1, "evaluate", figures={bad: 0.5}, run=bad),
        Record(2, "germinate", bad, bad, 0, {"blueprint": bad}, run=bad),
        Record(3, "sink_down", bad, figures={"sink": bad}, run=bad),
        Record(4, "failed", bad, run=bad),
    ]
    found = [event_of(one, run_id=bad, sequence=at, seconds=1e9) for at, one in enumerate(events)]
    file = io.StringIO()
    Console(file=file, width=120, force_terminal=False).print(board(states(found)))
    shown = file.getvalue() + "".join(sentence(event) for event in found)
    assert "\x1b" not in shown and "\x07" not in shown and "\N{REPLACEMENT CHARACTER}]0;x" in shown
