"""Convolutions: three primitives, each the others' derivative, formulated for the hardware they run on."""

from esper.jax_backend.platform.convolution.primitives import convolve, input_gradient, weight_gradient
from esper.jax_backend.platform.convolution.spec import Spec

__all__ = ["Spec", "convolve", "input_gradient", "weight_gradient"]
