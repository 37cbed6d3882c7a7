"""The stages of a seed's life, and the gates between them: what moves on, what is culled, on which figures.

A kernel passes a gate if its held-out gain exceeds `min_gain` by more than t standard errors. t is the quantile of
Student's distribution, since the standard error is itself estimated from the batches; in a race the error
allowed is shared out between the candidates (Bonferroni). Of kernels that are worth nothing, no more than
1 - `confidence` of all races then lets one through, and it must pass again once it is part of the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from scipy.special import stdtrit

from esper.configs import TamiyoSettings
from esper.growth.credit import Gain
from esper.growth.policy import Action, Asks, Hold, Observation, SeedView, Transition
from esper.lifecycle import SeedLifecycleState as S


def judge(observation: Observation, settings: TamiyoSettings, *, gated: bool = True) -> tuple[Action, ...]:
    """What happens now to the seeds that grow.

    Args:
        observation: With the gains and credits that `evidence` asks for.
        settings: Durations of the stages and what a gain must be.
        gated: Whether kernels are judged; otherwise each is kept as it comes, whatever it does.
    """
    if not gated:
        return tuple(action for seed in observation.seeds() for action in _unjudged(seed, settings))
    together = len(_active(observation)) > 1
    return tuple(
        action for layer in observation.layers for action in _judged(layer.growing, settings, together=together)
    )


def evidence(observation: Observation, settings: TamiyoSettings) -> Asks:
    """What `judge` reads now: gains of kernels to be judged, or credits where several are on trial at once."""
    racers = [seed.place for layer in observation.layers for seed in _racers(layer.growing, settings)]
    active = _active(observation)
    if not any(seed.since >= settings.hold_steps for seed in active):
        return Asks(gains=tuple(racers))
    places = [seed.place for seed in active]
    return Asks(tuple(racers), tuple(places)) if len(active) > 1 else Asks((*racers, *places))


def quantile(confidence: float, batches: int, candidates: int = 1) -> float:
    """How many standard errors above the bar a mean over batches must be; NaN for a single batch, which shows none."""
    return float(stdtrit(batches - 1, 1 - (1 - confidence) / candidates)) if batches > 1 else math.nan


def passes(gain: Gain, settings: TamiyoSettings, candidates: int = 1) -> bool:
    """Whether a gain is significant, as one of so many."""
    # A single batch has no standard error, and a kernel that diverged no gain: neither is evidence.
    bar = quantile(settings.confidence, gain.batches, candidates)
    return gain.mean - bar * gain.stderr > settings.min_gain


def _judged(seeds: Sequence[SeedView], settings: TamiyoSettings, *, together: bool) -> Iterator[Action]:
    for seed in seeds:
        yield from _moved_on(seed, settings)
        if seed.state is S.ACTIVE and seed.since >= settings.hold_steps:
            yield _trial(seed, settings, together=together)
    yield from _race(_racers(seeds, settings), settings)


def _unjudged(seed: SeedView, settings: TamiyoSettings) -> Iterator[Action]:
    yield from _moved_on(seed, settings)
    if seed.state is S.TRAINING and seed.since >= settings.train_steps:
        yield Transition(*seed.place, S.GRAFTING, f"{seed.since} steps in training, which no verdict follows")
    if seed.state is S.ACTIVE and seed.since >= settings.hold_steps:
        yield Transition(*seed.place, S.FOSSILIZED, f"{seed.since} steps on trial, which no verdict follows")


def _moved_on(seed: SeedView, settings: TamiyoSettings) -> Iterator[Action]:
    """The moves that no gain decides."""
    if seed.state is S.ERROR_RECOVERY:
        to = S.TRAINING if seed.errors <= settings.max_retries else S.CULLED
        times = f"{seed.errors} times so far, {settings.max_retries} are forgiven"
        yield Transition(*seed.place, to, f"the kernel gave something that is not finite, {times}")
    elif seed.state is S.GRAFTING and seed.since >= settings.blend_steps:
        yield Transition(*seed.place, S.ACTIVE, f"alpha has risen to {seed.alpha:.2f} over {seed.since} steps")


def _trial(seed: SeedView, settings: TamiyoSettings, *, together: bool) -> Action:
    found = seed.credit if together else seed.gain
    if found is None:
        return _unmeasured(seed, "its share in what all kernels on trial gain" if together else "its gain")
    kept = passes(found, settings)
    share = ", its share in what all kernels on trial gain" if together else ""
    return Transition(*seed.place, S.FOSSILIZED if kept else S.CULLED, _alone(seed, found, settings) + share)


def _racers(seeds: Sequence[SeedView], settings: TamiyoSettings) -> tuple[SeedView, ...]:
    """A layer's seeds in training, once all have trained long enough: they are judged at one evaluation.

    One that is still arriving, or failed and trains anew, is waited for.
    """
    if any(seed.state in (S.LOADING, S.ERROR_RECOVERY) for seed in seeds):
        return ()
    racers = tuple(seed for seed in seeds if seed.state is S.TRAINING)
    return racers if all(seed.since >= settings.train_steps for seed in racers) else ()


def _race(racers: tuple[SeedView, ...], settings: TamiyoSettings) -> Iterator[Action]:
    gains = {seed.place: seed.gain for seed in racers if seed.gain}
    if len(gains) < len(racers):
        yield from (_unmeasured(seed, "its gain") for seed in racers if not seed.gain)
        return
    # Having no kernel is always among the candidates: its gain is 0, and it wins unless another is significant.
    able = [seed for seed in racers if passes(gains[seed.place], settings, len(racers))]
    best = max(able, key=lambda seed: _prize(seed, gains[seed.place], settings), default=None)
    for seed in racers:
        reason = _alone(seed, gains[seed.place], settings, len(racers))
        if len(racers) > 1:
            reason += _table(racers, best, settings)
        yield Transition(*seed.place, S.GRAFTING if seed is best else S.CULLED, reason)


def _prize(seed: SeedView, gain: Gain, settings: TamiyoSettings) -> float:
    return gain.mean / max(seed.parameters, 1) if settings.gain_per_parameter else gain.mean


def _alone(seed: SeedView, gain: Gain, settings: TamiyoSettings, candidates: int = 1) -> str:
    bar = quantile(settings.confidence, gain.batches, candidates)
    verdict = "exceeds" if passes(gain, settings, candidates) else "does not exceed"
    among = f" for all {candidates} candidates together" if candidates > 1 else ""
    return (
        f"after {seed.since} steps {seed.state.name}, held-out loss {gain.without:.4f} without it and "
        f"{gain.having:.4f} with it: gain {gain} over {gain.batches} batches {verdict} {settings.min_gain:g} by "
        f"{bar:.2f} standard errors ({settings.confidence:.1%} confidence{among})"
    )


def _table(racers: tuple[SeedView, ...], best: SeedView | None, settings: TamiyoSettings) -> str:
    rows = [f"{seed.blueprint or 'kernel'}[{seed.seed}] {seed.gain}" for seed in racers]
    prize = "gain per parameter" if settings.gain_per_parameter else "gain"
    won = f"{best.blueprint or 'kernel'}[{best.seed}], the largest {prize} of those that do" if best else "nothing"
    return f"; the race: {', '.join(rows)}, nothing +0.0000; won by {won}"


def _unmeasured(seed: SeedView, what: str) -> Hold:
    return Hold(f"layer {seed.layer!r}, seed {seed.seed}: {what} was not measured")


def _active(observation: Observation) -> list[SeedView]:
    return [seed for seed in observation.seeds() if seed.state is S.ACTIVE]
