"""Special functions: gamma and its kin, Bessel and Airy functions, orthogonal polynomials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity_checks import check
from scipy import special

from esper.jax_backend.registry import lowering
from esper.parity import compare

S = torch.special
EVERYWHERE = [-9.7, -3.3, -1.5, -0.3, 0.0, 1e-4, 0.4, 1.0, 2.0, 2.9, 3.1, 7.25, 18.5]
ABOVE_ZERO = [0.0, 1e-4, 0.3, 0.4, 1.0, 1.9, 2.1, 2.9, 3.1, 7.25, 18.5]
BETWEEN_POLES = [-4.6, -3.3, -1.5, -0.3, 0.1, 0.4, 1.0, 2.0, 2.9, 7.25, 18.5, 250.0]

GRADED = {
    "digamma": (torch.digamma, BETWEEN_POLES),
    "erfcx": (S.erfcx, EVERYWHERE),
    "lgamma": (torch.lgamma, BETWEEN_POLES),
    **{f"polygamma_{n}": (lambda x, n=n: torch.polygamma(n, x), BETWEEN_POLES) for n in (0, 1, 2, 3, 8)},
    "zeta_by_other": (lambda x: S.zeta(2.5, x), ABOVE_ZERO[1:]),
}
# Torch's own tables are good for nine digits at places, so that float64 is compared with SciPy.
FLAT = {
    "airy_ai": EVERYWHERE,
    "bessel_j0": EVERYWHERE,
    "bessel_j1": EVERYWHERE,
    "bessel_y0": ABOVE_ZERO,
    "bessel_y1": ABOVE_ZERO,
    "modified_bessel_i0": EVERYWHERE,
    "modified_bessel_i1": EVERYWHERE,
    "modified_bessel_k0": ABOVE_ZERO,
    "modified_bessel_k1": ABOVE_ZERO,
    "scaled_modified_bessel_k0": ABOVE_ZERO,
    "scaled_modified_bessel_k1": ABOVE_ZERO,
    "spherical_bessel_j0": EVERYWHERE,
}
SCIPY = {
    "airy_ai": lambda x: special.airy(x)[0],
    "bessel_j0": special.j0,
    "bessel_j1": special.j1,
    "bessel_y0": special.y0,
    "bessel_y1": special.y1,
    "modified_bessel_i0": special.i0,
    "modified_bessel_i1": special.i1,
    "modified_bessel_k0": special.k0,
    "modified_bessel_k1": special.k1,
    "scaled_modified_bessel_k0": special.k0e,
    "scaled_modified_bessel_k1": special.k1e,
    "spherical_bessel_j0": lambda x: special.spherical_jn(0, x),
}
POLYNOMIALS = [
    *(f"{shifted}chebyshev_polynomial_{kind}" for shifted in ("", "shifted_") for kind in "tuvw"),
    *("hermite_polynomial_h", "hermite_polynomial_he", "laguerre_polynomial_l", "legendre_polynomial_p"),
]


def in_floats(function, values, **options):
    """`function` in float32, of integers, without dimensions, of nothing, and in float64."""
    x = torch.tensor(values)
    whole = torch.tensor([1, 2, 5])
    check(lambda *xs: tuple(map(function, xs)), x, whole, x[3], x[:0], **options)
    with jax.enable_x64(True):
        check(function, torch.tensor(values, dtype=torch.float64), **options)


@pytest.mark.parametrize("name", GRADED)
def test_graded(name):
    in_floats(*GRADED[name])


@pytest.mark.parametrize("name", FLAT)
def test_without_derivative(name):
    function = getattr(S, name)
    x = torch.tensor(FLAT[name])
    check(lambda *xs: tuple(map(function, xs)), x, torch.tensor([1, 2, 5]), x[3], x[:0], gradients=False)
    check(lambda x: x + function(x), torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("name", FLAT)
def test_float64(name):
    x = np.array(FLAT[name])
    with jax.enable_x64(True):
        found = np.asarray(lowering(f"aten.special_{name}.default").rule(jnp.asarray(x)))
    assert compare(found, SCIPY[name](x)).scaled < 1e-14


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_polynomial(name):
    function = getattr(S, name)
    x = torch.tensor([-1.5, -1.0, -0.7, 0.0, 0.3, 1.0, 1.2])[:, None]
    degree = torch.tensor([-1.0, 0.0, 1.0, 2.0, 3.5, 7.0, 12.0])

    def all_mixes(x, degree):
        return function(x, degree), function(x, 3), function(0.5, degree)

    check(all_mixes, x, degree, gradients=False)
    check(all_mixes, torch.arange(3), torch.arange(3), gradients=False)
    with jax.enable_x64(True):
        check(all_mixes, x.double(), degree.double(), gradients=False)


def test_zeta():
    s, q = torch.tensor([0.5, 1.0, 1.5, 2.0, 30.0])[:, None], torch.tensor([-2.0, -1.5, 0.0, 0.25, 40.0])
    check(S.zeta, s, q, gradients=False)
    check(lambda s: S.zeta(s, 2), s, gradients=False)


def test_frexp():
    check(torch.frexp, torch.tensor([0.0, -0.0, 3.0, -0.4, 1e30, torch.inf, torch.nan]))
