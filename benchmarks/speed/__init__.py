"""How fast esper trains and infers, beside eager torch, torch.compile, JAX written by hand, and the tracing bridges.

`python -m benchmarks.speed` measures everything and writes docs/performance.md.
"""
