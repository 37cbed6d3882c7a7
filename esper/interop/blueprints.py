"""Blueprints that are written in Flax: their registration."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from esper.errors import ArgumentError
from esper.jax_backend.flax_kernels import FLAX
from esper.program.catalogue import ANY, Blueprint

Recipe = Callable[..., Any]


def flax_blueprint(
    name: str,
    *,
    kinds: tuple[str, ...] = (ANY,),
    placement: str = "parallel",
    unless: tuple[str, ...] = (),
    torch: Recipe | None = None,
) -> Callable[[Recipe], Recipe]:
    """Registers the decorated recipe, which returns a module of `flax.linen` or `flax.nnx`.

    It takes the `LayerSite`, then options with defaults; a parameter `rngs` without a default is given an `nnx.Rngs`.
    The promise is that of every blueprint: exactly zero at birth and alive, so zero the weights of the last layer
    (`kernel_init`, `bias_init`) and leave the rest. The module takes one array and gives one, features last, beside
    convolutions too ([batch, *space, features]). It has parameters only: no batch statistics, no caches. Where its
    forward has an argument `train` or `deterministic` it is told the mode.
    `esper.growth.check.check_blueprint` tries a recipe on a model.

    Torch cannot run such kernels. `unwrap` needs a twin of them, `torch=`, and first tries it beside the kernel on
    random values; without one it refuses a model in which such a kernel takes part. `state_dict`, `load_state_dict` and
    `torch_module` refuse it in any case.

    Args:
        name: What it is called; no blueprint written in torch may have that name.
        kinds: Layer kinds, by the name of torch's class or a glob; "*", the default, is any that has no recipe of its
            own.
        placement: What the kernel is fed: "parallel" the layer's input, "sequential" its output.
        unless: Layer kinds it is not for, likewise.
        torch: Takes the site, {name: tensor}, the kernel's arrays as torch tensors, and the options; returns an
            `nn.Module` that holds these values and does the same, features where torch has them.

    Raises:
        ArgumentError: The name is taken, the placement unknown, or the recipe has parameters without a default.

    Example:
        >>> from flax import linen
        >>> from esper.interop import flax_blueprint
        >>> @flax_blueprint("flax_shift", placement="sequential")
        ... def shift(site):
        ...     return linen.Dense(site.features_out, kernel_init=linen.initializers.zeros)
    """
    if find_spec("torch") is not None:  # torch's own recipes are registered by being imported, and their names taken
        import_module("esper.torch_frontend.blueprints")

    def register(recipe: Recipe) -> Recipe:
        entry = Blueprint(name, recipe, kinds, placement, unless, torch)
        unknown = [needed for needed in entry.needs if needed != "rngs"]
        if unknown or "rngs" in entry.options:
            raise ArgumentError(
                f"blueprint {name!r}: a recipe takes the site, options with defaults, and `rngs` without one; "
                f"this one has {', '.join(unknown) or 'a default for rngs'}"
            )
        FLAX.add(entry)
        return recipe

    return register
