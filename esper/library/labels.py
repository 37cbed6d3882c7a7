"""What a kernel is found by that no column of its own says, as the bits of one number.

A row without all the bits of what is asked for need not be looked at any more, which an index alone can tell; one that
has them may have them by chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from esper.library.entries import canonical

Label = tuple[str, ...]
"""What sort it is of, and its names: a tag, a run, an attribute and its value, the layers that it fits."""

_BITS = 63  # of a database's signed 64-bit number


def bits(labels: Iterable[Label]) -> int:
    """The number that has two bits of each label (a Bloom filter: Bloom, 1970)."""
    found = 0
    for label in labels:
        for place in hashlib.sha256(canonical(label).encode()).digest()[:2]:
            found |= 1 << place % _BITS
    return found
