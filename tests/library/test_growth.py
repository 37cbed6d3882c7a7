"""A kernel that one run grew and published is found, loaded, judged and kept by another; and what if it cannot be."""

import dataclasses
import json
import math
from functools import cache
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import torch
import yaml
from torch import nn

import esper
from esper.cli import main
from esper.configs import TamiyoSettings
from esper.errors import IllegalTransitionError, LibraryError
from esper.growth.credit import Gain
from esper.growth.policy import Germinate, Hold, LayerView, Load, Observation, Plan, SeedView, act
from esper.growth.tamiyo import Tamiyo
from esper.library import Measured, Origin, open_library
from esper.library.files import delivered_later, read_parcel, waiting
from esper.library.publishing import Published, publish
from esper.lifecycle import SeedLifecycleState as S
from esper.shelf import _gains
from esper.train import history

pytestmark = pytest.mark.usefixtures("compiled_once")
SETTINGS = TamiyoSettings(
    trigger="always",
    train_steps=100,
    blend_steps=10,
    hold_steps=10,
    embargo_steps=10,
    max_kernels=1,
    kernel_warmup_steps=0,
)
TX = optax.adam(0.02)


def data(key):
    inputs = jax.random.uniform(jax.random.key(key), (256, 2), minval=-1.0, maxval=1.0)
    return inputs, inputs[:, :1] * inputs[:, 1:] * 4


def model(library=None, seed=0, **options):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 1), nn.Identity())
    return esper.wrap(net, seeds_per_layer=1, example_inputs=torch.ones(2, 2), library=library, **options)


def run(wrapped, steps=160, **options):
    settled = {"growth": SETTINGS, "loss": "mean_squared_error", "batch_size": 32, "every": 10, **options}
    return esper.fit(wrapped, data(0), validation=data(1), tx=TX, steps=steps, key=jax.random.key(3), **settled)


@cache
def first():
    """A run in which a kernel became permanent; a product of two inputs is nothing for a linear layer."""
    found = run(model())
    assert [record.event for record in found.records if record.seed == 0][-1] == "fossilized"
    return found


@pytest.fixture
def library(tmp_path):
    with open_library(tmp_path / "library") as found:
        yield found


def published(library, result=None):
    result = result or first()
    return publish(
        lambda: library,
        library.folder,
        result.model,
        origin=Origin(run="A"),
        gains=result.gains,
        parents={},
        tags=["t"],
    )


def events(result, *kinds):
    return [record for record in result.records if record.event in kinds]


def test_a_kernel_of_one_run_is_loaded_judged_and_kept_in_another(library):
    (digest,) = published(library).digests
    entry = library.entry(digest)
    assert (entry.lifecycle, entry.tags, entry.carried) == ("validated", ("t",), True) and entry.flops > 0
    assert (
        entry.gain.mean == pytest.approx(first().gains["0", 0].mean) and entry.gain.n == first().gains["0", 0].batches
    )
    found = run(model(library, seed=1), steps=160, draw=2)
    assert "1 validated kernels of the library fit" in events(found, "library")[0].reason
    (loaded,) = events(found, "load")
    assert loaded.figures == {"blueprint": "mlp", "artifact": digest} and digest[:19] in loaded.reason
    states = [record.event for record in found.records if record.seed == 0]
    assert states == ["load", "grafting", "active", "fossilized"]
    assert sum(record.compiles for record in events(found, "active", "fossilized")) == 0
    assert found.gains["0", 0].mean > 0.3 and found.losses[-1] < 0.1
    # What it became is another kernel, made of the first.
    again = publish(
        lambda: library,
        library.folder,
        found.model,
        origin=Origin(run="B"),
        gains=found.gains,
        parents={("0", 0): digest},
    )
    (child,) = again.digests
    assert child != digest and library.origins(child)[0].parent == digest
    assert {one.digest for one in library.find(blueprint="mlp")} == {digest, child}


def test_without_draw_nothing_is_drawn(library):
    published(library)
    found = run(model(library))
    assert not events(found, "library", "load") and events(found, "germinate")


@pytest.mark.parametrize("broken", ["find_for", "get"])
def test_a_library_that_fails_stops_no_run(library, monkeypatch, broken):
    published(library)

    def dead(*given, **more):
        raise LibraryError("the server is gone")

    wrapped = model(library)
    monkeypatch.setattr(library, broken, dead)
    found = run(wrapped, steps=160, draw=2)
    if broken == "find_for":
        assert "nothing is drawn from the library: the server is gone" in events(found, "library")[0].reason
    else:
        assert "the server is gone" in events(found, "declined")[0].reason
    assert events(found, "germinate") and found.checkpoint.done == 160


def test_a_kernel_that_does_not_fit_after_all_is_declined(library):
    digest = published(library).digests[0]
    other = library.get(digest)
    changed = dataclasses.replace(other, module="something else")
    library.retire(digest, "changed")
    library.put(changed, lifecycle="validated", gain=Measured(0.1, 0.01, 8))
    found = run(model(library), steps=160, draw=2)
    assert "does not fit" in events(found, "declined")[0].reason and events(found, "germinate")


@pytest.mark.parametrize("width", ["x", -1, 1 << 40])
def test_a_kernel_of_odd_options_stops_no_run(library, width):
    odd = library.get(published(library).digests[0])
    library.retire(odd.digest, "changed")
    options = tuple((name, width if name == "width" else value) for name, value in odd.options)
    library.put(dataclasses.replace(odd, options=options), lifecycle="validated", gain=Measured(0.1, 0.01, 8))
    found = run(model(library), steps=130, draw=2)
    assert "0.weight" in (said := events(found, "declined")[0].reason) or "makes no kernel for layer '0'" in said


def test_a_library_that_raises_what_nobody_thought_of_stops_no_run(library, monkeypatch):
    def odd(*given, **more):
        raise ZeroDivisionError("by chance")

    wrapped = model(library)
    monkeypatch.setattr(library, "find_for", odd)
    assert "ZeroDivisionError: by chance" in events(run(wrapped, steps=10, draw=2), "library")[0].reason


def test_a_run_with_a_loaded_kernel_goes_on_from_a_checkpoint(library, tmp_path):
    published(library)
    whole = run(model(library, seed=1), steps=160, draw=1)
    part = run(model(library, seed=1), steps=150, draw=1, checkpoints=tmp_path / "kept")
    assert events(part, "load")
    rest = run(model(library, seed=1), steps=160, draw=1, checkpoints=tmp_path / "kept", resume=tmp_path / "kept")
    for mine, theirs in zip(*(jax.tree.leaves(one.model.params) for one in (whole, rest)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_publishing_where_the_library_is_dead_fills_the_outbox(library):
    def opened():
        raise LibraryError("no answer")

    found = publish(opened, library.folder, first().model, origin=Origin(run="A"), gains=first().gains, parents={})
    assert found.digests == () and len(found.waiting) == 1
    assert "no answer" in str(found) and "`esper library push` delivers them" in str(found)
    assert waiting(library.folder) == list(found.waiting)
    parcel = read_parcel(found.waiting[0])
    assert parcel.lifecycle == "validated" and parcel.told[0].run == "A" and parcel.artifact.carried is not None
    ((file, digest),) = delivered_later(library)
    assert not file.exists() and library.entry(digest).lifecycle == "validated" and not waiting(library.folder)


def test_what_became_of_kernels_is_always_a_sentence(tmp_path):
    assert str(Published(problem="no answer")) == "no answer; no kernel became permanent"
    assert str(Published(problem="full", lost=2)) == "full; 2 kernels could not be kept"
    assert str(Published(("sha256:1",), problem="full", lost=1)).endswith("full; 1 kernels could not be kept")
    about = {"origin": Origin(run="A"), "gains": first().gains, "parents": {}}
    (tmp_path / "file").write_text("")

    def opened():
        raise RuntimeError("no answer")

    found = publish(opened, tmp_path / "file", first().model, **about)  # nor can anything be written there
    assert (found.digests, found.waiting, found.lost) == ((), (), 1)
    assert "no answer" in str(found) and "1 kernels could not be kept" in str(found)


def test_a_parent_that_is_none_loses_the_parent_and_not_the_kernel(library):
    about = {"origin": Origin(run="A"), "gains": first().gains, "parents": {("0", 0): "sha256:12ab"}}
    (digest,) = publish(lambda: library, library.folder, first().model, **about).digests
    assert library.origins(digest)[0].parent == ""


def test_a_kernel_without_a_finite_gain_is_a_candidate(library):
    about = {"origin": Origin(run="A"), "parents": {}}
    lost = dataclasses.replace(first().gains["0", 0], mean=float("nan"))
    found = publish(lambda: library, library.folder, first().model, gains={("0", 0): lost}, **about)
    assert library.entry(found.digests[0]).lifecycle == "candidate" and library.entry(found.digests[0]).gain is None


def test_a_parent_is_that_of_the_kernel_that_is_there():
    from esper.shelf import _parents

    load = history.Record(1, "load", "", "a", 0, {"artifact": "x"})
    other = history.Record(2, "load", "", "b", 1, {"artifact": "y"})
    assert _parents([load, other, history.Record(3, "germinate", "", "a", 0)]) == {("b", 1): "y"}


# ---- the policy -----------------------------------------------------------------------------------------------------

NEW, DRAWN = Plan("mlp", (("width", 4),), 30), Plan("low_rank", (), 20, artifact="sha256:" + "a" * 64)


def seen(plans, state=S.DORMANT, step=100):
    layer = LayerView("a", "Linear", 1.0, (SeedView("a", 0, state),), plans)
    return Observation(step, 10_000, 10, (1.0,), (layer,))


def test_a_drawn_kernel_comes_first_and_alone_and_after_it_was_culled_last():
    policy = Tamiyo(SETTINGS.model_copy(update={"race": 2}))
    (action,), memory = policy(seen((DRAWN, NEW)), policy.start())
    assert isinstance(action, Load) and (action.artifact, action.blueprint) == (DRAWN.artifact, "low_rank")
    assert memory.tended == ((("a", 0), DRAWN.artifact),)
    again, memory = policy(seen((DRAWN, NEW), step=101), memory)  # it could not be had
    assert again == () or isinstance(again[0], Hold)
    (action,), _ = policy(seen((DRAWN, NEW), step=200), memory)
    assert isinstance(action, Germinate) and action.blueprint == "mlp"


def test_a_drawn_kernel_that_is_too_large_is_passed_over():
    policy = Tamiyo(SETTINGS.model_copy(update={"max_parameters": 30}))
    (action,), _ = policy(seen((dataclasses.replace(DRAWN, parameters=31), NEW)), policy.start())
    assert isinstance(action, Germinate)


@pytest.mark.parametrize("plan", [NEW, DRAWN])
def test_what_another_policy_lets_in_begins_the_wait_anew(plan):
    """A kernel that is loaded is as good a reason to wait as one that germinates."""
    policy = Tamiyo(SETTINGS.model_copy(update={"trigger": "plateau"}))
    memory = dataclasses.replace(policy.start(), stale=7, seen=9, held="x")
    action = plan.germinate(("a", 0), "why")
    assert isinstance(action, Load) == (plan is DRAWN)
    after = policy.witness(seen((NEW,)), (action,), memory)
    assert (after.stale, after.seen, after.held) == (0, 0, "")


def test_the_record_of_a_load_has_the_whole_digest(library):
    digest = published(library).digests[0]
    from esper.train.books import _born, record_of

    record = _born(record_of(Load("0", 0, digest[:20], "why"), 1), library.get(digest))
    assert record.figures["artifact"] == digest


def test_act_loads(library):
    digest = published(library).digests[0]
    grown, state = act(model(library), None, Load("0", 0, digest, "why"), key=jax.random.key(0))
    assert grown.seeds.lifecycle[0, 0] == S.TRAINING and state is None
    asked, _ = esper.load_kernel(model(library), None, layer="0", artifact=digest)
    assert asked.seeds.lifecycle[0, 0] == S.GRAFTING
    with pytest.raises(IllegalTransitionError, match="ACTIVE"):
        esper.load_kernel(model(library), None, layer="0", artifact=digest, to=S.ACTIVE)


def test_a_host_does_not_come_to_rely_on_a_kernel_that_is_not_judged_yet(library):
    published(library)
    drawn, alone = run(model(library, seed=1), draw=1), run(model(seed=1), growth=None)
    (loaded,), (blended,) = events(drawn, "load"), events(drawn, "grafting")
    assert blended.step >= loaded.step + 100 and "held-out loss" in blended.reason
    before = blended.step // 10
    assert drawn.losses[:before] == alone.losses[:before] and drawn.losses[before + 1] != alone.losses[before + 1]


def test_a_drawn_kernel_that_is_worth_nothing_here_never_takes_part(library):
    good = library.get(published(library).digests[0])
    library.retire(good.digest, "another takes its place")
    noise = {name: 3 * jax.random.normal(jax.random.key(9), array.shape) for name, array in good.params.items()}
    library.put(dataclasses.replace(good, params=noise), lifecycle="validated", gain=Measured(9.0, 0.01, 8))
    hasty = SETTINGS.model_copy(update={"train_steps": 10})
    found = run(model(library, seed=1), steps=60, draw=1, growth=hasty)
    states = [record.event for record in found.records if record.seed == 0]
    assert states[:2] == ["load", "culled"]


def test_what_is_published_of_a_gain_is_the_least_that_was_measured():
    def gain(mean, stderr=0.01):
        return Gain(mean, stderr, 1.0, 1.0 - mean, 8)

    def evaluate(**figures):
        return history.Record(1, "evaluate", figures=figures)

    def at(seed):
        return history.Record(1, "fossilized", "", "a", seed)

    told = (
        evaluate(**{"gain a[0]": 0.2, "gain stderr a[0]": 0.02, "gain a[1]": 0.9, "gain stderr a[1]": math.nan}),
        at(0),
        at(1),
        evaluate(**{"gain a[2]": 0.7, "gain stderr a[2]": 0.1, "credit a[2]": 0.1, "credit stderr a[2]": 0.03}),
        at(2),
        evaluate(loss=1.0),
        at(3),
        at(4),
    )
    ends = {0: gain(0.8), 1: gain(0.5), 2: gain(0.3), 3: gain(0.4), 5: gain(math.nan)}
    result = SimpleNamespace(gains={("a", seed): one for seed, one in ends.items()}, records=told)
    assert _gains(result) == {
        ("a", 0): Measured(0.2, 0.02, 8),  # it relies on it by now
        ("a", 1): Measured(0.5, 0.01, 8),  # it is worth less than it was
        ("a", 2): Measured(0.1, 0.03, 8),  # its share in what several gained
        ("a", 3): Measured(0.4, 0.01, 8),  # no verdict was reached by a figure
    }


# ---- the job and the command ----------------------------------------------------------------------------------------


@pytest.fixture
def grow(tmp_path):
    def run(name, urza, *, database=None, policy="plateau", **training):
        tamiyo = dict(
            policy=policy, trigger="always", train_steps=60, blend_steps=10, hold_steps=10, max_kernels=1, rank=16
        )
        kept = dict(data="digits", model="mlp", steps=120, batch_size=32, eval_every=10, learning_rate=0.01)
        document = {
            "name": name,
            "components": {
                "tamiyo": {"config": tamiyo},
                "urza": {"config": {"folder": str(tmp_path / "shelf"), **urza}},
            },
            **({"database": database} if database else {}),
            "training": {**kept, "output_dir": str(tmp_path / name), **training},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        assert main(["grow", str(path), "--no-control", "--quiet"]) == 0
        return str(path), history.read(tmp_path / name / "history.jsonl")

    return run


def test_a_run_without_its_library_has_its_model_and_says_so(grow, tmp_path):
    document = {"host": "127.0.0.1", "port": 1, "username": "u", "password": "hunter2", "connect_timeout": 2}
    _, records = grow("dead", {}, database=document, policy="none")
    said = [record.reason for record in records if record.event == "library"]
    assert len(said) == 2 and "nothing is drawn" in said[0] and "no kernel became permanent" in said[1]
    assert "hunter2" not in str(said) and (tmp_path / "dead" / "certificate.json").is_file()


@pytest.mark.parametrize("error", [LibraryError("the server is gone"), ValueError("what nobody thought of")], ids=str)
def test_a_library_that_does_not_open_stops_no_run_whatever_it_raises(tmp_path, monkeypatch, error):
    import esper.shelf
    from esper.configs import EsperConfig

    def broken(config):
        raise error

    monkeypatch.setattr(esper.shelf, "open_library", broken)
    config = EsperConfig(name="x", components={"urza": {"config": {"folder": str(tmp_path), "draw": True}}})
    heard = []
    with esper.shelf.shelf(config, "r", heard.append) as found:
        assert (found.opened, found.draw) == (None, 0)
    ((record,),) = [heard]
    assert record.event == "library" and "nothing is drawn from the library: " in record.reason
    assert str(error) in record.reason


def test_a_run_has_written_its_model_before_it_publishes(grow, tmp_path, monkeypatch):
    import esper.shelf

    def broken(*given, **more):
        assert (tmp_path / "one" / "certificate.json").is_file()
        raise ValueError("what nobody thought of")

    monkeypatch.setattr(esper.shelf, "publish", broken)
    _, records = grow("one", {}, policy="none")
    (said,) = [record.reason for record in records if "nothing is published" in record.reason]
    assert "ValueError: what nobody thought of" in said


def test_two_runs_by_configuration_alone(grow, tmp_path, capsys):
    config, records = grow("one", {"tags": ["demo"]})
    assert "library: published 1 kernels" in " ".join(capsys.readouterr().out.split())
    assert "0 validated kernels" in next(record.reason for record in records if record.event == "library")
    assert main(["library", "list", "--config", config, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["tags"] == ["demo"] and entry["gain"]["mean"] > 0 and entry["lifecycle"] == "validated"
    _, records = grow("two", {"publish": False}, key=7)
    (loaded,) = [record for record in records if record.event == "load"]
    assert loaded.figures["artifact"] == entry["digest"]
    capsys.readouterr()
    assert main(["library", "show", entry["digest"][7:19], "--library", str(tmp_path / "shelf"), "--json"]) == 0
    (origin,) = json.loads(capsys.readouterr().out)["origins"]
    assert origin["data"] == "digits" and origin["key"] == 0
    assert origin["run"] == json.loads((tmp_path / "one" / "history.jsonl").read_text().splitlines()[0])["run_id"]
