"""Floor 5: how far a model and the module that was made of it are apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import ParityError
from esper.jax_backend.call import arguments
from esper.jax_backend.devices import whole
from esper.jax_backend.interchange import is_foreign, to_array
from esper.jax_backend.kernels import kernel_output
from esper.jax_backend.model import MorphableModel
from esper.parity import Agreement, compare, tolerance
from esper.program import Growth, Twin, flatten, unflatten

if TYPE_CHECKING:
    from esper.torch_frontend.hosted import Module
    from esper.torch_frontend.probe import Place, Slope

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Certificate:
    """What comparing a model with its unwrapped module measured, in evaluation mode.

    Gradients are those of one random sum of all floating-point outputs, to floating-point inputs and to the parameters
    that both have with the same values; what `fold` has merged is not among them.

    Attributes:
        max_abs: Largest absolute difference of any output.
        max_rel: The same, relative to the output's largest magnitude.
        scaled: The same, relative to that magnitude or 1, whichever is larger; what the tolerance is for.
        dtype: The least precise floating dtype among the outputs.
        calls: How many calls were compared.
        gradient_abs: As `max_abs`, of gradients; None: they were not compared, or there are none.
        gradient_rel: As `max_rel`.
        gradient_scaled: As `scaled`.
        gradients: How many gradients were compared.
    """

    max_abs: float
    max_rel: float
    scaled: float
    dtype: str
    calls: int
    gradient_abs: float | None = None
    gradient_rel: float | None = None
    gradient_scaled: float | None = None
    gradients: int = 0

    @property
    def holds(self) -> bool:
        """Whether all is within the tolerance of the dtype."""
        close = self.scaled <= tolerance(self.dtype)
        return close and (self.gradient_scaled or 0.0) <= tolerance(self.dtype, gradient=True)


def certificate(
    model: MorphableModel, module: Module, probe: Any = None, *, gradients: bool = True
) -> Certificate | None:
    """Compares the outputs of a model and of a module, and their gradients; None if there is nothing to compare on.

    Args:
        model: A wrapped model.
        module: What `unwrap` gave, or any module with the same inputs and outputs.
        probe: Inputs to compare on (as `example_inputs` of `wrap`); None draws random ones for each
            evaluation-mode Program captured so far.
        gradients: Whether to compare gradients too, for which a backward is compiled.

    Example:
        >>> import esper, torch
        >>> model = esper.wrap(torch.nn.Linear(3, 2))
        >>> esper.certificate(model, esper.unwrap(model), torch.ones(5, 3)).holds
        True
    """
    calls = [arguments(probe)] if probe is not None else _probes(model)
    gaps: list[Agreement] = []
    slopes: list[Agreement] = []
    dtypes: list[str] = []
    for args, kwargs in calls:
        for actual, expected in _outputs(model, module, args, kwargs):
            gaps.append(compare(_numpy(actual), _numpy(expected)))
            dtypes += [str(value.dtype).removeprefix("torch.") for value in (actual, expected)]
        if gradients:
            slopes += _gradients(model, module, args, kwargs)
    if not gaps:
        return None
    return Certificate(
        max_abs=max(gap.max_abs for gap in gaps),
        max_rel=max(gap.max_rel for gap in gaps),
        scaled=max(gap.scaled for gap in gaps),
        dtype=max(dtypes, key=tolerance),
        calls=len(calls),
        gradient_abs=max((gap.max_abs for gap in slopes), default=None),
        gradient_rel=max((gap.max_rel for gap in slopes), default=None),
        gradient_scaled=max((gap.scaled for gap in slopes), default=None),
        gradients=len(slopes),
    )


def check_twins(growths: Sequence[Growth]) -> None:
    """Tries the twins in torch of kernels that are written in Flax, with random values for inputs and parameters.

    A kernel that has not trained yet gives zeros whatever its first layers do, so its own values would show little.

    Raises:
        ParityError: A twin does something else than its kernel.
    """
    from esper.torch_frontend.twins import twin_output

    for growth in growths:
        if growth.twin is None:
            continue
        draw = np.random.default_rng(0)
        arrays = {name: (0.5 * draw.standard_normal(a.shape)).astype(np.float32) for name, a in growth.params.items()}
        x = _fed(growth.twin, draw)
        own = {name: jnp.asarray(array) for name, array in arrays.items()}
        wanted = np.asarray(kernel_output(growth.source, own, jnp.asarray(x), train=False))
        found = twin_output(growth.twin, growth.blueprint, arrays, x)
        gap = compare(found, wanted).scaled if found.shape == wanted.shape else np.inf
        if not gap <= tolerance("float32"):
            raise ParityError(
                f"layer {growth.layer!r}, seed {growth.seed}: on random values of shape {list(x.shape)} the twin of "
                f"blueprint {growth.blueprint!r} gives {list(found.shape)} and the kernel {list(wanted.shape)}, "
                f"{gap:.2g} apart; correct the `torch=` of its registration"
            )


def _fed(twin: Twin, draw: np.random.Generator) -> np.ndarray:
    """Something for a kernel to read."""
    (_, *sizes), dtype = twin.site.fed(twin.placement)
    if dtype == "int32":
        return draw.integers(0, twin.site["num_embeddings"], (3, *sizes), dtype=np.int32)
    return draw.standard_normal((3, *sizes)).astype(np.float32)


def _outputs(model: MorphableModel, module: Module, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """The outputs of both that are tensors, by pairs."""
    from esper.torch_frontend.probe import evaluating

    with evaluating(module) as run:
        wanted, _ = flatten(run(*args, **kwargs))
    found, _ = flatten(model(*args, **kwargs))
    return [(a, e) for a, e in zip(found, wanted, strict=True) if hasattr(e, "detach")]


def _gradients(model: MorphableModel, module: Module, args: Any, kwargs: Any) -> list[Agreement]:
    """The gradients of both to what both have."""
    from esper.torch_frontend.probe import gradients

    source, (leaves, tree) = model.structure.source, flatten((args, dict(kwargs)))
    expected = gradients(module, leaves, tree, _cotangent)
    arrays = [to_array(source, leaf, "the probe") for leaf in leaves]
    plain = [leaf if array is None else array for leaf, array in zip(leaves, arrays, strict=True)]

    def floating(params: Any, inputs: Mapping[int, jax.Array]) -> list[jax.Array]:
        args, kwargs = unflatten(tree, [inputs.get(place, leaf) for place, leaf in enumerate(plain)])
        outputs, _ = flatten(_with(model, params)(*args, **kwargs))
        return [y for y in outputs if isinstance(y, jax.Array) and jnp.issubdtype(y.dtype, jnp.floating)]

    inputs = {place: plain[place] for place in expected.inputs}
    outputs, pull = jax.vjp(floating, _common(model, expected.params), inputs)
    params, of_inputs = pull([jnp.asarray(_cotangent(place, y.shape), y.dtype) for place, y in enumerate(outputs)])
    pairs = [(slope, expected.params[place].slope) for place, slope in _flat(params)]
    pairs += [(slope, expected.inputs[place]) for place, slope in of_inputs.items()]
    return [compare(_numpy(actual), _numpy(wanted)) for actual, wanted in pairs]


def _common(model: MorphableModel, theirs: Mapping[Place, Slope]) -> dict[str, Any]:
    """The parameters of the model that the module has with the same values, as the model keeps them."""
    source = model.structure.source
    common: dict[str, Any] = {"host": {}, "kernels": {}}
    for (layer, seed, name), found in theirs.items():
        held = model.params["host"] if seed is None else model.params["kernels"].get(layer, {}).get(seed, {})
        if name in held and np.array_equal(source.exportable(found.value, name), np.asarray(whole(held[name]))):
            place = common["host"] if seed is None else common["kernels"].setdefault(layer, {}).setdefault(seed, {})
            place[name] = held[name]
    return common


def _flat(params: Mapping[str, Any]) -> Iterator[tuple[Place, jax.Array]]:
    yield from ((("", None, name), slope) for name, slope in params["host"].items())
    for layer, seeds in params["kernels"].items():
        for seed, held in seeds.items():
            yield from (((layer, seed, name), slope) for name, slope in held.items())


def _with(model: MorphableModel, params: Mapping[str, Any]) -> MorphableModel:
    """The model with these parameters in the place of its own."""
    kernels = {layer: dict(seeds) for layer, seeds in model.params["kernels"].items()}
    for layer, seeds in params["kernels"].items():
        for seed, held in seeds.items():
            kernels[layer][seed] = {**kernels[layer][seed], **held}
    return model.replace(params={"host": {**model.params["host"], **params["host"]}, "kernels": kernels})


def _cotangent(place: int, shape: Sequence[int]) -> np.ndarray:
    """What the output at that place is weighed by."""
    return np.random.default_rng(place).standard_normal(tuple(shape)).astype(np.float32)


def _probes(model: MorphableModel) -> list[Call]:
    from esper.torch_frontend.probe import random_call

    source: Any = model.structure.source
    return [random_call(signature, double=source.narrowed) for signature in source.calls()]


def _numpy(value: Any) -> np.ndarray:
    if is_foreign(value):
        value = value.detach()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    return np.asarray(whole(value))
