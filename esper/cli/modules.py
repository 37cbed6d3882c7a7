"""Where a command finds the modules that a user names."""

from __future__ import annotations

import sys
from pathlib import Path


def find_user_modules() -> None:
    """MODULE:FACTORY is looked for in the working directory too, as `python -m` would."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
