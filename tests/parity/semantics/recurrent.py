"""Recurrent layers: directions, layers, projections, given states, packed sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence, pad_sequence

from parity.case import Call
from parity.semantics.table import case, floats


def _layer(name: str, make: Callable[[], nn.Module], *given: Callable[[], Any], **options: Any) -> None:
    case(f"recurrent: {name}")(lambda: Call(make(), tuple(give() for give in given), **options))


for _kind, _two, _batched in itertools.product(("LSTM", "GRU", "RNN"), (True, False), (True, False)):
    _layer(
        f"{_kind}, {'two ways, two layers' if _two else 'one way'}, {'batch_first' if _batched else 'time first'}",
        lambda k=_kind, t=_two, b=_batched: getattr(nn, k)(3, 4, 1 + t, bidirectional=t, batch_first=b),
        floats(5, 2, 3),
    )

_layer("RNN with relu, without bias", lambda: nn.RNN(3, 4, nonlinearity="relu", bias=False), floats(5, 2, 3))
_layer("LSTM with proj_size", lambda: nn.LSTM(3, 5, proj_size=2), floats(5, 2, 3))
_layer(
    "LSTM with proj_size, two ways, two layers",
    lambda: nn.LSTM(3, 5, 2, bidirectional=True, proj_size=2),
    floats(5, 2, 3),
)
_layer("LSTM without batch", lambda: nn.LSTM(3, 4), floats(5, 3))
_layer("GRU without batch, state given", lambda: nn.GRU(3, 4), floats(5, 3), floats(1, 4))
_layer("LSTM, states given", lambda: nn.LSTM(3, 4, 2), floats(5, 2, 3), lambda: (floats(2, 2, 4)(), floats(2, 2, 4)()))
_layer(
    "LSTM with proj_size, states given",
    lambda: nn.LSTM(3, 4, proj_size=2),
    floats(5, 2, 3),
    lambda: (floats(1, 2, 2)(), floats(1, 2, 4)()),
)
_layer("GRU, state given, train", lambda: nn.GRU(3, 4), floats(5, 2, 3), floats(1, 2, 4), train=True)
_layer("LSTM of one step", lambda: nn.LSTM(3, 4), floats(1, 2, 3))
_layer("LSTM in bfloat16", lambda: nn.LSTM(3, 4).bfloat16(), floats(3, 2, 3, dtype=torch.bfloat16))


@case("recurrent: cells in a loop", floats(4, 2, 3))
class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(3, 3), nn.GRUCell(3, 3), nn.RNNCell(3, 3, nonlinearity="relu")

    def forward(self, x):
        state, h = None, x.new_zeros(2, 3)
        for step in x:
            state = self.lstm(step, state)
            h = self.rnn(self.gru(state[0], h), h)
        return h, state


@case("recurrent: an LSTM's own state carried over", floats(6, 2, 3))
class Carried(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4)

    def forward(self, x):
        first, state = self.lstm(x[:3])
        second, state = self.lstm(x[3:], state)
        return torch.cat((first, second)), state


class Packed(nn.Module):
    """Packs, runs and pads again; `lengths` is a Python list."""

    def __init__(
        self, kind: str, lengths: list[int], *, is_sorted: bool = True, total: int | None = None, **options: Any
    ):
        super().__init__()
        self.layer = getattr(nn, kind)(3, 4, **options)
        self.lengths, self.is_sorted, self.total = lengths, is_sorted, total

    def forward(self, x, state=None):
        batch_first = self.layer.batch_first
        packed = pack_padded_sequence(x, self.lengths, batch_first, enforce_sorted=self.is_sorted)
        out, last = self.layer(packed, state)
        padded, lengths = pad_packed_sequence(out, batch_first, padding_value=-1.0, total_length=self.total)
        return padded, lengths, last


_layer("packed LSTM", lambda: Packed("LSTM", [4, 2, 1]), floats(4, 3, 3))
_layer(
    "packed LSTM, batch_first, not sorted",
    lambda: Packed("LSTM", [2, 4, 1], is_sorted=False, batch_first=True),
    floats(3, 4, 3),
)
_layer(
    "packed LSTM, two ways, two layers, not sorted",
    lambda: Packed("LSTM", [2, 4, 1], is_sorted=False, bidirectional=True, num_layers=2),
    floats(4, 3, 3),
)
_layer("packed GRU, two ways", lambda: Packed("GRU", [4, 4, 1], bidirectional=True), floats(4, 3, 3))
_layer("packed RNN, a longer total_length", lambda: Packed("RNN", [3, 2], total=5), floats(4, 2, 3))
_layer(
    "packed GRU, state given, not sorted",
    lambda: Packed("GRU", [1, 3], is_sorted=False),
    floats(4, 2, 3),
    floats(1, 2, 4),
)
_layer("packed LSTM with proj_size", lambda: Packed("LSTM", [3, 1], proj_size=2), floats(3, 2, 3))


@case("recurrent: lengths as a constant tensor", floats(4, 2, 3), refuses="lengths that depend on data")
class TensorLengths(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4)
        self.lengths = torch.tensor([4, 2])

    def forward(self, x):
        out, last = self.gru(pack_padded_sequence(x, self.lengths))
        return pad_packed_sequence(out)[0], last


@case("recurrent: packed data is worked on between two layers", floats(4, 2, 3))
class PackedBetween(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LSTM(3, 4), nn.GRU(4, 2)

    def forward(self, x):
        packed = self.first(pack_padded_sequence(x, [4, 2]))[0]
        packed = packed._replace(data=packed.data.tanh()) if hasattr(packed, "_replace") else packed
        return pad_packed_sequence(self.second(packed)[0])[0]


@case("recurrent: Python reads the shape of an LSTM's last state", floats(4, 2, 3))
class LastStateShape(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, proj_size=2)

    def forward(self, x):
        _, (h, c) = self.lstm(x)
        return h.new_ones(h.shape) * h, c.reshape(-1, c.shape[-1]) * len(c.shape)


@case("recurrent: pack_sequence and pad_sequence of a list", lambda: [floats(4, 3)(), floats(2, 3)(), floats(1, 3)()])
class ListOfSequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 2)

    def forward(self, sequences):
        packed = pack_sequence(sequences)
        return pad_packed_sequence(self.rnn(packed)[0])[0], pad_sequence(sequences, True, -1.0)
