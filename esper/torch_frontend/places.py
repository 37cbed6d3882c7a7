"""Where in the user's code something stands."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = str(Path(torch.__file__).parent)
_ESPER = str(Path(__file__).parent.parent)


def user_line(stack: str | None = None) -> str:
    """The innermost line of `stack` (default: the running one) that is neither torch's nor esper's, as "file.py:41".

    Lines of torch's own modules count when there is no other.
    """
    if stack is None:
        frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_stack()]
    else:
        frames = _FRAME.findall(stack)
    real = [(path, line) for path, line in frames if not path.startswith(("<", _ESPER))]
    own = [(path, line) for path, line in real if not path.startswith(_TORCH) and "site-packages" not in path]
    packaged = [(path, line) for path, line in real if not path.startswith(_TORCH)]
    modules = [(path, line) for path, line in real if path.startswith(f"{_TORCH}/nn/modules")]
    for found in (own, packaged, modules):
        if found:
            path, line = found[-1]
            return f"{Path(path).name}:{line}"
    return ""
