"""MorphableModel: a torch module as an immutable JAX pytree that can grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool

from esper.drawing.notebook import Shown
from esper.errors import SeedError
from esper.jax_backend.artifact import KernelArtifact
from esper.jax_backend.blend import Branch, blend
from esper.jax_backend.call import assemble, is_array, prepare
from esper.jax_backend.evaluate import check_key, evaluate
from esper.jax_backend.interchange import constants
from esper.jax_backend.kernels import kernel_output
from esper.jax_backend.layers import KasminaLayer, Layers
from esper.jax_backend.layout import Held, Value, in_torch_order, like, lying
from esper.jax_backend.loading import loaded, prefetched, unloaded
from esper.jax_backend.registry import check_lowered
from esper.jax_backend.seeds import SeedState
from esper.jax_backend.slots import reserved_kernels
from esper.jax_backend.source import Kernel, Structure
from esper.jax_backend.state import host_arrays, live_growths, loaded_state
from esper.lifecycle import SeedLifecycleState
from esper.program import Program

Params = dict[str, Any]


class MorphableModel(struct.PyTreeNode):
    """A wrapped torch module: arrays are leaves, everything else is static and hashable.

    Attributes:
        params: What trains: {"host": {torch name: array}, "kernels": {layer: {seed: {torch name: array}}}}.
        buffers: What does not: {torch name: array}, parameters with `requires_grad=False` among them.
        seeds: State of every seed, arrays of shape [layers, seeds_per_layer].
        constants: Tensors the module holds as plain attributes, by path: inputs of the compiled program.
        structure: The static half: where Programs come from, which layers and kernels there are.
        taps: {layer: a pytree that is called with the layer's output, kernels included, and its input, and returns
            the output}, for passes that look at layers (`growth/moments.py`); empty otherwise, and then no part of
            the program.
    """

    params: Params
    buffers: dict[str, jax.Array]
    seeds: SeedState
    constants: dict[str, jax.Array]
    structure: Structure = struct.field(pytree_node=False)
    taps: dict[str, Any] = struct.field(default_factory=dict)

    def __call__(self, *args: Any, train: bool = False, key: jax.Array | None = None, **kwargs: Any) -> Any:
        """The module's outputs; torch tensors in, torch tensors out, else JAX arrays. See `apply`."""
        return self.apply(*args, train=train, key=key, **kwargs)[0]

    def apply(
        self, *args: Any, train: bool = False, key: jax.Array | None = None, **kwargs: Any
    ) -> tuple[Any, MorphableModel]:
        """Runs the module.

        Args:
            args: What the module's forward takes; arrays may come from JAX, numpy or torch.
            train: Training mode: dropout draws, BatchNorm uses and moves batch statistics, seeds age.
            key: A `jax.random` key, needed where the forward draws.
            kwargs: As for the module's forward.

        Returns:
            The outputs in the module's own containers, and the model with its buffers and seeds moved on, and with
            them the parameters that the forward itself writes into (`nn.Embedding(max_norm=...)`).

        Raises:
            TraceError: The module cannot be captured for these inputs.
            UnsupportedOpError: Operators without a lowering, all of them.
            MissingKeyError: The forward draws and there is no key.
        """
        source = self.structure.source
        call = prepare(source, args, kwargs, train)
        check_lowered(call.program)
        check_key(call.program, key)
        arrays, state, seeds = run_program(self, call.program, call.tensors, key, self.late_constants())
        moved = self if self.structure.shadow else self._moved(state, seeds)
        return assemble(source, call, arrays), moved

    @property
    def layers(self) -> Layers:
        """The KasminaLayers by name, in the order of the rows of `seeds`."""
        return Layers({site.name: self._layer(row, site.name) for row, site in enumerate(self.structure.sites)})

    def shadow(self, only: Bool[Array, "layers seeds"] | None = None) -> MorphableModel:
        """The model as its training seeds see it: those at alpha 1, all else frozen, no buffer moves.

        `loss(model) + loss(model.shadow())` trains the host exactly as if there were no seeds, and each
        TRAINING seed on the real loss with the seed on.

        Args:
            only: Which of the TRAINING seeds are on; None: all of them. Those that are off get no gradient.
        """
        training = self.seeds.training()
        kernels = {
            layer: {seed: _only(training[self.structure.row(layer), seed], tree) for seed, tree in held.items()}
            for layer, held in self.params["kernels"].items()
        }
        # A seed that is off differs in alpha alone: which kernels are computed at all is one choice for all `only`.
        weight = jnp.float32(1) if only is None else only.astype(jnp.float32)
        seeds = self.seeds.replace(
            lifecycle=jnp.where(training, jnp.uint8(SeedLifecycleState.ACTIVE), self.seeds.lifecycle),
            alpha=jnp.where(training, weight, self.seeds.alpha),
        )
        params = {"host": lax.stop_gradient(self.params["host"]), "kernels": kernels}
        return self.replace(params=params, seeds=seeds, structure=replace(self.structure, shadow=True), taps={})

    def load_kernel(self, layer: str, seed: int, artifact: KernelArtifact | str) -> MorphableModel:
        """The model with a trained kernel in a dormant seed, which starts GRAFTING at alpha 0.

        `esper.load_kernel` is the same with an optimiser state.

        Args:
            layer: Name of a KasminaLayer like the one that the kernel was trained beside.
            seed: Which of its seeds.
            artifact: The kernel, which the cache keeps if it has room; or the digest of one that is there, or in the
                model's library.

        Raises:
            IllegalTransitionError: The seed is neither DORMANT nor LOADING.
            ArtifactError: The artifact is in neither cache nor library, or does not fit the layer; the message says
                why.
            LibraryError: The library cannot be read.
        """
        return loaded(self, layer, seed, artifact)

    def prefetch_kernel(self, digest: str) -> Future[KernelArtifact]:
        """Lets a kernel come from the model's library into its cache while other things go on.

        Args:
            digest: Its digest.

        Returns:
            A future: `done()` says whether it is there, `result()` waits for it, and raises what went wrong. The
            artifact that it gives can be loaded even where the cache had no room for it.

        Raises:
            ArtifactError: It is not in the cache, and the model has no library.
        """
        return prefetched(self, digest)

    def unload_kernel(self, layer: str, seed: int) -> MorphableModel:
        """The model without a seed's kernel, which the cache keeps; the seed is CULLED.

        `esper.unload_kernel` also returns the kernel, and takes an optimiser state.

        Raises:
            IllegalTransitionError: The seed's state cannot become CULLED.
            ArtifactError: The cache has no room for the kernel, which would be lost.
            SeedError: The seed holds no kernel.
        """
        return unloaded(self, layer, seed, keep=True)[0]

    def state_dict(self) -> dict[str, Any]:
        """The arrays as torch tensors of their own, under the keys and in the order that the module has for them.

        Kernels that take part in the forward follow, under the keys that they have in the unwrapped module; those that
        do not are no part of it. What a module has besides tensors (`get_extra_state`) is as it was.
        """
        return self.structure.source.state_dict(host_arrays(self), live_growths(self))

    def load_state_dict(self, state: Any, strict: bool = True) -> tuple[MorphableModel, Any]:
        """The model with the values of a torch checkpoint, as `torch.nn.Module.load_state_dict` reads it.

        Args:
            state: A mapping of keys to tensors; or the path of a file that holds one, of safetensors or of `torch.save`
                (which is read with `weights_only=True`: nothing in it is executed).
            strict: Whether keys that are missing, or that the model does not have, are an error.

        Returns:
            The model, and torch's report: its `missing_keys` and `unexpected_keys`.

        Raises:
            StateError: Keys do not match and `strict` is set, shapes differ, or the file holds no such mapping.
            PrecisionError: A 64-bit value that does not fit while JAX's 64-bit mode is off.

        Example:
            >>> import esper, torch
            >>> model = esper.wrap(torch.nn.Linear(3, 2))
            >>> model, keys = model.load_state_dict({"weight": torch.ones(2, 3)}, strict=False)
            >>> keys.missing_keys
            ['bias']
        """
        return loaded_state(self, state, strict)

    def stats(self) -> dict[str, Any]:
        """Counts: parameters, buffers, bytes, layers, kernels, seeds by state, captured Programs, cached kernels."""
        states = [SeedLifecycleState(int(state)).name for state in self.seeds.lifecycle.ravel()]
        waiting = reserved_kernels(self)
        idle = sum(_count(self.params["kernels"][kernel.layer][kernel.seed]) for kernel in waiting)
        return {
            "host_parameters": _count(self.params["host"]),
            "kernel_parameters": _count(self.params["kernels"]) - idle,
            "reserved_parameters": idle,
            "buffer_elements": _count(self.buffers),
            "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves((self.params, self.buffers))),
            "layers": len(self.structure.sites),
            "seeds_per_layer": self.structure.seeds_per_layer,
            "kernels": len(self.structure.kernels) - len(waiting),
            "reserved": len(waiting),
            "seeds": {state: states.count(state) for state in sorted(set(states))},
            "programs": len(self.structure.source.programs),
            "traces": self.structure.source.traces,
            "cache_size_mb": self.structure.cache.budget >> 20,
            "kernel_cache": asdict(self.structure.cache.statistics()),
        }

    def show(self) -> Shown:
        """The network to look at: a drawing in a notebook, text in a terminal; what grew stands beside its layer.

        Shapes, FLOPs and the order of layers are those of the last call in evaluation mode; before any call only the
        layers that can grow are known.

        Example:
            >>> import esper, torch
            >>> print(esper.wrap(torch.nn.Linear(3, 2), example_inputs=torch.zeros(1, 3)).show())
            Linear: 8 parameters
              (root)                       Linear             3 → 2                               8  14 FLOPs
        """
        from esper.jax_backend.description import description

        return Shown(description(self))

    def late_constants(self) -> dict[str, jax.Array]:
        """What the captures turned out to close over besides `constants`."""
        return {n: array for n, array in constants(self.structure.source).items() if n not in self.constants}

    def __repr__(self) -> str:
        waiting = reserved_kernels(self)
        held = {f"{k.layer}[{k.seed}]": k.blueprint + " (reserved)" * (k in waiting) for k in self.structure.kernels}
        return (
            f"MorphableModel({_count(self.params['host']):,} host parameters, "
            f"{_count(self.params['kernels']):,} kernel parameters, {len(self.structure.sites)} layers x "
            f"{self.structure.seeds_per_layer} seeds, kernels={held})"
        )

    def _moved(self, state: Mapping[str, jax.Array], seeds: SeedState | None) -> MorphableModel:
        """The model with these buffers and parameters in the place of its own, and with these seeds."""
        host = self.params["host"]
        written = {name: array for name, array in state.items() if name in host}
        buffers = {name: array for name, array in state.items() if name not in host}
        changed: dict[str, Any] = {"seeds": seeds} if seeds is not None else {}
        if buffers:
            changed["buffers"] = {**self.buffers, **buffers}
        if written:
            changed["params"] = {**self.params, "host": {**host, **written}}
        return self.replace(**changed) if changed else self

    def _layer(self, row: int, name: str) -> KasminaLayer:
        return KasminaLayer(
            params=self.params["kernels"].get(name, {}),
            seeds=self.seeds.row(row),
            site=self.structure.sites[row],
            kernels=tuple(kernel for kernel in self.structure.kernels if kernel.layer == name),
        )


@partial(jax.jit, static_argnums=1, inline=True)
def run_program(
    model: MorphableModel,
    program: Program,
    tensors: list[jax.Array],
    key: jax.Array | None,
    late_constants: dict[str, jax.Array],
) -> tuple[list[jax.Array], dict[str, jax.Array], SeedState | None]:
    """The forward as one compiled program: array outputs, buffers and parameters that it wrote, seeds if they aged.

    What stays as it was is no result: every result costs the caller time.
    """
    placement = model.structure.placement
    if placement is not None:
        model, tensors = placement.constrained(model), placement.split(program, tensors)
    outputs, state = evaluate(
        program,
        model.params["host"],
        model.buffers,
        tensors,
        key,
        constants={**model.constants, **late_constants},
        grafts=_grafts(model, program.train),
        remat=model.structure.remat,
        share_blocks=model.structure.share_blocks,
    )
    state = {spec.target: state[spec.target] for spec in program.outputs if spec.kind != "user"}
    if placement is not None:
        state = placement.kept(state)
    user = [spec.value for spec in program.outputs if spec.kind == "user"]
    arrays = [output for output, value in zip(outputs, user, strict=True) if is_array(program, value)]
    ages = program.train and model.structure.kernels and not model.structure.shadow
    return arrays, state, model.seeds.grown_older() if ages else None


def _grafts(model: MorphableModel, train: bool) -> dict[str, Any]:
    """For each layer with kernels or a tap, the function that makes its output of the host's."""
    by_layer: dict[str, list[Kernel]] = {}
    for kernel in model.structure.kernels:
        by_layer.setdefault(kernel.layer, []).append(kernel)
    joins = {layer: partial(_join, model, kernels, train) for layer, kernels in by_layer.items()}
    return joins | {layer: partial(_tapped, tap, joins.get(layer)) for layer, tap in model.taps.items()}


def _tapped(
    tap: Callable[[jax.Array, jax.Array], jax.Array],
    join: Callable[..., Value] | None,
    host: Value,
    input: Value,
    key: jax.Array | None,
) -> Value:
    output = in_torch_order(join(host, input, key) if join else host)
    return like(host, tap(output, in_torch_order(input)))


def _join(
    model: MorphableModel,
    kernels: list[Kernel],
    train: bool,
    host: Value,
    input: Value,
    key: jax.Array | None,
) -> Value:
    row, seeds = model.structure.row(kernels[0].layer), jnp.asarray([kernel.seed for kernel in kernels])
    blended, live, alpha = (of[row, seeds] for of in (model.seeds.blended(), model.seeds.live(), model.seeds.alpha))
    permanent = model.seeds.lifecycle[row, seeds] == int(SeedLifecycleState.FOSSILIZED)
    params = [model.params["kernels"][kernel.layer][kernel.seed] for kernel in kernels]
    (output, of_output), (fed, of_input) = lying(host), lying(input)
    branches = [_branch(kernel, train, of_output, of_input) for kernel in kernels]
    blends = [kernel.blend for kernel in kernels]
    return of_output(blend(output, fed, branches, params, blends, blended, live, permanent, alpha, key))


def _branch(kernel: Kernel, train: bool, of_output: Held, of_input: Held) -> Branch:
    def run(params: Any, output: jax.Array, fed: jax.Array, key: jax.Array | None) -> jax.Array:
        host = of_output(output)
        own_key = None if key is None else jax.random.fold_in(key, kernel.seed)
        read = host if kernel.placement == "sequential" else of_input(fed)
        made = kernel_output(kernel.source, params, read, train=train, key=own_key)
        if made.shape != host.shape:
            raise SeedError(
                f"blueprint {kernel.blueprint!r} at layer {kernel.layer!r} returns shape {made.shape} "
                f"where the layer returns {host.shape}"
            )
        return lying(like(host, made))[0]

    return run


def _only(training: jax.Array, tree: Any) -> Any:
    """Gradients reach the tree only while its seed trains."""
    return jax.tree.map(lambda leaf: jnp.where(training, leaf, lax.stop_gradient(leaf)), tree)


def _count(tree: Mapping[Any, Any]) -> int:
    # Where others have put something in the place of arrays, such as a filter's booleans, nothing is counted.
    return sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(tree))
