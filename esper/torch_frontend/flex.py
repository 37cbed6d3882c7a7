"""flex_attention in a capture: as it is computed without a kernel, and without what only kernels read."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch
from torch._C._dynamo.eval_frame import reset_code
from torch._dynamo import config
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode

# By name: the packages that hold these modules have functions of the same names.
_API: Any = importlib.import_module("torch.nn.attention.flex_attention")
_OPERATOR: Any = importlib.import_module("torch._higher_order_ops.flex_attention")
_OPTIONS: Callable[..., Any] = _API._apply_kernel_options
_TRACE: Callable[..., Any] = _OPERATOR.trace_flex_attention
_ENVIRONMENT: Callable[..., Any] = _API.setup_compilation_env


@contextmanager
def kernelless() -> Iterator[None]:
    """While open, flex_attention is traced without the limits of torch's kernels for the device that tensors are on."""
    with (
        patch.object(_API, "_validate_device", _any_device),
        patch.object(_API, "_apply_kernel_options", _options),
        patch.object(_API, "setup_compilation_env", _afresh),
        patch.object(_OPERATOR, "trace_flex_attention", _trace),
    ):
        yield


def _any_device(*_tensors: torch.Tensor) -> None:
    """Kernels for a CPU have no backward."""


def _options(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, return_lse: bool, options: Any, aux: Any = None
) -> dict[str, Any]:
    """Kernels for a CPU do not return the largest scores; those of the backend FLASH do nowhere."""
    flash = (options or {}).get("BACKEND") == "FLASH"
    return _OPTIONS(query, key, value, return_lse, options, aux if flash or aux is None else aux._replace(max_scores=0))


@contextmanager
def _afresh() -> Iterator[Any]:
    """What torch kept of earlier calls is not asked whether it fits this one, with its closures and its sizes."""
    for code in _API.flex_attention.__code__.co_consts:
        if isinstance(code, CodeType):
            reset_code(code)
    with config.patch(automatic_dynamic_shapes=False), _ENVIRONMENT() as backend:  # pyright: ignore[reportAttributeAccessIssue]
        yield backend


def _trace(
    mode: Any, query: torch.Tensor, key: Any, value: Any, score_mod: Callable[..., Any], block_mask: Any, *rest: Any
) -> Any:
    """The tracer shows `score_mod` a score of the query's dtype; it is computed with scores of at least float32."""
    working = torch.float64 if query.dtype is torch.float64 else torch.float32
    *blocks, mask_mod = block_mask

    def score(given: torch.Tensor, *others: Any) -> Any:
        with _Literals():
            return score_mod(given.to(working), *others)

    def mask(*given: Any) -> Any:
        with _Literals():
            return mask_mod(*given)

    return _TRACE(mode, query, key, value, score, (*blocks, mask), *rest)


class _Literals(TorchFunctionMode):
    """While entered, tensors of Python numbers are made by operators: a body cannot hold them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and args and _is_literal(args[0]):
            made = _literal(args[0])
            return made if given.get("dtype") is None else made.to(given["dtype"])
        return func(*args, **given)


def _is_literal(data: Any) -> bool:
    if isinstance(data, list | tuple):
        return bool(data) and all(_is_literal(item) for item in data)
    return isinstance(data, bool | int | float)


def _literal(data: Any) -> torch.Tensor:
    if isinstance(data, list | tuple):
        return torch.stack([_literal(item) for item in data])
    return torch.full((), data)


def trim(graph_module: GraphModule) -> None:
    """Leaves each flex_attention only what its value depends on: a mask's blocks and the options are for kernels."""
    for part in graph_module.modules():
        found = part.graph.nodes if isinstance(part, GraphModule) else ()
        for node in [node for node in found if node.target is _OPERATOR.flex_attention]:
            query, key, value, score_mod, block_mask, scale, _, score_buffers, mask_buffers = node.args
            node.args = (query, key, value, score_mod, block_mask[-1], scale, score_buffers, mask_buffers)
