"""The benchmark suite itself: contenders start alike and do the same, and the page renders. Nothing is timed."""

from dataclasses import replace
from functools import partial

import pytest

from benchmarks.speed import goals, overhead, report, seeds, warm
from benchmarks.speed.contenders import HOSTED
from benchmarks.speed.costs import (
    Seeded,
    SeededStep,
    Warm,
    load_seeded,
    load_warm,
    save_hosted,
    save_seeded,
    save_warm,
)
from benchmarks.speed.hlo import instructions
from benchmarks.speed.measure import measured
from benchmarks.speed.models.bert import Bert
from benchmarks.speed.models.mixer import Mixer
from benchmarks.speed.models.mlp import mlp
from benchmarks.speed.models.mobilenet import MobileNet
from benchmarks.speed.models.recurrent import GruTagger
from benchmarks.speed.models.resnet import Basic, Bottleneck, ResNet
from benchmarks.speed.models.signal import SignalNet
from benchmarks.speed.models.unet import UNet
from benchmarks.speed.results import Measurement, Outcome, load, save
from benchmarks.speed.workloads import WORKLOADS, Workload, arrays, padded, pixels, prepared, words

TINY = Workload(
    "resnet18",
    "a residual network of nearly nothing",
    "resnet",
    partial(ResNet, Basic, (1,), 4, "imagenet", 3),
    partial(arrays, (2, 3, 16, 16), 3),
    images=True,
)
IN_PROCESS = ("eager torch", "esper", "idiomatic JAX", "hand-tuned JAX")
PERCEPTRON = Workload("mlp", "", "mlp", partial(mlp, (40, 36, 3)), partial(arrays, (2, 40), 3))
BY_HAND = ("eager torch", "idiomatic JAX", "hand-tuned JAX")
SMALL = {
    "resnet": (partial(ResNet, Bottleneck, (1, 1), 4, "imagenet", 3), partial(arrays, (2, 3, 24, 24), 3)),
    "unet": (partial(UNet, 4, 2, 3), partial(pixels, (2, 3, 8, 8), 3)),
    "mobilenet": (partial(MobileNet, 4, ((6, 1), (6, 2), (8, 2)), 3), partial(arrays, (2, 3, 22, 22), 3)),
    "bert": (partial(Bert, 11, 6, 8, 1, 2, 3), partial(padded, (3, 6), 11, 3)),
    "gru": (partial(GruTagger, 11, 4, 2, 3), partial(words, (3, 5), 11, 3)),
    "signal": (partial(SignalNet, 2, 8, (1, 2), 3), partial(arrays, (2, 2, 64), 3)),
    "mixer": (partial(Mixer, 8, 4, 8, 1, 3), partial(arrays, (2, 3, 8, 8), 3)),
}
"""By family, those that esper is not tuned on."""


@pytest.fixture(scope="module")
def run():
    return measured(prepared(TINY), IN_PROCESS, turns=1)


def test_contenders_agree(run):
    assert {name: outcome.wrong or outcome.absent for name, outcome in run.items()} == dict.fromkeys(IN_PROCESS, "")
    assert all(len(outcome.losses) == len(outcome.step_ms) == len(outcome.infer_ms) == 3 for outcome in run.values())
    assert run["esper"].losses[2] < run["esper"].losses[0]


def test_a_loop_of_torchs_is_a_contender_of_its_own(tmp_path):
    found = measured(prepared(TINY), ("eager torch", "esper", HOSTED), turns=1)
    assert not any(outcome.wrong or outcome.absent for outcome in found.values())
    save_hosted(Measurement("resnet18", TINY.about, True, {"cores": "2"}, (found, found)), tmp_path)
    page = report.write(tmp_path, tmp_path / "performance.md").read_text()
    assert (
        "## In a loop of torch's" in page and "| resnet18 |" in page and "in a loop of torch / in esper's own" in page
    )


@pytest.mark.parametrize("family", SMALL)
def test_experts_layers_are_the_same_networks(family):
    build, draw = SMALL[family]
    workload = Workload(family, "", family, build, draw, 1e-3, class_axis=1 if family == "unet" else -1, tuned=False)
    found = measured(prepared(workload), BY_HAND, turns=0)
    assert {name: outcome.wrong or outcome.absent for name, outcome in found.items()} == dict.fromkeys(BY_HAND, "")


def test_small_networks_are_of_all_families_that_esper_is_not_tuned_on():
    assert set(SMALL) == {workload.family for workload in WORKLOADS.values() if not workload.tuned}


def test_the_page_renders(run, tmp_path):
    found = Measurement("resnet18", TINY.about, True, {"cores": "2"}, (run, run), {"eager torch": 3.0})
    path = save(found, tmp_path)
    assert load(path).runs[0]["esper"].losses == pytest.approx(run["esper"].losses, rel=1e-4)
    page = report.write(tmp_path, tmp_path / "performance.md").read_text()
    assert "### resnet18: a residual network of nearly nothing" in page
    assert "\n| eager torch |" in page and "capture" in page and "| resnet18 |" in page


def outcome(step, **more):
    return Outcome(step_ms=(step,) * 3, infer_ms=(step / 2,) * 3, first_call={"all": step}, **more)


RACE = {
    "esper": outcome(2.0, memory=10.0),
    "eager torch": outcome(4.0),
    "torch.compile": outcome(1.0, wrong="losses differ"),
    "idiomatic JAX": outcome(4.0, memory=5.0),
    "hand-tuned JAX": outcome(1.0, memory=10.0),
    "torchax": outcome(20.0),
}


def test_goals_are_judged_run_by_run_by_the_best_rival_that_counts():
    found = Measurement("gpt", "", True, {}, (RACE, {**RACE, "torchax": Outcome(absent="fails")}))
    by_title = {goal.title: goal for goal in goals.races({"gpt": found})}
    ratios = {
        title: next(f.ratios for f in goal.figures if f.place == "gpt")
        for title, goal in by_title.items()
        if "gpt" in {f.place for f in goal.figures}
    }
    assert ratios["train step: esper / best hand-written JAX, tuned on"] == [2.0, 2.0]
    assert ratios["train step: esper / best torch"] == [0.5, 0.5]
    assert ratios["train step: torchax / esper"] == [10.0]
    assert ratios["first call: esper / torchax"] == [0.1]
    assert ratios["peak memory of the compiled step: esper / best hand-written JAX"] == [1.0, 1.0]
    assert by_title["train step: torchax / esper"].row()[2:] == ["gpt 10.000 >= 1.15", "yes; 5 not measured"]
    missed = by_title["train step: esper / best hand-written JAX, tuned on"]
    assert missed.row()[1:] == ["<= 1.05", "**gpt 2.000 (2.000-2.000)**", "0 of 1; 6 not measured"]
    assert by_title["train step: esper / best hand-written JAX, not tuned on"].row()[3] == "not measured"


def test_the_page_says_what_it_takes_to_be_as_fast_as_torch(tmp_path):
    save(Measurement("gpt", "", True, {}, ({**RACE, "torch.compile": outcome(1.0)},)), tmp_path)
    page = report.write(tmp_path, tmp_path / "performance.md").read_text()
    assert "| gpt, train step | 2.00 | 1.00 | 2.00 | 1.00 ms, 50 % |" in page


def test_seeds_are_dormant_or_one_is_active():
    found = seeds.measured(prepared(PERCEPTRON), "0", turns=1, compiles=1)
    assert all(len(step.step_ms) == seeds.PER_TURN and len(step.compile_s) == 1 for step in found.values())
    plain, dormant, active = (found[name] for name in ("plain", "dormant", "active"))
    assert dormant.flops == plain.flops
    # Forward, two gradients, of which that of the first layer's input is not needed; two for a multiply-add.
    rank = min(seeds.RANK, 36)
    assert active.flops - plain.flops > 2 * 2 * 2 * rank * (40 + 36)
    assert active.instructions > plain.instructions and active.lowered_bytes > dormant.lowered_bytes


def test_a_first_call_leaves_what_the_next_process_finds(tmp_path, monkeypatch):
    monkeypatch.setenv("ESPER_CACHE_DIR", "")
    found = warm.called(prepared(PERCEPTRON), str(tmp_path))
    assert list(found) == ["capture", "trace", "lower", "compile"] and list(tmp_path.rglob("programs/*/*/*.json"))


def test_the_page_has_what_seeds_and_warm_starts_cost(tmp_path):
    step = SeededStep((2.0, 4.0, 3.0), (1.0,), 100, 10, 1000)
    run = {"plain": step, "dormant": step, "active": replace(step, step_ms=(4.5,), flops=1100)}
    save_seeded(Seeded("mlp", "2", {}, (run, run)), tmp_path)
    save_warm(Warm("mlp", {}, (({"trace": 3.0, "compile": 1.0}, {"trace": 1.0, "compile": 1.0}),)), tmp_path)
    assert load_seeded(tmp_path)[0].overspent() == pytest.approx([1.5 / 1.1] * 2)
    assert load_warm(tmp_path)[0].ratios() == [0.5]
    page = report.write(tmp_path, tmp_path / "performance.md").read_text()
    assert "**mlp 1.364 (1.364-1.364)**" in page and "| mlp, dormant | 1.000 (1.000-1.000) |" in page
    assert "| mlp | 4.0: trace 3.00, compile 1.00 | 2.0: trace 1.00, compile 1.00 | 0.50 |" in page


def test_wrong_contenders_have_no_times(run):
    wrong = {**run, "esper": replace(run["esper"], wrong="losses differ")}
    found = Measurement("resnet18", "", True, {}, (wrong,))
    assert found.ratios("eager torch") == [] and "wrong: losses differ" in "\n".join(report.section(found))


def test_overhead_is_of_the_same_calls():
    found = overhead.measured(leaves=3, turns=1)
    assert set(found.microseconds) == {"wrapped model", "plain dict"}
    assert set(found.reading) == {*found.microseconds, "wrapped model, called outside of `jax.jit`"}


def test_instructions_are_found_in_a_programs_text():
    text = """HloModule jit_f

%fused (p: f32[2,3], q: f32[3,4]) -> f32[2,4] {
  %p = f32[2,3]{1,0} parameter(0)
  %q = f32[3,4]{1,0} parameter(1)
  %d = f32[2,4]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = f32[2,4]{1,0} tanh(%d)
}

ENTRY %main (a: f32[2,3], b: f32[3,4]) -> f32[2,4] {
  %a = f32[2,3]{1,0} parameter(0)
  %b = f32[3,4]{1,0} parameter(1)
  ROOT %y = f32[2,4]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/transpose(jvp())/dot"}
}
"""
    found = instructions(text)["y"]
    assert (found.kind, found.shape, found.operands) == ("dot+tanh", "f32[2,4]", ("f32[2,3]", "f32[3,4]"))
    assert found.primitive == "dot (backward)" and found.scope == "dot"


def test_workloads_are_seven_and_others():
    assert sum(workload.tuned for workload in WORKLOADS.values()) == 7
    assert sum(not workload.tuned for workload in WORKLOADS.values()) >= 5
