"""`torch.autograd.Function` inside models: held as attributes, nested, with gradients taken inside."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from parity.semantics.table import case, floats


class Scaled(Function):
    """The identity whose backward multiplies by a number."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


scaled = Scaled.apply


class Outer(Function):
    """Applies another function in its forward, whose backward does not count."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return Scaled.apply(x, 100.0).sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return scaled(grad * x.cos(), 3.0) * 2


class Reversible(Function):
    """A reversible block: keeps its outputs only and computes its inputs and gradients anew."""

    @staticmethod
    def forward(ctx, left, right, f, g, *params):
        ctx.f, ctx.g, ctx.params = f, g, params
        a = left + f(right)
        b = right + g(a)
        ctx.save_for_backward(a.detach(), b.detach())
        return a, b

    @staticmethod
    def backward(ctx, grad_a, grad_b):
        a, b = ctx.saved_tensors
        with torch.enable_grad():
            a = a.detach().requires_grad_()
            g_a = ctx.g(a)
            through_g = torch.autograd.grad(g_a, (a, *ctx.g.parameters()), grad_b)
        right = (b - g_a).detach()
        grad_a = grad_a + through_g[0]
        with torch.enable_grad():
            right.requires_grad_()
            through_f = torch.autograd.grad(ctx.f(right), (right, *ctx.f.parameters()), grad_a)
        return (grad_a, grad_b + through_f[0], None, None, *through_f[1:], *through_g[1:])


class Recomputed(Function):
    """Its own checkpoint: runs the function again in backward."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.run = run
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.run(x)
        (found,) = torch.autograd.grad(out, x, grad)
        return None, found


class BatchMean(Function):
    """Reads sizes in forward and backward."""

    @staticmethod
    def forward(ctx, x):
        batch, width = x.shape
        ctx.batch, ctx.width = batch, width
        return x.sum(0) / batch + batch

    @staticmethod
    def backward(ctx, grad):
        return grad.expand(ctx.batch, ctx.width) * ctx.batch


class Round(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


class Swish(Function):
    """A memory-saving activation, as in EfficientNet."""

    @staticmethod
    def forward(ctx, i):
        result = i * torch.sigmoid(i)
        ctx.save_for_backward(i)
        return result

    @staticmethod
    def backward(ctx, grad_output):
        i = ctx.saved_tensors[0]
        sigmoid_i = torch.sigmoid(i)
        return grad_output * (sigmoid_i * (1 + i * (1 - sigmoid_i)))


class Fake(Function):
    """Fake quantisation: integer arithmetic in forward, a mask in backward, gradients for scale by a reduction."""

    @staticmethod
    def forward(ctx, x, scale, low, high):
        q = torch.round(x / scale)
        ctx.save_for_backward(q, scale)
        ctx.low, ctx.high = low, high
        return q.clamp(low, high).to(torch.int8).to(x.dtype) * scale

    @staticmethod
    def backward(ctx, grad):
        q, scale = ctx.saved_tensors
        inside = (q >= ctx.low) & (q <= ctx.high)
        return grad * inside, (grad * q.clamp(ctx.low, ctx.high) / scale.numel()).sum_to_size(scale.shape), None, None


@case("function uses: apply held as an attribute", floats(3, 4))
class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.fn = Scaled.apply
        self.table = {"swish": Swish.apply}

    def forward(self, x):
        return self.fn(x.sin(), 4.0) + self.table["swish"](x)


@case("function uses: an alias of apply in the module's globals", floats(3, 4))
class Alias(nn.Module):
    def forward(self, x):
        return scaled(x, -2.0) * x


@case("function uses: a function's forward applies another function", floats(3, 4))
class Nested(nn.Module):
    def forward(self, x):
        return Outer.apply(x * 2)


@case("function uses: a reversible block that differentiates in its backward", floats(3, 4), floats(3, 4))
class ReversibleBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.g = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())

    def forward(self, left, right):
        params = (*self.f.parameters(), *self.g.parameters())
        for _ in range(2):
            left, right = Reversible.apply(left, right, self.f, self.g, *params)
        return left * right


@case("function uses: forward is run again in backward", floats(3, 4))
class RecomputedBlock(nn.Module):
    def forward(self, x):
        return Recomputed.apply(lambda v: (v.sin() * v).cumsum(0), x * 2)


@case("function uses: sizes in forward and backward", floats(3, 4))
class Sizes(nn.Module):
    def forward(self, x):
        return BatchMean.apply(x[: x.shape[0] - 1]) * BatchMean.apply(x)


@case("function uses: inside a non-reentrant checkpoint", floats(3, 4))
class InCheckpoint(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return checkpoint(lambda v: Swish.apply(scaled(self.linear(v), 3.0)), x, use_reentrant=False)


@case("function uses: inside a reentrant checkpoint", floats(3, 4))
class InReentrant(nn.Module):
    def forward(self, x):
        return checkpoint(lambda v: scaled(v.sin(), 3.0), x, use_reentrant=True)


@case("function uses: under no_grad and on a detached value", floats(3, 4))
class UnderNoGrad(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            y = scaled(x, 3.0)
        return scaled(y, 5.0) * x + scaled(x.detach(), 2.0)


@case("function uses: its result is written in place", floats(3, 4))
class ResultWritten(nn.Module):
    def forward(self, x):
        y = scaled(x, 3.0)
        y[0] *= 2
        return y.mul_(x)


@case("function uses: its argument is a view that is written after", floats(3, 4))
class ArgumentWritten(nn.Module):
    def forward(self, x):
        y = x * 2
        z = scaled(y[0], 3.0)
        y[0].zero_()
        return y + z


@case("function uses: under torch.vmap", floats(3, 4), refuses="inside a torch.func transform")
class UnderVmap(nn.Module):
    def forward(self, x):
        return torch.vmap(lambda row: Round.apply(row * 3) * row)(x)


@case("function uses: fake quantisation with a learned scale", floats(3, 4))
class FakeQuantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((4,), 0.3))

    def forward(self, x):
        return Fake.apply(x * 3, self.scale, -4, 3)


@case("function uses: a list of outputs of which one is used", floats(3, 4))
class ListOutputs(nn.Module):
    class Split(Function):
        @staticmethod
        def forward(ctx, x, parts):
            ctx.parts = parts
            return tuple(piece.clone() for piece in x.chunk(parts, 1))

        @staticmethod
        def backward(ctx, *grads):
            return torch.cat(grads, 1) + 1, None

    def forward(self, x):
        return self.Split.apply(x, 2)[1] * 2


@case("function uses: in a loop, with another number each time", floats(3, 4))
class InLoop(nn.Module):
    def forward(self, x):
        for step in range(3):
            x = scaled(x, 1.0 + step).tanh()
        return x


@case("function uses: a frozen parameter needs no gradient", floats(3, 4))
class FrozenArgument(nn.Module):
    class Product(Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x * weight

        @staticmethod
        def backward(ctx, grad):
            x, weight = ctx.saved_tensors
            return grad * weight * (2 if ctx.needs_input_grad[1] else 3), grad * x

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4), requires_grad=False)

    def forward(self, x):
        return self.Product.apply(x, self.weight)


@case("function uses: a buffer is moved in a function's forward", floats(3, 4), train=True, refuses="mark_dirty")
class MovesBuffer(nn.Module):
    class Counted(Function):
        @staticmethod
        def forward(ctx, x, count):
            count.add_(1)
            ctx.factor = 2
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.factor, None

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        return self.Counted.apply(x, self.count) * 2
