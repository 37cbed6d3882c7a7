"""Trained kernels as immutable artifacts by content, with a catalogue to find them in.

| module | holds |
|---|---|
| `library` | `Library`: put, get, find, compare, retire, verify, gc |
| `opening` | `open_library`: from a path or a configuration |
| `entries` | `Entry` and the other plain data; what comes from outside, checked |
| `arguments` | numbers and texts that callers give, checked |
| `content` | an artifact as one safetensors file, and back |
| `blobs` | objects in a folder or a bucket |
| `catalogue`, `schema`, `migrations` | the database: connection, tables, how it comes to have them |
| `rows`, `queries` | what is written into it, and asked of it |
| `upkeep` | `verify` and `gc` |
| `publishing`, `files` | a model's kernel with all that is known of it; artifacts as files of their own |

SQLAlchemy, alembic and obstore are an extra (`pip install "esper[library]"`), imported where a library is opened.
"""

from esper.library.entries import Collected, Comparison, Entry, Measured, Origin, Verified
from esper.library.library import Library
from esper.library.opening import open_library

__all__ = [
    "Collected",
    "Comparison",
    "Entry",
    "Library",
    "Measured",
    "Origin",
    "Verified",
    "open_library",
]
