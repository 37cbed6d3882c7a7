"""One exported program for every batch size: the fast formulations, and their gradients, take symbolic sizes."""

import copy

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import esper

NETS = {
    "MLP": (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)), (6,)),
    "CNN": (
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 8, 3, groups=8), nn.GroupNorm(2, 8), nn.AvgPool2d(2), nn.Conv2d(8, 4, 1)),
        ),
        (3, 12, 12),
    ),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (5, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_a_gradient_for_every_batch(name):
    """In float64: the gradient of a bias before a BatchNorm is nothing but rounding, which float32 shows."""
    torch.manual_seed(0)
    module, shape = NETS[name]
    with jax.enable_x64(True):
        model = esper.wrap(copy.deepcopy(module).double().train())

        def loss(params, x):
            return jnp.sum(jnp.sin(model.replace(params=params).apply(x, train=True)[0]))

        jax.eval_shape(loss, model.params, jnp.ones((3, *shape)))  # a capture needs numbers, what it makes does not
        sizes = jax.export.symbolic_shape(f"b, {', '.join(map(str, shape))}", constraints=["b >= 2"])
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
        gradient = jax.jit(jax.grad(loss))
        exported = jax.export.export(gradient)(params, jax.ShapeDtypeStruct(sizes, jnp.float64))
        for batch in (2, 7):
            x = jnp.asarray(torch.randn(batch, *shape, dtype=torch.float64).numpy())
            found, wanted = exported.call(model.params, x), gradient(model.params, x)
            for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
