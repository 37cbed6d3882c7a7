"""Weights that are computed: parametrizations, the older weight and spectral norms, pruning masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from parity.case import Call
from parity.semantics.table import case, floats


class Symmetric(nn.Module):
    """Keeps the upper triangle, mirrored."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT

    def right_inverse(self, weight):
        return weight.triu()


class Scaled(nn.Module):
    """A parametrization with a parameter and a buffer of its own."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale))
        self.register_buffer("shift", torch.tensor(0.1))

    def forward(self, weight):
        return weight * self.log_scale.exp() + self.shift


class Product(nn.Module):
    """One weight from two tensors."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        return u[:, :2] * s[:2], vh[:2]


def _call(module: nn.Module, *shape: int, **options: Any) -> Call:
    return Call(module, (floats(*shape)(),), **options)


@case("parametrized: weight_norm parametrization of Linear")
def _weight_norm_linear():
    return _call(parametrizations.weight_norm(nn.Linear(3, 4)), 2, 3)


@case("parametrized: weight_norm parametrization of Conv2d, dim=1")
def _weight_norm_conv():
    return _call(parametrizations.weight_norm(nn.Conv2d(2, 3, 3), dim=1), 2, 2, 5, 5, train=True)


@case("parametrized: weight_norm parametrization over the whole weight, dim=None")
def _weight_norm_whole():
    return _call(parametrizations.weight_norm(nn.Linear(3, 4), dim=None), 2, 3)


@case("parametrized: weight_norm parametrization of an LSTM's recurrent weight")
def _weight_norm_lstm():
    return _call(parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"), 5, 2, 3)


@case("parametrized: spectral_norm parametrization, train: the power iteration moves its buffers")
def _spectral_norm_train():
    return _call(parametrizations.spectral_norm(nn.Linear(3, 4)), 2, 3, train=True)


@case("parametrized: spectral_norm parametrization, eval: no power iteration")
def _spectral_norm_eval():
    return _call(parametrizations.spectral_norm(nn.Linear(3, 4)), 2, 3)


@case("parametrized: spectral_norm parametrization of ConvTranspose2d, three power iterations")
def _spectral_norm_conv():
    layer = nn.ConvTranspose2d(2, 3, 3)
    return _call(parametrizations.spectral_norm(layer, n_power_iterations=3), 2, 2, 4, 4, train=True)


@case("parametrized: spectral_norm parametrization of a vector")
def _spectral_norm_vector():
    return _call(parametrizations.spectral_norm(nn.LayerNorm(4)), 2, 4, train=True)


@case("parametrized: spectral_norm parametrization of a weight that is used twice in one forward, train")
def _spectral_norm_twice():
    layer = parametrizations.spectral_norm(nn.Linear(3, 3))
    return _call(nn.Sequential(layer, nn.Tanh(), layer), 2, 3, train=True)


@case("parametrized: orthogonal parametrization by matrix_exp")
def _orthogonal_matrix_exp():
    return _call(parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="matrix_exp"), 2, 4)


@case("parametrized: orthogonal parametrization by cayley")
def _orthogonal_cayley():
    return _call(parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"), 2, 4)


@case("parametrized: orthogonal parametrization by householder, tall weight")
def _orthogonal_householder():
    return _call(parametrizations.orthogonal(nn.Linear(3, 5), orthogonal_map="householder"), 2, 3)


@case("parametrized: orthogonal parametrization without trivialization, wide weight")
def _orthogonal_plain():
    layer = nn.Linear(5, 3)
    return _call(parametrizations.orthogonal(layer, "weight", "cayley", use_trivialization=False), 2, 5)


@case("parametrized: a parametrization of one's own")
def _custom():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return _call(layer, 2, 3)


@case("parametrized: chained parametrizations, the second with a parameter and a buffer")
def _chained():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    parametrize.register_parametrization(layer, "weight", Scaled(0.3))
    return _call(layer, 2, 3)


@case("parametrized: parametrized weight and bias of one layer")
def _weight_and_bias():
    layer = nn.Conv1d(2, 3, 3)
    parametrize.register_parametrization(layer, "weight", Scaled(-0.2))
    parametrize.register_parametrization(layer, "bias", Scaled(0.5))
    return _call(layer, 2, 2, 6)


@case("parametrized: a weight made of two tensors")
def _low_rank():
    layer = nn.Linear(3, 4)
    parametrize.register_parametrization(layer, "weight", Product())
    return _call(layer, 2, 3)


@case("parametrized: one parametrization module shared by two layers")
def _shared_parametrization():
    first, second, scaled = nn.Linear(3, 3), nn.Linear(3, 3), Scaled(0.1)
    for layer in (first, second):
        parametrize.register_parametrization(layer, "weight", scaled)
    return _call(nn.Sequential(first, second), 2, 3)


@case("parametrized: a parametrized buffer")
def _parametrized_buffer():
    layer = nn.Linear(3, 3)
    del layer.weight
    layer.register_buffer("weight", torch.randn(3, 3))
    parametrize.register_parametrization(layer, "weight", Scaled(0.2))
    return _call(layer, 4, 3)


@case("parametrized: a frozen original under a trained parametrization")
def _frozen_original():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, "weight", Scaled(0.4))
    layer.parametrizations.weight.original.requires_grad_(False)
    return _call(layer, 2, 3)


@case("parametrized: parametrize.cached() in forward", floats(2, 3))
class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = parametrizations.orthogonal(nn.Linear(3, 3))

    def forward(self, x):
        with parametrize.cached():
            for _ in range(3):
                x = self.cell(x).tanh()
        return x


@case("parametrized: a removed parametrization leaves a plain weight")
def _removed():
    layer = parametrizations.weight_norm(nn.Linear(3, 4))
    parametrize.remove_parametrizations(layer, "weight")
    return _call(layer, 2, 3)


def _copyable(function: Any, *args: Any, **options: Any) -> Any:
    """`function` under no_grad: the weight it computes has no history then, so that deepcopy takes it."""
    with torch.no_grad():
        return function(*args, **options)


class Fresh(nn.Module):
    """A copy of this is a module that `make` has just made: for modules that deepcopy refuses."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.make = make

    def __deepcopy__(self, memo):
        torch.manual_seed(0)
        return self.make()


@case("parametrized: old weight_norm of Linear")
def _old_weight_norm():
    return _call(_copyable(nn.utils.weight_norm, nn.Linear(3, 4)), 2, 3)


@case("parametrized: old weight_norm of Conv2d, dim=1, train")
def _old_weight_norm_conv():
    return _call(_copyable(nn.utils.weight_norm, nn.Conv2d(2, 3, 3), dim=1), 2, 2, 5, 5, train=True)


@case("parametrized: old weight_norm, dim=None, on weight and bias")
def _old_weight_norm_two():
    layer = _copyable(nn.utils.weight_norm, nn.Linear(3, 4), dim=None)
    return _call(_copyable(nn.utils.weight_norm, layer, name="bias"), 2, 3)


@case("parametrized: old weight_norm whose computed weight has a history")
def _old_weight_norm_history():
    return _call(Fresh(lambda: nn.utils.weight_norm(nn.Conv1d(2, 3, 3))), 2, 2, 6)


@case("parametrized: old weight_norm, removed")
def _old_weight_norm_removed():
    return _call(nn.utils.remove_weight_norm(_copyable(nn.utils.weight_norm, nn.Linear(3, 4))), 2, 3)


@case("parametrized: old spectral_norm, train: weight_u moves")
def _old_spectral_norm_train():
    return _call(nn.utils.spectral_norm(nn.Linear(3, 4)), 2, 3, train=True)


@case("parametrized: old spectral_norm, eval")
def _old_spectral_norm_eval():
    return _call(nn.utils.spectral_norm(nn.Conv2d(2, 3, 3)), 2, 2, 5, 5)


@case("parametrized: old spectral_norm of ConvTranspose1d, two power iterations, train")
def _old_spectral_norm_conv():
    layer = nn.utils.spectral_norm(nn.ConvTranspose1d(2, 3, 3), n_power_iterations=2)
    return _call(layer, 2, 2, 5, train=True)


@case("parametrized: prune.l1_unstructured")
def _prune_l1():
    return _call(_copyable(prune.l1_unstructured, nn.Linear(4, 3), "weight", amount=0.4), 2, 4)


@case("parametrized: prune.random_unstructured of weight and bias")
def _prune_random():
    layer = _copyable(prune.random_unstructured, nn.Conv1d(2, 3, 3), "weight", amount=5)
    return _call(_copyable(prune.random_unstructured, layer, "bias", amount=1), 2, 2, 6, train=True)


@case("parametrized: prune.ln_structured, then l1 on what is left")
def _prune_twice():
    layer = _copyable(prune.ln_structured, nn.Linear(4, 5), "weight", amount=0.4, n=2, dim=0)
    return _call(_copyable(prune.l1_unstructured, layer, "weight", amount=0.3), 2, 4)


@case("parametrized: prune.custom_from_mask")
def _prune_custom():
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    return _call(_copyable(prune.custom_from_mask, nn.Linear(3, 2), "weight", mask), 2, 3)


@case("parametrized: prune.global_unstructured over two layers")
def _prune_global():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    _copyable(prune.global_unstructured, [(net[0], "weight"), (net[2], "weight")], prune.L1Unstructured, amount=0.5)
    return _call(net, 2, 3)


@case("parametrized: pruned and made permanent")
def _prune_removed():
    layer = _copyable(prune.l1_unstructured, nn.Linear(4, 3), "weight", amount=0.4)
    return _call(_copyable(prune.remove, layer, "weight"), 2, 4)


@case("parametrized: a pruned weight that has a history")
def _prune_history():
    return _call(Fresh(lambda: prune.l1_unstructured(nn.Linear(4, 3), "weight", amount=0.4)), 2, 4)


@case("parametrized: a pruned LSTM weight")
def _prune_lstm():
    return _call(_copyable(prune.l1_unstructured, nn.LSTM(3, 4), "weight_ih_l0", amount=0.3), 5, 2, 3)
