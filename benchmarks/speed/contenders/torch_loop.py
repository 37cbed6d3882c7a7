"""The train step and the inference of a torch module in one memory format, for eager torch and torch.compile."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed.contenders.contender import DECAY, timed
from benchmarks.speed.workloads import Problem

TRIALS = 5
"""Timed calls by which a variant is chosen, after one that is not timed."""


class Loop:
    """A module that trains and another that serves, both from the problem's weights.

    Args:
        problem: Module and batch, which stay as they are.
        format: Memory format of images and of the weights that meet them.
        compiler: What the loss and the forward go through: `torch.compile`, or nothing.
    """

    def __init__(self, problem: Problem, format: str, compiler: Callable[[Any], Any] = lambda function: function):
        layout: torch.memory_format = getattr(torch, format)
        self.first = copy.deepcopy(problem.module.state_dict())
        self.trained = _laid_out(problem.module, layout).train()
        self.served = _laid_out(problem.module, layout).eval()
        # A format of images is an error for inputs of another rank.
        self.inputs = tuple(x.to(memory_format=layout) if x.dim() == 4 else x for x in problem.inputs)
        self.labels, self.axis, self.rate = problem.labels, problem.workload.class_axis, problem.workload.rate
        self.loss, self.forward = compiler(self._loss), compiler(self._forward)
        self.optimizer: torch.optim.Optimizer
        self.restart("fused")

    def restart(self, optimizer: str) -> None:
        """Back to the first weights, with AdamW as `fused` or `foreach`."""
        self.trained.load_state_dict(self.first)
        choice: dict[str, Any] = {optimizer: True}
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), lr=self.rate, weight_decay=DECAY, **choice)

    def step(self) -> float:
        """One step; the loss before it."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def infer(self) -> Tensor:
        """The logits of the first weights."""
        with torch.no_grad():
            return self.forward()

    def timed_step(self) -> tuple[float, float]:
        """As `Contender.step`."""
        return timed(self.step)

    def timed_infer(self) -> tuple[np.ndarray, float]:
        """As `Contender.infer`."""
        logits, seconds = timed(self.infer)
        return logits.numpy(), seconds

    def _loss(self) -> Tensor:
        logits = self.trained(*self.inputs)
        if self.axis == -1:
            logits = logits.flatten(0, -2)
        return F.cross_entropy(logits, self.labels if self.axis == 1 else self.labels.flatten())

    def _forward(self) -> Tensor:
        return self.served(*self.inputs)


def _laid_out(module: nn.Module, layout: torch.memory_format) -> nn.Module:
    """A copy with its weights in this format."""
    return cast("Any", copy.deepcopy(module)).to(memory_format=layout)


def formats(problem: Problem) -> list[str]:
    """The memory formats that are worth trying."""
    return ["contiguous_format", "channels_last"] if problem.workload.images else ["contiguous_format"]


def fastest(candidates: dict[str, Callable[[], Any]]) -> str:
    """The name of the fastest function; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for function in candidates.values():
        function()
    for _ in range(TRIALS):
        for name, function in candidates.items():
            seconds[name].append(timed(function)[1])
    return min(seconds, key=lambda name: statistics.median(seconds[name]))
