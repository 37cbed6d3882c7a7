"""Kernels that become part of the layers beside which they grew."""

from esper.torch_frontend.folding.fold import fold, fold_into_next

__all__ = ["fold", "fold_into_next"]
