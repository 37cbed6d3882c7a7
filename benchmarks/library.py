"""How long `Library.find` takes among 100,000 kernels, on SQLite or where a configuration's `database` section says.

Rows are written past the API, a transaction for all, as `put` would write them; what is measured is `find` as users
call it, entries and tags included, after the library was closed and opened again. One that a configuration names has to
be empty, and has these rows afterwards.

    python -m benchmarks.library [ROWS] [--config FILE]
"""

import argparse
import tempfile
import time
from functools import partial
from statistics import median

import numpy as np

from esper.configs import EsperConfig
from esper.library import open_library
from esper.library.entries import Measured, Origin, canonical, now
from esper.library.finding import found
from esper.library.labels import bits
from esper.library.queries import Wanted
from esper.library.rows import _checksum, fits, gain_columns, origin_row
from esper.library.schema import attributes, kernels, origins, tags

ROUNDS = 100
GOAL = 50.0  # milliseconds at the 95th percentile
BLUEPRINTS = ("mlp", "low_rank", "conv", "attention", "bottleneck", "norm_affine")
SIZES = (64, 128, 256, 512, 784, 1024, 2048, 4096)
RARE = "rare"
LARGE = "large"  # the tag of half of all, those with more in_features than this
LARGER_THAN = 600
NIGHTLY = "nightly"  # the run of every second


def row(rng, number):
    """One of the catalogue. What is never found together, though many are of each, is for `hard`."""
    kind = ("Linear", "Conv2d", "Embedding", "LayerNorm")[rng.choice(4, p=(0.6, 0.3, 0.05, 0.05))]
    geometry = {"in_features": int(rng.choice(SIZES)), "out_features": int(rng.choice(SIZES))}
    if geometry["in_features"] == 64 and geometry["out_features"] == 64:
        geometry["out_features"] = 128
    gain = Measured(float(rng.normal(0, 0.1)), 0.01, 16) if rng.random() < 0.8 else None
    if gain is not None and gain.mean > 0.2 and number % 7 == 0:
        gain = None
    blueprint = RARE if number % 10_000 == 0 else str(rng.choice(BLUEPRINTS[:-1] if kind == "Conv2d" else BLUEPRINTS))
    parameters = int(rng.integers(100, 1_000_000))
    proven = 0.0 if number % 7 == 0 or number % 2 == 0 or geometry["in_features"] == 4096 else 0.8
    gone = 0.0 if parameters < 50_000 else 0.1
    moment, dtype = now(), "float32" if rng.random() < 0.8 else "bfloat16"
    return {
        "digest": rng.bytes(32).hex(),
        "blueprint": blueprint,
        "options": canonical({"width": int(rng.choice(SIZES))}),
        "blend": "add",
        "placement": "parallel",
        "kind": kind,
        "attributes": canonical(geometry),
        "fits": fits(kind, geometry, dtype),
        "dtype": dtype,
        "shapes": "[]",
        "parameters": parameters,
        "bytes": 4,
        "flops": 8,
        **gain_columns(gain, moment),
        "lifecycle": ("candidate", "validated", "retired")[rng.choice(3, p=(1 - proven - gone, proven, gone))],
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
        named = [(name, canonical(value)) for name, value in geometry.items()]
        held += [{"digest": digest, "name": name, "value": value} for name, value in named]
        names = {f"team{number % 7}", f"run{number % 5000}"} | ({RARE} if number % 20_000 == 0 else set())
        names |= {LARGE} if geometry["in_features"] > LARGER_THAN else set()
        tagged += [{"digest": digest, "tag": tag} for tag in names]
        runs = [f"run{number % 5000}", *([NIGHTLY] if number % 2 == 0 else [])]
        told += [origin_row(digest, Origin(run, time=now())) for run in runs]
        # As `seal` does it, so that the entry is believed.
        labels = [("fits", one["fits"]), *(("tag", tag) for tag in names), *(("run", run) for run in runs)]
        one["labels"] = bits([*labels, *(("attribute", *one) for one in named)])
        one["checksum"] = _checksum(one, sorted(names))
    with library._catalogue.writing() as connection:
        for table, rows in ((kernels, [one for one, _ in made]), (attributes, held), (tags, tagged), (origins, told)):
            for start in range(0, len(rows), 10_000):
                connection.execute(table.insert(), rows[start : start + 10_000])
    engine = library._catalogue._engine
    if engine.dialect.name == "postgresql":  # as it does by itself, a minute or two after so many rows
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
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
        "what fits a layer": lambda: found(
            library._catalogue, Wanted({}, fits=str(rows[int(rng.integers(len(rows)))]["fits"]), limit=10)
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


def hard(library):
    """By name, what is asked of which many are of each thing and none, or next to none, of all."""
    wanted = {
        "kind, blueprint": {"kind": "Conv2d", "blueprint": BLUEPRINTS[-1]},
        "kind, blueprint, latest": {"kind": "Conv2d", "blueprint": BLUEPRINTS[-1], "order_by": "created"},
        "kind, blueprint, smallest": {"kind": "Conv2d", "blueprint": BLUEPRINTS[-1], "order_by": "parameters"},
        "attribute, dtype of nobody": {"attributes": {"in_features": 512}, "dtype": "int4"},
        "tag, dtype of nobody": {"tag": LARGE, "dtype": "int4"},
        "blend of nobody": {"blend": "none"},
        "attribute, blend of nobody": {"attributes": {"in_features": 512}, "blend": "none"},
        "attribute, validated": {"attributes": {"in_features": 4096}, "lifecycle": "validated"},
        "tag, validated": {"tag": "team0", "lifecycle": "validated"},
        "two attributes": {"attributes": {"in_features": 64, "out_features": 64}},
        "tag, attribute": {"tag": LARGE, "attributes": {"in_features": 64}},
        "tag, attribute, latest": {"tag": LARGE, "attributes": {"in_features": 64}, "order_by": "updated"},
        "run, validated": {"run": NIGHTLY, "lifecycle": "validated"},
        "run, tag": {"run": NIGHTLY, "tag": "run1"},
        "small, retired": {"max_parameters": 49_000, "lifecycle": "retired"},
        "gain, tag": {"min_gain": 0.2, "tag": "team0"},
        "gain, tag, latest": {"min_gain": 0.2, "tag": "team0", "order_by": "created"},
    }
    return {f"none: {name}": partial(library.find, **more, limit=20) for name, more in wanted.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="?", type=int, default=100_000)
    parser.add_argument("--config", metavar="FILE")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place, count = EsperConfig.from_yaml(asked.config) if asked.config else folder, asked.rows
        with open_library(place) as library:
            if library.find(limit=1):
                parser.error("this library holds kernels: name one that is empty")
            began = time.perf_counter()
            rows = fill(library, count)
            print(f"{count:,} rows written in {time.perf_counter() - began:.1f} s")
        worst = 0.0
        with open_library(place) as library:
            print(f"{'query':32} {'p50':>8} {'p95':>8} {'max':>8}   milliseconds of {ROUNDS}")
            for name, ask in {**queries(library, rows), **hard(library)}.items():
                spent = []
                for _ in range(ROUNDS):
                    began = time.perf_counter()
                    ask()
                    spent.append(1000 * (time.perf_counter() - began))
                p95 = float(np.percentile(spent, 95))
                worst = max(worst, p95)
                print(f"{name:32} {median(spent):8.2f} {p95:8.2f} {max(spent):8.2f}")
        print(f"the slowest kind of query at p95: {worst:.2f} ms; the goal is {GOAL:.0f} ms")


if __name__ == "__main__":
    main()
