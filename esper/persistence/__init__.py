"""Models and runs as files: safetensors and JSON under a manifest, written whole or not at all, read without torch."""

MALFORMED = (
    *(KeyError, TypeError, ValueError, AttributeError, IndexError),
    *(RecursionError, OverflowError, AssertionError, MemoryError),
)
"""What data that fit no format make Python raise, somewhere."""
