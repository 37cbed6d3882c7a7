"""The benchmark suite itself: contenders start alike and do the same, and the page renders. Nothing is timed."""

from dataclasses import replace
from functools import partial

import pytest

from benchmarks.speed import overhead, report
from benchmarks.speed.hlo import instructions
from benchmarks.speed.measure import measured
from benchmarks.speed.models.resnet import Basic, ResNet
from benchmarks.speed.results import Measurement, load, save
from benchmarks.speed.workloads import WORKLOADS, Workload, arrays, prepared

TINY = Workload(
    "resnet18",
    "a residual network of nearly nothing",
    "resnet",
    partial(ResNet, Basic, (1,), 4, "imagenet", 3),
    partial(arrays, (2, 3, 16, 16), 3),
    images=True,
)
IN_PROCESS = ("eager torch", "esper", "idiomatic JAX", "hand-tuned JAX")


@pytest.fixture(scope="module")
def run():
    return measured(prepared(TINY), IN_PROCESS, turns=1)


def test_contenders_agree(run):
    assert {name: outcome.wrong or outcome.absent for name, outcome in run.items()} == dict.fromkeys(IN_PROCESS, "")
    assert all(len(outcome.losses) == len(outcome.step_ms) == len(outcome.infer_ms) == 3 for outcome in run.values())
    assert run["esper"].losses[2] < run["esper"].losses[0]


def test_the_page_renders(run, tmp_path):
    found = Measurement("resnet18", TINY.about, True, {"cores": "2"}, (run, run), {"eager torch": 3.0})
    path = save(found, tmp_path)
    assert load(path).runs[0]["esper"].losses == pytest.approx(run["esper"].losses, rel=1e-4)
    page = report.write(tmp_path, tmp_path / "performance.md").read_text()
    assert "### resnet18: a residual network of nearly nothing" in page
    assert "\n| eager torch |" in page and "capture" in page and "| resnet18 |" in page


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
