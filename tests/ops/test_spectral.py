"""Fourier transforms against eager torch."""

import pytest
import torch
from parity_checks import check
from torch import fft

NORMS = ("backward", "ortho", "forward")
REAL = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
COMPLEX = torch.complex(REAL, REAL.flip(0))

TRANSFORMS = [
    ("fft", lambda x, norm: fft.fft(x, norm=norm), COMPLEX),
    ("fft-cut", lambda x, norm: fft.fft(x, 3, 1, norm), COMPLEX),
    ("fft-padded", lambda x, norm: fft.fft(x, 7, 0, norm), COMPLEX),
    ("fft-real", lambda x, norm: fft.fft(x, norm=norm), REAL),
    ("fft2", lambda x, norm: fft.fft2(x, norm=norm), COMPLEX),
    ("fftn", lambda x, norm: fft.fftn(x, norm=norm), COMPLEX),
    ("fftn-four", lambda x, norm: fft.fftn(x, norm=norm), COMPLEX[:, None].expand(3, 2, 4, 5)),
    ("fftn-real", lambda x, norm: fft.fftn(x, dim=(1, 0), norm=norm), REAL),
    ("fftn-real-part", lambda x, norm: fft.fftn(x, dim=(1, 2), norm=norm).real, REAL),
    ("hfft", lambda x, norm: fft.hfft(x, norm=norm), COMPLEX),
    ("hfftn", lambda x, norm: fft.hfftn(x, norm=norm), COMPLEX),
    ("ifft", lambda x, norm: fft.ifft(x, norm=norm), COMPLEX),
    ("ifftn", lambda x, norm: fft.ifftn(x, norm=norm), COMPLEX),
    ("ihfft", lambda x, norm: fft.ihfft(x, norm=norm), REAL),
    ("ihfft2", lambda x, norm: fft.ihfft2(x, norm=norm), REAL),
    ("ihfftn", lambda x, norm: fft.ihfftn(x, (4, 3), norm=norm), REAL),
    ("irfft", lambda x, norm: fft.irfft(x, norm=norm), COMPLEX),
    ("irfft-odd", lambda x, norm: fft.irfft(x, 7, norm=norm), COMPLEX),
    ("irfft-one", lambda x, norm: fft.irfft(x, 1, norm=norm), COMPLEX),
    ("irfftn", lambda x, norm: fft.irfftn(x, dim=(0, 2, 1), norm=norm), COMPLEX),
    ("rfft", lambda x, norm: fft.rfft(x, norm=norm), REAL),
    ("rfft-even", lambda x, norm: fft.rfft(x, dim=1, norm=norm), REAL),
    ("rfftn", lambda x, norm: fft.rfftn(x, dim=(2, 0), norm=norm), REAL),
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("function", "x"), [t[1:] for t in TRANSFORMS], ids=[t[0] for t in TRANSFORMS])
def test_transform(function, x, norm):
    check(lambda x: function(x, norm), x)
