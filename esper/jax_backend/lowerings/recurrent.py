"""Recurrent layers: one product for the inputs of all time steps, then one scan for each layer and direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.lowerings.linear import linear
from esper.jax_backend.platform.recurrent import GRU, LSTM, RELU, TANH, Cell, Given, scan
from esper.jax_backend.registry import lowers


class _Weights(NamedTuple):
    """One layer in one direction, in torch's order; absent ones are None."""

    w_ih: jax.Array
    w_hh: jax.Array
    b_ih: jax.Array | None
    b_hh: jax.Array | None
    w_hr: jax.Array | None


class _Call(NamedTuple):
    """What one of the `.input` overloads asks for, besides its tensors."""

    has_biases: bool
    num_layers: int
    dropout: float
    train: bool
    bidirectional: bool
    batch_first: bool


def _drops(input, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first):
    return train and dropout > 0 and num_layers > 1


@lowers("aten.gru.input", draws=_drops)
def gru(input, hx, params, *call, key=None):
    """gru.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor)"""  # noqa: E501
    out, (h,) = _layers(GRU, input, (hx,), params, _Call(*call), key)
    return out, h


@lowers("aten.gru_cell.default")
def gru_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """gru_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? b_hh=None) -> Tensor"""
    return _cell(GRU, input, (hx,), _Weights(w_ih, w_hh, b_ih, b_hh, None))[0]


@lowers("aten.lstm.input", draws=_drops)
def lstm(input, hx, params, *call, key=None):
    """lstm.input(Tensor input, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    out, (h, c) = _layers(LSTM, input, tuple(hx), params, _Call(*call), key)
    return out, h, c


@lowers("aten.lstm_cell.default")
def lstm_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """lstm_cell(Tensor input, Tensor[] hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? b_hh=None) -> (Tensor, Tensor)"""  # noqa: E501
    return _cell(LSTM, input, tuple(hx), _Weights(w_ih, w_hh, b_ih, b_hh, None))


@lowers("aten.rnn_relu.input", draws=_drops)
def rnn_relu(input, hx, params, *call, key=None):
    """rnn_relu.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor)"""  # noqa: E501
    out, (h,) = _layers(RELU, input, (hx,), params, _Call(*call), key)
    return out, h


@lowers("aten.rnn_relu_cell.default")
def rnn_relu_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """rnn_relu_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? b_hh=None) -> Tensor"""  # noqa: E501
    return _cell(RELU, input, (hx,), _Weights(w_ih, w_hh, b_ih, b_hh, None))[0]


@lowers("aten.rnn_tanh.input", draws=_drops)
def rnn_tanh(input, hx, params, *call, key=None):
    """rnn_tanh.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor)"""  # noqa: E501
    out, (h,) = _layers(TANH, input, (hx,), params, _Call(*call), key)
    return out, h


@lowers("aten.rnn_tanh_cell.default")
def rnn_tanh_cell(input, hx, w_ih, w_hh, b_ih=None, b_hh=None):
    """rnn_tanh_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? b_hh=None) -> Tensor"""  # noqa: E501
    return _cell(TANH, input, (hx,), _Weights(w_ih, w_hh, b_ih, b_hh, None))[0]


def _cell(cell: Cell, input, state, weights):
    product = linear(state[0], weights.w_hh, weights.b_hh)
    return cell.advance(state, linear(input, weights.w_ih, weights.b_ih), product)[0]


def _layers(cell: Cell, input, states, params, call: _Call, key) -> tuple[jax.Array, tuple[Any, ...]]:
    """The output of the last layer, and each state stacked over layers and directions."""
    directions = 2 if call.bidirectional else 1
    weights = _unpack(params, call.num_layers * directions, call.has_biases)
    x = input.swapaxes(0, 1) if call.batch_first else input
    finals = []
    for layer in range(call.num_layers):
        outs = []
        for direction in range(directions):
            place = layer * directions + direction
            out, final = _scan(cell, x, tuple(s[place] for s in states), weights[place], reverse=direction == 1)
            outs.append(out)
            finals.append(final)
        x = outs[0] if directions == 1 else jnp.concatenate(outs, axis=-1)
        if call.train and call.dropout > 0 and layer < call.num_layers - 1:
            x = _dropout(x, call.dropout, jax.random.fold_in(key, layer))
    return x.swapaxes(0, 1) if call.batch_first else x, tuple(jnp.stack(s) for s in zip(*finals, strict=True))


def _dropout(x, p, key):
    keep = jax.random.bernoulli(key, 1 - p, x.shape)
    return jnp.where(keep, x * (0 if p == 1 else 1 / (1 - p)), 0)


def _scan(cell: Cell, x, state, weights, *, reverse):
    if weights.w_hr is not None:
        return _projected(cell, x, state, weights, reverse)
    if cell is GRU:  # the reset gate multiplies the second bias
        bias, late = weights.b_ih, weights.b_hh
    else:
        bias, late = None if weights.b_ih is None else weights.b_ih + weights.b_hh, None
    inputs = linear(x, weights.w_ih, bias)
    return scan(cell, reverse, Given(inputs, state, weights.w_hh, late))


def _projected(cell: Cell, x, state, weights, reverse):
    """An LSTM whose output is a projection of its hidden state."""

    def advance(state, inputs):
        hidden, *rest = cell.advance(state, inputs, linear(state[0], weights.w_hh, weights.b_hh))[0]
        out = linear(hidden, weights.w_hr)
        return (out, *rest), out

    final, outs = lax.scan(advance, state, linear(x, weights.w_ih, weights.b_ih), reverse=reverse)
    return outs, final


def _unpack(params, count, has_biases) -> list[_Weights]:
    size = len(params) // count
    unpacked = []
    for start in range(0, len(params), size):
        w_ih, w_hh, *rest = params[start : start + size]
        b_ih, b_hh = rest[:2] if has_biases else (None, None)
        projection = rest[2:] if has_biases else rest
        unpacked.append(_Weights(w_ih, w_hh, b_ih, b_hh, projection[0] if projection else None))
    return unpacked
