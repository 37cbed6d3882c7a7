"""Puts `tests/` on the path, so that test modules share their helpers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "tests"))
