"""A wrapped model as a torch module: PyTorch's own loops train it to the same numbers."""

import copy
import pickle
from collections import OrderedDict

import jax
import numpy as np
import pytest
import torch
from growing import trained
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import esper
from esper.errors import ArgumentError, RefusedError, WrapError
from esper.sharding import data_parallel


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.block(self.embed(x)))[:, -1]


class Signals(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


NETWORKS = {
    "convolutions": (Net, lambda: torch.randn(24, 3, 8, 8), 5),
    "words": (Words, lambda: torch.randint(0, 11, (24, 6)), 11),
    "signals": (Signals, lambda: torch.randn(24, 7, 3), 5),
}
OPTIMIZERS = {
    "convolutions": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, nesterov=True),
    "words": lambda params: torch.optim.AdamW(params, 1e-2, eps=1e-3, fused=True),
    "signals": lambda params: torch.optim.RMSprop(params, 1e-2),
}


def built(make):
    torch.manual_seed(0)
    return make()


def fit(module, loader, optimizer, epochs=4):
    """A loop as anybody writes it."""
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    losses = []
    module.train()
    for _ in range(epochs):
        for x, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(module(x), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
    module.eval()
    with torch.no_grad():
        losses += [F.cross_entropy(module(x), labels).item() for x, labels in loader]
    return losses


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loop_of_torchs_trains_it_to_the_same_losses(name):
    make, inputs, classes = NETWORKS[name]
    host = built(make)
    x = inputs()
    loader = DataLoader(TensorDataset(x, torch.randint(0, classes, (len(x),))), batch_size=8)
    module = esper.torch_module(esper.wrap(host))
    wanted = fit(host, loader, OPTIMIZERS[name](host.parameters()))
    found = fit(module, loader, OPTIMIZERS[name](module.parameters()))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    ours, theirs = module.state_dict(), host.state_dict()
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-3)


def compiled(module):
    """How many programs a module has compiled: forwards, backwards, and those without a backward."""
    pullbacks = [p for programs in module._runner._programs.values() for p in programs._pullbacks.values()]
    kinds = ("forward", "backward", "values")
    return tuple(sum(getattr(p, kind)._cache_size() for p in pullbacks) for kind in kinds)


def test_every_kind_of_call_compiles_once():
    host, x = built(Net), torch.randn(4, 3, 8, 8)
    module = esper.torch_module(esper.wrap(host)).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        module(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert compiled(module) == (1, 1, 0)
    for _ in range(3):
        with torch.no_grad():
            module.eval()(x)
    assert compiled(module) == (1, 1, 1)


def test_what_a_backward_needs_of_the_parameters_is_not_copied():
    module = esper.torch_module(esper.wrap(nn.Sequential(nn.Linear(23, 29), nn.Tanh(), nn.Linear(29, 3))))
    x = torch.randn(4, 23)
    module(x)
    ready = module._runner.ready(dict(module.named_parameters()), (x,), {}, module._modes())
    ((moving, fixed),) = ready.programs._pullbacks
    assert (moving, fixed) == ((0, 1, 2, 3), (4,))
    pullback = ready.programs.pullback(moving, fixed)
    _, _, residuals = pullback.forward(ready.arrays[:4], ready.arrays[4:], ([None] * 5, ready.rest))
    assert all(set(array.shape) <= {4, 29} for array in residuals.arrays)


def test_gradients_reach_inputs_accumulate_and_can_be_taken_twice():
    host = built(Net).eval()
    module = esper.torch_module(esper.wrap(host))
    for each in (host, module):
        each.x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = each(each.x)
        y.sum().backward(retain_graph=True)
        (2 * y).sum().backward()
        each(each.x).square().sum().backward()
    torch.testing.assert_close(module.x.grad, host.x.grad, rtol=1e-4, atol=1e-5)
    for (name, ours), theirs in zip(module.named_parameters(), host.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=name)
    y = module(module.x)
    with pytest.raises(RefusedError, match="no second derivatives"):  # and not a penalty that has no gradient
        torch.autograd.grad(y.sum(), module.x, create_graph=True)


def test_what_is_frozen_gets_no_gradient_and_can_be_thawed():
    module = esper.torch_module(esper.wrap(built(Net)))
    module.conv.requires_grad_(False)
    x = torch.randn(4, 3, 8, 8)
    module(x).sum().backward()
    assert module.conv.weight.grad is None and module.head.weight.grad is not None
    module.conv.requires_grad_(True)
    module(x).sum().backward()
    assert module.conv.weight.grad is not None


def test_memory_that_a_backward_needs_is_guarded_as_torch_guards_it():
    module = esper.torch_module(esper.wrap(built(Net)))
    x = torch.randn(4, 3, 8, 8)
    y = module(x)
    with torch.no_grad():
        module.head.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = module(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_what_is_written_into_an_output_changes_no_gradient():
    host, x = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid()), torch.randn(3, 5)
    module = esper.torch_module(esper.wrap(host))
    y = module(x)
    y.mul_(2)
    y.sum().backward()
    (2 * host(x)).sum().backward()
    torch.testing.assert_close(module.get_parameter("0.weight").grad, host[0].weight.grad)
    again = module(x)
    torch.testing.assert_close(again, host(x))


def test_values_written_by_hand_count_at_once():
    host, x = built(Net).eval(), torch.randn(4, 3, 8, 8)
    module = esper.torch_module(esper.wrap(host))
    module(x)
    for each in (host, module):
        with torch.no_grad():
            each.norm.running_mean.add_(1)
            each.head.bias.mul_(3)
    torch.testing.assert_close(module(x), host(x))
    other = built(Net)
    module.load_state_dict(other.state_dict())
    torch.testing.assert_close(module(x), other.eval()(x))
    module.head.weight = nn.Parameter(torch.zeros(5, 8))
    torch.testing.assert_close(module(x), module.head.bias.expand(4, 5))
    module.head.weight.data = torch.arange(40.0).reshape(8, 5).t()  # not contiguous: JAX cannot read it in place
    for _ in range(2):
        module.head.weight.data.mul_(2)
        host.load_state_dict(module.state_dict())
        torch.testing.assert_close(module(x), host(x))
    module.norm.running_mean.data.fill_(3)
    host.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x), host(x))
    del module.head.bias
    module.head.bias = nn.Parameter(torch.ones(5))  # another order of names
    host.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x), host(x))


def test_a_float64_model_that_is_carried_in_32_bits_trains():
    host, x = nn.Linear(3, 3).double(), torch.randn(4, 3).double()
    with pytest.warns(UserWarning, match="64-bit"):
        module = esper.torch_module(esper.wrap(host))
    for each in (host, module):
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            each(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(module(x), host(x), rtol=1e-5, atol=1e-5, check_dtype=False)


CHANGES = {
    "a conversion": (lambda m: m.bfloat16(), "torch.bfloat16"),
    "a submodule": (lambda m: setattr(m, "norm", nn.Identity()), "another than was wrapped"),
    "a tie": (lambda m: setattr(m.two, "weight", m.one.weight), "two.weight.* is absent"),
    "a mode": (lambda m: m.norm.eval(), "'norm' is in evaluation mode"),
    "a parameter": (lambda m: m.register_parameter("more", nn.Parameter(torch.ones(1))), "'more' is torch.float32"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_that_would_have_no_effect_is_refused(what):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two = nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 3, bias=False)

        def forward(self, x):
            return self.two(self.norm(self.one(x)))

    module, x = esper.torch_module(esper.wrap(Pair().train())), torch.randn(4, 3)
    module(x)
    change, words = CHANGES[what]
    change(module)
    with pytest.raises(ArgumentError, match=words):
        module(x)


def test_autocast_is_refused_around_a_module_and_around_a_model():
    model, x = esper.wrap(nn.Linear(3, 3)), torch.randn(4, 3)
    module = esper.torch_module(model)
    with torch.autocast("cpu", torch.bfloat16):
        for each in (module, model):
            with pytest.raises(RefusedError, match="autocast"):
                each(x)


def test_two_forwards_before_one_backward():
    host = built(Net)
    module = esper.torch_module(esper.wrap(host))
    x = torch.randn(8, 3, 8, 8)
    for each in (host.train(), module.train()):
        (each(x[:4]) - each(x[4:])).square().sum().backward()
    for (name, ours), theirs in zip(module.named_parameters(), host.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=name)
    torch.testing.assert_close(module.norm.running_var, host.norm.running_var)


def test_inputs_of_other_libraries_and_complex_ones_get_the_gradients_of_torch():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, dtype=torch.complex64))

        def forward(self, a, b):
            return 2 * a * self.w + 3 * b

    host = Sum()
    module = esper.torch_module(esper.wrap(host))
    a, b = np.ones(3, np.float32), torch.randn(3, dtype=torch.complex64)
    slopes = []
    for each, first in ((host, torch.from_numpy(a)), (module, a)):
        given = b.clone().requires_grad_()
        y = each(first, given)
        (y * y).abs().sum().backward()
        slopes.append((given.grad, each.w.grad))
    for ours, theirs in zip(*reversed(slopes), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_parameters_that_no_gradient_reaches_are_left_alone():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.cut, self.spare = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x) + self.cut(x).detach(), self.spare(x)

    host, x = Spare(), torch.randn(4, 3)
    module = esper.torch_module(esper.wrap(host))
    for each in (host, module):
        each(x)[0].sum().backward()
    for (name, ours), theirs in zip(module.named_parameters(), host.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name


def test_a_kernel_that_fails_spoils_no_gradient_of_the_host():
    x = torch.randn(8, 3, 8, 8)
    grown = trained(esper.wrap(built(Net), target_layers=["head"]), "head", "low_rank", x, steps=1)
    module = esper.torch_module(grown)
    with torch.no_grad():
        module.get_parameter("head.grown.0.kernel.1.weight").fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"layer 'head', seed 0: its gradient is not finite"):
        module(x).sum().backward()
    assert bool(torch.isfinite(nn.utils.clip_grad_norm_(module.parameters(), 1.0)))
    assert module.get_parameter("head.grown.0.kernel.0.weight").grad is None


def test_the_module_is_of_its_class_with_its_attributes_hooks_and_versions():
    class Own(nn.BatchNorm1d):
        note = "mine"

        def twice(self, x):
            return 2 * self(x)

    module, x = esper.torch_module(esper.wrap(Own(3))), torch.randn(4, 3)
    assert isinstance(module, Own) and module.note == "mine" and "version" in str(module.state_dict()._metadata)
    module.register_forward_hook(lambda module, args, output: output + 1)
    other = copy.deepcopy(module)
    torch.testing.assert_close(module.eval().twice(x), 2 * (x / (1 + 1e-5) ** 0.5 + 1))
    torch.testing.assert_close(other.eval()(x), module(x))
    assert module.state_dict()._metadata[""]["version"] == 2


def test_dropout_follows_torchs_generator_and_modes():
    module = esper.torch_module(esper.wrap(nn.Sequential(nn.Linear(5, 64), nn.Dropout(0.5)))).train()
    x, seen = torch.ones(2, 5), []
    for entropy in (1, 1, 2):
        torch.manual_seed(entropy)
        seen += [module(x), module(x)]
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[4])
    state = torch.get_rng_state()
    assert bool(module.eval()(x).ne(0).all()) and torch.equal(torch.get_rng_state(), state)


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x, *, scale=1.0, mask=None):
        a = self.a(x) * scale
        a = a if mask is None else torch.where(mask, a, 0.0)
        return OrderedDict(a=a, rest=(self.b(x), a.argmax(-1)), size=x.shape[0])


def test_containers_keywords_and_outputs_without_gradients():
    host, x = built(Many), torch.randn(6, 5)
    module, mask = esper.torch_module(esper.wrap(host)), torch.rand(6, 4) > 0.5
    found, wanted = (each(x, scale=2.0, mask=mask) for each in (module, host))
    assert type(found) is OrderedDict and found["size"] == 6
    torch.testing.assert_close(found["a"], wanted["a"])
    assert found["rest"][1].dtype == torch.int64 and torch.equal(found["rest"][1], wanted["rest"][1])
    for each in (found, wanted):  # one of two outputs: the other's gradient is zero
        each["a"].sum().backward()
    torch.testing.assert_close(module.a.weight.grad, host.a.weight.grad)
    assert module.b.weight.grad is None and host.b.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_stay_halves(dtype):
    host, x = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).to(dtype), torch.randn(3, 5).to(dtype)
    module = esper.torch_module(esper.wrap(host))
    for each in (host, module):
        each(x).sum().backward()
    for ours, theirs in zip(module.parameters(), host.parameters(), strict=True):
        assert ours.dtype == ours.grad.dtype == dtype
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=5e-2, atol=5e-2)


def test_what_grew_trains_with_the_host_and_comes_back():
    x = torch.randn(8, 3, 8, 8)
    grown = trained(esper.wrap(built(Net), target_layers=["head"]), "head", "low_rank", x)
    module = esper.torch_module(grown).train()
    assert [name for name, _ in module.named_parameters() if "grown" in name] == [
        "head.grown.0.kernel.0.weight",
        "head.grown.0.kernel.1.weight",
    ]
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        module(x).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(value, before[key]) for key, value in module.state_dict().items())
    model = module.eval().esper_model()
    torch.testing.assert_close(model(x), module(x).detach())
    assert list(model.state_dict()) == list(module.state_dict())
    assert int(model.seeds.age.max()) == int(grown.seeds.age.max()) + 3
    torch.testing.assert_close(esper.unwrap(model, probe=x, fold=True).eval()(x), module(x))
    frozen = model.params["host"]["head.weight"].copy()
    torch.optim.SGD(module.parameters(), 1.0).step()
    assert np.array_equal(model.params["host"]["head.weight"], frozen)  # memory of its own


def test_copies_have_tensors_of_their_own_and_pickles_are_refused():
    module, x = esper.torch_module(esper.wrap(built(Net))), torch.randn(4, 3, 8, 8)
    y = module.eval()(x)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.head.bias.add_(1)
    torch.testing.assert_close(other(x), y + 1)
    torch.testing.assert_close(module(x), y)
    average = torch.optim.swa_utils.AveragedModel(module)
    average.update_parameters(other)
    torch.testing.assert_close(average(x), y + 1)
    with pytest.raises(ArgumentError, match="state_dict"):
        pickle.dumps(module)


def test_a_model_on_several_devices_is_refused():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    model = esper.shard(esper.wrap(built(Net)), mesh, data_parallel("data"))
    with pytest.raises(WrapError, match=r"before esper\.shard"):
        esper.torch_module(model)
