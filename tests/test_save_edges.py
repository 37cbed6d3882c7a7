"""What is easily lost on the way to the disk and back: layers that are alike, modes, points to go back to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_run_checkpoints as runs
import torch
from torch import nn

import esper
from esper.configs import TamiyoSettings
from esper.errors import ArgumentError, StateError
from esper.growth.policy import Germinate
from esper.lifecycle import SeedLifecycleState as State
from esper.torch_frontend.blueprints import blueprint, zero_output
from esper.train.governor import Governor, Rollback, Sound, Watch
from esper.train.stopping import EarlyStopping

pytestmark = pytest.mark.usefixtures("compiled_once")
KEY = jax.random.key(0)


def blended(model, layer, recipe, seed=0):
    model, _ = esper.germinate(model, None, layer=layer, seed=seed, blueprint=recipe, key=KEY)
    model = esper.transition(model, layer=layer, seed=seed, to=State.GRAFTING)
    model = esper.set_alpha(model, layer=layer, seed=seed, alpha=0.5)
    return model.replace(params={**model.params, "kernels": jax.tree.map(lambda k: k + 0.1, model.params["kernels"])})


# ---- models ---------------------------------------------------------------------------------------------


class Alike(nn.Module):
    """Two layers that differ in name alone, of which one is called in two ways."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, deep=False):
        return self.b(self.a(x)[:, None]) if deep else self.b(self.a(x))


def test_layers_that_are_alike_share_all_their_calls(tmp_path):
    model, x = esper.wrap(Alike()), jnp.ones((3, 4))
    model(x), model(x, deep=True)
    model = blended(blended(model, "a", "low_rank"), "b", "low_rank")
    loaded = esper.load(esper.save(model, tmp_path))
    for given in ({}, {"deep": True}):
        assert (loaded(x, **given) == model(x, **given)).all()
    assert (blended(loaded, "b", "mlp", seed=1)(x, deep=True) != model(x, deep=True)).any()


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.a(x), lambda x: self.b(x), (x,))


def test_layers_within_branches_go_along(tmp_path):
    model = esper.wrap(Branches(), example_inputs=torch.ones(3, 4))
    model = blended(model, "a", "low_rank")
    loaded = esper.load(esper.save(model, tmp_path))
    for x in (jnp.ones((5, 4)), -jnp.ones((5, 4))):
        assert (loaded(x) == model(x)).all()


def test_parts_in_another_mode_stay_there(tmp_path):
    def module():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    frozen, x = module().train(), jnp.arange(12.0).reshape(3, 4)
    frozen[1].eval()
    model = esper.wrap(frozen, example_inputs=torch.ones(3, 4))
    esper.save(model, tmp_path)
    for loaded in (esper.load(tmp_path), esper.load(tmp_path, module=module())):
        found, moved = loaded.apply(x, train=True)
        wanted, kept = model.apply(x, train=True)
        assert (found == wanted).all() and (moved.buffers["1.running_mean"] == kept.buffers["1.running_mean"]).all()


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.noise = nn.Linear(4, 4), torch.randn(4)

    def forward(self, x):
        return self.linear(x) + self.noise


def test_tensors_beside_parameters_are_those_that_were_saved(tmp_path):
    module, x = Noisy(), jnp.ones((3, 4))
    model = esper.wrap(module, example_inputs=torch.ones(3, 4))
    esper.save(model, tmp_path)
    assert (esper.load(tmp_path)(x) == model(x)).all() and (esper.load(tmp_path, module=module)(x) == model(x)).all()
    with pytest.raises(StateError, match="the tensor noise has other values"):
        esper.load(tmp_path, module=Noisy())


class Drawn(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.linear, self.scale = zero_output(nn.Linear(features, features)), torch.randn(features)

    def forward(self, x):
        return self.linear(x * self.scale)


@blueprint("closes over what it draws", kinds=("Linear",))
def drawn(site):
    return Drawn(site.features_in)


def test_a_kernel_that_holds_other_tensors_when_it_is_built_again_is_refused(tmp_path):
    model = esper.wrap(nn.Sequential(nn.Linear(4, 4)), example_inputs=torch.ones(3, 4))
    esper.save(blended(model, "0", "closes over what it draws"), tmp_path)
    with pytest.raises(StateError, match="holds tensors that are no parameters"):
        esper.load(tmp_path)


def test_names_that_look_like_patterns_are_names(tmp_path):
    module = nn.Sequential()
    module.add_module("a*", nn.Linear(4, 4))
    module.add_module("ab", nn.Linear(4, 4))
    model = esper.wrap(module, target_layers=[lambda name, _: name == "a*"], example_inputs=torch.ones(3, 4))
    assert list(esper.load(esper.save(model, tmp_path), module=module).layers) == ["a*"]


def test_a_namedtuple_whose_class_is_not_there_is_one_all_the_same():
    from esper.program import Tree, unflatten

    made = unflatten(Tree("namedtuple", (Tree("leaf"), Tree("leaf")), ("logits", "hidden"), "elsewhere:Output"), [1, 2])
    assert made == (1, 2) and made.logits == 1 and type(made).__name__ == "Output"
    tree = Tree("dataclass", (Tree("leaf"),), ("args",), "subprocess:Popen")
    assert unflatten(tree, [3]) == {"args": 3}


# ---- runs -----------------------------------------------------------------------------------------------


class GoesBackOnce(Governor):
    """Finds the reading at step 15 failed, and every other sound."""

    def judge(self, reading, memory):
        failed = reading.step == 15 and not memory.retry
        verdict = Rollback("for the test", (), 1) if failed else Sound()
        return verdict, memory if not failed else type(memory)(retry=1)


class Once(runs.Script):
    """A policy that lets one kernel germinate."""

    LIFE = (Germinate("0", 0, "mlp", (("width", 4),), "now"),)


def test_the_point_to_go_back_to_is_the_one_before_the_change(tmp_path):
    """A kernel germinates at the very evaluation that was sound: going back, it is not there."""
    policy = {"policy": Once(), "governor": GoesBackOnce()}
    whole = runs.run(**policy)
    assert any(record.event == "rollback" for record in whole.records)
    runs.run(**policy, checkpoints=tmp_path, callbacks=[runs.pause(10)])
    assert runs.bit_equal(runs.run(**policy, resume=tmp_path, model=runs.model()), whole)


class GoesBackPastAReading(Governor):
    """Watches step 10, and finds step 15 failed: the run comes to step 10 twice."""

    def judge(self, reading, memory):
        if memory.retry or reading.step not in (10, 15):
            return Sound(), memory
        return (Watch("for the test"), memory) if reading.step == 10 else (Rollback("", (), 1), type(memory)(retry=1))


def test_of_a_step_that_is_reached_again_the_last_is_kept(tmp_path):
    reached = []

    def pause(record, run):
        if record.event == "evaluate" and record.step == 10:
            reached.append(run.done)
            if len(reached) == 2:
                run.stop("for now")

    governed = {"governor": GoesBackPastAReading(), "policy": None, "growth": None}
    whole = runs.run(**governed)
    runs.run(**governed, checkpoints=tmp_path, callbacks=[pause])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000001-step-5", "000003-step-10"]
    assert runs.bit_equal(runs.run(**governed, resume=tmp_path, model=runs.model()), whole)


def test_a_run_that_was_stopped_early_stays_so(tmp_path):
    early = {"early_stopping": EarlyStopping(patience=1, min_delta=10)}
    whole = runs.run(**early)
    assert whole.stopped and whole.checkpoint.done < 40
    for _ in range(2):
        again = runs.run(**early, checkpoints=tmp_path, resume=tmp_path)
        assert runs.bit_equal(again, whole) and again.stopped == whole.stopped


class Writes(runs.Script):
    """A policy that writes into what it remembers."""

    def start(self):
        return {"seen": [], "calls": np.zeros(1)}

    def __call__(self, observation, memory):
        memory["seen"].append(observation.step)
        memory["calls"][0] += 1
        grows = len(memory["seen"]) == 3
        return ((Germinate("0", 0, "mlp", (("width", 4),), "the third"),) if grows else ()), memory


def test_a_memory_that_is_written_into_is_kept_as_it_was(tmp_path):
    whole = runs.run(policy=Writes())
    part = runs.run(policy=Writes(), checkpoints=tmp_path, callbacks=[runs.pause(10)])
    assert runs.bit_equal(runs.run(policy=Writes(), resume=part.checkpoint), whole)
    assert runs.bit_equal(runs.run(policy=Writes(), resume=tmp_path, model=runs.model()), whole)


def test_checkpoints_of_another_run_are_not_removed_by_one_that_goes_on(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    part = runs.run(steps=10, checkpoints=one)
    runs.run(steps=10, checkpoints=other)
    for resume in (one, part.checkpoint):
        with pytest.raises(ArgumentError, match="a checkpoint of another run"):
            runs.run(resume=resume, checkpoints=other)


def test_a_change_under_way_is_not_kept(tmp_path):
    """It looks at batches and values of before; the run goes on from the evaluation before the decision."""
    slow = {"growth": TamiyoSettings(blend_steps=12, kernel_warmup_steps=2, swap=8)}
    whole = runs.run(**slow)
    runs.run(**slow, checkpoints=tmp_path, callbacks=[runs.pause(10)])
    assert [path.name for path in tmp_path.iterdir()] == ["000001-step-5"]
    assert runs.bit_equal(runs.run(**slow, resume=tmp_path, model=runs.model()), whole)


def test_a_manifest_of_somebody_elses_is_not_overwritten(tmp_path):
    model, manifest = esper.wrap(nn.Linear(2, 2), example_inputs=torch.ones(1, 2)), tmp_path / "manifest.json"
    manifest.write_text('{"name": "an app of the web"}')
    with pytest.raises(StateError, match=r"manifest\.json is none of esper's .*: name another folder"):
        esper.save(model, tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"name": "an app of the web"}']
    manifest.write_bytes(b"")  # of a save of ours that was damaged
    assert esper.load(esper.save(model, tmp_path)) is not None
