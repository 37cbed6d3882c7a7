"""Judging one call: eager PyTorch is the oracle, for values, gradients, buffers, dtypes and shapes."""

from __future__ import annotations

import copy
import random
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import esper
from esper.errors import EsperError
from esper.parity import compare, tolerance
from esper.program import flatten, unflatten
from parity.case import DOCUMENTED, NONE, PASS, REFUSED, SKIP, WRONG, Call, Case, Verdict, worst


class Disagreement(Exception):
    """A value that differs from eager torch's."""


def judge(case: Case) -> Verdict:
    """The verdict on a case; its calls in one program first, one by one if that does not pass."""
    if case.skip:
        return Verdict(SKIP, SKIP, case.skip)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch and of the models: the verdict is what counts
        return _judge(case)


def _judge(case: Case) -> Verdict:
    _seed()
    calls = case.build()
    if not calls:
        return Verdict(SKIP, SKIP, "no sample whose dtype the CPU has, or whose output shape is free of data")
    if case.refuses:
        return _refused(case, judge_call(calls[0]))
    if case.joined is not None and len(calls) > 1 and len({call.drawn for call in calls}) == 1:
        verdict = judge_call(case.joined(calls))
        if verdict.values == PASS and verdict.gradients in (PASS, NONE):
            return verdict
    return worst([judge_call(call) for call in calls])


def _refused(case: Case, verdict: Verdict) -> Verdict:
    """What a documented refusal counts as: it is no pass, and anything but it is wrong."""
    if REFUSED in (verdict.values, verdict.gradients) and case.refuses in verdict.reason:
        return Verdict(DOCUMENTED, DOCUMENTED, verdict.reason[:200])
    return Verdict(WRONG, WRONG, f"not refused with {case.refuses!r}, but {verdict.values}: {verdict.reason}")


def judge_call(call: Call) -> Verdict:
    """The verdict on one call."""
    with jax.enable_x64(call.wide):
        try:
            eager = Eager(call)
        except Exception as error:
            return Verdict(SKIP, SKIP, f"eager torch raises {_short(error)}")
        try:
            ours = _Ours(call, eager)
        except Exception as error:
            return Verdict(REFUSED, REFUSED if eager.leaves else NONE, _short(error))
        values, reason = _status(lambda: ours.check_values(eager))
        if not eager.leaves:
            return Verdict(values, NONE, reason)
        gradients, why = _status(lambda: ours.check_gradients(eager))
        return Verdict(values, gradients, reason or why)


def _identical(one: Any, other: Any) -> bool:
    """Whether two entries of a state are equal, tensors bit for bit."""
    if not isinstance(one, torch.Tensor):
        return one == other
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    bits = [tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)


def _status(check: Callable[[], None]) -> tuple[str, str]:
    try:
        check()
    except Disagreement as error:
        return WRONG, str(error)
    except Exception as error:
        return REFUSED, _short(error)
    return PASS, ""


class Eager:
    """One eager run.

    Attributes:
        outputs: Leaves of the outputs.
        state: Buffers and parameters after the run.
        buffers: Names of the buffers.
        leaves: The tensors whose gradients are compared, by name; empty if nothing is differentiable.
        weights: For each output leaf what its elements weigh in the loss; None for those that count not.
        gradients: By the names of `leaves`.
    """

    def __init__(self, call: Call, dtype: torch.dtype | None = None) -> None:
        module = copy.deepcopy(call.module)
        if not call.own_modes:
            module.train(call.train)
        leaves, tree = flatten((tuple(call.args), call.kwargs))
        own = [_own(leaf, dtype) for leaf in leaves]
        if dtype is not None:
            module = module.to(dtype)
        args, kwargs = unflatten(tree, own)
        _seed()
        out = module(*args, **kwargs)
        self.outputs = opened(out)
        self.buffers = [name for name, _ in module.named_buffers()]
        named_state = (*module.named_buffers(), *module.named_parameters())
        self.state = {name: value.detach().clone() for name, value in named_state}
        self.leaves: dict[str, torch.Tensor] = {}
        self.gradients: dict[str, torch.Tensor] = {}
        self.weights = [_weights(value) for value in self.outputs]
        if call.gradients and not call.drawn and any(w is not None for w in self.weights):
            named = {name: p for name, p in module.named_parameters() if p.requires_grad}
            given = {f"input {i}": t for i, t in enumerate(own) if isinstance(t, torch.Tensor) and t.requires_grad}
            self.leaves = {**named, **given}
            self._differentiate()

    def _differentiate(self) -> None:
        pairs = zip(self.outputs, self.weights, strict=True)
        terms = [(value * torch.as_tensor(w).to(value.dtype)).sum().real for value, w in pairs if w is not None]
        loss = sum(term.to(torch.float64) for term in terms)
        for leaf in self.leaves.values():
            leaf.grad = None
        loss.backward()  # not `autograd.grad`, which reentrant checkpoints refuse
        for name, leaf in self.leaves.items():
            self.gradients[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


class _Ours:
    """The same call through `esper.wrap`, under `jax.jit`."""

    def __init__(self, call: Call, eager: Eager) -> None:
        self.call = call
        module = copy.deepcopy(call.module)
        if not call.own_modes:
            module.train(call.train)
        self.module, self.model = module, esper.wrap(module)
        leaves, self.tree = flatten((tuple(call.args), call.kwargs))
        self.arrays = [_array(leaf) for leaf in leaves]
        self.places = [int(n.removeprefix("input ")) for n in eager.leaves if n.startswith("input ")]
        self.outputs, self.state = self._run_values()

    def _forward(self, params: Any, given: Sequence[jax.Array], traced: Sequence[jax.Array]) -> tuple[list[Any], Any]:
        leaves = list(self.arrays)
        for place, value in zip(self._tensor_places(), traced, strict=True):
            leaves[place] = value
        for place, value in zip(self.places, given, strict=True):
            leaves[place] = value
        args, kwargs = unflatten(self.tree, leaves)
        model = self.model.replace(params=params)
        out, moved = model.apply(*args, train=self.call.train, key=jax.random.key(0), **kwargs)
        written = {n: array for n, array in moved.params["host"].items() if array is not params["host"][n]}
        return opened(out), {**moved.buffers, **written}

    def _tensor_places(self) -> list[int]:
        return [place for place, value in enumerate(self.arrays) if isinstance(value, jax.Array)]

    def _tensors(self) -> list[jax.Array]:
        return [self.arrays[place] for place in self._tensor_places()]

    def _run_values(self) -> tuple[list[Any], Any]:
        static: list[Any] = []

        def run(params: Any, traced: Sequence[jax.Array]) -> Any:
            outputs, state = self._forward(
                params, [traced[self._tensor_places().index(p)] for p in self.places], traced
            )
            static[:] = [None if isinstance(value, jax.Array) else value for value in outputs]
            return [value for value in outputs if isinstance(value, jax.Array)], state

        arrays, state = jax.jit(run)(self.model.params, self._tensors())
        given = iter(arrays)
        return [next(given) if value is None else value for value in static], state

    def check_way_back(self) -> None:
        """What was neither trained nor grown comes back as it was: class, keys, every bit."""
        back = esper.unwrap(self.model, verify=False)
        if type(back) is not type(self.module):
            raise Disagreement(f"a {type(back).__name__} comes back")
        wanted, found = self.module.state_dict(), back.state_dict()
        if list(wanted) != list(found):
            raise Disagreement(f"keys come back as {list(found)} for {list(wanted)}")
        differ = [name for name in wanted if not _identical(wanted[name], found[name])]
        if differ:
            raise Disagreement(f"{', '.join(differ)} do not come back as they were")

    def check_values(self, eager: Eager) -> None:
        self.check_way_back()
        if len(self.outputs) != len(eager.outputs):
            raise Disagreement(f"{len(self.outputs)} outputs where torch has {len(eager.outputs)}")
        exact = _Exact(self.call)
        for place, (found, wanted) in enumerate(zip(self.outputs, eager.outputs, strict=True)):
            agree(found, wanted, f"output {place}", lambda p=place: exact().outputs[p], self.call.drawn)
        for name in {**dict.fromkeys(eager.buffers), **self.state}:
            agree(self.state[name], eager.state[name], name, lambda n=name: exact().state[n], self.call.drawn)

    def check_gradients(self, eager: Eager) -> None:
        def loss(params: Any, given: Sequence[jax.Array], traced: Sequence[jax.Array]) -> jax.Array:
            outputs, _ = self._forward(params, given, traced)
            pairs = zip(outputs, eager.weights, strict=True)
            terms = [(value * jnp.asarray(w).astype(value.dtype)).sum().real for value, w in pairs if w is not None]
            return sum(term.astype(jnp.float64 if jax.config.jax_enable_x64 else jnp.float32) for term in terms)

        given = [self.arrays[place] for place in self.places]
        by_param, by_input = jax.jit(jax.grad(loss, argnums=(0, 1)))(self.model.params, given, self._tensors())
        inputs = {f"input {place}": g for place, g in zip(self.places, by_input, strict=True)}
        found = {**by_param["host"], **inputs}
        exact = _Exact(self.call)
        for name, wanted in eager.gradients.items():
            actual = jnp.conj(found[name]) if jnp.iscomplexobj(found[name]) else found[name]  # torch's convention
            place, truth = f"gradient of {name}", lambda n=name: exact().gradients[n]
            agree(actual, wanted, place, truth, gradient=True, through=self.call.through)


class _Exact:
    """The eager run in float64, made once and only if asked for."""

    def __init__(self, call: Call) -> None:
        self._call, self._run = call, None

    def __call__(self) -> Eager:
        if self._run is None:
            self._run = Eager(self._call, torch.float64)
        return self._run


def agree(
    found: Any,
    wanted: Any,
    place: str,
    exact: Callable[[], torch.Tensor],
    drawn: bool = False,
    *,
    gradient: bool = False,
    through: str = "",
) -> None:
    """Raises Disagreement unless dtype, shape and values agree.

    A value beyond the tolerance still agrees if it is within it of eager float64, or no further from that
    than eager torch in the call's own dtype is.
    """
    if not isinstance(wanted, torch.Tensor):
        if found != wanted and not (isinstance(wanted, float) and np.isnan(wanted)):
            raise Disagreement(f"{place}: {found!r} where torch has {wanted!r}")
        return
    carried = jax.dtypes.canonicalize_dtype(jnp.dtype(str(wanted.dtype).removeprefix("torch.")))
    if not isinstance(found, jax.Array) or found.dtype != carried or found.shape != tuple(wanted.shape):
        what = f"{found.dtype}{list(found.shape)}" if isinstance(found, jax.Array) else repr(found)
        raise Disagreement(f"{place}: {what} where torch has {wanted.dtype}{list(wanted.shape)}")
    if drawn:
        return
    actual, expected = to_numpy(found), to_numpy(wanted)
    limit = tolerance(through or str(carried), gradient=gradient)
    gap = compare(actual, expected)
    if gap.scaled <= limit:
        return
    try:
        truth = to_numpy(exact())
    except Exception:
        truth = None  # the case does not run in float64: float32 is all there is to compare with
    known = truth is not None and truth.shape == expected.shape
    if known and compare(actual, truth).scaled <= max(limit, compare(expected, truth).scaled):
        return
    raise Disagreement(f"{place}: off by {gap.scaled:.2g} where {limit:.0e} is accepted ({carried})")


def opened(value: Any) -> list[Any]:
    """The leaves of an output; of an object that holds tensors, such as a cache, those tensors."""
    return flatten(value, _tensors_held)[0]


def _tensors_held(value: Any) -> tuple[Any] | None:
    if isinstance(value, torch.Tensor | jax.Array | type):
        return None
    held = [tensor for member in getattr(value, "__dict__", {}).values() for tensor in _tensors_in(member)]
    return (held,) if held else None


def _tensors_in(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in opened(value) if isinstance(leaf, torch.Tensor)]


def to_numpy(value: Any) -> np.ndarray:
    """A numpy array; floats that numpy lacks as float32."""
    if isinstance(value, jax.Array):
        return np.asarray(value.astype(jnp.float32) if value.dtype.name.startswith(_UNKNOWN_TO_NUMPY) else value)
    value = value.detach().resolve_conj().resolve_neg()
    if value._is_zerotensor():
        value = torch.zeros(value.shape, dtype=value.dtype)
    return (value.float() if str(value.dtype)[6:].startswith(_UNKNOWN_TO_NUMPY) else value).cpu().numpy()


_UNKNOWN_TO_NUMPY = ("bfloat16", "float8")


def _own(leaf: Any, dtype: torch.dtype | None) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    fresh = leaf.detach().clone()
    if dtype is not None and fresh.is_floating_point():
        fresh = fresh.to(dtype)
    if dtype is not None and fresh.is_complex():
        fresh = fresh.to(torch.complex128)
    return fresh.requires_grad_(leaf.requires_grad)


def _array(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    from esper.torch_frontend.arrays import exportable

    return jnp.array(exportable(leaf, "an input", jax.config.jax_enable_x64))


def _weights(value: Any) -> np.ndarray | None:
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return None
    weights = np.cos(np.arange(value.numel())).reshape(tuple(value.shape))
    return weights * (1 + 0.5j) if value.is_complex() else weights


def _seed() -> None:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    if not isinstance(error, EsperError):
        frames = traceback.extract_tb(error.__traceback__)
        text = f"{text} [{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}]"
    return f"{type(error).__name__}: {text}"[:400]


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)
