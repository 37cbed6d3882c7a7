"""What telemetry costs a training step, and how many events its sinks take: JSONL, and Redis on loopback.

The model is the demo's. Blocks of steps without a bus take turns with blocks that tell an event every 25 steps, as the
demo does, one every step, or 10,000 a second, so that a slow moment of the machine meets all of them; each block is
compared with the one without a bus beside it, which comes first in every second pair. What making 10,000 records a
second costs by itself, and how far two blocks without a bus are apart, are measured in the same way. The server is on
the same cores, at the lowest priority, since in earnest it is elsewhere. Nothing is asserted.

    python benchmarks/telemetry.py [--blocks 40] [--steps 100] [--no-redis]
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import jax
import numpy as np
import optax

import esper
from esper.configs import EsperConfig, OonaSettings, RedisConfig
from esper.telemetry import Bus, Jsonl
from esper.telemetry.redis_client import client
from esper.telemetry.sinks.redis_streams import RedisStreams
from esper.torch_frontend.hosts import load_host
from esper.train.ahead import Ahead
from esper.train.data import SHAPES
from esper.train.history import Record
from esper.train.loop import OBJECTIVE
from esper.train.step import Learner, train_step

RATE = 10_000  # events a second
SECONDS = 10  # for which that is kept up, without training
PORT = 46_379


def demo():
    """The demo's learner, its state and a batch."""
    config = EsperConfig.from_yaml(Path(__file__).parent.parent / "configs" / "quickstart.yaml")
    training = config.training_settings()
    host = load_host(training.model, shape=SHAPES[training.data], entropy=0)
    model = esper.wrap(host, training.target_layers, training.seeds_per_layer)
    shape = (training.batch_size, 1, 28, 28)
    batch = jax.random.normal(jax.random.key(0), shape), np.arange(training.batch_size, dtype=np.int32) % 10
    learner = Learner(OBJECTIVE, optax.adamw(training.learning_rate), 1)
    return learner, learner.begin(model, jax.random.key(1)), batch


def event(step):
    return Record(step, "evaluate", figures={"train_loss": 1.5 / (step + 1), "validation_loss": 2.5, "accuracy": 0.5})


class Training:
    """Steps of the demo, told to a bus as often as is asked."""

    def __init__(self):
        self.learner, self.state, self.batch = demo()
        self.done = 0

    def block(self, steps, tell):
        """Seconds a step takes; `tell` is called after each, as `on_step` is."""
        ahead = Ahead(self.state.step)
        began = time.perf_counter()
        for _ in range(steps):
            self.state = train_step(self.learner, self.state, self.batch)
            self.done += 1
            ahead(self.state.step)
            tell(self.done)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - began) / steps


class Teller:
    """Tells a bus events at a rate, in one go after each step."""

    def __init__(self, bus, rate):
        self.bus, self.rate, self.told, self.began = bus, rate, 0, time.perf_counter()

    def __call__(self, step):
        due = int((time.perf_counter() - self.began) * self.rate)
        for _ in range(due - self.told):
            self.bus.publish(event(step))
        self.told = due


class Nobody:
    """In place of a bus."""

    def publish(self, record):
        pass


def sinks(folder, redis):
    return [Jsonl(folder / "history.jsonl"), *([RedisStreams(redis, OonaSettings())] if redis else [])]


def told_block(training, folder, redis, steps, every):
    """Seconds of a step with a bus, and what became of the events; `every` so many steps, or at the rate."""
    with Bus(*sinks(folder, redis), bound=50_000, timeout=60) as bus:
        tell = Teller(bus, RATE) if every is None else lambda step: step % every or bus.publish(event(step))
        spent = training.block(steps, tell)
    return spent, bus.counts()


def nobody(step):
    pass


def step_cost(training, folder, redis, blocks, steps):
    training.block(steps, nobody)
    kinds = {
        "no events": lambda: (training.block(steps, nobody), {}),
        "an event every 25 steps": lambda: told_block(training, folder, redis, steps, 25),
        "an event every step": lambda: told_block(training, folder, redis, steps, 1),
        f"{RATE:,} records/s made, and told to nobody": lambda: (training.block(steps, Teller(Nobody(), RATE)), {}),
        f"{RATE:,} events/s to JSONL": lambda: told_block(training, folder, None, steps, None),
    }
    if redis:
        kinds[f"{RATE:,} events/s to both"] = lambda: told_block(training, folder, redis, steps, None)
    ratios, plain_times, counts = {kind: [] for kind in kinds}, [], {}
    for turn in range(blocks):
        for kind, block in kinds.items():
            if turn % 2:
                told, found = block()
                plain = training.block(steps, nobody)
            else:
                plain = training.block(steps, nobody)
                told, found = block()
            for name, count in found.items():
                written, dropped = counts.get((kind, name), (0, 0))
                counts[kind, name] = written + count.written, dropped + count.dropped
            plain_times.append(plain)
            ratios[kind].append(told / plain)
    middle = 1e3 * statistics.median(plain_times)
    print(f"a step without a bus: median {middle:.2f} ms; {blocks} pairs of blocks of {steps} steps")
    for kind, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4)
        print(f"  {kind}: step time x {middle:.4f} (quartiles {low:.4f} to {high:.4f})")
        for (of, name), (written, dropped) in counts.items():
            if of == kind:
                print(f"    {name}: {written:,} events written, {dropped:,} dropped")


def sustained(folder, redis):
    for chosen in sinks(folder, redis):
        processor, began = time.process_time(), time.perf_counter()
        bus = Bus(chosen, bound=50_000)
        tell = Teller(bus, RATE)
        while time.perf_counter() - began < SECONDS:
            tell(0)
            time.sleep(0.005)
        (counts,) = bus.close(60).values()
        spent = time.perf_counter() - began
        cost = (time.process_time() - processor) / tell.told
        print(
            f"  {chosen.name}: {tell.told:,} events told, {counts.written / spent:,.0f} written a second, "
            f"{counts.dropped:,} dropped, {1e6 * cost:.1f} us of processor an event in this process"
        )
    for chosen in sinks(folder, redis):
        bus, many = Bus(chosen, bound=10**7), 200_000
        began = time.perf_counter()
        for step in range(many):
            bus.publish(event(step))
        told = time.perf_counter() - began
        bus.close(600)
        spent = time.perf_counter() - began
        print(f"  {chosen.name}: at most {many / spent:,.0f} a second; telling one takes {1e6 * told / many:.1f} us")


def server(stack, folder):
    """A Redis of the benchmark's own, or None."""
    if not shutil.which("redis-server"):
        return None
    command = ["redis-server", "--port", str(PORT), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    process = stack.enter_context(subprocess.Popen(["nice", "-n", "19", *command], stdout=subprocess.DEVNULL))
    stack.callback(process.terminate)
    config = RedisConfig(host="127.0.0.1", port=PORT)
    with client(config) as asked:
        for _ in range(100):
            try:
                asked.ping()
                return config
            except Exception:
                time.sleep(0.1)
    raise RuntimeError("the Redis of the benchmark does not answer")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--no-redis", action="store_true")
    asked = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis = None if asked.no_redis else server(stack, folder)
        print("sinks:", ", ".join(sink.name for sink in sinks(folder, redis)))
        print(f"{RATE:,} events a second for {SECONDS} s, without training:")
        sustained(folder, redis)
        step_cost(Training(), folder, redis, asked.blocks, asked.steps)


if __name__ == "__main__":
    main()
