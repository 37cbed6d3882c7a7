"""B3: a tiny language model of bytes that starts narrow and grows its feed-forward while it learns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import jax
import optax
import torch

import esper
from benchmarks.evidence.gpt import CONTEXT, GPT, Text, Windows, topics
from benchmarks.evidence.results import Arm, Benchmark, Claim, Event, Run, deviation, spelt
from esper.configs import TamiyoSettings
from esper.growth.controls import Planting, Random, Scheduled
from esper.growth.policy import Policy
from esper.jax_backend.model import MorphableModel
from esper.train.fit import FitResult

if TYPE_CHECKING:
    from esper.train.history import Record
    from esper.train.run import Run as Training

STEPS, BATCH, WARMUP = 3000, 4, 100
SMALL, KERNEL, BIG = 16, 168, 256
"""Hidden units of the feed-forward: of the small host, of what joins it, of the big net."""
RATES = (1e-2, 2e-2, 4e-2)
KEYS = (0, 1, 2, 3, 4)
FEED, START = "blocks.0.feed", 700
PLACES = (FEED, "blocks.0.attention", "blocks.0", "norm")
SETTINGS = TamiyoSettings(
    swap=50,
    train_steps=50,
    blend_steps=100,
    hold_steps=50,
    max_kernels=1,
    rank=KERNEL,
    blueprints=dict.fromkeys(PLACES, "mlp"),
)
EVERY = 100
"""Steps between evaluations of arms that grow, on 32 windows of the validation part."""


@dataclass(frozen=True)
class Way:
    """One way to spend FLOPs.

    Attributes:
        name: Of the arm.
        about: What it is.
        hidden: Hidden units to begin with.
        steps: Training steps.
        policy: From a key to what grows; None: nothing.
    """

    name: str
    about: str
    hidden: int
    steps: int
    policy: Callable[[int], Policy[Any]] | None = None


def planted(blueprint: str, **options: int) -> Callable[[int], Policy[Any]]:
    """One kernel beside the feed-forward, at the time that is written down, whatever the key."""
    policy = Scheduled(SETTINGS, (Planting(START, FEED, blueprint, tuple(options.items())),))
    return lambda key: policy


def anywhere(key: int) -> Policy[Any]:
    """One kernel at a time and in a place that are drawn, and kept as it comes."""
    return Random(SETTINGS, kernels=1, key=key)


def ways(text: Text) -> tuple[Way, ...]:
    """The arms; how many steps the controls get for esper's FLOPs is known beforehand, as growth is on schedule."""
    small, big = (step_flops(text, hidden) for hidden in (SMALL, BIG))
    budget = _planned(text)
    return (
        Way("small host", "16 hidden units, for as many FLOPs as esper", SMALL, round(budget / small)),
        Way("big, same steps", "256 hidden units, for as many steps as esper", BIG, STEPS),
        Way("big, equal FLOPs", "256 hidden units, for as many FLOPs as esper", BIG, round(budget / big)),
        Way(
            "low-rank",
            "in esper's place and at its time, two linear maps of as many parameters, without the units between",
            SMALL,
            STEPS,
            planted("low_rank", rank=KERNEL + 6),
        ),
        Way("grown net from scratch", "esper's final width from the start", SMALL + KERNEL, STEPS),
        Way("random", "esper's kernel at a random time in a random layer", SMALL, STEPS, anywhere),
        Way("esper", f"{KERNEL} hidden units join at step {START + 50}", SMALL, STEPS, planted("mlp", width=KERNEL)),
    )


def step_flops(text: Text, hidden: int) -> int:
    """Of one step of a net that does not grow, by its ledger."""
    return _fitted(Way("", "", hidden, 1), text, 0, RATES[0]).ledger.phases["train"].flops


def _planned(text: Text) -> int:
    """FLOPs that esper is going to need: those of a run at another key, which nothing is chosen by."""
    esper_way = Way("", "", SMALL, STEPS, planted("mlp", width=KERNEL))
    return _fitted(esper_way, text, 99, RATES[0]).ledger.total_flops


def run() -> Benchmark:
    """All arms."""
    text = topics()
    return told([arm(way, text) for way in ways(text)], text)


def arm(way: Way, text: Text) -> Arm:
    """One arm: the learning rate is chosen by the validation loss of the first key, the others follow."""
    tried = {rate: trained(way, text, KEYS[0], rate) for rate in RATES}
    swept = {rate: found(text.validation) for rate, (_, found) in tried.items()}
    best = min(RATES, key=lambda rate: swept[rate])
    chosen = [tried[best], *(trained(way, text, key, best) for key in KEYS[1:])]
    runs = tuple(finish() for finish, _ in chosen)
    return Arm(way.name, way.about, way.steps, runs, best, {f"{rate:g}": value for rate, value in swept.items()})


Finish = Callable[[], Run]


def trained(way: Way, text: Text, key: int, rate: float) -> tuple[Finish, Callable[[Windows], float]]:
    """A run: what makes its result, test part included, when it is wanted; and its bits per byte on a part."""
    start = time.perf_counter()
    curve: list[tuple[float, float]] = []

    def noticed(record: Record, training: Training) -> None:
        if record.event == "evaluate" and way.policy:
            spent, loss = training.books.ledger.total_flops, record.figures["validation_loss"]
            curve.append((float(spent), float(loss) / math.log(2)))

    result = _fitted(way, text, key, rate, noticed)
    seconds = time.perf_counter() - start

    def bits(part: Windows) -> float:
        return float(bits_per_byte(result.model, part))

    def finish() -> Run:
        return Run(
            key=key,
            test=bits(text.test),
            validation=bits(text.validation),
            flops=result.ledger.total_flops,
            parameters=sum(leaf.size for leaf in jax.tree.leaves(result.model.params)),
            seconds=seconds,
            events=_events(result),
            curve=tuple(curve),
            extra={f"{phase} FLOPs": float(spent.flops) for phase, spent in result.ledger.phases.items()},
        )

    return finish, bits


def _fitted(
    way: Way, text: Text, key: int, rate: float, noticed: Callable[[Record, Training], None] | None = None
) -> FitResult:
    return esper.fit(
        host(text.alphabet, way.hidden, key),
        text.train,
        tx=optimizer(rate, way.steps),
        steps=way.steps,
        key=jax.random.key(key),
        batch_size=BATCH,
        validation=tuple(part[::36][:32] for part in text.validation),
        every=EVERY if way.policy else way.steps,
        growth=SETTINGS,
        policy=way.policy(key) if way.policy else Scheduled(SETTINGS, ()),
        governor=None,
        callbacks=[noticed] if noticed else [],
    )


@lru_cache(maxsize=64)
def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """AdamW; the rate rises over 100 steps, then falls to 0 along half a cosine."""
    falling = optax.warmup_cosine_decay_schedule(0.0, rate, min(WARMUP, steps - 1), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(falling, weight_decay=1e-2))


def host(alphabet: int, hidden: int, key: int) -> MorphableModel:
    """A host with initial values of a key; hosts of one shape share their structure, hence compiled steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key)
        state = GPT(alphabet, hidden=hidden).state_dict()
    model = _template(alphabet, hidden)
    drawn = {name: jax.numpy.asarray(state[name].numpy().copy()) for name in model.params["host"]}
    return model.replace(params={**model.params, "host": drawn})


@cache
def _template(alphabet: int, hidden: int) -> MorphableModel:
    probe = torch.zeros(2, CONTEXT, dtype=torch.long)
    return esper.wrap(GPT(alphabet, hidden=hidden), target_layers=list(PLACES), example_inputs=(probe,))


@jax.jit
def bits_per_byte(model: MorphableModel, part: Windows) -> jax.Array:
    """Mean over the windows of a part, but for up to 7 that are left over."""
    count = len(part[0]) // 8 * 8

    def nats(batch: Windows) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(batch[0]), batch[1]).mean()

    stacked = tuple(half[:count].reshape(8, -1, CONTEXT) for half in part)
    return jax.lax.map(nats, stacked).mean() / math.log(2)


_TOLD = {"germinate": "germinate", "grafting": "graft", "fossilized": "fossilise", "culled": "cull"}


def _events(result: FitResult) -> tuple[Event, ...]:
    return tuple(
        Event(record.step, _TOLD[record.event], f"{record.figures.get('blueprint', '')} {record.layer}".strip())
        for record in result.records
        if record.event in _TOLD
    )


def told(arms: list[Arm], text: Text) -> Benchmark:
    """The benchmark of these arms."""
    by_name = {one.name: one for one in arms}
    grown, big = by_name["esper"], by_name["big, same steps"]
    share = 100 * grown.mean("flops") / big.mean("flops")
    away = [ours - theirs for ours, theirs in zip(grown.values("test"), big.values("test"), strict=True)]
    behind = sum(away) / len(away)
    near = sum(one <= 0.01 for one in away)
    why = (
        f"differences of the same key, {near} of {len(away)} within; the small host's steps are steps that the kernel "
    )
    why += "has not learned in, and while the loss still falls fast, steps are what counts"
    same = by_name["big, equal FLOPs"]
    ahead = [theirs - ours for ours, theirs in zip(grown.values("test"), same.values("test"), strict=True)]
    return Benchmark(
        name="B3",
        title="A tiny language model: a narrow feed-forward widened on the way",
        setup=(
            f"CPython's `pydoc_data/topics.py`, {text.bytes:,} bytes (SHA-256 {text.sha256[:16]}…), of {text.alphabet} "
            "values; the first 80 % of the bytes for training, the next 10 % for validation, the last 10 % for test.",
            f"A GPT over bytes: one block, width 16, 2 heads, context {CONTEXT}; {SMALL} hidden units in the "
            f"feed-forward of the small host, {BIG} in the big one; esper adds {KERNEL} beside the host's.",
            f"AdamW, {BATCH} windows a step, the learning rate from {', '.join(f'{rate:g}' for rate in RATES)}, rising "
            "over 100 steps and falling to 0 along half a cosine over the arm's own steps; chosen for every arm by the "
            "validation loss of key 0.",
            f"{len(KEYS)} keys draw initial values and the order of the windows; the test part is evaluated once, on "
            "the nets that came out.",
        ),
        metric="bits per byte",
        higher_is_better=False,
        claims=(
            Claim(
                "within 0.01 bits/byte of the big static net at no more than 80 % of its FLOPs",
                "≤ +0.01 at ≤ 80 %",
                f"{spelt(away, 3)} at {share:.1f} %",
                behind <= 0.01 and share <= 80,
                why,
            ),
            Claim(
                "better than the big static net at equal FLOPs with its schedule fully decayed",
                "> 0",
                f"{spelt(ahead, 3)} bits/byte better",
                sum(ahead) / len(ahead) > 2 * deviation(ahead) / math.sqrt(len(ahead)),
                "differences of the same key; met if more than two standard errors",
            ),
        ),
        arms=tuple(arms),
        notes=(
            "The time and the place of esper's kernel were written down beforehand, found with key 0 on validation; "
            "FLOPs are the ledger's: the isolation phase and the evaluations are in them.",
            "All arms are short of what these nets could learn: the text is gone through 1.3 times.",
        ),
    )
