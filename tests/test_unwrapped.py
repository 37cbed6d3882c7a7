"""What `unwrap` gives is a module like any other: PyTorch's own tools take it."""

import copy
import io
import warnings

import pytest
import torch
from growing import is_ordinary, trained
from test_blueprints import KEY
from torch import nn

import esper
from esper.lifecycle import SeedLifecycleState as State


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def grown(conv, head, blend):
    torch.manual_seed(0)
    model = esper.wrap(Net().eval(), target_layers=["conv", "head"])
    return trained(trained(model, "conv", conv, X), "head", head, X, blend=blend)


@pytest.fixture(scope="module", params=["folded", "beside"])
def module(request):
    folded = request.param == "folded"
    model = grown("low_rank", "low_rank", "add") if folded else grown("squeeze_excite", "gated_mlp", "gate")
    made = esper.unwrap(model, probe=X, fold=folded)
    assert is_ordinary(made) == folded
    return made


def copied(module):
    return copy.deepcopy(module)


def through_its_state(module):
    file, other = io.BytesIO(), copy.deepcopy(module)
    torch.save(module.state_dict(), file)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return other


def pickled(module):
    file = io.BytesIO()
    torch.save(module, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def compiled(module):
    return torch.compile(module, backend="aot_eager", fullgraph=True)


def exported(module):
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(module, (X,), dynamic_shapes=({0: batch},)).module()


def traced(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(module, (X,))


def in_onnx(module):
    import onnx.reference

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (X,), dynamo=True, verbose=False)
    evaluator = onnx.reference.ReferenceEvaluator(program.model_proto)
    return lambda x: torch.from_numpy(evaluator.run(None, {evaluator.input_names[0]: x.numpy()})[0])


@pytest.mark.parametrize("tool", [copied, through_its_state, pickled, compiled, exported, traced, in_onnx])
def test_torchs_own_tools_take_it(module, tool):
    with torch.no_grad():
        wanted = module(X)
        torch.testing.assert_close(tool(module)(X), wanted, rtol=1e-5, atol=1e-5)


def test_a_folded_module_can_be_scripted():
    module = esper.unwrap(grown("low_rank", "scale_shift", "add"), probe=X, fold=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.testing.assert_close(torch.jit.script(module)(X), module(X))


def test_it_trains_on_and_its_state_has_the_keys_it_had():
    model = grown("low_rank", "mlp", "add")
    module = esper.unwrap(model, probe=X, fold=True)
    assert [key for key in module.state_dict() if "grown" not in key] == list(Net().state_dict())
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module.train()(X).square().mean().backward()
    optimizer.step()
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed >= {name for name, _ in module.named_parameters()} - {"conv.bias"}  # a norm follows it


def test_flags_modes_and_ties_are_what_they_were():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mid, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.mid(self.embed(x)))

    host = Tied().train()
    host.mid.weight.requires_grad_(False)
    host.mid.eval()
    x = torch.randint(0, 7, (2, 3))
    model = esper.wrap(host, target_layers=["mid"])
    model(x)
    model, _ = esper.germinate(model, None, layer="mid", blueprint="low_rank", key=KEY)
    model = esper.set_alpha(esper.transition(model, layer="mid", to=State.GRAFTING), layer="mid", alpha=0.5)
    for fold in (False, True):
        module = esper.unwrap(model, probe=x, fold=fold)
        assert module.head.weight is module.embed.weight
        assert not module.mid.weight.requires_grad and module.mid.bias.requires_grad
        assert module.training and not module.mid.training
        assert all(not part._forward_hooks and not part._forward_pre_hooks for part in module.modules())
        assert fold or not module.mid.grown[0].training
