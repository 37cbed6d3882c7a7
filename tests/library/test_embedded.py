"""The contract on SQLite and a folder."""

from library.contract import *  # noqa: F403
