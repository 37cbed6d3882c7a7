"""How long `Library.find` takes among 100,000 kernels on SQLite: python -m benchmarks.library [ROWS].

Rows are written past the API, a transaction for all, as `put` would write them; what is measured is `find` as users
call it, entries and tags included, after the file was closed and opened again.
"""

import sys
import tempfile
import time
from statistics import median

import numpy as np

from esper.library import open_library
from esper.library.entries import Measured, canonical, now
from esper.library.rows import _checksum, fits, gain_columns
from esper.library.schema import attributes, kernels, origins, tags

ROUNDS = 100
GOAL = 50.0  # milliseconds at the 95th percentile
BLUEPRINTS = ("mlp", "low_rank", "conv", "attention", "bottleneck", "norm_affine")
SIZES = (64, 128, 256, 512, 784, 1024, 2048, 4096)
RARE = "rare"


def row(rng, number):
    kind = ("Linear", "Conv2d", "Embedding", "LayerNorm")[rng.choice(4, p=(0.6, 0.3, 0.05, 0.05))]
    geometry = {"in_features": int(rng.choice(SIZES)), "out_features": int(rng.choice(SIZES))}
    gain = Measured(float(rng.normal(0, 0.1)), 0.01, 16) if rng.random() < 0.8 else None
    moment, dtype = now(), "float32" if rng.random() < 0.8 else "bfloat16"
    return {
        "digest": rng.bytes(32).hex(),
        "blueprint": RARE if number % 10_000 == 0 else str(rng.choice(BLUEPRINTS)),
        "options": canonical({"width": int(rng.choice(SIZES))}),
        "blend": "add",
        "placement": "parallel",
        "kind": kind,
        "attributes": canonical(geometry),
        "fits": fits(kind, geometry, dtype),
        "dtype": dtype,
        "shapes": "[]",
        "parameters": int(rng.integers(100, 1_000_000)),
        "bytes": 4,
        "flops": 8,
        **gain_columns(gain),
        "lifecycle": ("candidate", "validated", "retired")[rng.choice(3, p=(0.5, 0.4, 0.1))],
        "reason": "",
        "retired": None,
        "carried": True,
        "programs": "",
        "blob": rng.bytes(32).hex(),
        "blob_bytes": 1000,
        "created": moment,
        "updated": moment,
        "checksum": "",
    }, geometry


def fill(library, count):
    rng = np.random.default_rng(0)
    made = [row(rng, number) for number in range(count)]
    held, tagged, told = [], [], []
    for number, (one, geometry) in enumerate(made):
        digest = one["digest"]
        held += [
            {"digest": digest, "name": name, "value": canonical(value), "rank": one["rank"]}
            for name, value in geometry.items()
        ]
        # As `seal` does it, so that the entry is believed.
        names = {f"team{number % 7}", f"run{number % 5000}"} | ({RARE} if number % 20_000 == 0 else set())
        one["checksum"] = _checksum(one, sorted(names))
        tagged += [{"digest": digest, "tag": tag, "rank": one["rank"]} for tag in names]
        told.append({"id": digest, "digest": digest, "run": f"run{number % 5000}", "content": "{}", "time": now()})
    with library._catalogue.writing() as connection:
        for table, rows in ((kernels, [one for one, _ in made]), (attributes, held), (tags, tagged), (origins, told)):
            for start in range(0, len(rows), 10_000):
                connection.execute(table.insert(), rows[start : start + 10_000])
    return [one for one, _ in made]


def queries(library, rows):
    """By name, what is asked; each time about something else."""
    rng = np.random.default_rng(1)

    def size():
        return int(rng.choice(SIZES))

    def blueprint():
        return str(rng.choice(BLUEPRINTS))

    return {
        "the best": lambda: library.find(limit=20),
        "kind, best 20": lambda: library.find(kind="Conv2d", limit=20),
        "kind, best 100": lambda: library.find(kind="Linear", limit=100),
        "kind and blueprint": lambda: library.find(kind="Embedding", blueprint=blueprint(), limit=20),
        "a rare blueprint": lambda: library.find(blueprint=RARE, kind="LayerNorm", limit=20),
        "in_features": lambda: library.find(kind="Linear", attributes={"in_features": size()}, limit=20),
        "both sizes": lambda: library.find(attributes={"in_features": size(), "out_features": size()}, limit=20),
        "a common tag": lambda: library.find(tag=f"team{rng.integers(7)}", limit=20),
        "a tag of 20": lambda: library.find(tag=f"run{rng.integers(5000)}", limit=20),
        "a rare tag": lambda: library.find(tag=RARE, limit=20),
        "a tag that is not there": lambda: library.find(tag="nothing", limit=20),
        "a run": lambda: library.find(run=f"run{rng.integers(5000)}", limit=20),
        "validated, gain above 0.1": lambda: library.find(lifecycle="validated", min_gain=0.1, limit=20),
        "a dtype that nobody has": lambda: library.find(dtype="int4", limit=20),
        "kind and dtype": lambda: library.find(kind="LayerNorm", dtype="bfloat16", limit=20),
        "retired": lambda: library.find(lifecycle="retired", limit=20),
        "gain that nobody has": lambda: library.find(min_gain=5.0, limit=20),
        "small ones": lambda: library.find(max_parameters=150, limit=20),
        "not too large": lambda: library.find(max_parameters=500_000, limit=20),
        "small ones of a kind": lambda: library.find(kind="Linear", max_parameters=20_000, limit=20),
        "fewest parameters": lambda: library.find(kind="Linear", order_by="parameters", limit=20),
        "the latest of a kind": lambda: library.find(kind="Conv2d", order_by="created", limit=20),
        "the latest": lambda: library.find(order_by="created", limit=20),
        "what fits a layer": lambda: library._find(
            equal={"fits": str(rows[int(rng.integers(len(rows)))]["fits"])},
            **dict.fromkeys(("geometry", "tag", "run", "lifecycle", "min_gain", "max_parameters")),
            order_by="gain",
            limit=10,
        ),
        "all of it": lambda: library.find(
            kind="Linear",
            blueprint=blueprint(),
            dtype="bfloat16",
            attributes={"in_features": size()},
            tag=f"team{rng.integers(7)}",
            lifecycle="validated",
            min_gain=0.0,
            max_parameters=500_000,
            limit=20,
        ),
        "one entry by its prefix": lambda: library.entry(rows[int(rng.integers(len(rows)))]["digest"][:12]),
    }


def main(count):
    with tempfile.TemporaryDirectory() as folder:
        with open_library(folder) as library:
            began = time.perf_counter()
            rows = fill(library, count)
            print(f"{count:,} rows written in {time.perf_counter() - began:.1f} s")
        worst = 0.0
        with open_library(folder) as library:
            print(f"{'query':28} {'p50':>8} {'p95':>8} {'max':>8}   milliseconds of {ROUNDS}")
            for name, ask in queries(library, rows).items():
                spent = []
                for _ in range(ROUNDS):
                    began = time.perf_counter()
                    ask()
                    spent.append(1000 * (time.perf_counter() - began))
                p95 = float(np.percentile(spent, 95))
                worst = max(worst, p95)
                print(f"{name:28} {median(spent):8.2f} {p95:8.2f} {max(spent):8.2f}")
        print(f"the slowest kind of query at p95: {worst:.2f} ms; the goal is {GOAL:.0f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
