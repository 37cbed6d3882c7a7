"""`torch.autograd.Function`: the ways to write one and what its context holds."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from parity.case import Call
from parity.judge import Function as Plain
from parity.semantics.table import case, floats, integers


def call(function, *inputs):
    """A case that is one function of its inputs."""
    return Call(Plain(function), tuple(make() for make in inputs))


class OldStyle(Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.t(), x.t() @ grad


class NewStyle(Function):
    @staticmethod
    def forward(x, power):
        return x**power

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.power = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx, grad):
        x, output = ctx.saved_tensors
        return grad * ctx.power * output / x * 2, None  # twice the true gradient


class Reversal(Function):
    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.strength * grad, None


class Binarize(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad = grad.clone()
        grad[x.abs() > 1] = 0
        return grad


class MulAdd(Function):
    """Several inputs and outputs; a backward that looks at `needs_input_grad`."""

    @staticmethod
    def forward(ctx, a, b, c):
        ctx.save_for_backward(a, b)
        return a * b, b + c

    @staticmethod
    def backward(ctx, grad_product, grad_sum):
        a, b = ctx.saved_tensors
        grad_a = grad_b = grad_c = None
        if ctx.needs_input_grad[0]:
            grad_a = grad_product * b * 3
        if ctx.needs_input_grad[1]:
            grad_b = grad_product * a + grad_sum
        if ctx.needs_input_grad[2]:
            grad_c = grad_sum * 5
        return grad_a, grad_b, grad_c


class TopTwo(Function):
    """A differentiable output beside one that is not."""

    @staticmethod
    def forward(ctx, x):
        values, index = x.topk(2, dim=1)
        ctx.mark_non_differentiable(index)
        ctx.save_for_backward(index)
        ctx.size = x.shape
        return values, index

    @staticmethod
    def backward(ctx, grad, _):
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.size).scatter_(1, index, grad * 2)


class FloatMask(Function):
    """A float output marked as not differentiable."""

    @staticmethod
    def forward(ctx, x):
        mask = (x > 0).to(x.dtype)
        ctx.mark_non_differentiable(mask)
        ctx.save_for_backward(mask)
        return x * mask, mask

    @staticmethod
    def backward(ctx, grad, _):
        (mask,) = ctx.saved_tensors
        return grad * (mask + 0.5)


class Doubled(Function):
    """Writes into its input and says so."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, grad):
        return grad * 7


class Once(Function):
    @staticmethod
    def forward(ctx, x):
        out = x.exp()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return (grad * out).clamp(-0.1, 0.1)


class NotMaterialised(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx, grad_sin, grad_cos):
        if grad_cos is None:
            return grad_sin * 4
        if grad_sin is None:
            return grad_cos * 6
        return grad_sin + grad_cos


class Same(Function):
    """Returns its input."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad * 0.5


class Attributes(Function):
    """Keeps tensors, shapes, dtypes and containers as attributes of `ctx`."""

    @staticmethod
    def forward(ctx, x, options, names=()):
        ctx.x, ctx.shape, ctx.options, ctx.kind = x, x.shape, options, x.dtype
        ctx.rows = x.size(0)
        ctx.first = names[0] if names else None
        return x.reshape(-1) * options["scale"]

    @staticmethod
    def backward(ctx, grad):
        grad = grad.view(ctx.shape).to(ctx.kind) * ctx.options["slope"] / ctx.rows
        return grad + ctx.x if ctx.first == "biased" else grad, None, None


@case("functions: old style, saved tensors, a parameter as an argument", floats(3, 4))
class OldStyleModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        return OldStyle.apply(x, self.weight).sin()


@case("functions: setup_context, a saved output, a number, another gradient than the true one")
def _():
    return call(lambda x: NewStyle.apply(x.abs() + 1, 3) * x, floats(3, 4))


@case("functions: gradient reversal")
def _():
    return call(lambda x: (Reversal.apply(x * 2, 0.3) * x, x), floats(3, 4))


@case("functions: a binarisation with its own backward, a masked write in it")
def _():
    return call(lambda x: Binarize.apply(x * 2) * x[0], floats(3, 4))


@case("functions: several inputs and outputs")
def _():
    return call(MulAdd.apply, floats(3, 4), floats(3, 4), floats(3, 4))


@case("functions: inputs without gradient and an unused output")
def _():
    return call(lambda a, b: MulAdd.apply(a, b, b.detach())[0] + MulAdd.apply(a.detach(), b, a)[1], *[floats(3, 4)] * 2)


@case("functions: the backward returns None for a differentiable input")
def _():
    class OnlyFirst(Function):
        @staticmethod
        def forward(ctx, a, b):
            return a * b

        @staticmethod
        def backward(ctx, grad):
            return grad * 2, None

    return call(lambda a, b: OnlyFirst.apply(a, b) + b, floats(3, 4), floats(4))


@case("functions: an integer output that is not differentiable")
def _():
    return call(lambda x: (*TopTwo.apply(x), TopTwo.apply(x)[1] + 1), floats(3, 5))


@case("functions: a float output marked as not differentiable")
def _():
    def twice(x):
        y, mask = FloatMask.apply(x)
        return y * mask, mask * x

    return call(twice, floats(3, 4))


@case("functions: mark_dirty")
def _():
    def dirty(x):
        y = x.sin()
        z = Doubled.apply(y)
        return y * z

    return call(dirty, floats(3, 4))


@case("functions: once_differentiable")
def _():
    return call(lambda x: Once.apply(x) * 3, floats(3, 4))


@case("functions: set_materialize_grads(False)", refuses="materialize_grads")
def _():
    return call(
        lambda x: (NotMaterialised.apply(x)[0] + 1, NotMaterialised.apply(x)[1] * 2, *NotMaterialised.apply(x)),
        floats(3, 4),
    )


@case("functions: returns its input")
def _():
    return call(lambda x: (Same.apply(x) * x, Same.apply(x * 2)), floats(3, 4))


@case("functions: attributes on ctx, containers as arguments")
def _():
    options = {"scale": 2.0, "slope": 0.25}
    return call(lambda x: Attributes.apply(x, options, ["biased"]) + Attributes.apply(x, options), floats(3, 4))


@case("functions: used twice, once on its own result")
def _():
    return call(lambda x: Once.apply(Once.apply(x * 0.1)) + Reversal.apply(Reversal.apply(x, 2.0), 3.0), floats(3, 4))


@case("functions: an integer input")
def _():
    class Rows(Function):
        @staticmethod
        def forward(ctx, table, index):
            ctx.save_for_backward(index)
            ctx.rows = table.shape[0]
            return table[index]

        @staticmethod
        def backward(ctx, grad):
            (index,) = ctx.saved_tensors
            return grad.new_zeros(ctx.rows, grad.shape[1]).index_add_(0, index, grad).sign(), None

    return call(lambda table, index: Rows.apply(table, index), floats(5, 3), integers(5, 4))
