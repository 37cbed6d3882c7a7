"""Layers as an expert writes them for this processor: convolutions as matrix products where that is faster, flat
products, gradients in closed form. The networks are those of `idiomatic/`; esper is no part of this.
"""
