"""A policy for tests, and a small run that it grows."""

from dataclasses import dataclass

import jax
import optax
import torch
from torch import nn

import esper
from esper.configs import TamiyoSettings


@dataclass(frozen=True)
class Script:
    """A policy that does what is written down for each time it is asked."""

    actions: tuple

    def start(self):
        return 0

    def __call__(self, observation, place):
        return self.actions[place] if place < len(self.actions) else (), place + 1


def fitted(life, *callbacks, steps):
    """A small run with an evaluation every five steps, after each of which the next actions of `life` are done."""
    torch.manual_seed(0)
    inputs = jax.random.normal(jax.random.key(5), (96, 6))
    examples = inputs, (inputs @ jax.random.normal(jax.random.key(6), (6, 3))).argmax(-1)
    return esper.fit(
        esper.wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))),
        examples,
        tx=optax.adamw(0.01),
        steps=steps,
        every=5,
        key=jax.random.key(7),
        batch_size=16,
        validation=examples,
        growth=TamiyoSettings(blend_steps=4, kernel_warmup_steps=2),
        policy=Script(life),
        callbacks=callbacks,
    )
