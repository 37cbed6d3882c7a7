"""How much work a capture is, counted: passes over the graph, and operators that are traced twice."""

import pytest
import torch
from models import CNN, GPT, Recurrent, ViT, images, tokens
from torch import nn
from torch.export import ExportedProgram
from torch.nn import functional as F

import esper
from esper.jax_backend.call import prepare
from esper.torch_frontend import capture, retrace
from esper.torch_frontend.forwards import recurrent_layers


@pytest.fixture
def counted(monkeypatch):
    """Counts of whole passes and of pieces that were traced."""
    counts = {"passes": 0, "pieces": 0}
    whole, piece = ExportedProgram.run_decompositions, retrace.Retracer._traced

    def run(self, *args, **kwargs):
        counts["passes"] += 1
        return whole(self, *args, **kwargs)

    def traced(self, *args):
        counts["pieces"] += 1
        return piece(self, *args)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", run)
    monkeypatch.setattr(retrace.Retracer, "_traced", traced)
    return counts


def captured(module, *args, train=False):
    return prepare(esper.wrap(module).structure.source, args, {}, train).program


CASES = {"cnn": (CNN, images), "gpt": (GPT, tokens), "vit": (ViT, images), "lstm": (Recurrent, tokens)}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_no_second_pass(counted, name, train):
    build, inputs = CASES[name]
    captured(build(), inputs(), train=train)
    assert counted["passes"] == 0


class Deep(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x):
        for part in self.parts:
            x = F.relu(F.dropout(part(x), 0.5, self.training), inplace=True)
        return x


def test_operators_that_are_alike_are_traced_once(counted):
    captured(Deep(2), torch.ones(3, 4), train=True)
    few = counted["pieces"]
    captured(Deep(9), torch.ones(3, 4), train=True)
    assert counted["pieces"] == 2 * few
    assert few <= 2


class Viewed(nn.Module):
    def forward(self, x):
        y = x * 2
        row = y[0]
        row.add_(1)
        return y + row


class Branched(nn.Module):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return x @ x.mT


@pytest.mark.parametrize("module", [Viewed(), Branched()], ids=["a view is written into", "autocast"])
def test_what_needs_the_whole_pass_has_it(counted, module):
    captured(module, torch.ones(3, 4))
    assert counted["passes"] == 1


class Written(nn.Module):
    """Writes of every kind that need no whole pass."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        y = self.norm(x)
        F.relu_(y)
        with torch.no_grad():
            self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
            self.count += 1
        y *= 2
        return y + self.mean, self.count


@pytest.mark.parametrize("train", [False, True])
def test_writes_are_those_of_the_whole_pass(counted, monkeypatch, train):
    quick = captured(Written(), torch.ones(3, 4), train=train)
    assert counted["passes"] == 0

    def unfit(*_):
        raise retrace.Unfit("for comparison")

    monkeypatch.setattr(capture, "functional", unfit)
    whole = captured(Written(), torch.ones(3, 4), train=train)
    assert counted["passes"] == 1
    assert quick.ops == whole.ops
    assert [(spec.kind, spec.target) for spec in quick.outputs] == [(spec.kind, spec.target) for spec in whole.outputs]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_not_walked_step_by_step(monkeypatch, kind):
    steps = []
    decompositions = torch._decomp.decompositions
    for name in ("one_layer_lstm", "one_layer_rnn"):
        layer = getattr(decompositions, name)

        def count(inp, *args, layer=layer, **kwargs):
            steps.append(inp.shape[0])
            return layer(inp, *args, **kwargs)

        monkeypatch.setattr(decompositions, name, count)
    with recurrent_layers():
        captured(Recurrent(kind), tokens(length=50))
    assert steps
    assert max(steps) == 1


SHAPED_IN_PLACE = {
    "as_strided_": lambda x: x.as_strided_((2, 2), (1, 2)),
    "resize_": lambda x: x.resize_(10, 2),
    "resize_ to fewer": lambda x: x.resize_(3, 2),
    "resize_as_": lambda x: x.resize_as_(torch.zeros(20)),
    "set_": lambda x: x.set_(x[:2].clone()),
    "squeeze_": lambda x: x[:1].squeeze_(),
    "squeeze_ of one": lambda x: x[:1].squeeze_(0),
    "swapaxes_": lambda x: x.swapaxes_(0, 1),
    "t_": lambda x: x.t_(),
    "transpose_": lambda x: x.transpose_(0, 1),
    "unsqueeze_": lambda x: x.unsqueeze_(1),
    "written after": lambda x: x.t_().mul_(2).unsqueeze_(0).add_(1),
}


class InPlace(nn.Module):
    """Calls a function of a copy of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        x = x.clone()
        made = self.function(x)
        return made, x


@pytest.mark.parametrize("name", SHAPED_IN_PLACE)
def test_a_shape_that_changes_in_place_takes_the_whole_pass(counted, name):
    x = torch.randn(4, 5)
    module = InPlace(SHAPED_IN_PLACE[name])
    expected, made = module(x), esper.wrap(module)(x)
    assert counted["passes"] > 0
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.shape == theirs.shape and torch.equal(ours, theirs)
