"""Floor 2: the Program, a framework-neutral dataflow graph, and everything that is plain data.

Only the standard library and numpy may be imported here: no torch, no jax.
"""

from esper.program.codec import SCHEMA_VERSION, dumps, loads
from esper.program.graph import (
    GRAFT,
    BindError,
    DType,
    InputSpec,
    Node,
    OutputSpec,
    Program,
    Ref,
    TensorType,
)
from esper.program.growth import Growth, Twin
from esper.program.recipe import Captured, Recipe
from esper.program.repeats import Block, Occurrence
from esper.program.signature import Signature, Static
from esper.program.site import LayerSite
from esper.program.tree import Tree, flatten, unflatten
from esper.program.verify import verify

__all__ = [
    "GRAFT",
    "SCHEMA_VERSION",
    "BindError",
    "Block",
    "Captured",
    "DType",
    "Growth",
    "InputSpec",
    "LayerSite",
    "Node",
    "Occurrence",
    "OutputSpec",
    "Program",
    "Recipe",
    "Ref",
    "Signature",
    "Static",
    "TensorType",
    "Tree",
    "Twin",
    "dumps",
    "flatten",
    "loads",
    "unflatten",
    "verify",
]
