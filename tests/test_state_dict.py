"""A model's state is the module's, both ways: keys, dtypes, values, reports and refusals are torch's."""

import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from growing import trained
from safetensors.torch import save_file
from torch import nn

import esper
from esper.errors import StateError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head, self.again = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.again.weight = self.head.weight
        self.head.bias.requires_grad_(False)
        self.register_buffer("passing", torch.ones(4), persistent=False)

    def forward(self, x):
        pooled = torch.relu(self.norm(self.conv(x))).mean((2, 3)) * self.passing
        return self.again(self.head(pooled))


def net(entropy):
    torch.manual_seed(entropy)
    module = Net()
    with torch.no_grad():
        module.norm.running_mean.normal_()
        module.norm.num_batches_tracked.fill_(entropy + 3)
        module.passing.fill_(2 + entropy)
    return module.eval()


def same(one, other):
    assert list(one) == list(other)
    assert all(one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one)


def test_the_state_is_the_modules():
    module = net(0)
    state = esper.wrap(module).state_dict()
    same(state, module.state_dict())
    assert "passing" not in state and state["again.weight"].data_ptr() == state["head.weight"].data_ptr()
    state["conv.weight"].zero_()  # its own: nobody else's values change
    assert module.conv.weight.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.filterwarnings("ignore:.*64-bit floats are carried")
def test_other_dtypes_come_back_as_they_were(dtype):
    module = net(0).to(dtype)
    model = esper.wrap(module)
    same(model.state_dict(), module.state_dict())
    other = net(1).to(dtype)
    model, _ = model.load_state_dict(other.state_dict())
    wanted = other.state_dict()
    if dtype is torch.float64:  # which JAX carries in 32 bits
        wanted = {key: value.float().to(value.dtype) for key, value in wanted.items()}
    same(model.state_dict(), wanted)


@pytest.mark.parametrize("form", ["mapping", "arrays", "safetensors", "torch.save"])
def test_a_checkpoint_of_torchs_is_read(form, tmp_path):
    module, other = net(0), net(1)
    state = other.state_dict()
    given = state
    if form == "arrays":
        given = {key: value.numpy() for key, value in state.items()}
    elif form == "safetensors":
        given = tmp_path / "model.safetensors"
        save_file({key: value for key, value in state.items() if key != "again.weight"}, given)
    elif form == "torch.save":
        given = str(tmp_path / "model.pt")
        torch.save(state, given)
    model = esper.wrap(module)
    assert not torch.allclose(model(X), other(X))
    loaded, keys = model.load_state_dict(given, strict=form != "safetensors")
    assert keys.unexpected_keys == [] and keys.missing_keys == (["again.weight"] if form == "safetensors" else [])
    same(loaded.state_dict(), state)
    assert loaded.buffers["passing"][0] == 2 and model.buffers["norm.num_batches_tracked"] == 3
    other.passing.fill_(2)  # which is no part of a state
    torch.testing.assert_close(loaded(X), other(X))


def test_keys_that_do_not_match_are_reported_in_torchs_words():
    state = net(1).state_dict()
    del state["conv.bias"]
    state["more"] = torch.ones(1)
    module = net(0)
    model = esper.wrap(module)
    loaded, keys = model.load_state_dict(state, strict=False)
    assert keys == module.load_state_dict(state, strict=False)
    same(loaded.state_dict(), module.state_dict())
    with pytest.raises(StateError, match=r'Missing key.*"conv.bias"') as ours:
        model.load_state_dict(state)
    with pytest.raises(RuntimeError) as theirs:
        module.load_state_dict(state)
    assert str(ours.value) == str(theirs.value) and '"more"' in str(ours.value)


def test_shapes_that_differ_are_refused_strict_or_not():
    state = {**net(1).state_dict(), "conv.weight": torch.ones(4, 3, 5, 5)}
    for strict in (True, False):
        with pytest.raises(StateError, match=r"size mismatch for conv\.weight"):
            esper.wrap(net(0)).load_state_dict(state, strict)


class Executes:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_file_is_never_executed_and_says_what_is_wrong_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = esper.wrap(net(0))
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Executes(), protocol=2))
    torch.save({"conv.weight": Executes()}, tmp_path / "worse.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("evil.pt", "worse.pt", "broken.safetensors", "empty.pt"):
        with pytest.raises(StateError, match="cannot be read as a checkpoint"):
            model.load_state_dict(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(StateError, match="no such file"):
        model.load_state_dict("nowhere.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(StateError, match="is a list, and a mapping"):
        model.load_state_dict("list.pt")
    torch.save({"model": net(1).state_dict(), "epoch": 3}, tmp_path / "run.pt")
    with pytest.raises(StateError, match="holds mappings under 'model': give the one"):
        model.load_state_dict("run.pt")


def test_what_grew_is_in_the_state_under_the_keys_of_the_unwrapped_module():
    model = esper.wrap(net(0), target_layers=["conv", "head"])
    grown = trained(trained(model, "conv", "low_rank", X), "head", "mlp", X)
    state = grown.state_dict()
    same(state, esper.unwrap(grown, probe=X).state_dict())
    other = jax.tree.map(lambda leaf: leaf + 1, grown.params)
    back, keys = grown.replace(params=other).load_state_dict(state)
    assert not keys.missing_keys
    torch.testing.assert_close(back(X), grown(X), rtol=0, atol=0)
    _, keys = grown.load_state_dict(net(1).state_dict(), strict=False)
    assert len(keys.missing_keys) == 2 + 4 and all(".grown.0.kernel." in key for key in keys.missing_keys)


def test_a_kernel_in_training_is_no_part_of_the_state_and_stays():
    model = esper.wrap(net(0), target_layers=["head"])
    model(X)
    model, _ = esper.germinate(model, None, layer="head", blueprint="mlp", key=jax.random.key(0))
    same(model.state_dict(), net(0).state_dict())
    loaded, _ = model.load_state_dict(net(1).state_dict())
    kept = jax.tree.map(np.array_equal, loaded.params["kernels"], model.params["kernels"])
    assert all(jax.tree.leaves(kept)) and jax.tree.leaves(kept)


def test_loading_compiles_nothing_anew():
    model, traces = esper.wrap(net(0)), []

    @jax.jit
    def forward(model, x):
        traces.append(1)
        return model(x)

    x = jnp.asarray(X.numpy())
    forward(model, x)
    loaded, _ = model.load_state_dict(net(1).state_dict())
    forward(loaded, x)
    assert len(traces) == 1


class Versioned(nn.Module):
    _version = 2

    def __init__(self):
        super().__init__()
        self.w, self.n = nn.Parameter(torch.ones(3)), 0

    def forward(self, x):
        return x * self.w + self.n

    def get_extra_state(self):
        return {"n": self.n}

    def set_extra_state(self, state):
        self.n = state["n"]

    def _load_from_state_dict(self, state, prefix, metadata, *args):
        if metadata.get("version", 1) < 2:
            state[f"{prefix}w"] = 10 * state[f"{prefix}w"]
        super()._load_from_state_dict(state, prefix, metadata, *args)


def test_versions_of_checkpoints_are_told_apart():
    model = esper.wrap(Versioned())
    state = model.state_dict()
    assert model.load_state_dict(state)[0].params["host"]["w"][0] == 1
    old = {key: value for key, value in state.items()}
    assert model.load_state_dict(old)[0].params["host"]["w"][0] == 10
    arrays = {key: value.numpy() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    assert model.load_state_dict(arrays)[0].params["host"]["w"][0] == 10


def test_what_is_no_tensor_in_a_checkpoint_is_not_lost_silently():
    module = Versioned()
    model = esper.wrap(module)
    other = Versioned()
    other.n = 3
    with pytest.raises(StateError, match=r"_extra_state is {'n': 3} in the checkpoint.*before you wrap"):
        model.load_state_dict(other.state_dict())
