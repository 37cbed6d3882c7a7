"""Captures change what is torch's and put it back: those of several threads take turns."""

import threading

import torch
from torch import nn

import esper


def nets(width):
    for depth in range(1, 6):
        yield nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(depth)])


def wrapped(width):
    return [esper.wrap(net, example_inputs=torch.ones(2, width)) for net in nets(width)]


def torchs_own():
    return torch.manual_seed, torch.inference_mode.__enter__, torch.autograd.Function.apply.__func__, nn.Module._apply


def test_captures_in_several_threads_at_once_leave_torch_as_it_was():
    wrapped(2)  # torch itself changes some at the first
    before, found = torchs_own(), {}
    threads = [
        threading.Thread(target=lambda width=width: found.update({width: wrapped(width)})) for width in (3, 4, 5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {width: len(models) for width, models in found.items()} == {3: 5, 4: 5, 5: 5}
    assert torchs_own() == before
    for width, models in found.items():
        x = torch.ones(2, width)
        for net, model in zip(nets(width), models, strict=True):
            assert model(x).shape == net(x).shape
