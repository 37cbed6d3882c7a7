"""What each of torch's optimisers is in optax: the update rule, and where its moments are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from esper.errors import OptimizerStateError
from esper.optim.transforms import dampened_trace, scale_by_torch_adagrad, scale_by_torch_amsgrad

FIELDS = {
    "adam": {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"},
    "sgd": {"trace": "momentum_buffer"},
    "rmsprop": {"mu": "grad_avg", "nu": "square_avg", "trace": "momentum_buffer"},
    "adagrad": {"sum_of_squares": "sum"},
}
"""By kind of optimiser: the moments by optax's names, and by torch's."""

Options = dict[str, Any]


def rule(kind: str, options: Options) -> optax.GradientTransformation:
    """The update rule of a group of parameters.

    Raises:
        OptimizerStateError: An option that is not known, and might change what a step does.
    """
    make, known = _RULES[kind]
    strange = [f"{name}={value!r}" for name, value in options.items() if name not in known]
    if strange:
        raise OptimizerStateError(f"options of the optimiser that are not mapped to optax: {', '.join(strange)}")
    rising = [optax.scale(-1.0)] if options.get("maximize") else []
    return optax.chain(*rising, *make(options), optax.scale(-options["lr"]))


def _adam(options: Options) -> list[optax.GradientTransformation]:
    make = scale_by_torch_amsgrad if options["amsgrad"] else optax.scale_by_adam
    (b1, b2), decay = options["betas"], _decay(options)
    scaled = [make(b1=b1, b2=b2, eps=options["eps"])]
    return [*scaled, *decay] if options.get("decoupled_weight_decay") else [*decay, *scaled]


def _sgd(options: Options) -> list[optax.GradientTransformation]:
    momentum, dampening, nesterov = options["momentum"], options["dampening"], options["nesterov"]
    if not momentum:
        return _decay(options)
    trace = dampened_trace(momentum, dampening, nesterov) if dampening else optax.trace(momentum, nesterov)
    return [*_decay(options), trace]


def _rmsprop(options: Options) -> list[optax.GradientTransformation]:
    make = optax.scale_by_stddev if options["centered"] else optax.scale_by_rms
    scaled = make(decay=options["alpha"], eps=options["eps"], eps_in_sqrt=False)
    return [*_decay(options), scaled, *([optax.trace(options["momentum"])] if options["momentum"] else [])]


def _adagrad(options: Options) -> list[optax.GradientTransformation]:
    initial = options["initial_accumulator_value"]
    return [*_decay(options), scale_by_torch_adagrad(options["lr_decay"], initial, options["eps"])]


def _decay(options: Options) -> list[optax.GradientTransformation]:
    return [optax.add_decayed_weights(options["weight_decay"])] if options["weight_decay"] else []


_COMMON = {"lr", "weight_decay", "maximize"}
_RULES: dict[str, tuple[Callable[[Options], list[optax.GradientTransformation]], set[str]]] = {
    "adam": (_adam, _COMMON | {"betas", "eps", "amsgrad", "decoupled_weight_decay"}),
    "sgd": (_sgd, _COMMON | {"momentum", "dampening", "nesterov"}),
    "rmsprop": (_rmsprop, _COMMON | {"alpha", "eps", "centered", "momentum"}),
    "adagrad": (_adagrad, _COMMON | {"lr_decay", "eps", "initial_accumulator_value"}),
}
