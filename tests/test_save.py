"""Models as folders: read back bit for bit, without torch, and grown on there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from growing import trained
from models import CNN, Recurrent
from torch import nn

import esper
from esper.errors import (
    ArgumentError,
    SeedError,
    StateError,
    TraceError,
    UnknownBlueprintError,
    WrapError,
)
from esper.jax_backend.evaluate import evaluate
from esper.program.sizes import value
from esper.saving.source import SavedSource
from esper.torch_frontend.births import birth

KEY = jax.random.key(3)


class Tied(nn.Module):
    """A tied weight, a tensor as a plain attribute, a mask by keyword, outputs in a dict."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.scale = torch.linspace(0.5, 2, 6)

    def forward(self, tokens, mask=None):
        hidden = self.embed(tokens) * self.scale
        if mask is not None:
            hidden = hidden * mask[..., None]
        return {"logits": self.head(hidden), "hidden": (hidden, None)}


def cnn():
    return nn.Sequential(CNN(), nn.Dropout(0.1), nn.Linear(4, 4)), torch.randn(4, 3, 8, 8)


NETS = {
    "CNN": cnn,
    "LSTM": lambda: (Recurrent(), torch.randint(13, (4, 5))),
    "transformer": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(3, 5, 8)),
    "tied": lambda: (Tied(), {"tokens": torch.randint(11, (4, 5)), "mask": torch.rand(4, 5)}),
    "bfloat16": lambda: (nn.Sequential(nn.Linear(6, 8), nn.GELU()).bfloat16(), torch.randn(4, 6).bfloat16()),
    "frozen": lambda: (nn.Sequential(nn.Linear(6, 8).requires_grad_(False), nn.Linear(8, 2)), torch.randn(4, 6)),
}


def arguments(x, batch=None):
    """The call, as JAX arrays, of another batch size."""
    given = x if isinstance(x, dict) else {"": x}
    arrays = {name: jnp.asarray(_numpy(tensor)) for name, tensor in given.items()}
    if batch:
        arrays = {name: jnp.concatenate([array] * batch)[:batch] for name, array in arrays.items()}
    return ((arrays[""],), {}) if "" in arrays else ((), arrays)


def _numpy(tensor):
    return np.asarray(tensor.float().numpy(), jnp.bfloat16) if tensor.dtype is torch.bfloat16 else tensor.numpy()


def outcome(model, x, batch):
    """Outputs in both modes, gradients, and what a training step leaves of the buffers."""
    args, kwargs = arguments(x, batch)

    def loss(params):
        outputs, moved = model.replace(params=params).apply(*args, train=True, key=KEY, **kwargs)
        return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(outputs)), moved

    (_, moved), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
    return jax.tree.leaves((jax.jit(lambda: model(*args, **kwargs))(), grads, moved.buffers))


def same(found, wanted):
    pairs = zip(map(np.asarray, found), map(np.asarray, wanted), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


@pytest.fixture(scope="module")
def grown():
    """A CNN with a trained kernel, half blended in, and the inputs it was trained on."""
    torch.manual_seed(0)
    module, x = cnn()
    return trained(esper.wrap(module.train()), "0.head", "mlp", x, width=4), module, x


@pytest.mark.parametrize("name", NETS)
def test_what_is_loaded_is_what_was_saved(name, tmp_path):
    torch.manual_seed(0)
    module, x = NETS[name]()
    model = esper.wrap(module, example_inputs=x)
    folder = esper.save(model, tmp_path / "model")
    alone, beside = esper.load(folder), esper.load(folder, module=module)
    for batch in (2, 5):  # of no size that it was called with
        wanted = outcome(model, x, batch)
        assert same(outcome(alone, x, batch), wanted) and same(outcome(beside, x, batch), wanted)


def test_a_grown_model_goes_on_where_it_was(grown, tmp_path):
    model, module, x = grown
    loaded = esper.load(esper.save(model, tmp_path))
    assert same(outcome(loaded, x, 3), outcome(model, x, 3))
    assert same(jax.tree.leaves(loaded.seeds), jax.tree.leaves(model.seeds)) and loaded.layers["0.head"].kernels
    back = esper.unwrap(esper.load(tmp_path, module=module), probe=x)
    assert back.esper_certificate["scaled"] < 1e-5
    assert torch.equal(back.state_dict()["2.weight"], esper.unwrap(model).state_dict()["2.weight"])


def test_a_loaded_model_is_saved_as_the_same_bytes(grown, tmp_path):
    model, _, _ = grown
    first, second = (esper.save(model, tmp_path / "first"), tmp_path / "second")
    esper.save(esper.load(first), second)
    assert sorted(os.listdir(first)) == sorted(os.listdir(second))  # names are digests of contents


def test_others_read_the_parameters(grown, tmp_path):
    from safetensors.numpy import load_file

    model, module, _ = grown
    (file,) = esper.save(model, tmp_path).glob("host-*.safetensors")
    assert load_file(file).keys() == dict([*module.named_parameters(), *module.named_buffers()]).keys()
    other, _ = esper.wrap(cnn()[0]).load_state_dict(file)
    assert same([other.params["host"]["2.weight"]], [model.params["host"]["2.weight"]])


def test_dtypes_that_safetensors_has_no_name_for(tmp_path):
    with jax.enable_x64(True):
        module = nn.Linear(3, 2)
        module.weight = nn.Parameter(torch.randn(2, 3, dtype=torch.complex128))
        module.bias = nn.Parameter(torch.randn(2, dtype=torch.complex128))
        model = esper.wrap(module, example_inputs=torch.randn(4, 3, dtype=torch.complex128), target_layers=[])
        loaded = esper.load(esper.save(model, tmp_path))
        assert same(jax.tree.leaves(loaded.params), jax.tree.leaves(model.params))
    with pytest.raises(StateError, match="64-bit mode on, and it is off"):
        esper.load(tmp_path)


# ---- without torch --------------------------------------------------------------------------------------

ABSENT = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def without_torch(folder):
    """Runs the script that needs none: in the environment that `make without-torch` has made, or with torch hidden."""
    script, other = Path(__file__).parent / "without_torch.py", os.environ.get("ESPER_WITHOUT_TORCH")
    command = [other, "-W", "error"] if other else [sys.executable, "-W", "error", "-c", ABSENT]
    exact = "--xla_backend_optimization_level=0"  # and XLA's own emitters: a kernel at birth is the identity to the bit
    done = subprocess.run(
        [*command, script, folder],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(esper.__file__).parent.parent), "XLA_FLAGS": exact},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_without_torch_runs_trains_grows_and_saves(grown, tmp_path):
    model, module, x = grown
    more = np.concatenate([x.numpy(), x.numpy()[:3]])
    np.save(tmp_path / "x.npy", more)
    esper.save(model, tmp_path / "model")
    losses = without_torch(tmp_path)
    assert losses[-1] < losses[9] < losses[0]
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), model(jnp.asarray(more)), rtol=1e-6, atol=1e-6)
    back = esper.load(tmp_path / "again", module=module)
    np.testing.assert_allclose(np.load(tmp_path / "grown.npy"), back(jnp.asarray(more)), rtol=1e-6, atol=1e-6)
    probe = torch.tensor(more)
    assert esper.unwrap(back, probe=probe, fold=True).esper_certificate["scaled"] < 1e-5


@pytest.fixture(scope="module")
def with_all(tmp_path_factory):
    """A model that has gated kernels in reserve, and what is loaded of it: with every blueprint, gated and not."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)))
    model = esper.wrap(module, target_layers=["*"], example_inputs=torch.randn(2, 3, 8, 8))
    for seed, (layer, blueprint) in enumerate([("0", "conv"), ("1.0", "mlp")]):
        model, _ = esper.reserve(model, None, layer=layer, seed=seed, blueprint=blueprint, blend="gate")
    return model, esper.load(esper.save(model, tmp_path_factory.mktemp("all"), blueprints="all"))


@pytest.mark.parametrize("blend", ["add", "gate"])
def test_every_blueprint_goes_along(blend, with_all):
    """What JAX draws is what torch would: exactly zero where that is, and spread alike elsewhere."""
    model, loaded = with_all
    source, found = loaded.structure.source, model.structure.source
    assert isinstance(source, SavedSource)
    drawn = 0
    for recipe in source.recipes:
        if recipe.gated is not (blend == "gate"):
            continue
        given = recipe.blueprint, recipe.site, dict(recipe.options)
        ours, theirs = source.sprout(*given, 7, blend), found.sprout(*given, 7, blend)
        assert (ours.placement, ours.options, ours.copied) == (theirs.placement, theirs.options, theirs.copied)
        for name, tensor in theirs.params.items():
            wanted = tensor.numpy()
            assert ours.params[name].shape == wanted.shape and ours.params[name].dtype == wanted.dtype
            if name in ours.copied:
                continue
            assert (ours.params[name] == 0).all() == (wanted == 0).all()
            if wanted.size > 100:
                assert 0.8 < ours.params[name].std() / max(wanted.std(), 1e-30) < 1.25 or not wanted.any()
                assert abs(ours.params[name]).max() <= 1.05 * abs(wanted).max()
                drawn += 1
    assert drawn > (2 if blend == "gate" else 8)
    assert blend == "gate" or {"low_rank", "mlp", "conv", "attention", "widen"} <= {r.blueprint for r in source.recipes}


def test_the_same_key_draws_the_same_kernel(grown, tmp_path):
    loaded = esper.load(esper.save(grown[0], tmp_path))

    def kernel(key):
        return jax.tree.leaves(
            esper.germinate(loaded, None, layer="2", blueprint="low_rank", key=key)[0].params["kernels"]["2"]
        )

    assert same(kernel(KEY), kernel(KEY)) and not same(kernel(KEY), kernel(jax.random.key(4)))


def test_what_did_not_come_along_is_said(grown, tmp_path):
    model, _, x = grown
    loaded = esper.load(esper.save(model, tmp_path, blueprints=[("low_rank", {"rank": 3})]))
    with pytest.raises(UnknownBlueprintError, match=r"without blueprint 'squeeze_excite' for layer '2' \(Linear\)"):
        esper.germinate(loaded, None, layer="2", blueprint="squeeze_excite", key=KEY)
    with pytest.raises(SeedError, match=r"options \{'rank': 3\}, not with \{'rank': 5\}"):
        esper.germinate(loaded, None, layer="2", blueprint="low_rank", options={"rank": 5}, key=KEY)
    with pytest.raises(TraceError, match=r"without a Program for .*float32\[4, 3, 9, 9\]"):
        loaded(jnp.ones((4, 3, 9, 9)))
    with pytest.raises(WrapError, match="module="):
        esper.unwrap(loaded)
    with pytest.raises(WrapError, match="module="):
        esper.torch_module(loaded)
    for of in (lambda: loaded.state_dict(), lambda: loaded.load_state_dict({})):
        with pytest.raises(StateError, match="module="):
            of()
    assert loaded(x).shape == (4, 4)  # torch in, torch out, where there is torch


def test_what_cannot_be_saved_is_said(grown, tmp_path):
    model, _, _ = grown
    with pytest.raises(StateError, match="has not been called"):
        esper.save(esper.wrap(nn.Linear(3, 2)), tmp_path / "new")
    with pytest.raises(UnknownBlueprintError, match="no blueprint 'lowrank'"):
        esper.save(model, tmp_path / "new", blueprints=["lowrank"])
    with pytest.raises(ArgumentError, match="'all', None, or a sequence"):
        esper.save(model, tmp_path / "new", blueprints="low_rank")
    with pytest.raises(StateError, match=r"state\['f'\] is a function"):
        esper.save(model, tmp_path / "new", state={"f": lambda: 0})
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="cannot be written"):
        esper.save(model, tmp_path / "file")


def test_a_module_that_is_another_is_refused(grown, tmp_path):
    model, _, _ = grown
    esper.save(model, tmp_path)
    other = nn.Sequential(CNN(), nn.Dropout(0.2), nn.Linear(4, 4))
    with pytest.raises(StateError, match=r"it has .*p=0.2.* where .*p=0.1"):
        esper.load(tmp_path, module=other)
    other = nn.Sequential(CNN(), nn.Dropout(0.1), nn.Linear(4, 4))
    other[2].weight.requires_grad_(False)
    with pytest.raises(StateError, match=r"2.weight is trained in one of them and frozen"):
        esper.load(tmp_path, module=other)


def test_a_state_comes_back_with_the_model(grown, tmp_path):
    model, _, _ = grown
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = {"opt_state": tx.init(model.params), "key": jax.random.key(5), "step": 7, "place": (3, "train", np.ones(2))}
    esper.save(model, tmp_path, state=state)

    def form(model):
        return {"opt_state": tx.init(model.params), "key": KEY, "step": 0, "place": (0, "", np.zeros(2))}

    loaded, held = esper.load(tmp_path, state=form)
    assert jax.tree.structure(held) == jax.tree.structure(state)
    assert same(jax.tree.leaves(held["opt_state"]), jax.tree.leaves(state["opt_state"]))
    assert held["step"] == 7 and held["place"][1] == "train" and isinstance(held["place"][2], np.ndarray)
    assert (jax.random.key_data(held["key"]) == jax.random.key_data(state["key"])).all()
    with pytest.raises(StateError, match="not of the form that was saved: missing"):
        esper.load(tmp_path, state={"opt_state": optax.sgd(0.1, 0.9).init(loaded.params)})


# ---- parts ----------------------------------------------------------------------------------------------


def test_a_birth_is_noted_as_it_happens():
    def built():
        layer = nn.Linear(4, 50)
        nn.init.orthogonal_(layer.weight)
        nn.init.normal_(layer.bias, 2.0, 0.1)
        return layer

    born = birth(built, ["weight", "bias"], lambda op: True)
    weight, bias = evaluate(born.program, {}, {}, [], KEY)[0]
    np.testing.assert_allclose(weight.T @ weight, np.eye(4), atol=1e-6)
    assert abs(bias.mean() - 2) < 0.1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda w: w[0].zero_(), "writing into a part"),
        (lambda w: w.copy_(torch.from_numpy(np.random.rand(3, 3))), "differ every time"),
        (lambda w: w.mul_(float(w.sum())), "differ every time"),
        (lambda w: nn.init.trunc_normal_(w, a=-0.5, b=0.5), "differ every time"),  # draws until all are within
    ],
    ids=["part", "numpy", "value", "loop"],
)
def test_a_birth_that_cannot_be_repeated_is_refused(change, reason):
    def built():
        layer = nn.Linear(3, 3)
        with torch.no_grad():
            change(layer.weight)
        return layer

    with pytest.raises(TraceError, match=reason):
        birth(built, ["weight"], lambda op: True)


def test_sizes_are_computed_and_bounded():
    assert value("2*s0 + s1//2", {"s0": 3, "s1": 5}) == 8
    for expression in ("s0", "9**9**9", "__import__('os')"):
        with pytest.raises(ValueError):
            value(expression, {})
