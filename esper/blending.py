"""How a kernel joins its layer: one formula for JAX's arrays and torch's tensors.

With h what the layer gives (or the kernel before made of it), k the kernel and a its alpha:

| blend    | gives                                                               |
|----------|---------------------------------------------------------------------|
| add      | h + a k                                                             |
| lerp     | h + a (k - h): at alpha 1 the kernel takes the layer's place        |
| multiply | h (1 + a k)                                                         |
| gate     | h + a sigmoid(g) k, g the kernel's own linear map of what it is fed |
"""

from __future__ import annotations

from typing import Any

BLENDS = ("add", "lerp", "multiply", "gate")


def joined(blend: str, output: Any, alpha: Any, made: Any) -> Any:
    """The layer's output with a kernel in it; the gate of "gate" is part of the kernel."""
    match blend:
        case "lerp":
            return output + alpha * (made - output)
        case "multiply":
            return output * (1 + alpha * made)
        case _:
            return output + alpha * made
