"""`torch.utils.checkpoint`: forward and gradients are those of the plain call, in every flavour."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential, create_selective_checkpoint_contexts

from parity.case import Call
from parity.semantics.table import case, floats, integers


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


def two_batches(module, train=False):
    """One batch size captured, another one run by the same program."""
    return [Call(module, (torch.randn(size, 4, requires_grad=True),), train=train) for size in (5, 3)]


@case("checkpoints: the batch's size comes out and is used outside")
def batch_size():
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block()

        def run(self, x):
            y = self.block(x)
            return y, y.shape[0] * 2

        def forward(self, x):
            y, size = checkpoint(self.run, x, use_reentrant=False)
            return y.sum(0) / size + torch.ones(size).sum()

    return two_batches(Sized())


@case("checkpoints: a value is kept aside and read outside", floats(3, 4))
class KeptAside(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def run(self, x):
        y = self.block(x)
        self.aside.append(y.exp())
        return y.sin()

    def forward(self, x):
        self.aside = []
        y = checkpoint(self.run, x, use_reentrant=False)
        return y * self.aside.pop()


@case("checkpoints: under no_grad and between no_grads", floats(3, 4))
class BesideNoGrad(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def run(self, x):
        with torch.no_grad():
            shift = self.block(x).mean()
        y = self.block(x) - shift
        with torch.no_grad():
            shift = shift * y.max()
        return y * shift

    def forward(self, x):
        with torch.no_grad():
            fixed = checkpoint(self.run, x, use_reentrant=False) + 1
        y = checkpoint(self.run, x, use_reentrant=False)
        with torch.no_grad():
            fixed = fixed * 2
        return checkpoint(self.run, y * fixed, use_reentrant=False)


@case("checkpoints: autocast inside and around", floats(3, 4))
class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Linear(4, 4)

    def run(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = self.block(x)
        return y.float() + x

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = checkpoint(self.block, x, use_reentrant=False)
        return checkpoint(self.run, y.float(), use_reentrant=False)


@case("checkpoints: context_fn that casts", floats(3, 4))
class CastingContext(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def contexts(self):
        return torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", torch.bfloat16)

    def forward(self, x):
        return checkpoint(self.linear, x, use_reentrant=False, context_fn=self.contexts).float() * x


@case("checkpoints: context_fn that chooses what to save", floats(3, 4))
class Selective(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def forward(self, x):
        contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.addmm.default])
        return checkpoint(self.block, x, use_reentrant=False, context_fn=contexts)


@case("checkpoints: branches, and a branch that checkpoints", floats(3, 4))
class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def run(self, x):
        return torch.cond(x.sum() > 0, lambda v: v.sin(), lambda v: v.cos(), (self.block(x),))

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False) * x


@case("checkpoints: a hook on a tensor inside", floats(3, 4))
class HookInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = block()

    def run(self, x):
        y = self.block(x)
        y.register_hook(lambda grad: grad * 3)
        return y.sin()

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False) * x


@case("checkpoints: writes into a tensor from outside, and into a buffer read later", floats(3, 4), train=True)
class WritesOutside(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))

    def run(self, x):
        y = self.linear(x)
        with torch.no_grad():
            self.count.add_(1)
        return y.tanh()

    def forward(self, x):
        return checkpoint(self.run, x, use_reentrant=False) * self.count


@case("checkpoints: batch norm in training, another batch size")
def batch_norms():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(3)])

        def forward(self, x):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False).relu()
            return x

    return two_batches(Normed(), train=True)


@case("checkpoints: layers that share one module, some of integers", integers(7, 3, 5), train=True)
class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(7, 4, max_norm=1.0), block()

    def forward(self, tokens):
        x = checkpoint(self.embed, tokens, use_reentrant=False)
        for _ in range(2):
            x = checkpoint(self.block, x, use_reentrant=False)
        return x, tokens + 1


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
