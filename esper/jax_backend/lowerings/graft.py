"""The marker of a KasminaLayer: where its kernels join."""

from esper.jax_backend.registry import lowers


@lowers("esper.graft.default", grafts=True)
def graft(output, input, name, *, grafts, key):
    """esper::graft(Tensor output, Tensor input, str name) -> Tensor"""
    return grafts[name](output, input, key) if name in grafts else output
