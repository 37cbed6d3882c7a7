"""Packed sequences whose lengths are known when a forward is traced: Python numbers, not tensors that come in.

The recurrent networks run segment by segment: as long as the same number of sequences is alive, an
ordinary call does. Lengths that depend on data would make sizes that depend on data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from esper.errors import RefusedError, TraceError
from esper.torch_frontend.known import constant, known_numbers
from esper.torch_frontend.places import user_line

_VF: Any = torch._C._VariableFunctions  # pyright: ignore[reportAttributeAccessIssue]


def _known(lengths: torch.Tensor) -> list[int]:
    values = known_numbers(lengths)
    if values is None:
        raise TraceError(
            f"the packed sequence at {user_line()} has lengths that depend on data, so the size of what it packs does: "
            "give the lengths as Python numbers, or run on the padded batch with a mask"
        )
    return values


def pack(input: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch._pack_padded_sequence`: the rows of all sequences, step by step, and how many live at each step."""
    sizes = _known(lengths)
    if sizes != sorted(sizes, reverse=True) or sizes[-1] < 1:
        raise RefusedError(
            f"the packed sequence at {user_line()} has lengths {sizes}: they are positive and descend, "
            "unless enforce_sorted=False"
        )
    steps = input.transpose(0, 1) if batch_first else input
    alive = [sum(size > step for size in sizes) for step in range(sizes[0])]
    rows = [steps[step, :count] for step, count in enumerate(alive)]
    return torch.cat(rows), constant(alive)


def pad(
    data: torch.Tensor, batch_sizes: torch.Tensor, batch_first: bool, padding_value: float, total_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`torch._pad_packed_sequence`: the padded batch, and the lengths."""
    alive = _known(batch_sizes)
    steps = max(len(alive), total_length)
    rows = []
    for part in data.split(alive):
        filler = part.new_full((alive[0] - part.shape[0], *part.shape[1:]), padding_value)
        rows.append(torch.cat([part, filler]))
    rows += [torch.full_like(rows[0], padding_value)] * (steps - len(alive))
    lengths = [sum(count > row for count in alive) for row in range(alive[0])]
    made = torch.stack(rows, 1 if batch_first else 0)
    return made, constant(lengths)


def recurrent(rnn: Callable[..., Any]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """`torch.lstm`, `torch.gru`, `torch.rnn_tanh` or `torch.rnn_relu` of a packed sequence."""

    def run(
        data: torch.Tensor,
        batch_sizes: torch.Tensor,
        hx: torch.Tensor | Sequence[torch.Tensor],
        params: Sequence[torch.Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
    ) -> tuple[torch.Tensor, ...]:
        single = isinstance(hx, torch.Tensor)

        def step(
            part: torch.Tensor, state: list[torch.Tensor], weights: Sequence[torch.Tensor]
        ) -> tuple[torch.Tensor, list[torch.Tensor]]:
            given = state[0] if single else state
            out, *state = rnn(part, given, weights, has_biases, 1, 0.0, train, False, False)
            return out, state

        start = [hx] if isinstance(hx, torch.Tensor) else list(hx)
        alive = _known(batch_sizes)
        out, state = _layers(step, data, alive, start, params, num_layers, dropout, train, bidirectional)
        return (out, *state)

    return run


Step = Callable[[torch.Tensor, list[torch.Tensor], Sequence[torch.Tensor]], tuple[torch.Tensor, list[torch.Tensor]]]


def _layers(
    step: Step,
    data: torch.Tensor,
    alive: list[int],
    hx: list[torch.Tensor],
    params: Sequence[torch.Tensor],
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    last: list[list[torch.Tensor]] = []
    for layer in range(num_layers):
        outs = []
        for direction in range(directions):
            place = layer * directions + direction
            weights = params[place * each : (place + 1) * each]
            start = [state[place : place + 1] for state in hx]
            run = _backward if direction else _forward
            out, end = run(step, data, alive, start, weights)
            outs.append(out)
            last.append(end)
        data = torch.cat(outs, -1)
        if train and dropout and layer < num_layers - 1:
            data = torch.nn.functional.dropout(data, dropout, True)
    return data, [torch.cat(states) for states in zip(*last, strict=True)]


def _segments(alive: list[int]) -> list[tuple[int, int]]:
    """Runs of steps with equally many sequences alive: (steps, sequences)."""
    runs: list[tuple[int, int]] = []
    for count in alive:
        if runs and runs[-1][1] == count:
            runs[-1] = (runs[-1][0] + 1, count)
        else:
            runs.append((1, count))
    return runs


def _forward(
    step: Step, data: torch.Tensor, alive: list[int], state: list[torch.Tensor], weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    runs = _segments(alive)
    outs, ended = [], []
    for part, (steps, count) in zip(data.split([s * c for s, c in runs]), runs, strict=True):
        ended.append([value[:, count:] for value in state])
        state = [value[:, :count] for value in state]
        out, state = step(part.reshape(steps, count, -1), state, weights)
        outs.append(out.reshape(steps * count, -1))
    ended.append(state)
    return torch.cat(outs), [torch.cat(parts[::-1], 1) for parts in zip(*ended, strict=True)]


def _backward(
    step: Step, data: torch.Tensor, alive: list[int], start: list[torch.Tensor], weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    runs = _segments(alive)
    parts = list(zip(data.split([s * c for s, c in runs]), runs, strict=True))
    state = [value[:, :0] for value in start]
    outs = []
    for part, (steps, count) in reversed(parts):
        joining = [value[:, now.shape[1] : count] for value, now in zip(start, state, strict=True)]
        state = [torch.cat([now, new], 1) for now, new in zip(state, joining, strict=True)]
        out, state = step(part.reshape(steps, count, -1).flip(0), state, weights)
        outs.append(out.flip(0).reshape(steps * count, -1))
    return torch.cat(outs[::-1]), state
