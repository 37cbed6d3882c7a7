"""The contract for places that need no server."""

import pytest

from esper.telemetry import Jsonl, Subscriber, read
from telemetry.contract import *  # noqa: F403  the tests


class InFile:
    name = "jsonl"

    def __init__(self, folder):
        self.path = folder / "a run" / "history.jsonl"

    def sink(self):
        return Jsonl(self.path)

    def again(self):
        return Jsonl(self.path, resume=True)

    def events(self):
        return read(self.path)


class InProcess:
    name = "subscriber"

    def __init__(self, folder):
        self.kept = []

    def sink(self):
        return Subscriber(self.kept.append)

    def again(self):
        return None

    def events(self):
        return self.kept


@pytest.fixture(params=[InFile, InProcess], ids=["jsonl", "in-process"])
def place(request, tmp_path):
    return request.param(tmp_path)
