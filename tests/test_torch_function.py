"""A function of JAX's, Flax's modules among them, as a torch module."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

import esper
from esper.errors import ArgumentError, WrapError


def test_a_function_is_a_module():
    params = {"layers": [{"w": jnp.ones((5, 3))}, {"w": jnp.full((3, 2), 0.5)}], "steps": jnp.arange(2)}

    def function(params, x, scale=1.0, *, key, train):
        for layer in params["layers"]:
            x = jnp.tanh(x @ layer["w"])
        noise = jax.random.normal(key, x.shape) if train else 0.0
        return {"y": scale * x + noise, "sum": params["steps"].sum()}

    module = esper.torch_module(function, params)
    assert [name for name, _ in module.named_parameters()] == ["layers.0.w", "layers.1.w"]
    assert sorted(module.state_dict()) == ["layers.0.w", "layers.1.w", "steps"]
    x = torch.randn(4, 5, requires_grad=True)
    out = module.eval()(x, scale=3.0)
    w0, w1 = (p.detach().clone().requires_grad_() for p in module.parameters())
    wanted = 3 * torch.tanh(torch.tanh(x @ w0) @ w1)
    torch.testing.assert_close(out["y"], wanted)
    assert out["sum"] == 1
    slopes = torch.autograd.grad(wanted.sum(), (x, w0, w1))
    out["y"].sum().backward()
    for found, slope in zip((x.grad, *(p.grad for p in module.parameters())), slopes, strict=True):
        torch.testing.assert_close(found, slope)
    torch.manual_seed(3)
    noisy = module.train()(x)["y"]
    torch.manual_seed(3)
    assert torch.equal(module(x)["y"], noisy) and not torch.equal(module(x)["y"], noisy)
    with pytest.raises(ArgumentError, match="no model"):
        module.esper_model()
    with pytest.raises(WrapError, match="not a int"):
        esper.torch_module(3)
    with pytest.raises(ArgumentError, match="one name"):
        esper.torch_module(function, {"a.b": jnp.ones(1), "a_b": jnp.ones(1)})


class Dense(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(linen.tanh(linen.Dense(4)(x)))


def of_linen():
    net = Dense()
    variables = net.init(jax.random.key(0), jnp.ones((1, 5)))
    return net.apply, variables, lambda x: net.apply(variables, x)


def of_nnx():
    net = nnx.Sequential(nnx.Linear(5, 4, rngs=nnx.Rngs(0)), jnp.tanh, nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    graph, state = nnx.split(net)
    return (lambda state, x: nnx.merge(graph, state)(x)), state, net


@pytest.mark.parametrize("make", [of_linen, of_nnx])
def test_a_flax_module_trains_in_torch(make):
    function, params, direct = make()
    module, x = esper.torch_module(function, params), torch.randn(6, 5)
    np.testing.assert_allclose(module(x).detach().numpy(), direct(jnp.asarray(x.numpy())), rtol=1e-6)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(module(x), x[:, :2])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0] and len(list(module.parameters())) == 4


def test_values_that_are_equal_and_of_another_type_are_another_call():
    function = lambda params, x, n: x * params["a"] * (1 if isinstance(n, bool) else 100)  # noqa: E731
    module = esper.torch_module(function, {"a": jnp.ones(1)})
    assert [module(torch.ones(1), n).item() for n in (True, 1, 1.0)] == [1, 100, 100]


def test_of_flaxs_collections_the_parameters_are_trained():
    net = linen.BatchNorm(use_running_average=True)
    variables = net.init(jax.random.key(0), jnp.ones((4, 3)))
    module = esper.torch_module(net.apply, variables)
    assert {name for name, _ in module.named_parameters()} == {"params.scale", "params.bias"}
    assert {name for name, _ in module.named_buffers()} == {"batch_stats.mean", "batch_stats.var"}
    module = esper.torch_module(net.apply, variables, trained=lambda name: name == "params.bias")
    assert [name for name, _ in module.named_parameters()] == ["params.bias"]
