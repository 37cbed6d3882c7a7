"""Bad input gets an error that names the thing, the place and the next move."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from models import build
from torch import nn

import esper
from esper import SeedLifecycleState as State
from esper import errors
from esper.growth.optimizer import per_kernel
from esper.library import Library

KEY = jax.random.key(0)


class Calls(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.layer, self.body = nn.Linear(3, 3), body

    def forward(self, x):
        return self.body(self.layer(x))


def absent(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


for _name in ("absent::first", "absent::second"):
    torch.library.custom_op(_name, absent, mutates_args=()).register_fake(torch.empty_like)


class Writes(nn.Module):
    def forward(self, x):
        return x.add_(1)


WRAP = [
    ("not a module", lambda: esper.wrap("resnet"), errors.WrapError, "torch.nn.Module instance, not str"),
    ("a class", lambda: esper.wrap(nn.Linear), errors.WrapError, "instance"),
    ("wrapped twice", lambda: esper.wrap(esper.wrap(nn.Linear(2, 2))), errors.WrapError, "wrapped already"),
    ("lazy", lambda: esper.wrap(nn.LazyLinear(2)), errors.WrapError, "not initialised"),
    ("negative seeds", lambda: esper.wrap(nn.Linear(2, 2), seeds_per_layer=-1), ValueError, "seeds_per_layer"),
    ("seeds no number", lambda: esper.wrap(nn.Linear(2, 2), seeds_per_layer=1.5), TypeError, "seeds_per_layer"),
    ("negative cache", lambda: esper.wrap(nn.Linear(2, 2), cache_size_mb=-1), ValueError, "cache_size_mb"),
    ("a library's path", lambda: esper.wrap(nn.Linear(2, 2), library="kernels"), errors.ArgumentError, "open_library"),
    ("a number as library", lambda: esper.wrap(nn.Linear(2, 2), library=5), errors.ArgumentError, "not 5: give"),
    ("a library's class", lambda: esper.wrap(nn.Linear(2, 2), library=Library), errors.ArgumentError, "open_library"),
    ("loaded with a path", lambda: esper.load("anywhere", library=Path("a")), errors.ArgumentError, "open_library"),
    (
        "target matches nothing",
        lambda: esper.wrap(build("mlp")[0], target_layers=[nn.Conv2d]),
        errors.TargetError,
        r"Conv2d; the model has: Linear \(3\), ReLU \(1\)",
    ),
    (
        "a script as a target",
        lambda: esper.wrap(nn.Sequential(torch.jit.script(nn.Linear(2, 2))), target_layers="0"),
        errors.TargetError,
        "0 is scripted",
    ),
    ("glob matches nothing", lambda: esper.wrap(nn.Linear(2, 2), target_layers="enc.*"), ValueError, "enc"),
    ("target of no kind", lambda: esper.wrap(nn.Linear(2, 2), target_layers=[3]), ValueError, "neither a type"),
    (
        "int64 that does not fit",
        lambda: esper.wrap(_with_buffer(torch.tensor([2**40]))),
        errors.PrecisionError,
        "big: a value of torch.int64 does not fit",
    ),
    (
        "float64 that does not fit",
        lambda: esper.wrap(_with_buffer(torch.tensor([1e300], dtype=torch.float64))),
        OverflowError,
        "big",
    ),
    ("sparse", lambda: esper.wrap(_with_buffer(torch.eye(2).to_sparse())), errors.DTypeError, "big"),
]


def _with_buffer(value):
    module = nn.Linear(2, 2)
    module.register_buffer("big", value)
    return module


@pytest.mark.parametrize(("make", "kind", "text"), [row[1:] for row in WRAP], ids=[row[0] for row in WRAP])
@pytest.mark.filterwarnings("ignore:.*(torch.jit|Lazy).*")
def test_wrap_refuses(make, kind, text):
    with pytest.raises(kind, match=text) as caught:
        make()
    assert isinstance(caught.value, errors.EsperError)


CALLS = [
    (
        "too few columns",
        nn.Linear(3, 2),
        (jnp.ones((2, 4)),),
        errors.TraceError,
        "linear.py.*reduction dim|mat1 and mat2",
    ),
    (
        "integers",
        nn.Linear(3, 2),
        (jnp.ones((2, 3), jnp.int32),),
        errors.RefusedError,
        "int64.*one dtype",
    ),
    ("one argument too many", nn.Linear(3, 2), (jnp.ones((2, 3)), 1), errors.TraceError, "positional"),
    ("no input at all", nn.Linear(3, 2), (), errors.TraceError, "missing"),
    ("an object", nn.Linear(3, 2), ({1},), errors.SignatureError, "set"),
    ("big int64 input", nn.Embedding(3, 2), (np.array([2**40]),), errors.PrecisionError, "does not fit"),
    ("big int64 torch input", nn.Embedding(3, 2), (torch.tensor([2**40]),), errors.PrecisionError, "does not fit"),
    (
        "data-dependent branch",
        Calls(lambda x: x if x.sum() > 0 else -x),
        (jnp.ones((2, 3)),),
        errors.TraceError,
        "captured at",
    ),
    ("an intermediate written in place", Calls(lambda x: x.add_(1)), (jnp.ones((2, 3)),), None, ""),
    ("the input written in place", Writes(), (jnp.ones((2, 3)),), None, ""),
    ("a layer of two tensors", nn.Bilinear(2, 2, 2), (jnp.ones((2, 2)),) * 2, errors.RefusedError, "takes 2 tensors"),
]


@pytest.mark.parametrize(("module", "args", "kind", "text"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_calls_refuse(module, args, kind, text):
    model = esper.wrap(module, target_layers=[nn.Bilinear] if isinstance(module, nn.Bilinear) else [])
    if kind is None:  # writing into an intermediate is fine: it is functionalised
        np.testing.assert_allclose(model(*args), module(torch.ones(2, 3)).detach(), rtol=1e-6)
        return
    with pytest.raises(kind, match=text) as caught:
        model(*args)
    assert isinstance(caught.value, errors.EsperError)


def test_unsupported_operators_come_all_at_once_with_their_places():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.ops.absent.first(x), torch.ops.absent.second(x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Odd()

        def forward(self, x):
            a, b = self.odd(x)
            return a, b

    with pytest.raises(errors.UnsupportedOpError) as caught:
        esper.wrap(Outer(), example_inputs=torch.eye(4))
    assert all(site.scope == "odd" and site.source.startswith("test_bad_input.py:") for site in caught.value.sites)
    assert "Register one with" in str(caught.value)
    assert isinstance(caught.value, NotImplementedError)


def test_a_draw_without_a_key_names_its_sites():
    model = esper.wrap(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))
    with pytest.raises(errors.MissingKeyError, match=r"native_dropout\.default  1"):
        model(jnp.ones((2, 3)), train=True)
    assert model(jnp.ones((2, 3))).shape == (2, 3)


def grown():
    model = esper.wrap(build("mlp")[0], seeds_per_layer=2)
    return esper.germinate(model, None, layer="0", blueprint="low_rank", key=KEY)[0]


VERBS = [
    ("unknown layer", lambda m: _germinate(m, layer="encoder"), KeyError, "no KasminaLayer named 'encoder'.*'0', '2'"),
    ("unknown blueprint", lambda m: _germinate(m, blueprint="lowrank"), KeyError, "low_rank"),
    ("blueprint of another kind", lambda m: _germinate(m, blueprint="conv"), KeyError, "is a Linear.*low_rank, mlp"),
    ("unknown option", lambda m: _germinate(m, options={"rnak": 3}), errors.SeedError, "rnak"),
    ("seed out of range", lambda m: _germinate(m, seed=2), errors.SeedError, "seeds 0 to 1"),
    ("seed in use", lambda m: _germinate(m, layer="0"), errors.IllegalTransitionError, "TRAINING to LOADING"),
    ("illegal move", lambda m: esper.transition(m, layer="0", to=State.FOSSILIZED), ValueError, "GRAFTING, CULLED"),
    ("no kernel", lambda m: _loaded(m), errors.SeedError, "holds no kernel"),
    ("alpha above 1", lambda m: esper.set_alpha(m, layer="0", alpha=1.5), errors.SeedError, r"\[0, 1\]"),
    ("alpha is NaN", lambda m: esper.set_alpha(m, layer="0", alpha=float("nan")), errors.SeedError, r"\[0, 1\]"),
    ("cull what is dormant", lambda m: esper.cull(m, None, layer="2"), errors.IllegalTransitionError, "DORMANT"),
    ("unknown layer view", lambda m: m.layers["x"], KeyError, "no KasminaLayer named 'x'"),
]


def _germinate(model, **changes):
    return esper.germinate(model, None, **{"layer": "2", "blueprint": "low_rank", "key": KEY, **changes})


def _loaded(model):
    model = esper.transition(model, layer="2", to=State.LOADING)
    return esper.transition(model, layer="2", to=State.TRAINING)


@pytest.mark.parametrize(("verb", "kind", "text"), [row[1:] for row in VERBS], ids=[row[0] for row in VERBS])
def test_verbs_refuse(verb, kind, text):
    with pytest.raises(kind, match=text) as caught:
        verb(grown())
    assert isinstance(caught.value, errors.EsperError)


def test_an_optimiser_state_that_cannot_be_migrated_says_what_to_do():
    model = esper.wrap(nn.Linear(3, 3))
    state = optax.adagrad(0.1).init(model.params)
    with pytest.raises(errors.OptimizerStateError, match="per_kernel"):
        esper.germinate(model, state, layer="", blueprint="low_rank", key=KEY)
    own = per_kernel(optax.adagrad(0.1)).init(model.params)
    _, moved = esper.germinate(model, own, layer="", blueprint="low_rank", key=KEY)
    assert list(moved.kernels[""]) == [0]


def test_a_model_without_seeds_says_so():
    with pytest.raises(errors.SeedError, match="has no seeds"):
        _germinate(esper.wrap(build("mlp")[0], seeds_per_layer=0))


def test_a_kernel_at_a_layer_that_is_never_called_is_refused():
    host = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert "self_attn.out_proj" not in esper.wrap(host).layers
    model = esper.wrap(host, target_layers=["self_attn.out_proj"])
    model(jnp.ones((2, 3, 8)))
    with pytest.raises(errors.SeedError, match="never called"):
        esper.germinate(model, None, layer="self_attn.out_proj", blueprint="low_rank", key=KEY)
