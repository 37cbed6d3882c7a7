"""Models on several devices: `esper.shard` and its rules, batches and optimiser states that follow.

A sharded model is the same pytree, its arrays placed by `NamedSharding`, and a `Placement` in its structure that keeps
them there; XLA's partitioner does the rest. The floors below know of it only that there may be one.
"""

from esper.sharding.explain import ShardedArray, ShardingReport, explain_sharding
from esper.sharding.presets import data_parallel, fsdp, tensor_parallel
from esper.sharding.verbs import place_batch, place_local_batch, place_state, shard

__all__ = [
    "ShardedArray",
    "ShardingReport",
    "data_parallel",
    "explain_sharding",
    "fsdp",
    "place_batch",
    "place_local_batch",
    "place_state",
    "shard",
    "tensor_parallel",
]
