"""What goes in and comes out: containers, options, aliases, empty tensors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.utils import ModelOutput

from parity.case import Call
from parity.judge import Function
from parity.semantics.table import case, floats, given, integers


@dataclass
class Found(ModelOutput):
    """As Hugging Face's models return."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] | None = None


@dataclass
class Plain:
    """A dataclass with a default, a nested container and a number."""

    value: torch.Tensor
    parts: dict[str, Any] = field(default_factory=dict)
    count: int = 3


@dataclass(frozen=True)
class Frozen:
    """A frozen dataclass."""

    value: torch.Tensor
    name: str = "frozen"


class Pair(NamedTuple):
    """A named tuple."""

    first: torch.Tensor
    second: torch.Tensor | None = None


def _function(name: str, *given: Callable[[], Any], **kwargs: Callable[[], Any]) -> Callable[[Any], Any]:
    """Registers a function of tensors as a case."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def build() -> Call:
            return Call(
                Function(function), tuple(give() for give in given), {key: give() for key, give in kwargs.items()}
            )

        case(f"structures: {name}")(build)
        return function

    return register


def _zero_dim_input() -> torch.Tensor:
    return torch.tensor(0.7, requires_grad=True)


@_function("a ModelOutput, with None and a tuple", floats(2, 3))
def _model_output(x):
    return Found(loss=x.square().mean(), hidden=(x.sin(), x.cos()))


@_function("a ModelOutput that is read by key, slice and to_tuple", floats(2, 3))
def _model_output_read(x):
    made = Found(loss=x.mean(), logits=x * 2)
    return made[0], made["logits"], made[1:], made.to_tuple(), made.get("hidden"), Found(**made)


@_function("a dataclass with a default and a dict", floats(2, 3))
def _dataclass(x):
    return Plain(x.sin(), {"a": x * 2, "b": [x.cos(), None]})


@_function("a frozen dataclass within a list", floats(2, 3))
def _frozen_dataclass(x):
    return [Frozen(x.sin()), Frozen(x.cos(), "other")]


@_function("named tuples, nested", floats(2, 3))
def _named_tuples(x):
    return Pair(x.sin(), Pair(x.cos()))


@_function("torch's own return types", floats(2, 3))
def _return_types(x):
    return x.max(1), x.sort(), torch.linalg.slogdet(x @ x.T + torch.eye(2)), x.topk(2)


@_function("dicts, ordered dicts, lists and tuples, nested", floats(2, 3))
def _nested(x):
    return {"z": [x, (x * 2, {"deep": x.sin()})], "a": OrderedDict(second=x.cos(), first=x.tan()), 3: x + 1}


@_function("None, ints, floats, strings and bools beside tensors", floats(2, 3))
def _static(x):
    return x.sin(), None, 3, 2.5, "name", True, (), [], {}, x.shape[1], x.dtype == torch.float32


@_function("a single None")
def _only_none():
    return None


@_function("no tensor at all", floats(2, 3))
def _only_static(x):
    return {"size": tuple(x.shape[1:]), "rank": x.dim()}


@_function("a call without arguments")
def _no_arguments():
    return torch.arange(3.0) * 2


@_function("an output that is an input", floats(2, 3), integers(4, 2))
def _input_returned(x, n):
    return x, x * 2, n, (x, n)


@_function("one tensor twice", floats(2, 3))
def _twice(x):
    y = x.sin()
    return y, [y, {"again": y}], y.view(3, 2), y[0]


@_function("an empty tensor out", floats(2, 3))
def _empty_out(x):
    return x[:0], x.new_zeros(0), x[:, 3:].sum(1), x[2:].mean(), torch.cat((x[:0], x))


@_function("0-d in, 0-d out", given(1.5, 2.5), _zero_dim_input, given(3, dtype=torch.int64))
def _zero_dim(x, y, n):
    return y * 2, y + x, x.sum() * n[0], y.expand(3), y[None], torch.stack((y, y.exp()))


@_function("empty inputs", floats(0, 3), floats(2, 0), integers(3, 0))
def _empty_in(x, y, n):
    return x.sum(0), x @ torch.ones(3, 2), y.sum(1), y @ y.T, torch.cat((x, x + 1)), n + 1, x.mean(), y.prod()


@_function("bool and uint8 inputs", given(True, False, True), given(3, 200, 7, dtype=torch.uint8), floats(3))
def _small_inputs(mask, b, x):
    return x * mask, x[None] + b, mask & (b > 5), x.masked_fill(mask, 0.0)


@_function("optional tensors, given and not", floats(2, 3), bias=floats(3), mask=lambda: None)
def _optional(x, bias=None, mask=None, scale=None):
    x = x if bias is None else x + bias
    return x if mask is None else x * mask, scale


@_function("lists of tensors", lambda: [floats(2, 3)(), floats(2, 3)()], more=lambda: (floats(3)(), None, 2))
def _lists(tensors, more):
    return torch.cat(tensors, 1), tensors[0] * more[0] * more[2], len(tensors)


@_function("a dict of tensors in", lambda: {"x": floats(2, 3)(), "deep": {"y": floats(3)()}, "flag": True})
def _dict(batch):
    y = batch["x"] * batch["deep"]["y"]
    return y if batch["flag"] else -y, sorted(batch)


@_function(
    "a dataclass and a named tuple in", lambda: Plain(floats(2, 3)(), {"y": floats(3)()}), lambda: Pair(floats(3)())
)
def _objects(plain, pair):
    return plain.value * plain.parts["y"] * plain.count + pair.first, pair.second


@_function("a ModelOutput in", lambda: Found(logits=floats(2, 3)(), hidden=(floats(3)(), floats(3)())))
def _model_output_in(found):
    return found.logits.softmax(-1) * found.hidden[1], found.loss


@_function("*args and **kwargs", floats(3), floats(3), floats(3), first=floats(3), second=floats(3))
def _variadic(x, *args, **kwargs):
    return x * sum(args), {key: value + x for key, value in kwargs.items()}, list(kwargs)


@_function("keyword-only arguments and defaults", floats(2, 3), scale=lambda: 2.0, axis=lambda: 0)
def _keyword_only(x, *, scale, axis=-1, keepdim=True):
    return (x * scale).sum(axis, keepdim=keepdim)


@_function(
    "options: a bool, a string, an int, a tuple, None, a dtype",
    floats(2, 3),
    flag=lambda: True,
    mode=lambda: "sin",
    times=lambda: 3,
    axes=lambda: (0, 1),
    nothing=lambda: None,
    dtype=lambda: torch.float16,
)
def _options(x, flag, mode, times, axes, nothing, dtype):
    y = getattr(x, mode)() if flag and nothing is None else x
    for _ in range(times):
        y = y + x.mean(axes)
    return y.to(dtype)


@_function("a slice, an ellipsis and a range as options", floats(4, 3), lambda: slice(1, 3), lambda: range(2))
def _slice_option(x, part, steps):
    return x[part], [x[step] for step in steps], x[..., 0]


@_function(
    "slices in containers, without an end, as keywords and as outputs",
    floats(5, 3),
    parts=lambda: {"a": slice(None), "b": [slice(None, None, 2)]},
    one=lambda: slice(-2, None),
)
def _slices(x, parts, one):
    return x[parts["a"]] * 2, x[parts["b"][0]], x[one], {"kept": one}


@_function("positional and keyword for the same parameter list", floats(2, 3), y=floats(2, 3), z=lambda: 1.5)
def _mixed(x, y, z=0.5):
    return x * y + z


@_function("one input for two arguments of an inner function", floats(2, 3))
def _same_given(x):
    return _mixed(x, x, 2.0)


@_function("a float option that is nan and one that is infinite", floats(2, 3), fill=lambda: float("inf"))
def _special_options(x, fill):
    return x.masked_fill(x > 0, -fill), x.nan_to_num(posinf=fill), x.clamp(max=fill)


@_function("a complex number as an option", floats(2, 3), lambda: 1 + 2j)
def _complex_option(x, z):
    return x * z


@_function(
    "non-contiguous inputs",
    lambda: floats(3, 2)().t(),
    lambda: torch.arange(8.0)[::2],
    lambda: torch.ones(1).expand(2, 3),
)
def _strided_inputs(x, y, z):
    return x.reshape(-1), x.flatten() * z.flatten(), y.view(2, 2), x + z, x.shape


class ReturnsOwn(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(3))
        self.register_buffer("shift", torch.randn(3))

    def forward(self, x):
        return self.scale, self.shift, x * self.scale + self.shift, {"again": self.scale}


@case("structures: outputs that are a parameter and a buffer")
def _own_returned():
    return Call(ReturnsOwn(), (floats(2, 3)(),))


@case("structures: a buffer returned before and after it moves", floats(2, 3), train=True)
class ReturnsMoved(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(3))

    def forward(self, x):
        before = self.steps.clone()
        self.steps += 1
        return before, self.steps, x * self.steps


@case("structures: only a parameter comes out")
class OnlyParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(2, 3))

    def forward(self):
        return self.query


@case("structures: a view of a parameter comes out", floats(2, 3))
class ParameterView(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x):
        return self.weight[:2], self.weight.T, x @ self.weight.T


@case("structures: one module, several kinds of call")
def _kinds():
    module = Function(_optional)
    x, y = floats(2, 3)(), floats(4, 5)()
    return [Call(module, (x,)), Call(module, (y,), {"bias": floats(5)()}), Call(module, (x, None), {"scale": "no"})]
