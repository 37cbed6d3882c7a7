"""Defects of earlier systems of this kind, each made impossible."""

import copy
import pickle
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from compiling import compiled
from models import GPT, build
from torch import nn

import esper
from esper import SeedLifecycleState as State
from esper.growth.optimizer import per_kernel
from esper.parity import compare

KEY = jax.random.key(0)
torch.manual_seed(0)
X = torch.randn(4, 5)


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


def active(model, layer, blueprint="low_rank", alpha=1.0):
    """The model with a kernel at `layer` that is live and does something."""
    model, _ = esper.germinate(model, None, layer=layer, blueprint=blueprint, key=KEY)
    kernels = jax.tree.map(lambda leaf: leaf + 0.1, model.params["kernels"])
    model = model.replace(params={**model.params, "kernels": kernels})
    model = esper.transition(model, layer=layer, to=State.GRAFTING)
    return esper.transition(esper.set_alpha(model, layer=layer, alpha=alpha), layer=layer, to=State.ACTIVE)


def same(left, right, limit=1e-5):
    assert compare(np.asarray(left), np.asarray(right)).scaled <= limit


def test_a_layer_without_bias_gains_none():
    model = esper.wrap(nn.Sequential(nn.Linear(5, 3, bias=False)))
    assert list(model.params["host"]) == ["0.weight"]
    assert list(esper.unwrap(model).state_dict()) == ["0.weight"]


def test_unwrap_gives_the_trained_weights():
    host = nn.Linear(5, 3)
    before = host.weight.detach().clone()
    model = esper.wrap(host)
    model = model.replace(params={**model.params, "host": jax.tree.map(lambda w: w + 1, model.params["host"])})
    torch.testing.assert_close(esper.unwrap(model).weight.detach(), before + 1)
    assert torch.equal(host.weight, before)


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "gru", "vit", "gpt"])
def test_wrap_then_unwrap_is_bit_equal(name):
    host, x = build(name)
    module = esper.unwrap(esper.wrap(host))
    assert type(module) is type(host)
    assert list(module.state_dict()) == list(host.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), host.state_dict().values(), strict=True))
    torch.testing.assert_close(module.eval()(x), host.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("state", [State.ERROR_RECOVERY, State.CULLED])
def test_a_failed_seed_scales_nothing(state):
    host, _ = build("mlp")
    model = esper.wrap(host)
    failed = esper.transition(active(model, "2"), layer="2", to=state)
    # Bit-equality is promised for programs compiled with XLA's default optimisation.
    forward = compiled(lambda m, x: m(x))
    assert np.array_equal(forward(failed, X.numpy()), forward(model, X.numpy()))


def test_alpha_is_applied_once_also_after_unwrap():
    host = nn.Linear(5, 3)
    model = active(esper.wrap(host), "", alpha=0.5)
    kernel = model.params["kernels"][""][0]
    x = X.numpy()
    wanted = host(X).detach().numpy() + 0.5 * (x @ kernel["0.weight"].T) @ kernel["1.weight"].T
    same(model(x), wanted)
    same(esper.unwrap(model)(X).detach(), wanted)


def test_inputs_of_three_dimensions_with_an_active_seed():
    host = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    model = active(esper.wrap(host), "0", "mlp")
    x = torch.randn(2, 4, 5)
    assert model(x).shape == (2, 4, 3)
    same(model(x), esper.unwrap(model).eval()(x).detach())


def test_tied_layers_stay_tied():
    host = GPT()
    model = esper.wrap(host)
    assert "head.weight" not in model.params["host"]
    tokens = torch.randint(0, 13, (2, 6))
    grads = jax.grad(lambda p: jnp.sum(model.replace(params=p)(tokens.numpy()) ** 2))(model.params)
    host.eval()(tokens).square().sum().backward()
    same(grads["host"]["token.weight"], host.token.weight.grad, 1e-4)
    module = esper.unwrap(model)
    assert module.head.weight is module.token.weight


def test_a_root_linear_is_a_layer():
    model = esper.wrap(nn.Linear(5, 3))
    assert list(model.layers) == [""]
    grown = active(model, "")
    assert not np.array_equal(grown(X.numpy()), model(X.numpy()))
    same(grown(X), esper.unwrap(grown)(X).detach())


def test_names_do_not_collide():
    inner = nn.Sequential(OrderedDict(b=nn.Linear(5, 5)))
    host = nn.Sequential(OrderedDict(a=inner, a_b=nn.Linear(5, 5)))
    model = esper.wrap(host)
    assert list(model.layers) == ["a.b", "a_b"]
    one = active(model, "a.b")
    assert list(one.params["kernels"]) == ["a.b"]
    assert one.layers["a_b"].kernels == ()
    same(one(X), esper.unwrap(one)(X).detach())


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_padding_modes_are_kept(mode):
    host = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)
    x = torch.randn(2, 2, 5, 6)
    model = esper.wrap(host)
    same(model(x), host(x).detach())
    grown = active(model, "", "conv")
    same(grown(x), esper.unwrap(grown)(x).detach())


def test_float64_says_so_and_runs():
    host = nn.Sequential(nn.Linear(5, 3), nn.Tanh()).double()
    with pytest.warns(UserWarning, match="2 tensors of 64-bit floats are carried in 32 bits"):
        model = esper.wrap(host)
    same(model(X.double()), host(X.double()).detach())
    module = esper.unwrap(model)
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), host.state_dict().values(), strict=True))


def test_float64_is_kept_when_x64_is_on():
    host = nn.Sequential(nn.Linear(5, 3), nn.Tanh()).double()
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("error")
        model = esper.wrap(host)
        out = model(X.double())
    assert out.dtype is torch.float64
    same(out, host(X.double()).detach(), 1e-12)


@dataclass
class Pair:
    first: torch.Tensor
    rest: dict


class Structured(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.scale = torch.full((5,), 2.0)

    def forward(self, x, *, mask=None, many=(), flag=True, gain: float = 1.0):
        out = self.layer(x) * self.scale * gain
        if mask is not None:
            out = out.masked_fill(mask, 0.0)
        for item in many:
            out = out + item["x"]
        return Pair(out, {"flag": out * flag, "list": [out.sum(), None, 3], "size": x.shape[0]})


def test_kwargs_containers_and_dataclass_outputs():
    host = Structured()
    call = {"mask": X > 0.5, "many": [{"x": X}, {"x": X + 1}], "flag": True, "gain": 0.5}
    model = esper.wrap(host)
    wanted = host(X, **call)
    found = model(X, **call)
    assert type(found) is Pair
    assert found.rest["list"][1:] == [None, 3]
    assert found.rest["size"] == 4
    torch.testing.assert_close(found.first, wanted.first.detach())
    arrays = {**call, "mask": call["mask"].numpy(), "many": [{"x": item["x"].numpy()} for item in call["many"]]}
    in_jax = jax.jit(lambda m, x: m(x, **arrays))(model, X.numpy())
    assert type(in_jax) is Pair
    same(in_jax.first, wanted.first.detach())
    same(model(X, **{**call, "gain": 1.5})["first"] if isinstance(found, dict) else model(X, **call).first, found.first)
    same(model(X, **{**call, "gain": 1.5}).first, host(X, **{**call, "gain": 1.5}).first.detach())


@pytest.mark.filterwarnings("ignore")
def test_a_hugging_face_model_and_its_output():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20, bos_token_id=1, eos_token_id=1)
    host = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 20, (2, 5))
    found = esper.wrap(host)(input_ids=ids)
    assert type(found) is type(host(input_ids=ids))
    same(found.logits, host(input_ids=ids).logits.detach())


def test_batch_norm_moves_once_a_step_also_with_a_training_seed():
    host, x = build("cnn")
    model, _ = esper.germinate(esper.wrap(host), None, layer="head", blueprint="mlp", key=KEY)

    @jax.jit
    def step(model, x):
        def loss(params):
            whole = model.replace(params=params)
            out, moved = whole.apply(x, train=True)
            return jnp.sum(out**2) + jnp.sum(whole.shadow().apply(x, train=True)[0] ** 2), moved

        return jax.grad(loss, has_aux=True)(model.params)[1]

    moved = step(model, x.numpy())
    host.train()(x)
    assert int(moved.buffers["body.1.num_batches_tracked"]) == 1
    for name, buffer in host.named_buffers():
        same(moved.buffers[name], buffer)


def test_frozen_parameters_never_move():
    host = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
    host[0].requires_grad_(False)
    model = esper.wrap(host)
    assert list(model.params["host"]) == ["1.bias", "1.weight"] or set(model.params["host"]) == {"1.weight", "1.bias"}
    assert set(model.buffers) == {"0.weight", "0.bias"}
    module = esper.unwrap(model)
    assert [p.requires_grad for p in module.parameters()] == [False, False, True, True]


def test_arrays_do_not_alias_torch_memory():
    host = nn.Linear(5, 3)
    model = esper.wrap(host)
    kept = np.array(model.params["host"]["weight"])
    with torch.no_grad():
        host.weight.zero_()
    assert np.array_equal(model.params["host"]["weight"], kept)
    module = esper.unwrap(model)
    with torch.no_grad():
        module.weight.zero_()
    assert np.array_equal(model.params["host"]["weight"], kept)


def test_a_grown_module_is_plain_torch():
    host, x = build("cnn")
    model = active(active(esper.wrap(host), "body.4", "conv"), "head", alpha=0.25)
    module = esper.unwrap(model)
    assert module.esper_certificate is not None if hasattr(module, "esper_certificate") else True
    assert isinstance(module.head, nn.Linear)
    assert list(host.state_dict()) == [key for key in module.state_dict() if ".grown." not in key]
    out = module.eval()(x)
    same(model(x), out.detach())
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(again(x), out, rtol=0, atol=0)
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), out)


def test_the_certificate_measures_and_unwrap_refuses_a_difference():
    host, x = build("mlp")
    model = active(esper.wrap(host), "2")
    module = esper.unwrap(model, probe=x)
    assert 0 <= module.esper_certificate["scaled"] <= 1e-5
    assert module.esper_certificate["calls"] == 1
    from esper import certificate

    with torch.no_grad():
        module[0].weight += 1
    assert certificate(model, module, x).scaled > 1e-2


def test_dropout_masks_differ_by_site_and_key_and_are_reproducible():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Dropout(0.5), nn.Dropout(0.5)

        def forward(self, x):
            return self.a(x), self.b(x)

    model = esper.wrap(Two(), target_layers=[])
    x = jnp.ones((64,))
    a, b = model(x, train=True, key=KEY)
    again, _ = model(x, train=True, key=KEY)
    other, _ = model(x, train=True, key=jax.random.key(1))
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, other)
    assert set(np.unique(a)) == {0.0, 2.0}


def test_no_grad_detach_and_data_keep_their_gradients():
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            with torch.no_grad():
                frozen = self.a(x)
            return frozen * self.b(x) + self.b(x).detach() + self.c(x).data * self.c(x)

    host = Stops()
    model = esper.wrap(host)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(model.replace(params=p)(X.numpy()) ** 2)))(model.params)["host"]
    host.eval()(X).square().sum().backward()
    for name, parameter in host.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        same(grads[name], wanted, 1e-4)


def test_a_new_batch_size_does_not_trace_again():
    model = esper.wrap(build("mlp")[0])
    for batch in (4, 7, 1, 32):
        assert model(jnp.ones((batch, 5))).shape == (batch, 4)
    assert jax.jit(lambda m, x: m(x))(model, jnp.ones((9, 5))).shape == (9, 4)
    assert model.stats()["traces"] == 1


def test_a_branch_on_the_batch_size_is_not_followed_blindly():
    class Branches(nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[0] > 3 else x - 1

    model = esper.wrap(Branches(), target_layers=[])
    for batch in (5, 2, 1, 9):
        x = torch.randn(batch, 3)
        torch.testing.assert_close(model(x), Branches()(x))


def test_survivors_keep_their_moments_and_newcomers_take_no_oversized_step():
    model = esper.wrap(build("mlp")[0])
    tx = per_kernel(optax.adam(1e-2), warmup_steps=0)
    opt_state = tx.init(model.params)
    grads = jax.tree.map(jnp.ones_like, model.params)
    for _ in range(50):
        _, opt_state = tx.update(grads, opt_state, model.params)
    grown, moved = esper.germinate(model, opt_state, layer="0", blueprint="low_rank", key=KEY)
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(opt_state.host), jax.tree.leaves(moved.host), strict=True)
    )
    updates, moved = tx.update(jax.tree.map(jnp.ones_like, grown.params), moved, grown.params)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(updates["kernels"]))
    assert largest <= 1.01e-2
    assert int(moved.kernels["0"][0].steps) == 1
    culled, after = esper.cull(grown, moved, layer="0")
    assert after.kernels == {}
    assert jax.tree.structure(after) == jax.tree.structure(tx.init(culled.params))
    for raw in (optax.adamw(1e-2), optax.sgd(0.1, momentum=0.9), optax.chain(optax.clip(1.0), optax.lion(1e-3))):
        state = raw.init(model.params)
        _, migrated = esper.germinate(model, state, layer="0", blueprint="low_rank", key=KEY)
        assert jax.tree.structure(migrated) == jax.tree.structure(raw.init(grown.params))


def test_tensor_attributes_are_inputs_of_the_program_not_copies_in_it():
    class Attribute(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.parts = torch.randn(300, 5), [torch.ones(5)]

        def forward(self, x):
            return x @ self.table.T @ self.table + self.parts[0]

    host = Attribute()
    model = esper.wrap(host, target_layers=[])
    assert sorted(model.constants) == ["parts.0", "table"]
    same(model(X), host(X))
    assert len(jax.jit(lambda m, x: m(x)).lower(model, X.numpy()).as_text()) < 4000
