"""One exported program for every batch size: the fast formulations, and their gradients, take symbolic sizes."""

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
    torch.manual_seed(0)
    module, shape = NETS[name]
    model = esper.wrap(module.train())

    def gradient(params, x):
        return jax.grad(lambda params: jnp.sum(jnp.sin(model.replace(params=params).apply(x, train=True)[0])))(params)

    jax.eval_shape(gradient, model.params, jnp.ones((3, *shape)))  # a capture needs numbers, what it makes does not
    sizes = jax.export.symbolic_shape(f"b, {', '.join(map(str, shape))}", constraints=["b >= 2"])
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    exported = jax.export.export(jax.jit(gradient))(params, jax.ShapeDtypeStruct(sizes, jnp.float32))
    for batch in (2, 7):
        x = jnp.asarray(torch.randn(batch, *shape).numpy())
        found, wanted = exported.call(model.params, x), jax.jit(gradient)(model.params, x)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
