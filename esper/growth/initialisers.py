"""Initialisers: what a new kernel's parameters are at birth, from statistics of the layer it joins.

All but `zero_output` know one form of kernel, `W2 f(W1 x + b1) + b2` (see `forms.py`): `low_rank` (f is the
identity), `mlp`, `conv`, and blueprints of your own that have it. Throughout, x is a row of the layer's input, g
the gradient of an example's loss by the layer's output, E the mean over rows (`statistics.py`), and n the
number of units.

Two families. A kernel of `zero_output`, `pairs` or `gradmax` is exactly zero at birth, so its output is nothing at any
alpha. One of `tiny` or `least_squares` is not. The model's outputs are the same bits in either case, since a new seed
is TRAINING: its output is selected away, and enters by alpha.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from esper.errors import ArgumentError, SeedError
from esper.growth.birth import Init, Initialised, Outcome, Params, Report, at_birth
from esper.growth.fits import best_linear, expected
from esper.growth.forms import TwoLayers, two_layers
from esper.growth.line_search import Trial, line_searched
from esper.growth.moments import Tap
from esper.growth.statistics import Statistics, examples_of, layer_statistics, observe
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.source import Kernel

Evidence = Statistics | Trial | None

# Where f(c) = c and its products with any weight are exact: a power of two.
_OPEN = 0.125


def initialiser(name: str, evidence: Evidence = None) -> Init:
    """An initialiser by name, for `esper.germinate(..., init=...)`.

    Args:
        name: "zero_output" or "pairs", which look at no data; "gradmax" or "tiny", from the layer's Statistics;
            "least_squares", from a Trial. `tiny` takes a Trial too, and is then line-searched as well.
        evidence: Statistics of the layer the kernel is for, or a Trial.

    Raises:
        ArgumentError: No such initialiser, or not from this evidence.

    Example:
        >>> seen = layer_statistics(loss, model, batches, layers=["0"])  # doctest: +SKIP
        >>> init = initialiser("gradmax", seen["0"])  # doctest: +SKIP
        >>> model, _ = esper.germinate(model, None, layer="0", blueprint="mlp", key=key, init=init)  # doctest: +SKIP
    """
    if name not in _TABLE:
        raise ArgumentError(f"no initialiser {name!r}; there are: {', '.join(_TABLE)}")
    make, kinds = _TABLE[name]
    if not isinstance(evidence, kinds):
        wanted = " or ".join("no evidence" if kind is type(None) else f"a {kind.__name__}" for kind in kinds)
        raise ArgumentError(f"initialiser {name!r} works from {wanted}, not from a {type(evidence).__name__}")
    return make(evidence)


def initialise(
    model: MorphableModel, *, layer: str, seed: int = 0, init: Init, key: jax.Array
) -> tuple[MorphableModel, Outcome]:
    """Gives a kernel that is there already the values of an initialiser; shows the outcome, with its report.

    Meant for a kernel that has just germinated. Where the outcome is DoNotGerminate, the model is as it was, and
    `esper.cull` removes the kernel.

    Raises:
        SeedError: The seed holds no kernel, or what `germinate` raises of an initialiser.
    """
    found = [kernel for kernel in model.structure.kernels if (kernel.layer, kernel.seed) == (layer, seed)]
    if not found:
        raise SeedError(f"layer {layer!r}, seed {seed} holds no kernel: germinate it first")
    kernels = model.params["kernels"]
    outcome = at_birth(init, kernels[layer][seed], found[0], key)
    if not isinstance(outcome, Initialised):
        return model, outcome
    held = {**kernels, layer: {**kernels[layer], seed: outcome.params}}
    return model.replace(params={**model.params, "kernels": held}), outcome


def zero_output(params: Params, kernel: Kernel, key: jax.Array) -> Initialised:
    """What blueprints draw: random input weights, output weights 0. Exactly zero at birth."""
    return Initialised(params, Report("zero_output"))


def pairs(params: Params, kernel: Kernel, key: jax.Array) -> Initialised:
    """Units in pairs with the same input weights V and opposite output weights Z, -Z. Exactly zero at birth.

    Every weight is non-zero, so every parameter has a gradient at once (a network morphism, Wei et al. 2016,
    arXiv:1603.01670). V is what the blueprint drew, [n/2, in]; an odd unit keeps output weights 0. The members of a
    pair stand side by side and |Z| is one power of two, so that sums cancel to the last bit: a product with a
    power of two is exact, with fused multiply-adds too.
    """
    form = two_layers(kernel, params)
    incoming = form.first(params)
    width, outputs = len(incoming), params[form.outgoing].shape[0]
    paired = width // 2
    incoming[1 : 2 * paired : 2] = incoming[0 : 2 * paired : 2]
    signs = np.asarray(jax.random.rademacher(key, (outputs, paired)), np.float64)
    size = 2.0 ** np.round(np.log2(_spread(width)))
    outgoing = np.zeros((outputs, width))
    outgoing[:, : 2 * paired] = np.repeat(size * signs, 2, axis=1) * np.tile([1.0, -1.0], paired)
    return Initialised(form.filled(params, incoming, outgoing), Report("pairs"))


def gradmax(statistics: Statistics, params: Params, kernel: Kernel) -> Initialised:
    """The largest gradient that new units can have (Evci et al. 2022, arXiv:2201.05125). Exactly zero at birth.

    Input weights are 0, so those of the output decide the gradient of the former, f'(0) W2^T E[g x^T]. Among W2
    with orthogonal columns of equal norm, its norm is largest for the first left singular vectors of E[g x^T],
    [out, n]. The norm is that of torch's own initialisation. The ones beside x are in, where W1 has a bias.

    f'(0) = 0, as for ReLU here, would leave the units dead. The remedy: biases b1 = c > 0 with f(c) = c, which gives
    slope 1, and the directions in pairs v, -v side by side, which cancel to the last bit because c is a power of
    two. Half as many directions then fit. Units beyond the rank stay as the blueprint drew them, output weights 0.
    """
    form = two_layers(kernel, params)
    _check_layer(statistics, kernel)
    _, cross = expected(statistics, ones=form.incoming_bias is not None)
    directions, values, _ = np.linalg.svd(cross.T, full_matrices=False)
    bias, copies = _open_point(form, kernel)
    incoming = form.first(params)
    width = len(incoming)
    used = _used(values, width // copies)
    units = used * copies
    norm = _spread(width) * np.sqrt(len(directions))
    outgoing = np.zeros((len(directions), width))
    outgoing[:, :units] = norm * np.repeat(directions[:, :used], copies, axis=1)
    outgoing[:, 1:units:2] *= -1.0 if copies == 2 else 1.0
    incoming[:units] = 0.0
    incoming[:units, -1] = bias
    pull = statistics.rows / statistics.examples * form.activation.slope(bias) * norm * values[:used]
    report = _report("gradmax", copies * float(np.sum(pull**2)), values[:used])
    return Initialised(form.filled(params, incoming, outgoing), report)


def tiny(statistics: Statistics, params: Params, kernel: Kernel) -> Initialised:
    """The units that move the output most along -g (Verbockhaven et al. 2024, arXiv:2405.19816). Not zero at birth.

    With S = E[x x^T] and the singular values of S^-1/2 E[x (-g)^T] = U L V^T, unit k reads a_k = sqrt(l_k) S^-1/2 u_k
    [in] and writes w_k = sqrt(l_k) v_k [out]: the best approximation of -g by a linear map of rank n, and a
    decrease of the loss of sum l_k^2 to first order. The paper first takes out of -g what an update of the layer
    itself could do. Its new units read the layer before; a kernel beside a layer reads the layer's own input, of
    which that would leave no linear part at all, so -g is taken whole.

    f is taken to be linear near 0. Units that are opposite at both ends, (a, w) and (-a, -w), stand side by side and
    cancel its even part: exactly linear for ReLU, GELU and SiLU, at half as many directions. An odd f, such as tanh,
    needs no such pairs and has none. Units beyond the rank stay as the blueprint drew them, output weights 0.
    """
    form = two_layers(kernel, params)
    _check_layer(statistics, kernel)
    fit = best_linear(*expected(statistics, ones=form.incoming_bias is not None))
    incoming = form.first(params)
    copies, rise = (1 if form.activation.odd else 2), form.activation.rise
    if abs(rise) < 1e-6:
        raise SeedError(f"{_place(kernel)}: its activation is even, so its units have no linear part; use `gradmax`")
    used = _used(fit.values, len(incoming) // copies)
    reads, writes = fit.factors(used)
    signs = np.tile([1.0, -1.0], used)[: used * copies] if copies == 2 else np.ones(used)
    units = used * copies
    incoming[:units] = 0.0
    incoming[:units, : reads.shape[1]] = signs[:, None] * np.repeat(reads, copies, axis=0)
    outgoing = np.zeros((writes.shape[0], len(incoming)))
    outgoing[:, :units] = signs * np.repeat(writes, copies, axis=1) / (copies * rise)
    gain = statistics.rows / statistics.examples * float(np.sum(fit.values[:used] ** 2))
    return Initialised(form.filled(params, incoming, outgoing), _report("tiny", gain, fit.values[:used]))


def residual(trial: Trial, params: Params, kernel: Kernel) -> Initialised:
    """The kernel's last layer fitted to -g by least squares, by normal equations. Not zero at birth.

    With f the identity, both layers: the linear map of rank n nearest to -g in the metric of E[x x^T], as `tiny`
    has it. Else the first layer stays as the blueprint drew it and h = [f(W1 x + b1); 1] is what is fitted:
    [W2, b2]^T = E[h h^T]^-1 E[h (-g)^T], [n + 1, out]. A ridge of 1e-6 of the mean eigenvalue is added.
    """
    form = two_layers(kernel, params)
    if form.linear:
        made = tiny(_seen(trial, kernel), params, kernel)
        return replace(made, report=made.report and replace(made.report, initialiser="least_squares"))
    incoming = form.first(params)
    tap = Tap.on(kernel.site, examples_of(trial.fit), form, incoming.astype(np.float32), len(incoming))
    seen = observe(trial.loss, trial.model, trial.fit, {kernel.layer: tap})[kernel.layer]
    has_bias = form.outgoing_bias is not None
    fit = best_linear(*expected(seen, ones=has_bias))
    reads, writes = fit.factors(len(fit.values))
    outgoing = writes @ reads
    bias = outgoing[:, -1] if has_bias else None
    report = _report("least_squares", seen.rows / seen.examples * float(np.sum(fit.values**2)), fit.values)
    return Initialised(form.filled(params, incoming, outgoing[:, : len(incoming)], bias), report)


def _from_statistics(recipe: Callable[[Statistics, Params, Kernel], Initialised], statistics: Statistics) -> Init:
    def init(params: Params, kernel: Kernel, key: jax.Array) -> Outcome:
        return recipe(statistics, params, kernel)

    return init


def _tiny(evidence: Statistics | Trial) -> Init:
    if isinstance(evidence, Statistics):
        return _from_statistics(tiny, evidence)
    return line_searched(lambda params, kernel, key: tiny(_seen(evidence, kernel), params, kernel), evidence)


def _least_squares(trial: Trial) -> Init:
    return line_searched(lambda params, kernel, key: residual(trial, params, kernel), trial)


_TABLE: dict[str, tuple[Callable[[Any], Init], tuple[type, ...]]] = {
    "zero_output": (lambda _: zero_output, (type(None),)),
    "pairs": (lambda _: pairs, (type(None),)),
    "gradmax": (partial(_from_statistics, gradmax), (Statistics,)),
    "tiny": (_tiny, (Statistics, Trial)),
    "least_squares": (_least_squares, (Trial,)),
}


def _seen(trial: Trial, kernel: Kernel) -> Statistics:
    return layer_statistics(trial.loss, trial.model, trial.fit, layers=[kernel.layer])[kernel.layer]


def _check_layer(statistics: Statistics, kernel: Kernel) -> None:
    if statistics.site != kernel.site:
        raise SeedError(
            f"{_place(kernel)}: the statistics are of layer {statistics.site.name!r}; gather those of the layer that "
            "the kernel joins"
        )


def _open_point(form: TwoLayers, kernel: Kernel) -> tuple[float, int]:
    """A bias at which units without input weights are alive, and how many must share a direction to be zero."""
    f = form.activation
    if f.at(0.0)[0] == 0 and f.slope(0.0) != 0:
        return 0.0, 1
    if form.incoming_bias is not None and f.at(_OPEN)[0] == np.float32(_OPEN) and f.slope(_OPEN) != 0:
        return _OPEN, 2
    raise SeedError(
        f"{_place(kernel)}: units without input weights would be dead or not zero (f(0) = {f.at(0.0)[0]:g}, "
        f"f'(0) = {f.slope(0.0):g}); give its first layer a bias and an activation like ReLU, or use 'pairs'"
    )


def _used(values: np.ndarray, most: int) -> int:
    """How many directions there are: no more than fit, none that is rounding."""
    return int(np.sum(values[:most] > 1e-6 * values[0]))


def _spread(width: int) -> float:
    """Standard deviation of output weights as torch's linear layers and convolutions draw them."""
    return 1.0 / np.sqrt(3.0 * width)


def _report(name: str, gain: float, values: np.ndarray) -> Report:
    return Report(name, gain, tuple(float(value) for value in values))


def _place(kernel: Kernel) -> str:
    return f"kernel {kernel.blueprint!r} at layer {kernel.layer!r}"
