"""Models and runs as files: safetensors and JSON under a manifest, written whole or not at all, read without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from esper.errors import CorruptFileError, EsperError

MALFORMED = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError),
    *(RecursionError, OverflowError, AssertionError, MemoryError),
)
"""What data that fit no format make Python raise, somewhere."""


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """What Python raises meanwhile over data that fit no format is a CorruptFileError."""
    try:
        yield
    except EsperError:
        raise
    except MALFORMED as error:
        raise CorruptFileError(f"{folder} holds what esper does not write: {type(error).__name__}: {error}") from error
