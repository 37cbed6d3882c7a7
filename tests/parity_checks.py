"""Eager torch against the same module or function on XLA: values, gradients, buffers, dtypes and shapes."""

from __future__ import annotations

import copy

import jax
import jax.numpy as jnp
import numpy as np
import torch
from parity.judge import Function, to_numpy
from torch import nn

from esper.jax_backend.evaluate import evaluate
from esper.jax_backend.registry import is_lowered
from esper.parity import compare, tolerance
from esper.program import Signature, TensorType, flatten, unflatten
from esper.torch_frontend.arrays import exportable
from esper.torch_frontend.source import TorchSource

jax.config.update("jax_threefry_partitionable", True)


def to_jax(tensor, place="an input"):
    return jnp.array(exportable(tensor, place, jax.config.jax_enable_x64))


def lower(module, inputs, train=False):
    """The Program of a call, and the arrays it reads: (program, params, buffers, tensors, constants)."""
    module = module.train(train)
    source = TorchSource(module, supported=is_lowered, wide=jax.config.jax_enable_x64)
    leaves, tree = flatten((tuple(inputs), {}))
    types = tuple(TensorType(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in leaves)
    program = source.program(Signature(tree, types, train))
    params = {name: to_jax(p, name) for name, p in module.named_parameters()}
    buffers = {name: to_jax(b, name) for name, b in module.named_buffers()}
    constants = {name: to_jax(c, name) for name, c in source.constants.items()}
    return program, params, buffers, [to_jax(t) for t in leaves], constants


def check(module, *inputs, train=False, gradients=True, key=None):
    """Asserts that `module(*inputs)` agrees with eager torch.

    Args:
        module: An `nn.Module`, or a function of tensors.
        inputs: Torch tensors; gradients are compared for the floating ones and for every parameter.
        train: Mode.
        gradients: Compare gradients as well (of the sum of each output times fixed weights).
        key: For programs that draw (values cannot be compared then; use it with p = 0 or shape checks).

    Returns:
        The Program that was run.
    """
    module = module if isinstance(module, nn.Module) else Function(module)
    module.train(train)
    reference = copy.deepcopy(module)
    program, params, buffers, arrays, constants = lower(module, inputs, train)
    grads = [p for p in reference.parameters()]
    own = [t.detach().clone().requires_grad_(t.is_floating_point() or t.is_complex()) for t in inputs]
    expected, _ = flatten(reference(*own))

    def run(params, floats):
        given = iter(floats)
        mixed = [next(given) if jnp.issubdtype(a.dtype, jnp.inexact) else a for a in arrays]
        return evaluate(program, params, buffers, mixed, key, constants=constants)

    floats = [a for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)]
    outputs, moved = jax.jit(run)(params, floats)
    outputs, _ = flatten(unflatten(program.out_tree, outputs))
    assert len(outputs) == len(expected), f"{len(outputs)} outputs where {len(expected)} are expected"
    for actual, wanted in zip(outputs, expected, strict=True):
        agree(actual, wanted)
    for name, buffer in reference.named_buffers():
        agree(moved[name], buffer, place=name)
    if gradients:
        names = [name for name, _ in reference.named_parameters()]
        _check_gradients(run, params, floats, names, expected, [*grads, *(t for t in own if t.requires_grad)])
    return program


def agree(actual, wanted, *, gradient=False, place="output"):
    """Asserts equal shape, the dtype that carries torch's, and values within the dtype's tolerance."""
    if not isinstance(wanted, torch.Tensor):
        assert actual == wanted
        return
    carried = jax.dtypes.canonicalize_dtype(jnp.dtype(str(wanted.dtype).removeprefix("torch.")))
    assert actual.dtype == carried, f"{place}: dtype {actual.dtype}, torch has {wanted.dtype}"
    assert not getattr(actual, "weak_type", False), f"{place}: weak type"
    found = compare(to_numpy(actual), to_numpy(wanted))
    limit = tolerance(str(carried), gradient=gradient)
    assert found.scaled <= limit, f"{place}: {found} exceeds {limit}"


def _check_gradients(run, params, floats, names, expected, leaves):
    inexact = [i for i, t in enumerate(expected) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not inexact:
        return
    weights = [np.cos(np.arange(expected[i].numel())).reshape(expected[i].shape) for i in inexact]
    total = sum(
        (expected[i] * torch.as_tensor(w).to(expected[i].dtype)).sum().real.to(torch.float64)
        for i, w in zip(inexact, weights, strict=True)
    )
    wanted = torch.autograd.grad(total, leaves, allow_unused=True)

    def loss(params, floats):
        outputs = run(params, floats)[0]
        return sum(
            (outputs[i] * jnp.asarray(w).astype(outputs[i].dtype))
            .sum()
            .real.astype(jax.dtypes.canonicalize_dtype(float))
            for i, w in zip(inexact, weights, strict=True)
        )

    by_param, by_input = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, floats)
    found = [*(by_param[name] for name in names), *by_input]
    assert len(found) == len(wanted)
    for place, (actual, want) in enumerate(zip(found, wanted, strict=True)):
        if jnp.iscomplexobj(actual):
            actual = jnp.conj(actual)  # JAX returns the conjugate of torch's convention
        agree(actual, torch.zeros_like(leaves[place]) if want is None else want, gradient=True, place=f"grad {place}")
