"""Floor 3, the JAX half: evaluate Programs, lowerings by ATen family, the immutable model and its seeds. No torch."""
