"""How long steps take while a change of structure compiles in the background, beside how long they take otherwise."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import esper
from esper.configs import TamiyoSettings
from esper.growth.controls import Planting, Scheduled

if TYPE_CHECKING:
    from esper.train.history import Record
    from esper.train.run import Run

FEATURES, WIDTH, CLASSES, BATCH = 512, 1024, 10, 512
STEPS, EVERY, FIRST, GERMINATIONS = 600, 100, 100, 5


@dataclass
class Watch:
    """Times every step with the device waited for, and knows which of them a compile ran beside.

    Attributes:
        normal: Seconds of steps with nothing under way.
        busy: Seconds of steps from a decision to the change that it leads to, the change itself included.
        swaps: Seconds of the steps before which a change was made, part of `busy`.
        compiles: Seconds each change took to compile.
    """

    normal: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)
    compiles: list[float] = field(default_factory=list)
    _under_way: bool = False
    _changed: bool = False
    _clock: float = 0.0
    _skip: int = 3

    def on_record(self, record: Record, run: Run) -> None:
        """Hears of decisions and changes."""
        if record.event == "prepare":
            self._under_way = True
        if record.event == "germinate":
            self._changed = True
            self.compiles.append(record.compile_seconds)

    def on_step(self, run: Run) -> None:
        """Waits for the step."""
        jax.block_until_ready(run.model.params)
        now, seconds = time.perf_counter(), time.perf_counter() - self._clock
        self._clock = now
        # The first steps compile; the first after an evaluation would count the evaluation.
        if self._skip:
            self._skip -= 1
        elif run.done % EVERY != 1:
            (self.busy if self._under_way else self.normal).append(seconds)
            if self._changed:
                self.swaps.append(seconds)
        if self._changed:
            self._under_way = self._changed = False


def measured() -> Watch:
    """A wide MLP that germinates several kernels, one after the other; each enters as soon as it is compiled.

    Nothing is compiled yet when it begins, whatever ran before.
    """
    jax.clear_caches()
    draw = np.random.default_rng(0)
    rows = jnp.asarray(draw.normal(size=(4 * BATCH, FEATURES)), jnp.float32)
    labels = jnp.asarray(draw.integers(0, CLASSES, 4 * BATCH), jnp.int32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = (FEATURES, WIDTH, WIDTH, CLASSES)
        layers: list[Any] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        model = esper.wrap(nn.Sequential(*layers[:-1]), seeds_per_layer=2)
    # Stages so long that nothing but germinations happens.
    settings = TamiyoSettings(swap="ready", train_steps=10 * STEPS, max_kernels=GERMINATIONS, grafts=GERMINATIONS)
    places = [("0", 0, "mlp"), ("2", 0, "low_rank"), ("4", 0, "mlp"), ("0", 1, "gated_mlp"), ("2", 1, "mlp")]
    plantings = tuple(
        Planting(FIRST + EVERY * number, layer, blueprint, seed=seed)
        for number, (layer, seed, blueprint) in enumerate(places)
    )
    watch = Watch()
    esper.fit(
        model,
        (rows, labels),
        tx=optax.adam(1e-4),
        steps=STEPS,
        key=jax.random.key(0),
        batch_size=BATCH,
        validation=(rows[:64], labels[:64]),
        every=EVERY,
        growth=settings,
        policy=Scheduled(settings, plantings),
        governor=None,
        callbacks=[watch.on_record],
        on_step=watch.on_step,
    )
    return watch
