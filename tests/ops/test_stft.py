"""Short-time Fourier transforms against eager torch."""

import pytest
import torch
from parity_checks import check

SIGNAL = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
WINDOW = torch.hann_window(6)

INPUTS = [SIGNAL, WINDOW]

CASES = [
    ("stft", lambda x, w: torch.stft(x, 6, window=w, return_complex=True), INPUTS),
    ("stft-aligned", lambda x, w: torch.stft(x, 10, 2, 6, w, False, align_to_window=True, return_complex=True), INPUTS),
    ("stft-centred", lambda x, w: torch.ops.aten.stft.center(x, 8, 3, 6, w, return_complex=True), INPUTS),
    ("stft-complex", lambda x, w: torch.stft(torch.complex(x, x * x), 6, window=w), INPUTS),
    ("stft-constant", lambda x, w: torch.stft(x, 8, 3, 6, w, pad_mode="constant", return_complex=True), INPUTS),
    (
        "stft-normalized",
        lambda x, w: torch.stft(x, 7, 2, 6, w, normalized=True, return_complex=True),
        [SIGNAL[0], WINDOW],
    ),
    ("stft-parts", lambda x, w: torch.stft(x, 8, 2, 6, w, center=False, return_complex=False), INPUTS),
    ("stft-two-sided", lambda x, w: torch.stft(x, 8, 2, 6, w, onesided=False, return_complex=True), INPUTS),
    ("stft-unweighted", lambda x, w: torch.stft(x, 8, return_complex=True), INPUTS),
]


@pytest.mark.filterwarnings("ignore:A window was not provided")  # torch wants one
@pytest.mark.filterwarnings("ignore:stft with return_complex=False is deprecated")
@pytest.mark.parametrize(("function", "inputs"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_stft(function, inputs):
    check(function, *inputs)
