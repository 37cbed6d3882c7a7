"""Short-time Fourier transforms (aten/src/ATen/native/SpectralOps.cpp)."""

from __future__ import annotations

import jax.numpy as jnp

from esper.jax_backend.lowerings.padding import pad_
from esper.jax_backend.lowerings.shape import unfold
from esper.jax_backend.promotion import is_complex
from esper.jax_backend.registry import lowers


@lowers("aten.stft.center")
def stft(
    x,
    n_fft,
    hop_length=None,
    win_length=None,
    window=None,
    center=True,
    pad_mode="reflect",
    normalized=False,
    onesided=None,
    return_complex=None,
    align_to_window=None,
):
    """stft.center(Tensor self, int n_fft, int? hop_length=None, int? win_length=None, Tensor? window=None, bool center=True, str pad_mode="reflect", bool normalized=False, bool? onesided=None, bool? return_complex=None, bool? align_to_window=None) -> Tensor"""  # noqa: E501
    if center:
        x = pad_(x[None], (n_fft // 2, n_fft // 2), pad_mode)[0]
    return stft_framed(x, n_fft, hop_length, win_length, window, normalized, onesided, return_complex, align_to_window)


@lowers("aten.stft.default")
def stft_framed(
    x,
    n_fft,
    hop_length=None,
    win_length=None,
    window=None,
    normalized=False,
    onesided=None,
    return_complex=None,
    align_to_window=None,
):
    """stft(Tensor self, int n_fft, int? hop_length=None, int? win_length=None, Tensor? window=None, bool normalized=False, bool? onesided=None, bool? return_complex=None, bool? align_to_window=None) -> Tensor"""  # noqa: E501
    win_length = win_length or n_fft
    window = _window(window, n_fft, win_length, x.real.dtype)
    if align_to_window:
        margin = (n_fft - win_length) // 2
        x = pad_(x, (margin, margin))
    frames = unfold(x, -1, n_fft, hop_length or n_fft // 4) * window
    real = not is_complex(frames)
    onesided = real if onesided is None else onesided
    transform = jnp.fft.rfft if real and onesided else jnp.fft.fft
    spectra = transform(frames, axis=-1, norm="ortho" if normalized else "backward").swapaxes(-1, -2)
    if return_complex is False:
        return jnp.stack([spectra.real, spectra.imag], axis=-1)
    return spectra


def _window(window, n_fft, win_length, dtype):
    """A window of `n_fft`, the one given in its middle."""
    window = jnp.ones(win_length, dtype) if window is None else window
    before = (n_fft - win_length) // 2
    return jnp.pad(window, (before, n_fft - win_length - before))
