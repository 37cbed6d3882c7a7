"""The form initialisers know: a kernel of two linear layers around a pointwise activation.

It is read off the kernel's own Program, so that any blueprint of this form is served, whoever wrote it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from esper.errors import SeedError
from esper.growth.birth import Params
from esper.growth.rows import check_served, row_sizes
from esper.jax_backend.evaluate import evaluate
from esper.jax_backend.kernels import one_tensor
from esper.jax_backend.source import Kernel, NativeKernel
from esper.program import LayerSite, Node, Program, Ref
from esper.program.slicing import between

_WEIGHTED = (
    "aten.linear.default",
    *(f"aten.conv{n}d.{overload}" for n in (1, 2, 3) for overload in ("default", "padding")),
)


@dataclass(frozen=True)
class Activation:
    """What stands between the two layers, as a function; hashable."""

    program: Program

    def __call__(self, values: jax.Array) -> jax.Array:
        """Its value, element by element."""
        return evaluate(self.program, {}, {}, [values])[0][0]

    def at(self, *points: float) -> np.ndarray:
        """Its values there, in float32."""
        return np.asarray(self(jnp.asarray(points, jnp.float32)))

    def slope(self, point: float) -> float:
        """Its derivative there, as JAX takes it."""
        return float(jax.grad(lambda z: self(z[None])[0])(jnp.float32(point)))

    @property
    def odd(self) -> bool:
        """Whether it is -f(-z): two units that are opposite at both ends are then the same unit twice."""
        return bool(np.allclose(self.at(0.5, 1.0, 2.0), -self.at(-0.5, -1.0, -2.0), rtol=1e-6, atol=1e-7))

    @property
    def rise(self) -> float:
        """The slope of its odd part at 0: 1/2 for ReLU, whose derivative there means nothing."""
        above, below = self.at(1e-3, -1e-3).astype(np.float64)
        return float((above - below) / 2e-3)


@dataclass(frozen=True)
class TwoLayers:
    """`outgoing(activation(incoming(x)))`, by the names of the parameters.

    Attributes:
        incoming: Weight of the first layer, [width, in] or [width, in_channels, *kernel_size].
        incoming_bias: Its bias, [width]; None without one.
        outgoing: Weight of the last layer, [out, width] or [out, width, 1, ...].
        outgoing_bias: Its bias, [out]; None without one.
        activation: What stands between.
    """

    incoming: str
    incoming_bias: str | None
    outgoing: str
    outgoing_bias: str | None
    activation: Activation

    def first(self, params: Params) -> Float[np.ndarray, "width row"]:
        """Weights and biases of the units, in float64, [width, in + 1]; the bias is 0 where there is none."""
        weight = _matrix(params[self.incoming])
        bias = np.zeros(len(weight)) if self.incoming_bias is None else np.asarray(params[self.incoming_bias], float)
        return np.column_stack([weight, bias])

    def filled(
        self,
        params: Params,
        incoming: Float[np.ndarray, "width row"],
        outgoing: Float[np.ndarray, "out width"],
        outgoing_bias: Float[np.ndarray, " out"] | None = None,
    ) -> dict[str, jax.Array]:
        """Parameters with these values, in the shapes and dtypes of `params`; the last bias is 0 unless given."""
        values = {self.incoming: incoming[:, :-1], self.outgoing: outgoing}
        if self.incoming_bias is not None:
            values[self.incoming_bias] = incoming[:, -1]
        if self.outgoing_bias is not None:
            values[self.outgoing_bias] = np.zeros(len(outgoing)) if outgoing_bias is None else outgoing_bias
        return {
            name: jnp.asarray(values[name].reshape(array.shape), array.dtype) if name in values else array
            for name, array in params.items()
        }

    @property
    def last(self) -> tuple[str, ...]:
        """The parameters that the kernel's output is linear in."""
        return (self.outgoing,) if self.outgoing_bias is None else (self.outgoing, self.outgoing_bias)

    @property
    def linear(self) -> bool:
        """Whether nothing stands between the layers."""
        return not self.activation.program.nodes

    def __call__(self, weights: Float[Array, "width row"], rows: Float[Array, "rows in"]) -> Float[Array, "rows width"]:
        """What the last layer reads, of rows of the layer's input: the features that `Tap` may look at."""
        return self.activation(rows @ weights[:, :-1].T + weights[:, -1])


def two_layers(kernel: Kernel, params: Params) -> TwoLayers:
    """The kernel's form.

    Raises:
        SeedError: It has another, or is fed the layer's output.
    """
    check_served(kernel.site)
    if kernel.placement != "parallel":
        raise SeedError(f"{_place(kernel)} is fed the layer's output, and statistics are of the layer's input")
    if isinstance(kernel.source, NativeKernel):
        raise SeedError(f"{_place(kernel)} is written for JAX and has no Program to read: germinate it without `init`")
    program = kernel.source.program(one_tensor(_example(kernel.site), False))
    names = {spec.name: spec.target for spec in program.inputs if spec.kind == "param"}
    layers = [node for node in program.nodes if any(ref.name in names for ref in node.refs())]
    if not _is_sequence(program, layers):
        raise _other_form(kernel)
    first, last = (_parameters(node, names) for node in layers)
    if not _fits(params[first[0]], params[last[0]], kernel.site):
        raise _other_form(kernel)
    return TwoLayers(*first, *last, _activation(kernel, program, layers))


def _is_sequence(program: Program, layers: Sequence[Node]) -> bool:
    """Whether the Program is: perhaps padding, a layer, perhaps one operator, a layer."""
    if len(layers) != 2 or any(node.op not in _WEIGHTED for node in layers):
        return False
    first, last = (program.nodes.index(node) for node in layers)
    padding = all(".pad" in node.op for node in program.nodes[:first])
    read = (*program.nodes[first].outputs, *(name for node in program.nodes[first + 1 : last] for name in node.outputs))
    return padding and last - first <= 2 and last == len(program.nodes) - 1 and layers[1].args[0] == Ref(read[-1])


def _activation(kernel: Kernel, program: Program, layers: Sequence[Node]) -> Activation:
    found, others = between(program.nodes, program.types, [Ref(layers[0].outputs[0])], [layers[1].args[0]])
    activation = Activation(found)
    if others or not _is_pointwise(activation):
        raise _other_form(kernel)
    return activation


def _is_pointwise(activation: Activation) -> bool:
    at = jnp.asarray([-0.7, 0.3, 1.1], jnp.float32)
    if activation(at).shape != at.shape:
        return False
    by_each = np.asarray(jax.jacrev(activation)(at))
    return bool(np.all(by_each == np.diag(np.diag(by_each))))


def _parameters(node: Node, names: dict[str, str]) -> tuple[str, str | None]:
    """Torch names of the node's weight and bias."""
    read = [names[ref.name] for ref in node.refs() if ref.name in names]
    return read[0], read[1] if len(read) > 1 else None


def _fits(incoming: jax.Array, outgoing: jax.Array, site: LayerSite) -> bool:
    """Whether the first layer reads the host's rows, and the last only the units of the same place."""
    inputs, outputs = row_sizes(site)
    same_rows = _matrix(incoming).shape[1] == inputs and incoming.shape[2:] == tuple(
        dict(site.attributes).get("kernel_size", ())
    )
    return same_rows and outgoing.shape[:2] == (outputs, len(incoming)) and math.prod(outgoing.shape[2:]) == 1


def _example(site: LayerSite) -> jax.Array:
    if site.kind == "Linear":
        return jnp.zeros((2, site["in_features"]), site.dtype)
    spans = [step * (size - 1) + 2 for step, size in zip(site["dilation"], site["kernel_size"], strict=True)]
    return jnp.zeros((2, site["in_channels"], *spans), site.dtype)


def _matrix(weight: jax.Array) -> np.ndarray:
    return np.asarray(weight, np.float64).reshape(len(weight), -1)


def _place(kernel: Kernel) -> str:
    return f"kernel {kernel.blueprint!r} at layer {kernel.layer!r}"


def _other_form(kernel: Kernel) -> SeedError:
    return SeedError(
        f"{_place(kernel)} is not two layers around a pointwise activation, which initialisers work on: the first with "
        "the host's own geometry, the last linear (or 1x1), such as `low_rank`, `mlp` and `conv`; leave `init` out"
    )
