"""Where a model's Programs come from: a torch module, traced once for each kind of call."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from esper.errors import RefusedError, TraceError, UnknownBlueprintError, WrapError
from esper.program import BindError, Captured, Growth, LayerSite, Program, Recipe, Signature, Static, TensorType
from esper.torch_frontend import capture, checkpoints, program_cache, recipes
from esper.torch_frontend.arrays import borrow, exportable, lend, to_torch
from esper.torch_frontend.blueprints import build, copied, names_for, sizes
from esper.torch_frontend.decompositions import Supported, decompositions
from esper.torch_frontend.graft import markers
from esper.torch_frontend.rebuild import put, rebuild
from esper.torch_frontend.scripted import tensors_stay
from esper.torch_frontend.skeleton import modes, refilled, set_mode, skeleton
from esper.torch_frontend.state import settled
from esper.torch_frontend.tied import aliases
from esper.torch_frontend.translate import translate


@dataclass(frozen=True)
class Sprout:
    """A kernel that has just been built.

    Attributes:
        source: Where its Programs come from.
        params: Its initial parameters by torch name.
        placement: What it is fed, "parallel" or "sequential".
        options: The recipe's options, defaults included.
        copied: Parameters that start from the host's: the kernel's name to the host's.
    """

    source: TorchSource
    params: Mapping[str, torch.Tensor]
    placement: str
    options: tuple[tuple[str, Any], ...]
    copied: Mapping[str, str]


@dataclass(frozen=True)
class _Attempt:
    """One way to capture a call.

    Attributes:
        dynamic: Places of the tensors whose first dimension stays symbolic.
        requires_grad: Whether floating inputs require a gradient.
        narrow: Whether int64 inputs are taken for int32.
    """

    dynamic: frozenset[int] = frozenset()
    requires_grad: bool = True
    narrow: bool = False


_LOG = logging.getLogger(__name__)


class TorchSource:
    """A torch module as a source of Programs.

    Equality is identity: a source stands for one module. What it holds besides is a cache, filled by the
    first call of each signature.

    Attributes:
        module: The module's skeleton: structure without memory.
        layers: Names of the layers that are marked as KasminaLayers.
        constants: Tensors the captures close over, by name.
        carried: What the backend made of the constants.
        traces: How many captures were made.
        supported: Whether an operator, by its full overload name, has a lowering.
    """

    def __init__(
        self, module: nn.Module, *, supported: Supported, layers: Sequence[str] = (), wide: bool = False
    ) -> None:
        self.modes = modes(module)
        self.module = skeleton(module)
        self.layers = tuple(layers)
        self.wide = wide
        self.constants = dict(attributes(self.module))
        self.carried: dict[str, Any] = {}
        self.traces = 0
        self.supported = supported
        self._programs: dict[Any, list[Program]] = {}
        self._met: dict[Signature, Program] = {}
        self._captures: list[Captured] = []
        self._narrowed_from = {} if wide else _wide_tensors(module)
        self._aliases = aliases(self.module)
        self._hooks = _parameter_hooks(module)

    @property
    def programs(self) -> tuple[Program, ...]:
        """Every Program captured so far."""
        return tuple(program for _, program in self._captures)

    def program(self, signature: Signature) -> Program:
        """The Program for a call: one captured before that covers it, or a new capture.

        Raises:
            TraceError: The module cannot be captured.
        """
        if torch.is_autocast_enabled("cpu"):
            raise RefusedError(
                "autocast around the call of a wrapped model has no effect: convert the module before you wrap it, "
                "`module.to(torch.bfloat16)`, or use autocast within its forward"
            )
        if signature not in self._met:
            self._met[signature] = self._covering(signature)
        return self._met[signature]

    @property
    def description(self) -> str:
        """The module's parts and their settings, as torch prints them."""
        return repr(self.module)

    @property
    def narrowed(self) -> bool:
        """Whether 64-bit floats of the module are carried in 32 bits."""
        return bool(self._narrowed_from)

    @property
    def captures(self) -> tuple[Captured, ...]:
        """Every Program captured so far, with the call that it was captured for."""
        return tuple(self._captures)

    def in_both_modes(self) -> tuple[Captured, ...]:
        """The captures, in training and in evaluation mode where the module can be captured there too."""
        return recipes.in_both_modes(self)

    def recipe(
        self,
        blueprint: str,
        site: LayerSite,
        options: Mapping[str, Any],
        gated: bool,
        fed: Sequence[tuple[TensorType, TensorType]],
    ) -> Recipe:
        """A blueprint for a layer, as plain data."""
        return recipes.recipe(self, blueprint, site, options, gated, fed)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        """None: recipes are made as they are asked for."""
        return ()

    @property
    def learns(self) -> bool:
        """A kernel must be a module of torch's here, so that it can be unwrapped."""
        return False

    def learn(self, recipe: Recipe) -> None:
        """Refused: a recipe as plain data builds no module of torch's."""
        raise UnknownBlueprintError(
            f"no blueprint {recipe.blueprint!r} is registered here for a {recipe.site.kind}, and a kernel beside a "
            "layer of torch's needs it: import the module that registers it"
        )

    def taught(self, recipe: Recipe) -> TorchSource:
        """Refused, as `learn`."""
        self.learn(recipe)
        return self

    def sizes(
        self, blueprint: str, site: LayerSite, options: Mapping[str, Any], blend: str
    ) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        """Dtypes and shapes of a kernel's parameters; None: its blueprint does what torch cannot do without memory."""
        return sizes(blueprint, site, options, self.module.get_submodule(site.name), blend)

    def blueprints(self, kind: str) -> tuple[str, ...]:
        """The blueprints for layers of this kind."""
        return names_for(kind)

    def calls(self) -> list[Signature]:
        """One signature for each kind of call seen so far, all in evaluation mode."""
        return list({call.family[:2]: replace(call, train=False) for call, _ in self._captures}.values())

    def original(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The 64-bit tensor that `tensor` was narrowed from, if it has not changed since; else `tensor`."""
        wide = self._narrowed_from.get(name)
        return tensor if wide is None or not torch.equal(wide.to(tensor.dtype), tensor) else wide

    def template(self) -> nn.Module:
        """A fresh copy of the module's structure, for values to be written into."""
        return skeleton(self.module)

    def exportable(self, tensor: torch.Tensor, place: str) -> np.ndarray:
        """`tensor` as a numpy view, 64-bit values narrowed if this source does so."""
        return exportable(tensor, place, self.wide)

    def lend(self, tensor: torch.Tensor, place: str) -> torch.Tensor | np.ndarray:
        """What DLPack reads of a tensor without a copy, or a numpy array of one."""
        return lend(tensor, place, self.wide)

    def borrow(self, array: Any, dtype: str | None = None) -> torch.Tensor:
        """A torch tensor on an array's memory."""
        return borrow(array, dtype)

    def to_foreign(self, array: Any, dtype: str | None = None) -> torch.Tensor:
        """A torch tensor from an array, with memory of its own."""
        return to_torch(array, dtype)

    def state_dict(self, arrays: Mapping[str, Any], growths: Sequence[Growth]) -> dict[str, torch.Tensor]:
        """The module's state, its values from arrays by torch name, kernels in it."""
        return self._filled(arrays, growths).state_dict()

    def load_state_dict(
        self, arrays: Mapping[str, Any], growths: Sequence[Growth], given: Any, strict: bool
    ) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]], Any]:
        """Parameters and buffers by name, and those of each kernel, after a checkpoint was read; torch's report.

        Raises:
            StateError: The checkpoint does not match, or cannot be read.
        """
        module = self._filled(arrays, growths)
        report = checkpoints.load(module, given, strict)
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        host = {name: named[name].detach() for name in arrays}
        return host, checkpoints.growths_of(module, growths), report

    def _filled(self, arrays: Mapping[str, Any], growths: Sequence[Growth]) -> nn.Module:
        module = rebuild(self, arrays)
        put(module, growths)
        return module

    def sprout(
        self, blueprint: str, site: LayerSite, options: Mapping[str, Any], entropy: int | None, blend: str = "add"
    ) -> Sprout:
        """Builds a kernel for a layer: a source of its own, and initial parameters.

        Raises:
            UnknownBlueprintError: No such blueprint for this kind of layer.
            SeedError: The blueprint does not fit the layer.
        """
        kernel, entry = build(blueprint, site, options, entropy, self.module.get_submodule(site.name), blend)
        params = {name: parameter.detach() for name, parameter in kernel.named_parameters()}
        return Sprout(
            source=TorchSource(kernel, supported=self.supported, wide=self.wide),
            params=params,
            placement=entry.placement,
            options=tuple(sorted({**entry.options, **options}.items())),
            copied={own: self._aliases.get(name, name) for own, name in copied(kernel, site.name).items()},
        )

    def _covering(self, signature: Signature) -> Program:
        known = self._programs.setdefault(signature.family, [])
        for program in known:
            if _covers(program, signature):
                return program
        program = self._kept_or_captured(signature)
        known.append(program)
        self._captures.append((signature, program))
        return program

    def _kept_or_captured(self, signature: Signature) -> Program:
        """The Program for a call, from the disk if it is there."""
        set_mode(self.module, signature.train, self.modes)
        settings = [self.layers, self.wide, self.modes, self._hooks]
        place = program_cache.family(self.module, signature, self.supported, *settings)
        for program, constants in program_cache.read(place) if place else ():
            if _covers(program, signature):
                return self._adopted(program, constants)
        program, silent = self._capture(signature)
        if place and silent:
            program_cache.write(place, signature, program, self._closed_over(program))
        return program

    def _closed_over(self, program: Program) -> dict[str, torch.Tensor]:
        """The tensors that a Program closes over and the module does not hold."""
        own = dict(attributes(self.module))
        names = [spec.target for spec in program.inputs if spec.kind == "constant" and spec.target not in own]
        return {name: self.constants[name] for name in names}

    def _adopted(self, program: Program, constants: Mapping[str, torch.Tensor]) -> Program:
        """A Program from the disk, with the tensors that came with it under names of this source."""
        names = {name: self._constant(tensor) for name, tensor in constants.items()}
        inputs = tuple(
            replace(spec, target=names.get(spec.target, spec.target)) if spec.kind == "constant" else spec
            for spec in program.inputs
        )
        return replace(program, inputs=inputs)

    def _capture(self, signature: Signature) -> tuple[Program, bool]:
        """A new capture, and whether there was nothing to warn of."""
        found: TraceError | None = None
        for attempt in self._attempts(signature):
            try:
                with refilled(self.module):
                    program, silent = self._trace(signature, attempt)
                if _covers(program, signature):
                    return program, silent
            except RefusedError:
                raise
            except TraceError as error:
                _LOG.debug("this capture failed, the next is tried: %s", error)
                found = error if found is None or not attempt.narrow else found
        assert found is not None  # a capture of the call's own sizes covers it
        raise found

    def _attempts(self, signature: Signature) -> Iterator[_Attempt]:
        """Ways to capture a call, the most useful first."""
        if signature.batch_leaves():
            yield _Attempt(signature.batch_leaves())
        # Some models fix the batch size, or assume it is not 1: the same call with its own sizes decides.
        yield _Attempt()
        yield _Attempt(requires_grad=False)  # some operators take no gradient to an input, and say so early
        if not self.wide and any(kind.dtype == "int64" for kind in signature.tensors):
            yield _Attempt(requires_grad=False, narrow=True)  # JAX's int32 may be torch's int32 after all

    def _trace(self, signature: Signature, attempt: _Attempt) -> tuple[Program, bool]:
        tensors = [_example(kind, place in attempt.dynamic, attempt) for place, kind in enumerate(signature.tensors)]
        given = iter(tensors)
        leaves = [leaf.value if isinstance(leaf, Static) else next(given) for leaf in signature.leaves]
        flat = capture.flat_call(self._prepared(signature.train), signature.tree, leaves)
        named = {name: self.module.get_submodule(name) for name in self.layers}
        with torch.inference_mode(False), tensors_stay(flat.module), markers(named):
            exported = capture.export(flat, tensors, attempt.dynamic, self._hooks)
        exported, functions = capture.functionalise(flat, exported, decompositions(exported, self.supported))
        program = translate(
            exported,
            out_tree=flat.seen.out_tree,
            assigned=flat.seen.assigned,
            leaf_names=_leaf_names(signature, leaves),
            aliases=self._aliases,
            train=signature.train,
            named=lambda tensor: self._named(flat.module, tensor),
            functions=functions,
        )
        self.traces += 1
        if flat.seen.dropped:
            warnings.warn(
                f"a compiled program cannot raise: checks of values at {', '.join(flat.seen.dropped)} are left out",
                stacklevel=2,
            )
        return settled(program, flat.seen.changed), not (flat.seen.dropped or flat.seen.changed)

    def _prepared(self, train: bool) -> nn.Module:
        set_mode(self.module, train, self.modes)
        return self.module if self.wide else narrowed(self.module)

    def _named(self, module: nn.Module, tensor: torch.Tensor) -> tuple[str, str]:
        """The kind and name of a closed-over tensor; functions may close over parameters."""
        for kind, registered in (("param", module.named_parameters()), ("buffer", module.named_buffers())):
            for name, held in registered:
                if held is tensor:
                    return kind, name
        return "constant", self._constant(tensor)

    def _constant(self, tensor: torch.Tensor) -> str:
        """The name under which a closed-over tensor is held: the same tensor has one name."""
        for name, held in self.constants.items():
            if held is tensor:
                return name
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # pyright: ignore[reportAttributeAccessIssue]
            raise TraceError("a torch.func transform inside the forward leaves values that a capture cannot keep")
        name = f"constant_{len(self.constants)}"
        self.constants[name] = tensor
        return name


def attributes(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that modules hold as plain attributes, alone or in lists, tuples and dicts, by dotted path."""
    registered = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    for path, sub in module.named_modules():
        for name, value in vars(sub).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                found = _tensors_in(value, f"{path}.{name}" if path else name)
                yield from ((place, tensor) for place, tensor in found if id(tensor) not in registered)


def _tensors_in(value: Any, path: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _tensors_in(item, f"{path}.{place}")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors_in(item, f"{path}.{key}")


def _parameter_hooks(module: nn.Module) -> dict[str, list[Any]]:
    """The hooks that were put on parameters, by the parameter's name; copies of a parameter have none."""
    named = dict(module.named_parameters())
    for name, parameter in named.items():
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise WrapError(
                f"parameter {name!r} has a post-accumulate-grad hook: JAX has no place where gradients accumulate. "
                "Remove the hook and do its work in the training step."
            )
    return {name: list(p._backward_hooks.values()) for name, p in named.items() if p._backward_hooks}


def _wide_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the 64-bit floats, which narrowing would round."""
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    wide = (torch.float64, torch.complex128)
    return {name: tensor.detach().clone() for name, tensor in named.items() if tensor.dtype in wide}


def narrowed(module: nn.Module) -> nn.Module:
    """The module with 64-bit floats replaced by 32-bit ones, itself if it has none."""
    wide = (torch.float64, torch.complex128)
    if not any(t.dtype in wide for t in (*module.parameters(), *module.buffers())):
        return module
    return skeleton(module)._apply(
        lambda t: t.to(torch.float32 if t.dtype is torch.float64 else torch.complex64) if t.dtype in wide else t
    )


def _covers(program: Program, signature: Signature) -> bool:
    try:
        program.bind(signature.shapes)
    except BindError:
        return False
    return True


def _example(kind: TensorType, dynamic: bool, attempt: _Attempt) -> torch.Tensor:
    shape = [int(size) for size in kind.shape]
    if dynamic:
        shape[0] = max(shape[0], 2)
    dtype = torch.int32 if attempt.narrow and kind.dtype == "int64" else getattr(torch, kind.dtype)
    differentiable = attempt.requires_grad and (dtype.is_floating_point or dtype.is_complex)
    return torch.zeros(shape, dtype=dtype, requires_grad=differentiable)


def _leaf_names(signature: Signature, leaves: Sequence[Any]) -> list[str]:
    paths = list(signature.tree.paths())
    names = [path.removeprefix("[0]") if path.startswith("[0]") else path.removeprefix("[1]") for path in paths]
    return [name for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, torch.Tensor)]
