"""The convolutions as XLA's own operator, for which its CPU compiler has a library."""

from __future__ import annotations

import jax

from esper.jax_backend.platform.convolution import canonical
from esper.jax_backend.platform.convolution.spec import Spec
from esper.jax_backend.platform.fence import transposed

convolve, input_gradient = canonical.convolve, canonical.input_gradient


def weight_gradient(x: jax.Array, cotangent: jax.Array, *, spec: Spec) -> jax.Array:
    """Its gradient in the weight, in memory as torch has the weight, since an optimiser's loops read it."""
    last = spec.rank + 1
    return transposed(canonical.outputs_last(x, cotangent, spec=spec), (last, *range(last)))
