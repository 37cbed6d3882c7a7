"""The networks again, in JAX as most of its users write it, with Flax's meaning: images with channels last,
`lax.conv_general_dilated`, `lax.reduce_window`, batch statistics by mean and variance, attention by einsum,
recurrence by `lax.scan`.

Each file has `forward(module, layers)`: a function (params, stats, inputs, train) to (logits, moved stats) for
networks of the torch module's sizes. `layers` are those of `layers.py` here, or an expert's (`tuned/layers.py`).
"""
