"""Eight processes that put kernels into one library until they are killed: run by tests, as a program of its own.

`python writers.py CONFIG.json ACKNOWLEDGED SECONDS`: kills a writer at random again and again, and starts another in
its place. What a put has acknowledged is a line of the file ACKNOWLEDGED, written before anything else happens.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from library.places import artifact

import esper.library.rows
import esper.library.upkeep  # noqa: F401  what the writers need is there before they start
from esper.configs import EsperConfig
from esper.library import open_library

WRITERS = 8


def write(config, acknowledged, number):
    """Puts in kernels of which some are others' too, with tags of its own."""
    log = os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with open_library(EsperConfig(**config)) as library:
        for turn in range(1_000_000):
            shared = turn % 3 == 0
            kernel = artifact(turn if shared else 1000 * (number + 1) + turn)
            tag = f"w{number}-{turn}"
            library.put(kernel, tags=[tag], run=tag)
            os.write(log, f"{kernel.digest} {tag}\n".encode())


def main(config, acknowledged, seconds):
    numbers, running = iter(range(10_000)), {}

    def start():
        number = next(numbers)
        child = os.fork()
        if child == 0:
            try:
                write(config, acknowledged, number)
            finally:
                os._exit(1)  # a writer only ever ends by being killed
        running[child] = number

    for _ in range(WRITERS):
        start()
    dice, until, ended = random.Random(0), time.monotonic() + seconds, []
    while time.monotonic() < until or len(ended) < WRITERS:
        time.sleep(dice.uniform(0.02, 0.3))
        # One that has begun to write is killed anywhere in what it does next; before that there is nothing to lose.
        busy = {int(line.split()[1][1:].partition("-")[0]) for line in _lines(acknowledged)}
        ready = [child for child, number in running.items() if number in busy]
        if ready:
            ended.append(_killed(dice.choice(ready), running))
            start()
    ended += [_killed(child, running) for child in list(running)]
    sys.stdout.write(json.dumps({"killed": len(ended), "failed": sum(how != signal.SIGKILL for how in ended)}))


def _killed(child, running):
    os.kill(child, signal.SIGKILL)
    del running[child]
    return os.waitpid(child, 0)[1]


def _lines(file):
    return Path(file).read_text().splitlines() if os.path.exists(file) else []


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2], float(sys.argv[3]))
