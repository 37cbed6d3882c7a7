"""Programs compiled as users run them, where the tests compile faster."""

from functools import partial

import jax

# XLA's defaults, which are what bits are promised for; `make test` sets others, for speed (`TEST_FLAGS`).
DEFAULTS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
compiled = partial(jax.jit, compiler_options=DEFAULTS)
