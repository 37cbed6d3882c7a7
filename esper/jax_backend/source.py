"""What the backend asks of the place Programs come from; the torch frontend answers, a saved model may too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from esper.jax_backend.cache import KernelCache
from esper.jax_backend.remat import Remat
from esper.program import GRAFT, Captured, Growth, LayerSite, Program, Recipe, Signature, TensorType, Twin

if TYPE_CHECKING:  # an artifact is taken out of a model, and a model has a structure
    from esper.jax_backend.artifact import KernelArtifact


class Exporter(Protocol):
    """What gives values of foreign tensors."""

    def exportable(self, tensor: Any, place: str) -> np.ndarray:
        """A numpy view of a foreign tensor."""
        ...


class NativeKernel(ABC):
    """A kernel that was written for JAX: it runs by itself, and has no Program.

    Attributes:
        description: As of a `ModuleSource`.
        twin: What makes a module of torch's of it; None: torch cannot run it.
    """

    description: str
    twin: Twin | None

    @abstractmethod
    def exportable(self, tensor: Any, place: str) -> np.ndarray:
        """A numpy view of one of its initial parameters."""

    @abstractmethod
    def run(self, params: Mapping[str, jax.Array], fed: Any, *, train: bool, key: jax.Array | None) -> jax.Array:
        """What it gives, in torch's order of dimensions, of what it is fed, in that or with channels last."""


class Sprout(Protocol):
    """A kernel that has just been built: where its Programs come from, its initial parameters, its recipe's options."""

    @property
    def source(self) -> KernelSource:
        """What runs it."""
        ...

    @property
    def params(self) -> Mapping[str, Any]:
        """Its initial parameters by torch name, as foreign tensors."""
        ...

    @property
    def placement(self) -> str:
        """What it is fed."""
        ...

    @property
    def options(self) -> tuple[tuple[str, Any], ...]:
        """The recipe's options, defaults included."""
        ...

    @property
    def copied(self) -> Mapping[str, str]:
        """Parameters that start from the host's: the kernel's name to the host's."""
        ...


class ModuleSource(Protocol):
    """A source of Programs for one module. `carried` caches the JAX copies of `constants`; `modes` are its parts'."""

    carried: dict[str, Any]
    modes: dict[str, bool]
    traces: int

    @property
    def constants(self) -> Mapping[str, Any]:
        """The foreign tensors that captures close over, by name."""
        ...

    @property
    def programs(self) -> tuple[Program, ...]:
        """Every Program captured so far."""
        ...

    @property
    def captures(self) -> tuple[Captured, ...]:
        """Every Program captured so far, with the call that it was captured for."""
        ...

    def in_both_modes(self) -> tuple[Captured, ...]:
        """The captures, in training and in evaluation mode where the module can be captured there too."""
        ...

    @property
    def description(self) -> str:
        """The module's parts and their settings, as text: equal for modules that were built alike."""
        ...

    def program(self, signature: Signature) -> Program:
        """The Program that covers a call."""
        ...

    def exportable(self, tensor: Any, place: str) -> np.ndarray:
        """A numpy view of a foreign tensor."""
        ...

    def lend(self, tensor: Any, place: str) -> Any:
        """What DLPack reads of a foreign tensor without a copy; a numpy array of a copy where that is not to be had."""
        ...

    def borrow(self, array: Any, dtype: str | None) -> Any:
        """A foreign tensor on the memory of an array that nobody else has, cast if it is of another dtype."""
        ...

    def to_foreign(self, array: Any, dtype: str | None) -> Any:
        """A foreign tensor from an array."""
        ...

    def state_dict(self, arrays: Mapping[str, Any], growths: Sequence[Growth]) -> dict[str, Any]:
        """Foreign tensors under the module's own keys."""
        ...

    def load_state_dict(
        self, arrays: Mapping[str, Any], growths: Sequence[Growth], given: Any, strict: bool
    ) -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
        """Foreign tensors of host and kernels by name, after a checkpoint was read; which keys did not match."""
        ...

    def sprout(
        self, blueprint: str, site: LayerSite, options: Mapping[str, Any], entropy: int | None, blend: str = "add"
    ) -> Sprout:
        """Builds a kernel for a layer; its values are drawn from `entropy`, None where nobody looks at them."""
        ...

    def recipe(
        self,
        blueprint: str,
        site: LayerSite,
        options: Mapping[str, Any],
        gated: bool,
        fed: Sequence[tuple[TensorType, TensorType]],
    ) -> Recipe:
        """A blueprint for a layer, as plain data; `fed` is what the layer has taken and given."""
        ...

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """The blueprints that came along as plain data; where they are made as they are asked for, none."""
        ...

    @property
    def learns(self) -> bool:
        """Whether kernels can be built here by a recipe that came as plain data."""
        ...

    def learn(self, recipe: Recipe) -> None:
        """Takes a recipe among those that kernels are built by."""
        ...

    def taught(self, recipe: Recipe) -> ModuleSource:
        """This source as it would be with that recipe alone; itself it learns nothing."""
        ...

    def sizes(
        self, blueprint: str, site: LayerSite, options: Mapping[str, Any], blend: str
    ) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        """Dtypes and shapes of a kernel's parameters, had without memory for them; None: they show when it is built."""
        ...

    def blueprints(self, kind: str) -> tuple[str, ...]:
        """The blueprints for layers of this kind."""
        ...


KernelSource = ModuleSource | NativeKernel
"""What runs a kernel: its Programs, or itself."""


class Supply(Protocol):
    """Where trained kernels are had from that are not in a model's cache; `esper.library` answers."""

    def get(self, digest: str) -> KernelArtifact:
        """The artifact of a digest, or of the one digest that begins so."""
        ...

    def fetch(self, digest: str) -> Future[KernelArtifact]:
        """The same, in the background."""
        ...


class Placement(Protocol):
    """Where the arrays of a model lie on several devices; `esper.sharding` answers. It is hashable."""

    def constrained(self, model: Any) -> Any:
        """The model with its arrays kept where they belong, within a compiled function."""
        ...

    def kept(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters and buffers by name, kept likewise."""
        ...

    def split(self, program: Program, tensors: Sequence[Any]) -> list[Any]:
        """The inputs of a Program with their batch split, within a compiled function."""
        ...

    def kernel(self, layer: str, seed: int, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of a kernel that enters, placed."""
        ...


@dataclass(frozen=True)
class Kernel:
    """A kernel's place and recipe, static and hashable: equal kernels share compiled programs.

    Attributes:
        layer: Name of the layer.
        seed: Which of the layer's seeds holds it.
        blueprint: Name of the recipe.
        options: The recipe's options.
        site: The layer it was built for.
        placement: "parallel" (fed the layer's input) or "sequential" (fed its output).
        blend: How it joins the layer's output: "add", "lerp", "multiply" or "gate".
        source: What runs it.
    """

    layer: str
    seed: int
    blueprint: str
    options: tuple[tuple[str, Any], ...]
    site: LayerSite
    placement: str
    blend: str
    source: KernelSource = field(compare=False, repr=False)


@dataclass(frozen=True)
class Structure:
    """The static half of a model: all that, when it changes, means another compiled program.

    Attributes:
        source: Where the host's Programs come from.
        sites: The layers that can hold seeds, in order.
        kernels: The kernels there are, ordered by layer and seed.
        seeds_per_layer: Seeds of each layer.
        cache: Trained kernels kept on the device, by content; one for a wrapped model and all that it becomes. It
            changes how soon a kernel is found and never what is computed, so it takes no part in equality.
        library: Where kernels come from that are not in the cache; None: nowhere. No part of equality, as the cache.
        shadow: Whether this is the isolation pass, which moves no buffers.
        placement: Where the arrays lie on several devices; None: on one.
        remat: The blocks whose insides a backward computes again; None: it keeps them all.
        share_blocks: Whether equal blocks are traced once.
    """

    source: ModuleSource
    sites: tuple[LayerSite, ...]
    cache: KernelCache = field(repr=False)
    kernels: tuple[Kernel, ...] = ()
    seeds_per_layer: int = 4
    shadow: bool = False
    placement: Placement | None = None
    remat: Remat | None = None
    share_blocks: bool = True
    library: Supply | None = field(default=None, repr=False)

    def row(self, layer: str) -> int:
        """The layer's row in the seed state."""
        return [site.name for site in self.sites].index(layer)

    def site(self, layer: str) -> LayerSite:
        """The layer, with the shapes of what it takes and gives if a capture has shown them."""
        site = self.sites[self.row(layer)]
        shapes = next((found for program in self.source.programs for found in _shapes(program, layer)), None)
        return replace(site, input=shapes[0], output=shapes[1]) if shapes else site

    def __eq__(self, other: object) -> bool:
        # The source is its module's identity: two wraps are two structures, whatever they hold. Cache and library are
        # one's own too, and no part of what is computed.
        if self is other:
            return True
        return (
            isinstance(other, Structure)
            and self.source is other.source
            and self.kernels == other.kernels
            and (self.sites, self.seeds_per_layer, self.shadow) == (other.sites, other.seeds_per_layer, other.shadow)
            and (self.placement, self.remat) == (other.placement, other.remat)
            and self.share_blocks == other.share_blocks
        )

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((id(self.source), self.kernels, self.shadow))


def _shapes(program: Program, layer: str) -> Iterator[tuple[tuple[int | str, ...], tuple[int | str, ...]]]:
    """Shapes of what `layer` takes and gives at each of its calls, those in bodies included."""
    for node in program.nodes:
        if node.op == GRAFT and node.args[2] == layer:
            output, input = (program.types[value.name] for value in node.args[:2])
            if isinstance(input, TensorType) and isinstance(output, TensorType):
                yield input.shape, output.shape
        for body in node.bodies():
            yield from _shapes(body, layer)
