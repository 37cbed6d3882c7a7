"""Watching over a run: what is sound, what has failed, and whom to blame. Pure; going back is the loop's work.

`Governor.judge` reads plain numbers and gives a verdict. Where the numbers come from (`finite`, `spread`) and what a
snapshot becomes when it is gone back to (`rolled_back`) stands below it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from esper.errors import ArgumentError
from esper.growth.verbs import transition
from esper.jax_backend.model import MorphableModel
from esper.lifecycle import LEGAL
from esper.lifecycle import SeedLifecycleState as S

Place = tuple[str, int]
"""A layer's name, and which of its seeds."""

SeedReading = tuple[str, int, S, int]
"""A layer's name, which of its seeds, its state, and the training steps since it entered that state."""

_GROWING = (S.TRAINING, S.GRAFTING, S.ACTIVE)
_WINDOW = 8  # readings that a median is taken of
_PROGRESS = 0.1  # share of what was gained so far that a loss near 0 may always move by


@dataclass(frozen=True)
class Reading:
    """What an evaluation shows of a run.

    Attributes:
        step: Training steps done.
        train_loss: Mean training loss since the last reading; None: there was no step yet.
        held_out_loss: Loss on held-out data.
        finite: Whether the losses, and all that is alive in the model, are finite (`finite`).
        spread: How much outputs differ from example to example (`spread`); NaN: unknown.
        seeds: Seeds that are in use.
    """

    step: int
    train_loss: float | None
    held_out_loss: float
    finite: bool = True
    spread: float = math.nan
    seeds: tuple[SeedReading, ...] = ()


@dataclass(frozen=True)
class Memory:
    """What a governor remembers from one reading to the next.

    Attributes:
        train: Training losses of readings that have not failed.
        held_out: Their held-out losses.
        spread: The largest spread of a sound reading.
        step: Step of the last sound reading; None: there was none.
        retry: How often the run has gone back, since it was last forgiven.
        survived: Sound readings since it last went back.
    """

    train: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()
    spread: float = math.nan
    step: int | None = None
    retry: int = 0
    survived: int = 0


@dataclass(frozen=True)
class Sound:
    """All is well: a point to go back to."""

    reason: str = ""


@dataclass(frozen=True)
class Watch:
    """Suspicious: no point to go back to, and no reason to go back."""

    reason: str


@dataclass(frozen=True)
class Rollback:
    """Go back to the last sound point.

    Attributes:
        reason: What has failed, with figures.
        culprits: Seeds whose kernels may have caused it; cull them there.
        retry: Which attempt comes now, from 1: fold it into the run's key, so that it draws otherwise.
    """

    reason: str
    culprits: tuple[Place, ...]
    retry: int


@dataclass(frozen=True)
class GiveUp:
    """Going back has not helped: end the run at the last sound point."""

    reason: str


Verdict = Sound | Watch | Rollback | GiveUp


@dataclass(frozen=True)
class Governor:
    """When a run has failed, and how often it may try again.

    A loss has diverged above `reference + (spike - 1) * scale`. For losses that stay positive this is usually spike
    times the reference; the scale is the largest of

    - the size of the reference,
    - the median change from one reading to the next, so that a noisy loss near 0 may be noisy,
    - a tenth of what was gained since the first reading, so that 0.001 may become 0.01.

    The training loss's reference is its best, so slow divergence shows. The held-out loss's is the median of its last
    ones, so that overfitting, which raises it slowly, is not taken for divergence: that is early stopping's business.
    Readings that failed are in neither. Half way to the limit is suspicious.

    A network has collapsed when it gives nearly the same answer to everything and has nothing to show for it: its
    spread is below `collapse` of its largest, and its held-out loss no better than at the first reading.

    Attributes:
        spike: How many times its reference a loss may be, above 1.
        collapse: Share of the largest spread below which outputs count as the same, 0 (never) to 1.
        retries: How often a run may go back before it is given up.
        patience: Sound readings after which a failure is forgiven, at least 1.

    Example:
        >>> governor = Governor()
        >>> verdict, memory = governor.judge(Reading(0, None, 2.3), governor.start())
        >>> governor.judge(Reading(50, math.nan, math.nan, finite=False), memory)[0]
        Rollback(reason='not finite: training loss nan, held-out loss nan', culprits=(), retry=1)
    """

    spike: float = 3.0
    collapse: float = 0.05
    retries: int = 3
    patience: int = 3

    def __post_init__(self) -> None:
        good = {"spike": self.spike > 1, "retries": self.retries >= 0, "patience": self.patience >= 1}
        good["collapse"] = 0 <= self.collapse <= 1
        for name in (name for name, holds in good.items() if not holds):
            wanted = {"spike": "above 1", "collapse": "from 0 to 1", "retries": "0 or more", "patience": "1 or more"}
            raise ArgumentError(f"a governor's {name} is {wanted[name]}, not {getattr(self, name)}")

    def start(self) -> Memory:
        """The memory to begin with."""
        return Memory()

    def judge(self, reading: Reading, memory: Memory) -> tuple[Verdict, Memory]:
        """What to make of a reading, and what to remember.

        The first reading is judged by whether it is finite alone; take it before the first step. The state before
        the first step is the point to go back to until a reading was sound.
        """
        failure = self._failure(reading, memory)
        if failure:
            return self._failed(failure, reading, memory)
        train = () if reading.train_loss is None else (reading.train_loss,)
        losses = replace(memory, train=memory.train + train, held_out=(*memory.held_out, reading.held_out_loss))
        doubt = self._diverged(reading, memory, 0.5)
        if doubt:
            return Watch(f"half way to divergence: {doubt}"), losses
        return Sound(), self._survived(reading, losses)

    def _failure(self, reading: Reading, memory: Memory) -> str:
        """What has failed; empty: nothing."""
        losses = f"training loss {_said(reading.train_loss)}, held-out loss {_said(reading.held_out_loss)}"
        if not (reading.finite and math.isfinite((reading.train_loss or 0.0) + reading.held_out_loss)):
            return f"not finite: {losses}"
        return self._diverged(reading, memory, 1.0) or self._collapsed(reading, memory)

    def _diverged(self, reading: Reading, memory: Memory, share: float) -> str:
        """Which loss is beyond that share of the way to its limit."""
        for name, kind, loss, past, reference in (
            ("training loss", "best", reading.train_loss, memory.train, min),
            ("held-out loss", "median of the last ones", reading.held_out_loss, memory.held_out, _recent),
        ):
            if loss is None or not past:
                continue
            usual = reference(past)
            limit = usual + share * (self.spike - 1) * _scale(usual, past)
            if loss > limit:
                return f"{name} {loss:.4g} is above {limit:.4g} ({kind}: {usual:.4g})"
        return ""

    def _collapsed(self, reading: Reading, memory: Memory) -> str:
        alike = reading.spread < self.collapse * memory.spread  # not if one is unknown
        if not alike or reading.held_out_loss < memory.held_out[0]:
            return ""
        return (
            f"the same answer for everything: outputs spread {reading.spread:.4g}, at most {memory.spread:.4g} before, "
            f"and the held-out loss {reading.held_out_loss:.4g} is no better than at first, {memory.held_out[0]:.4g}"
        )

    def _failed(self, failure: str, reading: Reading, memory: Memory) -> tuple[Verdict, Memory]:
        retry = memory.retry + 1
        if retry > self.retries:
            return GiveUp(f"{failure}; {self.retries} retries are used up"), memory
        return Rollback(failure, _culprits(reading, memory), retry), replace(memory, retry=retry, survived=0)

    def _survived(self, reading: Reading, memory: Memory) -> Memory:
        survived = memory.survived + 1
        known = [found for found in (memory.spread, reading.spread) if not math.isnan(found)]
        return replace(
            memory,
            spread=max(known, default=math.nan),
            step=reading.step,
            retry=0 if survived >= self.patience else memory.retry,
            survived=survived,
        )


def finite(model: MorphableModel) -> Bool[Array, ""]:
    """Whether all of a model that is alive is finite; for use inside a compiled function.

    Parameters are to be finite, buffers not NaN: a mask may hold infinities. Kernels that neither train nor are
    blended in do not count: what they hold reaches nothing.
    """
    seeds = model.seeds
    alive = seeds.training() | seeds.live() | (seeds.lifecycle == int(S.GRAFTING))
    checks = [jnp.isfinite(leaf).all() for leaf in _floats(model.params["host"])]
    checks += [~jnp.isnan(leaf).any() for leaf in _floats(model.buffers)]
    for layer, held in model.params["kernels"].items():
        for seed, tree in held.items():
            dead = ~alive[model.structure.row(layer), seed]
            checks += [dead | jnp.isfinite(leaf).all() for leaf in _floats(tree)]
    return jnp.stack([jnp.bool_(True), *checks]).all()


def spread(outputs: Any) -> Float32[Array, ""]:
    """How much outputs differ from example to example; for use inside a compiled function.

    The standard deviation over the first axis, which is that of examples, averaged over everything else. NaN if
    there is no floating output with such an axis.
    """
    found = [leaf.astype(jnp.float32).std(axis=0).ravel() for leaf in _floats(outputs) if leaf.ndim]
    return jnp.concatenate(found).mean() if found else jnp.float32(jnp.nan)


def rolled_back(model: MorphableModel, culprits: Iterable[Place]) -> MorphableModel:
    """A snapshot's model to go on from: kernels that it holds of the culprits are CULLED.

    Data only, so going back compiles nothing, and the snapshot's optimiser state goes with it as it is: a culled
    kernel's entries leave with its arrays, when `cull` removes both. A culprit that had not germinated yet, or
    that was permanent already, is left as it is.
    """
    held = {(kernel.layer, kernel.seed) for kernel in model.structure.kernels}
    for layer, seed in culprits:
        if (layer, seed) in held:
            state = S(int(model.seeds.lifecycle[model.structure.row(layer), seed]))
            if S.CULLED in LEGAL[state]:
                model = transition(model, layer=layer, seed=seed, to=S.CULLED)
    return model


def _culprits(reading: Reading, memory: Memory) -> tuple[Place, ...]:
    """Growing seeds that changed since the last sound reading; all growing ones if going back has not helped."""

    def changed(state: S, since: int) -> bool:
        # The alpha of a GRAFTING seed changes with every step. A seed that changed state at the last sound reading
        # did so after it.
        return state is S.GRAFTING or memory.step is None or reading.step - since >= memory.step

    growing = [seed for seed in reading.seeds if seed[2] in _GROWING]
    return tuple((layer, seed) for layer, seed, state, since in growing if memory.retry or changed(state, since))


def _scale(usual: float, past: tuple[float, ...]) -> float:
    moves = [abs(after - before) for before, after in pairwise(past)]
    return max(abs(usual), median(moves[-_WINDOW:]) if moves else 0.0, _PROGRESS * (past[0] - min(past)))


def _recent(past: tuple[float, ...]) -> float:
    return median(past[-_WINDOW:])


def _said(loss: float | None) -> str:
    return "unknown" if loss is None else f"{loss:.4g}"


def _floats(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
