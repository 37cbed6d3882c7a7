"""Windows for signals (aten/src/ATen/native/TensorFactories.cpp). A periodic one is a longer symmetric one, cut."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from esper.jax_backend.promotion import default_float
from esper.jax_backend.registry import lowers


@lowers("aten.bartlett_window.default", "aten.bartlett_window.periodic")
def bartlett_window(window_length, periodic=True, *, dtype=None):
    """bartlett_window.periodic(int window_length, bool periodic, *, ScalarType? dtype=None, ...) -> Tensor"""
    return _window(np.bartlett, window_length, periodic, dtype)


@lowers("aten.blackman_window.default", "aten.blackman_window.periodic")
def blackman_window(window_length, periodic=True, *, dtype=None):
    """blackman_window.periodic(int window_length, bool periodic, *, ScalarType? dtype=None, ...) -> Tensor"""
    return _window(np.blackman, window_length, periodic, dtype)


@lowers("aten.hamming_window.default", "aten.hamming_window.periodic")
@lowers("aten.hamming_window.periodic_alpha", "aten.hamming_window.periodic_alpha_beta")
def hamming_window(window_length, periodic=True, alpha=0.54, beta=0.46, *, dtype=None):
    """hamming_window.periodic_alpha_beta(int window_length, bool periodic, float alpha, float beta, *, ScalarType? dtype=None, ...) -> Tensor"""  # noqa: E501

    def symmetric(length):
        if length == 1:
            return np.ones(1)
        return alpha - beta * np.cos(2 * np.pi * np.arange(length) / (length - 1))

    return _window(symmetric, window_length, periodic, dtype)


@lowers("aten.kaiser_window.default", "aten.kaiser_window.periodic", "aten.kaiser_window.beta")
def kaiser_window(window_length, periodic=True, beta=12.0, *, dtype=None):
    """kaiser_window.beta(int window_length, bool periodic, float beta, *, ScalarType? dtype=None, ...) -> Tensor"""
    return _window(lambda length: np.kaiser(length, beta), window_length, periodic, dtype)


def _window(symmetric, window_length, periodic, dtype):
    longer = window_length + 1 if periodic and window_length > 1 else window_length
    return jnp.asarray(symmetric(longer)[:window_length], dtype or default_float())
