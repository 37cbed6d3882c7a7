"""A bridge's half of a run, in the bridges' environment: `python -m ... BRIDGE WORKLOAD LOGITS_FILE`.

Batch norms use their batch's statistics in training; neither bridge's functional form gives the moved ones back.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import numpy as np
import optax
import torch
from torch import nn

from benchmarks.speed.contenders.contender import Contender
from benchmarks.speed.contenders.jitted import adamw, batch, compiled, cross_entropy
from benchmarks.speed.workloads import WORKLOADS, Problem, prepared
from esper.allocation import keep_freed_memory

Call = Callable[[Any, tuple[jax.Array, ...]], jax.Array]
"""(arrays by name, inputs) to logits."""


def main(bridge: str, workload: str, logits: str) -> None:
    """Says that it is ready, then answers "step" and "infer" until there is nothing more to read."""
    # Answers have the old standard output to themselves, whatever libraries print.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    keep_freed_memory()
    try:
        contender = _contender(BRIDGES[bridge], prepared(WORKLOADS[workload]))
        np.save(logits, contender.infer()[0])
    except Exception as error:
        words = f"{type(error).__name__}: {error}".splitlines()
        answers.write(json.dumps({"error": words[0][:200]}) + "\n")
        return
    answers.write(json.dumps({"first_call": contender.first_call, "memory": contender.memory}) + "\n")
    for line in sys.stdin:
        loss, seconds = contender.step() if line.strip() == "step" else (0.0, contender.infer()[1])
        answers.write(json.dumps({"loss": loss, "seconds": seconds}) + "\n")


def _contender(bridge: Callable[[nn.Module], tuple[Any, Call]], problem: Problem) -> Contender:
    arrays, trained = bridge(copy.deepcopy(problem.module).train())
    _, served = bridge(copy.deepcopy(problem.module).eval())
    names = {name for name, _ in problem.module.named_parameters()}
    params = {name: array for name, array in arrays.items() if name in names}
    buffers = {name: array for name, array in arrays.items() if name not in names}
    (inputs, labels), tx = batch(problem), adamw(problem)

    def train(net, opt_state, inputs, labels):
        params, buffers = net

        def loss_fn(params):
            return cross_entropy(trained({**params, **buffers}, inputs), labels, problem.workload.class_axis)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), buffers), opt_state, loss

    def infer(net, inputs):
        return served({**net[0], **net[1]}, inputs)

    return compiled(train, infer, (params, buffers), tx.init(params), inputs, labels)


def _torchax(module: nn.Module) -> tuple[Any, Call]:
    _let_torchax_in()
    import torchax  # pyright: ignore[reportMissingImports]

    arrays, call = torchax.extract_jax(module)
    return arrays, lambda arrays, inputs: call(arrays, inputs)


def _torch2jax(module: nn.Module) -> tuple[Any, Call]:
    from torch2jax import t2j  # pyright: ignore[reportMissingImports]

    call = t2j(module)
    arrays = {name: t2j(tensor) for name, tensor in module.state_dict().items()}
    return arrays, lambda arrays, inputs: call(*inputs, state_dict=arrays)


def _let_torchax_in() -> None:
    """Torchax's tables name overloads that this torch no longer has, and decompositions that it now has itself."""
    if "torchax" in sys.modules:
        return
    packet: Any = torch._ops.OpOverloadPacket
    table: Any = import_module("torch._decomp")
    found, add = packet.__getattr__, table._add_op_to_registry

    def look_up(self, name):
        try:
            return found(self, name)
        except AttributeError:
            if name.startswith("_") or "name" not in name.lower():
                raise
            return f"{self}.{name}"

    def replace(registry, op, function):
        for overload in [op] if isinstance(op, torch._ops.OpOverload) else list(op.op_overloads()):
            registry.pop(overload, None)
        add(registry, op, function)

    packet.__getattr__, table._add_op_to_registry = look_up, replace


BRIDGES = {"torchax": _torchax, "torch2jax": _torch2jax}


if __name__ == "__main__":
    main(*sys.argv[1:])
