"""A policy for tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Script:
    """A policy that does what is written down for each time it is asked."""

    actions: tuple

    def start(self):
        return 0

    def __call__(self, observation, place):
        return self.actions[place] if place < len(self.actions) else (), place + 1
