"""B5: what growth does where there is nothing to gain, and what of it is exact."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from benchmarks.evidence.exactness import Birth, Hashes, births, host_hashes
from benchmarks.evidence.null_tasks import BATCH, EVERY, STEPS, TASKS, Outcome, interval, outcome
from benchmarks.evidence.results import Benchmark, Claim, deviation, spelt
from benchmarks.evidence.stall import BATCH as STALL_BATCH
from benchmarks.evidence.stall import WIDTH, Watch, measured

KEYS = tuple(range(10))
STALLS = 3

Found = dict[str, list[Outcome]]
"""By task."""


def run() -> Benchmark:
    """All of it; the stall first, while nothing else of ours has run."""
    watches = [measured() for _ in range(STALLS)]
    stall = _stall(watches)
    found = {task.name: [outcome(task, key) for key in KEYS] for task in TASKS}
    return told(found, stall, list(births()), list(host_hashes()))


def told(found: Found, stall: Claim, born: Sequence[Birth], hashes: Sequence[Hashes]) -> Benchmark:
    """The benchmark of these results."""
    saturated = [found["digits"], found["clouds"]]
    return Benchmark(
        name="B5",
        title="Do no harm",
        setup=(
            *(f"{task.name}: {task.about}." for task in TASKS),
            f"Keys ({', '.join(f'{len(runs)} for {name}' for name, runs in found.items())}) draw data splits, initial "
            f"values and batches; {STEPS} steps of {BATCH} examples, AdamW with half a cosine; Tamiyo at its defaults, "
            "but for a start at step 400, stages of 50 steps, two evaluations of patience and no rest after a cull, so "
            f"that a run sees many germinations; evaluated every {EVERY} steps.",
            "Every run with growth has one without, from the same key; the test part is evaluated once, at the end.",
        ),
        metric="test accuracy, %",
        higher_is_better=True,
        claims=(
            *(_saturated(task.name, runs) for task, runs in zip(TASKS, saturated, strict=False)),
            _shuffled(found["shuffled labels"]),
            _false_fossilise(found),
            *_exact(born),
            _compiles(found),
            stall,
            *_hashes(hashes),
        ),
        notes=(
            _scores(found),
            _spent(found),
            "A kernel that is kept by mistake is one that held-out data spoke for twice, at 95 % confidence each time, "
            "by luck or by a gain too small to matter; a `min_gain` above 0 asks for more.",
        ),
    )


def _saturated(name: str, runs: Sequence[Outcome]) -> Claim:
    born, culled = _sum(o.germinated for o in runs), _sum(o.culled for o in runs)
    more = 100 * statistics.fmean(o.parameters / o.host_parameters - 1 for o in runs)
    away = [o.grown - o.alone for o in runs]
    worst = max(runs, key=lambda o: o.parameters / o.host_parameters)
    met = culled >= 0.9 * born and more <= 5 and abs(statistics.fmean(away)) <= 0.3
    return Claim(
        f"saturated task, {name}: seeds are culled, the net stays as it is",
        "≥ 90 % culled, ≤ +5 % parameters, within 0.3 points",
        f"{culled} of {born} culled ({100 * culled / born:.1f} %), {more:+.1f} % parameters, accuracy {spelt(away)} "
        f"points from the host alone, worst {max(map(abs, away)):.2f}",
        met,
        ""
        if worst.parameters == worst.host_parameters
        else f"the mean over {len(runs)} runs; {sum(o.kept > 0 for o in runs)} kept something, the most "
        f"{100 * (worst.parameters / worst.host_parameters - 1):+.0f} % parameters",
    )


def _shuffled(runs: Sequence[Outcome]) -> Claim:
    born, culled, kept = (_sum(getattr(o, name) for o in runs) for name in ("germinated", "culled", "kept"))
    return Claim(
        "shuffled labels: seeds are always culled",
        "100 %",
        f"{culled} of {born} culled, {kept} fossilised, {born - culled - kept} on trial at the end",
        culled == born,
    )


def _false_fossilise(found: Found) -> Claim:
    runs = [o for outcomes in found.values() for o in outcomes]
    born, kept = _sum(o.germinated for o in runs), _sum(o.kept for o in runs)
    grafted = _sum(o.grafted for o in runs)
    low, high = interval(kept, born)
    return Claim(
        "false fossilise, all null runs together",
        "≤ 5 %",
        f"{kept} of {born} germinations, {100 * kept / born:.1f} % (95 % interval {100 * low:.1f} to "
        f"{100 * high:.1f} %)",
        kept <= 0.05 * born,
        f"{grafted} passed the first gate, {kept} also the second",
    )


def _exact(born: Sequence[Birth]) -> tuple[Claim, Claim]:
    hosts = len({birth.place for birth in born})
    recipes = len({birth.blueprint for birth in born})
    tried = f"{len(born)} germinations: {recipes} blueprints, {hosts} layers of three hosts, four blends"
    largest = max(birth.change for birth in born)
    changed = [f"{b.blueprint} at {b.place}" for b in born if b.change]
    left = [f"{b.blueprint} at {b.place}" for b in born if not b.culled]
    return (
        Claim(
            "germination changes outputs by exactly 0",
            "0",
            f"largest change {largest:g}; {tried}",
            not changed,
            ", ".join(changed),
        ),
        Claim(
            "outputs after a cull have the bits of those before the birth, the kernel full of noise meanwhile",
            "all",
            f"{sum(b.culled for b in born)} of {len(born)}",
            not left,
            ", ".join(left),
        ),
    )


def _compiles(found: Found) -> Claim:
    totals: dict[str, int] = {}
    for o in (o for outcomes in found.values() for o in outcomes):
        for event, count in o.compiles.items():
            totals[event] = totals.get(event, 0) + count
    elsewhere = {event: count for event, count in totals.items() if event != "germinate"}
    events = _sum(o.culled + o.grafted + o.kept for outcomes in found.values() for o in outcomes)
    return Claim(
        "compiles outside germination",
        "0",
        f"{sum(elsewhere.values())}, over {events} other changes of seeds and every evaluation; germinations: "
        f"{totals.get('germinate', 0)}, in the background",
        not elsewhere,
        ", ".join(f"{event}: {count}" for event, count in elsewhere.items())
        or "counted from the first evaluation on, before which the step and the evaluation are compiled; germinations "
        "of a structure that was met before compile nothing",
    )


def _stall(watches: Sequence[Watch]) -> Claim:
    ratios = [max(watch.busy) / max(watch.normal) for watch in watches]
    busy, normal = [s for watch in watches for s in watch.busy], [s for watch in watches for s in watch.normal]
    slow = sum(seconds > 2 * max(watch.normal) for watch in watches for seconds in watch.busy)
    compiles = [seconds for watch in watches for seconds in watch.compiles if seconds > 0.1]
    swaps = [seconds for watch in watches for seconds in watch.swaps]
    if not compiles:
        raise RuntimeError("no germination was compiled while its run lasted, so there is no stall to speak of")
    worst = ", ".join(f"{_ms(max(watch.busy))} against {_ms(max(watch.normal))}" for watch in watches)
    return Claim(
        "worst step while a germination compiles, against the worst normal step",
        "≤ 2 x, mean of three runs",
        f"{spelt(ratios, 2)} x: {worst} (medians {_ms(statistics.median(busy))} and {_ms(statistics.median(normal))})",
        statistics.fmean(ratios) <= 2,
        f"{slow} of {len(busy)} steps beside a compile took more than twice the worst normal one of their run; an MLP "
        f"of width {WIDTH}, {STALL_BATCH} examples a step; germinations compiled for "
        f"{statistics.median(compiles):.1f} s (median of those that "
        f"compiled anything); {len(normal)} normal steps; the steps at which kernels entered took at most "
        f"{_ms(max(swaps))}; on two cores, both of which a step uses, and one "
        "of which the compiler takes at the priority of training",
    )


def _hashes(hashes: Sequence[Hashes]) -> tuple[Claim, Claim]:
    frozen = [h for h in hashes if h.before == h.frozen]
    alike = [h for h in hashes if h.alone == h.beside]
    steps = hashes[0].steps
    said = "; ".join(f"{h.name}, {h.blueprint}: {h.before[:12]}…" for h in hashes)
    trained = "; ".join(f"{h.name}, {h.blueprint}: {h.alone[:12]}… and {h.beside[:12]}…" for h in hashes)
    return (
        Claim(
            "SHA-256 of the host before and after an isolation phase, the host frozen",
            "equal",
            f"equal for {len(frozen)} of {len(hashes)} hosts after {steps} steps",
            len(frozen) == len(hashes),
            said,
        ),
        Claim(
            "SHA-256 of the host after training beside a TRAINING seed, and without one",
            "equal",
            f"equal for {len(alike)} of {len(hashes)} hosts after {steps} steps of AdamW",
            len(alike) == len(hashes),
            trained,
        ),
    )


def _scores(found: Found) -> str:
    said = ", ".join(
        f"{name} {spelt(o.grown for o in outcomes)} with growth and {spelt(o.alone for o in outcomes)} without"
        for name, outcomes in found.items()
    )
    return f"Test accuracy in percent: {said}."


def _spent(found: Found) -> str:
    shares = {
        name: [100 * (o.flops / o.host_flops - 1) for o in outcomes] for name, outcomes in found.items() if outcomes
    }
    said = ", ".join(f"{name} {statistics.fmean(more):+.0f} % ± {deviation(more):.0f}" for name, more in shares.items())
    return f"What trying cost, in FLOPs beyond the host's own (isolation, measurements, culled kernels): {said}."


def _sum(counts: Iterable[int]) -> int:
    return sum(counts)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
