"""What asking a controller costs a run: `python benchmarks/control.py [CONFIG]`, with Redis if CONFIG names one.

An observation of 100 layers with two seeds each is asked about 200 times; the controller is a thread of this process.
"""

import statistics
import sys
import tempfile
import threading
import time

from esper.configs import EsperConfig, TamiyoSettings
from esper.control import Controller, FolderChannel, Keys, Post, RemotePolicy, serve
from esper.control.channel import CONTROLLER
from esper.control.keys import new_key
from esper.control.redis import RedisChannel
from esper.growth.policy import LayerView, Observation, Plan, SeedView
from esper.growth.tamiyo import Tamiyo
from esper.lifecycle import SeedLifecycleState

LAYERS, ROUNDS = 100, 200


def observation(step):
    seeds = [(f"encoder.{n}", 0, SeedLifecycleState.DORMANT) for n in range(LAYERS)]
    plan = Plan("mlp", (("width", 64),), 10_000, 20_000, 40_000)
    layers = (
        LayerView(name, "Linear", 1.0, tuple(SeedView(name, seed, state) for seed in range(2)), (plan,))
        for name, _, state in seeds
    )
    return Observation(step, 100_000, 10, (1.0,) * 100, tuple(layers))


def rounds(end):
    """Seconds of every decision, over a channel whose ends `end` makes."""
    keys, local = Keys.parse(new_key("k1")), Tamiyo(TamiyoSettings(start_step=10**9))
    stop, ours, theirs = threading.Event(), end("run-1"), end(CONTROLLER)
    thread = threading.Thread(target=serve, args=(Controller(local, keys), theirs, stop), kwargs={"poll": 0.1})
    thread.start()
    policy = RemotePolicy(ours, keys, local=local, run="run-1", timeout=60)
    memory, spent = policy.start(), []
    for step in range(ROUNDS):
        seen = observation(10 * step)
        began = time.perf_counter()
        _, memory = policy(seen, memory)
        spent.append(time.perf_counter() - began)
    stop.set()
    thread.join()
    for channel in (ours, theirs):
        channel.close()
    return spent


def main():
    config = EsperConfig.from_yaml(sys.argv[1]) if sys.argv[1:] else None
    with tempfile.TemporaryDirectory() as folder:
        ends = {"in a process": Post().end, "folder": lambda inbox: FolderChannel(folder, inbox)}
        if config is not None and config.redis is not None:
            ends["Redis"] = lambda inbox: RedisChannel(config.redis, inbox, prefix="esper:benchmark")
        for name, end in ends.items():
            spent = rounds(end)
            worst = statistics.quantiles(spent, n=20)[-1]
            print(f"{name:<12}  median {1e3 * statistics.median(spent):6.1f} ms  95th percentile {1e3 * worst:6.1f} ms")


if __name__ == "__main__":
    main()
