"""Run folders for tests of the report, made up."""

import json
import math
import random

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`${7*7}&amp;\u202e\x00"
"""What no page may take for anything but text."""


def record(step, event, reason="", layer=None, seed=None, run="growth", **figures):
    """A line of `history.jsonl`, as `Record.to_json` writes it."""
    plain = {"step": step, "event": event, "reason": reason, "layer": layer, "seed": seed, "figures": figures}
    return plain | {"compiles": 0, "programs": [], "compile_seconds": 0.0, "waited": 0.0, "run": run}


def evaluation(step, loss, run="growth", **more):
    figures = {"train_loss": loss * 0.9, "validation_loss": loss, "validation_accuracy": max(0.0, 1 - loss / 3)}
    return record(step, "evaluate", run=run, **figures, **more)


def life(layer="0", seed=0, at=20, blueprint="mlp"):
    """Everything that happens to a kernel that stays: alpha rises over 10 steps."""
    return [
        record(at - 10, "prepare", f"new kernels: {blueprint} at {layer}[{seed}]"),
        record(at, "germinate", "a plateau", layer, seed, blueprint=blueprint, width=16),
        record(at + 20, "grafting", "gain +0.1 \u00b1 0.01", layer, seed),
        record(at + 30, "active", "alpha has risen to 1.00", layer, seed),
        record(at + 50, "fossilized", "gain +0.2 \u00b1 0.01", layer, seed),
    ]


def history(steps=100, every=10, **changes):
    """A run that grows one kernel, and its control."""
    loss = lambda step: 2 * math.exp(-step / 40) + 0.1  # noqa: E731
    start = {"steps": steps, "every": every, "blend_steps": 10, "schedule": "linear"} | changes
    events = [record(0, "start", "small operations compiled", **start)]
    events += [record(0, "score", "untrained", test_loss=2.3, test_accuracy=0.1, parameters=100, examples=400)]
    happened = [evaluation(step, loss(step)) for step in range(every, steps + 1, every)] + life()
    happened += [record(20, "score", "before growth", test_loss=1.0, test_accuracy=0.6, parameters=100, examples=400)]
    events += sorted(happened, key=lambda plain: plain["step"])
    events += [record(steps, "end", "the last step is done")]
    events += [record(steps, "score", "end", test_loss=0.2, test_accuracy=0.9, parameters=400, examples=400)]
    control = [record(0, "start", run="control")]
    control += [evaluation(step, loss(step) + 0.1, run="control") for step in range(every, steps + 1, every)]
    control += [record(steps, "end", run="control")]
    control += [
        record(steps, "score", "end", run="control", test_loss=0.4, test_accuracy=0.8, parameters=100, examples=400)
    ]
    return events + control


LEDGER = {
    "phases": {
        "train": {"flops": 750, "seconds": 3.0, "steps": 100, "count": 0},
        "evaluation": {"flops": 250, "seconds": 1.0, "steps": 0, "count": 10},
    },
    "kernels": [["0", 0, 7, 300]],
    "parameters": [[0, 100], [20, 400]],
    "stayed": [["0", 0, 7]],
}
CERTIFICATE = {"max_abs": 1e-6, "max_rel": 2e-7, "dtype": "float32", "calls": 1, "gradients": 0, "gradient_abs": None}


def layer(name="0", kernels=(), **changes):
    plain = {"name": name, "type": "Linear", "ops": ["linear"], "input": ["s0", 8], "output": ["s0", 4]}
    plain |= {"parameters": 36, "flops": 64, "kasmina": True, "reads": [-1], "kernels": list(kernels)}
    return plain | changes


def kernel(**changes):
    plain = {"seed": 0, "blueprint": "mlp", "options": {"width": 16}, "placement": "parallel", "blend": "add"}
    plain |= {"state": "FOSSILIZED", "alpha": 1.0, "reserved": False, "parameters": 300, "flops": 500}
    return plain | {"gain": 0.2, "gain_stderr": 0.01} | changes


def network(layers=None):
    held = [layer(kernels=[kernel()]), layer("2", reads=[0])] if layers is None else layers
    plain = {"schema_version": 1, "name": "Sequential", "captured": True, "parameters": 100, "seeds_per_layer": 2}
    return plain | {"layers": held}


def folder(place, events=None, *, ledger=LEDGER, certificate=CERTIFICATE, network_=None, tail=""):
    """Writes a run folder and gives its path; what is None is left out."""
    place.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(event) + "\n" for event in (history() if events is None else events))
    (place / "history.jsonl").write_text(lines + tail, encoding="utf-8")
    files = {"ledger": ledger, "certificate": certificate, "network": network() if network_ is None else network_}
    for name, held in files.items():
        if held:
            (place / f"{name}.json").write_text(json.dumps(held), encoding="utf-8")
    return place


def big(evaluations=10_000, seeds=200, lives=30):
    """The history of a long run in which every seed lives again and again."""
    draw = random.Random(0)
    events = [record(0, "start", steps=evaluations, every=1, blend_steps=10, schedule="cosine")]
    for step in range(1, evaluations + 1):
        events.append(evaluation(step, 2 / (1 + step / 500) + draw.random() / 10))
    for number in range(seeds):
        for turn in range(lives):
            at = 20 + (turn * evaluations) // (lives + 1) + number % 50
            events += life(f"blocks.{number}.mlp.fc1", 0, at)[1:4]
            events.append(record(at + 60, "culled", "no gain; " * 40, f"blocks.{number}.mlp.fc1", 0))
    start, *rest = events
    return [start, *sorted(rest, key=lambda plain: plain["step"]), record(evaluations, "end")]
