"""A model as plain data, as a drawing, as text, and in treescope."""

import doctest
import importlib
import json
import pkgutil
import subprocess
import sys
from html.parser import HTMLParser

import jax
import pytest
import torch
from torch import nn

import esper
import esper.drawing
import esper.report
from esper.drawing.network import network as draw
from esper.drawing.network import rows
from esper.jax_backend.description import description
from esper.jax_backend.flops import flops


class Residual(nn.Module):
    """A block that is called twice, a sum over it, and a function between."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.block = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(h + self.block(self.block(h)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = esper.wrap(Residual(), seeds_per_layer=2, example_inputs=torch.zeros(3, 4))
    recipe = {"blueprint": "mlp", "options": {"width": 5}, "key": jax.random.key(0)}
    model, _ = esper.germinate(model, None, layer="block", seed=1, **recipe)
    return esper.transition(model, layer="block", seed=1, to=esper.SeedLifecycleState.GRAFTING)


def test_layers_are_in_order_of_the_forward_with_what_they_are(model):
    found = description(model)
    told = [(held["name"], held["type"], held["parameters"], held["reads"]) for held in found["layers"]]
    assert told == [
        ("first", "Linear", 30, [-1]),
        ("", "relu", 0, [0]),
        ("block", "Linear", 42, [1]),
        ("", "add", 0, [1, 2]),
        ("last", "Linear", 14, [3]),
    ]
    assert found["grown_parameters"] == sum(leaf.size for leaf in jax.tree.leaves(model.params["kernels"]))
    assert found["parameters"] == 86 and found["captured"] and found["name"] == "Residual"
    assert [held["kasmina"] for held in found["layers"] if held["name"]] == [True] * (len(told) - 2)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


class Gate(nn.Module):
    """A layer within a branch."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.inner(x), lambda x: x * 2.0, (x,))


def test_a_kernel_within_a_branch_is_not_lost():
    model = esper.wrap(Gate(), example_inputs=torch.zeros(2, 3))
    model, _ = esper.germinate(model, None, layer="inner", blueprint="low_rank", key=jax.random.key(0))
    layers = description(model)["layers"]
    assert [(held["name"], len(held["kernels"])) for held in layers] == [("", 0), ("inner", 1)]


def test_a_root_that_is_a_layer_is_named_by_its_class():
    (held,) = description(esper.wrap(nn.Linear(3, 2), example_inputs=torch.zeros(2, 3)))["layers"]
    assert (held["name"], held["type"], held["kasmina"]) == ("", "Linear", True)


def test_a_saved_model_shows_the_same_without_its_module(model, tmp_path):
    assert str(esper.load(esper.save(model, tmp_path / "saved")).show()) == str(model.show())


def test_a_kernel_is_told_beside_the_first_call_of_its_layer(model):
    kernels = [kernel for held in description(model)["layers"] for kernel in held["kernels"]]
    (kernel,) = kernels
    assert kernel["seed"] == 1 and kernel["blueprint"] == "mlp" and kernel["options"]["width"] == 5
    assert kernel["state"] == "GRAFTING" and kernel["alpha"] == 0.0 and kernel["gain"] is None
    assert kernel["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(model.params["kernels"]))
    (kernel,) = [k for held in description(model, {("block", 1): (0.5, 0.1)})["layers"] for k in held["kernels"]]
    assert (kernel["gain"], kernel["gain_stderr"]) == (0.5, 0.1)


def test_the_work_of_the_layers_adds_up_to_that_of_the_forward(model):
    host = esper.wrap(Residual(), example_inputs=torch.zeros(3, 4))
    layers = description(host)["layers"]
    whole = flops(lambda x: host(x), jax.ShapeDtypeStruct((2, 4), "float32"))
    assert sum(held["flops"] for held in layers) * 2 == whole
    assert layers[0]["flops"] == 2 * 4 * 6 + 6


def test_a_model_that_was_never_called_tells_what_it_can():
    found = description(esper.wrap(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))))
    assert not found["captured"]
    assert [(held["name"], held["parameters"], held["flops"]) for held in found["layers"]] == [
        ("0", 16, None),
        ("2", 10, None),
    ]


def test_work_is_not_known_where_more_than_the_batch_is_open():
    model = esper.wrap(nn.Sequential(nn.Linear(3, 2)))
    model(torch.zeros(2, 5, 3))
    assert description(model)["layers"][0]["flops"] == 2 * 5 * 3 * 2 + 5 * 2


class Drawing(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_a_model_shows_itself(model):
    shown = model.show()
    text, html = str(shown), shown._repr_html_()
    grown = sum(leaf.size for leaf in jax.tree.leaves(model.params["kernels"]))
    assert f"Residual: 86 parameters, and {grown} grown" in text and "+ mlp(width=5" in text and "grafting" in text
    assert repr(shown) == text
    tags = Drawing(html).tags
    assert [tag for tag, _ in tags].count("style") == 1
    assert any(tag == "svg" and attrs.get("role") == "img" for tag, attrs in tags)
    assert "<script" not in html and "http" not in html


def test_a_drawing_is_in_proportion(model):
    layers = description(model)["layers"]
    for width in (350, 1000):
        hosts = [
            float(attrs["width"])
            for tag, attrs in Drawing(draw(layers, width, name="d")).tags
            if attrs.get("class") == "es-host"
        ]
        assert hosts[0] / hosts[1] == pytest.approx(30 / 42, rel=0.02)


def test_many_layers_are_drawn_together_and_none_is_lost():
    layers = [
        {
            "name": f"l{n}",
            "type": "Linear",
            "parameters": 2,
            "flops": 3,
            "reads": [n - 1],
            "kernels": [],
            "kasmina": True,
        }
        for n in range(1000)
    ]
    layers[500]["kernels"] = [{"blueprint": "mlp", "parameters": 7, "state": "ACTIVE"}]
    lines = rows(layers)
    assert len(lines) < 120 and sum(line.parameters for line in lines) == 2000
    (grown,) = [line for line in lines if line.kernels]
    assert grown.title == "l500" and grown.parameters == 2


def test_treescope_shows_a_model_without_a_warning(model):
    treescope = pytest.importorskip("treescope")
    for shown in (model, esper.wrap(nn.Linear(2, 2))):
        assert len(treescope.render_to_html(shown)) > 1000
        text = treescope.render_to_text(shown)
        assert text.startswith("MorphableModel(") and "health='not measured'" in text
    assert "measured" not in treescope.render_to_text(model.replace(seeds=model.seeds.set(0, 0, health=1.0)).seeds)


def test_figures_are_drawn_for_papers(tmp_path):
    pytest.importorskip("matplotlib")
    from report.run_folders import folder, history

    from esper.errors import ArgumentError
    from esper.report import figures, run

    place = folder(tmp_path / "a")
    for make in (figures.curves, figures.lanes, figures.network):
        figure = make(place)
        figure.savefig(tmp_path / f"{make.__name__}.svg")
        assert "<text" in (tmp_path / f"{make.__name__}.svg").read_text() or figure.axes
        assert figure.axes[-1].get_xlabel()
    assert [line.get_label() for line in figures.curves(run(place)).axes[0].lines][:3] == [
        "training",
        "control (validation)",
        "validation",
    ]
    bare = folder(tmp_path / "b", history()[:1], ledger=None, certificate=None)
    (bare / "network.json").unlink()
    for make, said in (
        (figures.curves, "no evaluations"),
        (figures.lanes, "no lane"),
        (figures.network, "network.json"),
    ):
        with pytest.raises(ArgumentError, match=said):
            make(bare)


@pytest.mark.parametrize("name", ["a$_$b", "$\\foo$", "one $"])
def test_a_figure_takes_names_as_they_are(tmp_path, name):
    pytest.importorskip("matplotlib")
    from report.run_folders import evaluation, folder, history, kernel, layer, life, network

    from esper.report import figures

    events = [*history(), *life(name), evaluation(90, 1.0, **{f"validation_{name}": 1.0})]
    held = network([layer(name, [kernel(blueprint=name, options={name: name})], type=name)])
    place = folder(tmp_path / "a", events, network_=held)
    for make in (figures.curves, figures.lanes, figures.network):
        make(place).savefig(tmp_path / f"{make.__name__}.svg")
    for drawn in ("lanes", "network"):
        assert name in (tmp_path / f"{drawn}.svg").read_text()


def test_a_figure_shows_what_a_seed_came_to_at_the_last_step(tmp_path):
    pytest.importorskip("matplotlib")
    from report.run_folders import folder, history

    from esper.report import figures

    growth = [event for event in history() if event["run"] == "growth"]
    moved = [event | {"step": 100} if event["event"] == "fossilized" else event for event in growth]
    figure = figures.lanes(folder(tmp_path / "a", moved))
    last = figure.axes[0].collections[-1].get_paths()[0].get_extents()
    assert last.x1 == 100 and 0.3 < last.width < 1
    assert "fossilized" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_report_imports_neither_torch_nor_jax():
    code = (
        "import sys, esper.report, esper.report.figures, esper.cli\n"
        "assert not {'torch', 'jax', 'flax', 'matplotlib'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MODULES = [
    found.name
    for package in (esper.drawing, esper.report)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
] + ["esper.program.outline"]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_are_true(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0
