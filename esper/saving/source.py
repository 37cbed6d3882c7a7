"""A saved model's Programs, where PyTorch and the user's code need not be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import SeedError, StateError, TraceError, UnknownBlueprintError, WrapError
from esper.jax_backend.evaluate import evaluate
from esper.jax_backend.interchange import wide
from esper.program import BindError, Captured, Growth, LayerSite, Program, Recipe, Signature, TensorType


@dataclass(frozen=True)
class SavedSprout:
    """A kernel that has just been drawn, by a recipe that came with the model.

    Attributes:
        source: Where its Programs come from.
        params: Its initial parameters by torch name.
        placement: What it is fed.
        options: The recipe's options, defaults included.
        copied: Parameters that start from the host's: the kernel's name to the host's.
    """

    source: SavedSource
    params: Mapping[str, np.ndarray]
    placement: str
    options: tuple[tuple[str, Any], ...]
    copied: Mapping[str, str]


class SavedSource:
    """Programs that came from a file, as a source of Programs.

    Equality is identity, as with every source: it stands for one module.

    Attributes:
        description: The module's parts and their settings, as text.
        captures: The calls that there are Programs for.
        constants: What the Programs close over, by name.
        recipes: What can germinate beside the module's layers.
        carried: What the backend made of the constants.
        modes: The training flag of each of the module's parts when it was wrapped.
        traces: How many captures were made: none.
    """

    def __init__(
        self,
        description: str,
        captures: Sequence[Captured],
        constants: Mapping[str, np.ndarray],
        recipes: Sequence[Recipe] = (),
        modes: Mapping[str, bool] | None = None,
    ) -> None:
        self.description, self.captures, self.recipes = description, tuple(captures), tuple(recipes)
        self.constants, self.modes = dict(constants), dict(modes or {})
        self.carried: dict[str, Any] = {}
        self.traces = 0
        self._met: dict[Signature, Program] = {}

    @property
    def programs(self) -> tuple[Program, ...]:
        """Every Program there is."""
        return tuple(program for _, program in self.captures)

    def program(self, signature: Signature) -> Program:
        """The Program that covers a call.

        Raises:
            TraceError: There is none.
        """
        if signature not in self._met:
            self._met[signature] = self._covering(signature)
        return self._met[signature]

    def _covering(self, signature: Signature) -> Program:
        for call, program in self.captures:
            if call.family == signature.family and _covers(program, signature):
                return program
        known = "\n".join(f"  {_told(call)}" for call, _ in self.captures)
        raise TraceError(
            f"the model was saved without a Program for {_told(signature)}; it has Programs for\n{known}\nwith other "
            "batch sizes where they allow that. Call the model so before it is saved, or load it with `module=`, which "
            "captures new ones"
        )

    def in_both_modes(self) -> tuple[Captured, ...]:
        """The captures: nothing is captured anew here."""
        return self.captures

    def exportable(self, tensor: Any, place: str) -> np.ndarray:
        """A numpy view of a tensor."""
        if isinstance(tensor, np.ndarray):
            return tensor
        from esper.torch_frontend.arrays import exportable

        return exportable(tensor, place, wide())

    def lend(self, tensor: Any, place: str) -> Any:
        """What DLPack reads of a torch tensor without a copy, or a numpy array of one."""
        from esper.torch_frontend.arrays import lend

        return lend(tensor, place, wide())

    def borrow(self, array: Any, dtype: str | None = None) -> Any:
        """A torch tensor on an array's memory."""
        from esper.torch_frontend.arrays import borrow

        return borrow(array, dtype)

    def to_foreign(self, array: Any, dtype: str | None = None) -> Any:
        """A torch tensor from an array."""
        from esper.torch_frontend.arrays import to_torch

        return to_torch(array, dtype)

    def state_dict(self, arrays: Mapping[str, Any], growths: Sequence[Growth]) -> dict[str, Any]:
        """Refused: the keys are the module's to give."""
        raise StateError(_no_module("its state_dict"))

    def load_state_dict(
        self, arrays: Mapping[str, Any], growths: Sequence[Growth], given: Any, strict: bool
    ) -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
        """Refused: the keys are the module's to read."""
        raise StateError(_no_module("load_state_dict"))

    def template(self) -> Any:
        """Refused: there is no module to copy."""
        raise WrapError(_no_module("a torch module"))

    def calls(self) -> list[Signature]:
        """One signature for each kind of call, all in evaluation mode."""
        return [call for call, _ in self.captures if not call.train]

    @property
    def narrowed(self) -> bool:
        """Whether 64-bit floats of the module are carried in 32 bits: what is in the file is what there is."""
        return False

    def sprout(
        self, blueprint: str, site: LayerSite, options: Mapping[str, Any], entropy: int | None, blend: str = "add"
    ) -> SavedSprout:
        """Draws a kernel for a layer, by a recipe that came with the model.

        Raises:
            UnknownBlueprintError: There is no such recipe for this layer.
            SeedError: It came with other options.
        """
        recipe = self._recipe(blueprint, site, options, gated=blend == "gate")
        source = SavedSource(recipe.description, recipe.captures, recipe.constants)
        copied = {own: self._held(f"{site.name}.{name}".lstrip(".")) for own, name in recipe.copied.items()}
        specs = [spec for _, program in recipe.captures for spec in program.inputs if spec.kind == "param"]
        types = {spec.target: spec.type for spec in specs} | _birth_types(recipe)
        params: dict[str, np.ndarray] = {name: _zeros(kind) for name, kind in types.items()}
        if entropy is not None:
            params |= _drawn(recipe, entropy)
        return SavedSprout(source, params, recipe.placement, recipe.options, copied)

    def _held(self, name: str) -> str:
        """The name that holds a parameter which has several."""
        return next((program.aliases[name] for program in self.programs if name in program.aliases), name)

    def recipe(
        self,
        blueprint: str,
        site: LayerSite,
        options: Mapping[str, Any],
        gated: bool,
        fed: Sequence[tuple[TensorType, TensorType]],
    ) -> Recipe:
        """The recipe that came with the model; as `sprout`."""
        return self._recipe(blueprint, site, options, gated)

    @property
    def learns(self) -> bool:
        """Kernels can be built by recipes that come later."""
        return True

    def learn(self, recipe: Recipe) -> None:
        """Takes a recipe that came with a kernel; it goes along when the model is saved."""
        self.recipes = (*self.recipes, recipe)

    def taught(self, recipe: Recipe) -> SavedSource:
        """The same model, with that recipe alone."""
        return SavedSource(self.description, self.captures, self.constants, [recipe], self.modes)

    def sizes(self, blueprint: str, site: LayerSite, options: Mapping[str, Any], blend: str) -> None:
        """Left to `sprout`: the recipes that are here have sizes of their own, and zeros take no memory."""

    def blueprints(self, kind: str) -> tuple[str, ...]:
        """The blueprints that came with the model for layers of this kind."""
        return tuple(dict.fromkeys(recipe.blueprint for recipe in self.recipes if recipe.site.kind == kind))

    def _recipe(self, blueprint: str, site: LayerSite, options: Mapping[str, Any], gated: bool) -> Recipe:
        serving = [recipe for recipe in self.recipes if recipe.serves(site) and recipe.gated == gated]
        named = [recipe for recipe in serving if recipe.blueprint == blueprint]
        if not named:
            known = ", ".join(dict.fromkeys(recipe.blueprint for recipe in serving)) or "none"
            raise UnknownBlueprintError(
                f"the model was saved without blueprint {blueprint!r}{' behind a gate' if gated else ''} for layer "
                f"{site.name!r} ({site.kind}); with it came: {known}. Save it with `blueprints=[{blueprint!r}]`, or "
                "load it with `module=`"
            )
        found = [recipe for recipe in named if recipe.offers(options)]
        if not found:
            known = "; ".join(str(dict(recipe.options)) for recipe in named)
            raise SeedError(
                f"the model was saved with blueprint {blueprint!r} for layer {site.name!r} with the options {known}, "
                f"not with {dict(options)}. Save it with `blueprints=[({blueprint!r}, {dict(options)})]`, or load it "
                "with `module=`"
            )
        return found[0]


def _zeros(kind: TensorType) -> np.ndarray:
    return np.zeros([int(size) for size in kind.shape], jnp.dtype(kind.dtype))


def _told(call: Signature) -> str:
    return f"{call}{' in training mode' if call.train else ''}"


def _birth_types(recipe: Recipe) -> dict[str, TensorType]:
    made = zip(recipe.names, recipe.birth.outputs, strict=True)
    return {name: recipe.birth.types[spec.value.name] for name, spec in made}


def _drawn(recipe: Recipe, entropy: int) -> dict[str, np.ndarray]:
    """First values of a kernel, but for those that it takes from the host."""
    constants = {name: jnp.asarray(array) for name, array in recipe.constants.items()}
    drawn, _ = evaluate(recipe.birth, {}, {}, [], jax.random.key(entropy), constants=constants)
    return {name: np.asarray(array) for name, array in zip(recipe.names, drawn, strict=True)}


def _no_module(what: str) -> str:
    return (
        f"{what} needs the torch module that the model was made of, and this one was loaded without: "
        "esper.load(path, module=...) with an instance of it"
    )


def _covers(program: Program, signature: Signature) -> bool:
    try:
        program.bind(signature.shapes)
    except BindError:
        return False
    return True
