"""Small runs under remote control, and controllers that answer at once, for tests."""

import threading
from collections import deque
from contextlib import contextmanager
from functools import cache

import jax
import numpy as np
import optax
import torch
from torch import nn

import esper
from esper.configs import TamiyoSettings
from esper.control import Controller, Keys, RemotePolicy, serve
from esper.errors import MessageError
from esper.growth.policy import LayerView, Observation, Plan, SeedView
from esper.growth.tamiyo import Tamiyo
from esper.lifecycle import SeedLifecycleState as S

KEY = jax.random.key(7)
TX = optax.adamw(0.01)
KEYS = Keys("k1", {"k1": bytes(range(32))})
GROWTH = TamiyoSettings(
    blend_steps=5, patience=1, min_delta=10, train_steps=5, hold_steps=5, embargo_steps=10, kernel_warmup_steps=2
)
OTHER = GROWTH.model_copy(update={"start_step": 20, "min_gain": 0.0, "blend_steps": 10})
EVENTS = ("remote", "rejected")
PLAN = Plan("mlp", (("width", 4),), 53)


@cache
def examples():
    inputs = np.random.default_rng(5).standard_normal((96, 6)).astype(np.float32)
    return inputs, (inputs @ np.random.default_rng(6).standard_normal((6, 3))).argmax(-1)


@cache
def model():
    torch.manual_seed(0)
    return esper.wrap(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), seeds_per_layer=2)


def run(policy=None, **changes):
    kept = {"tx": TX, "steps": 40, "key": KEY, "batch_size": 16, "every": 5, "validation": examples()}
    return esper.fit(
        changes.pop("model", model()), examples(), **{**kept, "growth": GROWTH, "policy": policy, **changes}
    )


@cache
def alone():
    """The run that the local default decides."""
    return run()


class Direct:
    """A channel whose controller is called where a question is put; without an answer there is none at once."""

    def __init__(self, answers):
        self.answers, self.inbox, self.asked = answers, deque(), 0

    def send(self, to, message, about=""):
        self.asked += 1
        self.inbox.extend(self.answers(message))

    def receive(self, timeout, about=""):
        return self.inbox.popleft() if self.inbox else None

    def close(self):
        pass


def controlled(policy=None, keys=KEYS):
    """What answers a message."""
    controller = Controller(policy or Tamiyo(GROWTH), keys)

    def answers(message):
        return [controller.answer(*found) for found in controller.questions([message])]

    return answers


def remote(answers, **changes):
    local = changes.pop("local", Tamiyo(GROWTH))
    return RemotePolicy(Direct(answers), changes.pop("keys", KEYS), local=local, run="run-1", **changes)


def seen(*seeds, step=10, losses=(1.0,)):
    """An observation of one layer."""
    held = seeds or (SeedView("0", 0, S.DORMANT),)
    return Observation(step, 1000, 5, losses, (LayerView("0", "Linear", 1.0, held, (PLAN,)),))


def leaves(result):
    held = (result.model.params, result.model.buffers, result.model.seeds, result.opt_state)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(held)]


def bit_equal(left, right):
    """Also what was done, and why."""
    pairs = zip(leaves(left), leaves(right), strict=True)
    arrays = all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)
    return arrays and left.losses == right.losses and deeds(left) == deeds(right)


def deeds(result):
    kept = [r for r in result.records if r.event not in (*EVENTS, "start", "resume", "end")]
    # A change of settings says where they are those of the local default alone, and is the same change.
    return [(r.step, r.event, r.reason.partition(", for the local default only")[0], r.layer, r.seed) for r in kept]


def told(result, event):
    return [record.reason for record in result.records if record.event == event]


def refusal(call, *given):
    """The kind of the error that a call raises."""
    try:
        call(*given)
    except MessageError as error:
        return error.kind
    return "accepted"


@contextmanager
def serving(channel):
    """A controller answers in a thread meanwhile; the end of its channel stays open."""
    stop = threading.Event()
    given = (Controller(Tamiyo(GROWTH), KEYS), channel, stop)
    thread = threading.Thread(target=serve, args=given, kwargs={"poll": 0.05})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
