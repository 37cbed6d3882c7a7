"""`torch.utils.checkpoint`: forward and gradients are those of the plain call, in every flavour."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from parity.semantics.table import case, floats


def block(width=4):
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))


@case("checkpoints: non-reentrant", floats(3, 4))
class NonReentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False) + x


@case("checkpoints: reentrant", floats(3, 4), train=True)
class Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def forward(self, x):
        return checkpoint(self.block, x.sin(), use_reentrant=True) + x


@case("checkpoints: reentrant, a tensor closed over gets no gradient", floats(3, 4))
class ReentrantClosure(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x):
        y = x * 2
        return checkpoint(lambda v: v * y * self.scale, x.sin(), use_reentrant=True)


@case("checkpoints: non-reentrant, a tensor closed over gets its gradient", floats(3, 4))
class NonReentrantClosure(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, x):
        y = x * 2
        return checkpoint(lambda v: v * y * self.scale, x.sin(), use_reentrant=False)


@case("checkpoints: keyword arguments, None and numbers", floats(3, 4), floats(4))
class Keywords(nn.Module):
    def run(self, x, scale=1.0, shift=None, *, bias=None):
        y = x * scale
        y = y if shift is None else y + shift
        return y if bias is None else y - bias

    def forward(self, x, v):
        y = checkpoint(self.run, x, 3.0, use_reentrant=False, bias=v)
        return checkpoint(self.run, y, shift=v.square(), use_reentrant=False)


@case("checkpoints: tuples and dicts come out", floats(3, 4))
class Structured(nn.Module):
    def forward(self, x):
        low, high = checkpoint(lambda v: (v.sin(), v.cos()), x, use_reentrant=False)
        named = checkpoint(lambda v: {"a": v * 2, "n": 3, "none": None}, low, use_reentrant=False)
        return named, high


@case("checkpoints: dropout without effect", floats(3, 4), train=True)
class Dropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0), nn.Tanh())

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False) + checkpoint(
            self.block, x, use_reentrant=True, preserve_rng_state=False
        )


@case("checkpoints: dropout draws", floats(3, 4), train=True, drawn=True)
class DropoutDraws(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False)


@case("checkpoints: nested", floats(3, 4))
class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = block(), block()

    def both(self, x):
        return self.outer(checkpoint(self.inner, x, use_reentrant=False)) + x

    def forward(self, x):
        return checkpoint(self.both, x, use_reentrant=False)


@case("checkpoints: checkpoint_sequential", floats(3, 4))
class Sequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(5)])

    def forward(self, x):
        return checkpoint_sequential(self.blocks, 2, x, use_reentrant=False)


@case("checkpoints: checkpoint_sequential, reentrant, of a list of functions", floats(3, 4))
class SequentialReentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)])

    def forward(self, x):
        return checkpoint_sequential([*self.blocks, torch.sin], 3, x * 2, use_reentrant=True)


@case("checkpoints: batch norm in training, non-reentrant", floats(6, 4), train=True)
class BatchNorm(nn.Module):
    """Torch moves the statistics again when backward runs the block anew; the buffers are judged before that."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False).tanh()


@case("checkpoints: batch norm in eval mode, reentrant", floats(6, 4))
class BatchNormEval(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x):
        return checkpoint(self.block, x.sin(), use_reentrant=True).tanh()


@case("checkpoints: detach and no_grad inside", floats(3, 4))
class NoGradInside(nn.Module):
    def run(self, x):
        with torch.no_grad():
            scale = x.norm()
        return x / scale + x.sin().detach() * x

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False)


@case("checkpoints: in-place writes inside", floats(3, 4))
class InPlaceInside(nn.Module):
    def run(self, x):
        y = x * 2
        y[0] = x[1]
        return y.relu_()

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False) * x


@case("checkpoints: a view comes out and is written", floats(3, 4))
class ViewOut(nn.Module):
    def forward(self, x):
        y = checkpoint(lambda v: v.sin().t(), x, use_reentrant=False)
        y[0] = 1.0
        return y


@case("checkpoints: a partial of a stored checkpoint function", floats(3, 4), train=True)
class Stored(nn.Module):
    """As Hugging Face's models hold it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([block() for _ in range(2)])
        self._checkpoint = partial(checkpoint, use_reentrant=False)

    def forward(self, x):
        for layer in self.layers:
            x = self._checkpoint(layer.__call__, x) if self.training else layer(x)
        return x


@case("checkpoints: a convolution under the batch's own size", floats(3, 2, 5, 5))
class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)

    def run(self, x):
        return F.relu(self.conv(x)).reshape(x.shape[0], -1)

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False).softmax(1)


@case("checkpoints: determinism_check and preserve_rng_state", floats(3, 4))
class Options(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=False, determinism_check="none", preserve_rng_state=False)


@case("checkpoints: saved_tensors_hooks that keep the values", floats(3, 4), refuses="saved_tensors_hooks")
class SavedTensorsHooks(nn.Module):
    def forward(self, x):
        with saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            y = x.sin() * x
        with save_on_cpu():
            return y.exp() * x


@case("checkpoints: saved_tensors_hooks that change the values", floats(3, 4), refuses="saved_tensors_hooks")
class LossyHooks(nn.Module):
    """Backward reads values rounded to bfloat16, as activation compression does."""

    def forward(self, x):
        with saved_tensors_hooks(lambda t: t.to(torch.bfloat16), lambda t: t.to(torch.float32)):
            return x.square() * x.sin()
