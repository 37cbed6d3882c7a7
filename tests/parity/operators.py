"""PyTorch's own operator database (`op_db`): every entry, up to four of its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils import _pytree as pytree

from parity.case import Call, Case

SAMPLES = 4
DTYPES = (torch.float32, torch.complex64, torch.int64, torch.bool, torch.float16, torch.float8_e4m3fn)

UNINITIALISED = "its result is uninitialised memory"
BY_DATA = "its output shape depends on the values of its input"
SKIPPED = {
    **dict.fromkeys(
        ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"), UNINITIALISED
    ),
    **dict.fromkeys(
        ("argwhere", "bincount", "masked_select", "nonzero", "to_sparse", "unique", "unique_consecutive"), BY_DATA
    ),
    **dict.fromkeys(
        (
            *("jiterator_2inputs_2outputs", "jiterator_4inputs_with_extra_args", "jiterator_binary"),
            *("jiterator_binary_return_by_ref", "jiterator_unary"),
        ),
        "it is for CUDA",
    ),
    "chalf": "eager torch cannot sum what it gives",
    **dict.fromkeys(("allclose", "equal", "item"), "its result is a Python value that depends on data"),
}
# Values differ by generator: shapes and dtypes are compared.
DRAWN = frozenset(
    (
        *("bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal", "normal.in_place"),
        *("normal.number_mean", "rand_like", "randint", "randint_like", "randn", "randn_like", "uniform"),
        *("nn.functional.alpha_dropout", "nn.functional.dropout", "nn.functional.dropout2d"),
        *("nn.functional.fractional_max_pool2d", "nn.functional.fractional_max_pool3d"),
        *("nn.functional.dropout3d", "nn.functional.feature_alpha_dropout.with_train", "nn.functional.rrelu"),
    )
)


# Where eager torch is no oracle for the gradient.
UNCOMPARED = {
    "as_strided_scatter": "eager torch's gradient to the input is 1 where it was overwritten and 0 elsewhere, "
    "the reverse of what differences show",
}
WIDE = frozenset(("hash_tensor",))  # its result has 64 bits whatever comes in

# Samples whose output shape depends on values, of operators that have others.
BY_DATA_SAMPLES: dict[str, Callable[[Any], bool]] = {
    "nn.functional.one_hot": lambda s: (s.args + (s.kwargs.get("num_classes", -1),))[0] == -1,
    "repeat_interleave": lambda s: isinstance((*s.args, s.kwargs.get("repeats"))[0], torch.Tensor),
    "tensor_split": lambda s: any(isinstance(value, torch.Tensor) for value in (*s.args, *s.kwargs.values())),
}


class Samples(nn.Module):
    """An operator applied to samples: what is no tensor belongs to the module, the tensors come as arguments."""

    def __init__(self, op: Any, samples: Sequence[Any]) -> None:
        super().__init__()
        self.op = op
        self.samples = samples

    def __deepcopy__(self, memo: dict[int, Any]) -> Samples:
        return Samples(self.op, self.samples)

    def forward(self, *tensors: torch.Tensor) -> list[Any]:
        given = iter(tensors)
        return [self._one(sample, given) for sample in self.samples]

    def _one(self, sample: Any, given: Iterator[torch.Tensor]) -> Any:
        first, args, kwargs = filled((sample.input, sample.args, sample.kwargs), given)
        with patch.object(torch, "manual_seed", lambda seed: None):  # some entries seed themselves: refused in a model
            out = self.op(first, *args, **kwargs)
        if sample.output_process_fn_grad is not None:
            out = sample.output_process_fn_grad(out)
        return out if isinstance(out, torch.Tensor | tuple | list | dict) else list(pytree.tree_leaves(out))


def tensors_of(samples: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors of samples in the order `filled` takes them."""
    leaves = [leaf for s in samples for leaf in pytree.tree_leaves((s.input, s.args, s.kwargs))]
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def filled(value: Any, given: Iterator[torch.Tensor]) -> Any:
    """`value` with its tensors replaced by the next ones given."""
    return pytree.tree_map(lambda leaf: next(given) if isinstance(leaf, torch.Tensor) else leaf, value)


def cases(dtype: torch.dtype | None = None, limit: int | None = SAMPLES) -> list[Case]:
    """One case for every entry of `op_db`.

    Args:
        dtype: Run the entries that support it in this dtype; None takes the first supported of `DTYPES`.
        limit: How many samples.
    """
    from torch.testing._internal.common_methods_invocations import op_db

    return [_case(op, dtype, limit) for op in op_db if dtype is None or dtype in op.dtypes]


def _case(op: Any, dtype: torch.dtype | None, limit: int | None) -> Case:
    name = f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name
    skip = SKIPPED.get(op.name, "")
    if not any(d in op.dtypes for d in DTYPES):
        skip = "the CPU has it in no dtype"
    return Case(name, _build(op, name, dtype, limit), joined, skip)


def _build(op: Any, name: str, dtype: torch.dtype | None, limit: int | None) -> Callable[[], list[Call]]:
    def build() -> list[Call]:
        chosen = dtype or next(d for d in DTYPES if d in op.dtypes)
        grad = op.supports_autograd and chosen in op.supported_backward_dtypes("cpu")
        by_data = BY_DATA_SAMPLES.get(op.name, lambda _: False)
        given = (s for s in op.sample_inputs("cpu", chosen, requires_grad=grad) if not by_data(s))
        samples = list(islice(given, limit))
        return [
            Call(
                Samples(op.op, [s]),
                tensors_of([s]),
                train=True,
                drawn=name in DRAWN or _draws(op, s),
                wide=chosen in (torch.float64, torch.complex128) or name in WIDE,
                gradients=name not in UNCOMPARED,
            )
            for s in samples
        ]

    return build


def _draws(op: Any, sample: Any) -> bool:
    """Whether an attention drops out."""
    if op.name == "nn.functional.multi_head_attention_forward":
        return sample.args[9] > 0
    return "attention" in op.name and sample.kwargs.get("dropout_p", 0) > 0


def joined(calls: Sequence[Call]) -> Call:
    """All samples in one program, which is compiled once."""
    first = calls[0]
    samples = [sample for call in calls for sample in call.module.samples]
    return Call(
        Samples(first.module.op, samples),
        tensors_of(samples),
        train=True,
        drawn=first.drawn,
        wide=first.wide,
        gradients=first.gradients,
    )
