"""Puts `tests/` on the path, so that test modules share their helpers, and samples the operator sweep."""

import sys
from pathlib import Path
from zlib import crc32

sys.path.insert(0, str(Path(__file__).parent / "tests"))

SHARE = 4  # one operator case in so many runs by default, always the same ones


def pytest_addoption(parser):
    parser.addoption("--sweep", choices=["sample", "all"], default="sample", help="which operator cases to run")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--sweep") == "all":
        return
    left_out = [item for item in items if "tests/ops/" in item.nodeid and crc32(item.nodeid.encode()) % SHARE]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
