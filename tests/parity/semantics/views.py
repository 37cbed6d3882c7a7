"""In-place writes, straight into a tensor and through views of it."""

from __future__ import annotations

import torch
from torch import nn

from parity.semantics.table import case, floats, integers


@case("views: write through view, t and index", floats(2, 3))
class ThroughChain(nn.Module):
    def forward(self, x):
        y = x.clone()
        y.view(6).view(3, 2).t()[0] += 2 * x.flatten()[:3]
        return y * x


@case("views: a write to the base is seen by the view", floats(3, 4))
class BaseToView(nn.Module):
    def forward(self, x):
        y = x.sin()
        row = y[1]
        y.mul_(3)
        return row * x[0]


@case("views: a write to a view is seen by its sibling", floats(3, 4))
class ViewToSibling(nn.Module):
    def forward(self, x):
        y = x.sin()
        rows, column = y[:2], y[:, 1]
        rows.mul_(x[1:])
        return column, y


@case("views: two writes through overlapping views", floats(4, 4))
class Overlapping(nn.Module):
    def forward(self, x):
        y = x * 2
        y[:3].add_(1)
        y[1:, ::2].mul_(x[1:, :2])
        return y


@case("views: slice assignment", floats(4, 5), floats(2, 5))
class SliceAssignment(nn.Module):
    def forward(self, x, v):
        y = x.sin()
        y[1:3] = v
        y[..., -1] = x[..., 0]
        return y * x


@case("views: assignment with a step, a None and a broadcast", floats(4, 6))
class SteppedAssignment(nn.Module):
    def forward(self, x):
        y = x.clone()
        y[::2, 1::2] = x[0, None, :3] * 2
        return y.exp()


@case("views: an index list on the left", floats(5, 3), floats(2, 3))
class IndexList(nn.Module):
    def forward(self, x, v):
        y = x.clone()
        y[[0, 3]] = v
        y[[1, 2], [0, 2]] *= 5
        return y


@case("views: index_put_ that accumulates repeated indices", floats(4, 3), floats(3, 3))
class IndexPut(nn.Module):
    def forward(self, x, v):
        return x.clone().index_put_((torch.tensor([2, 2, 0]),), v, accumulate=True).square()


@case("views: index_put_ through a narrow", floats(4, 3), integers(2, 2))
class IndexPutNarrow(nn.Module):
    def forward(self, x, where):
        y = x.sin()
        y.narrow(0, 1, 2).index_put_((where,), x[:2], accumulate=True)
        return y


@case("views: a mask on the left, a scalar on the right", floats(3, 4))
class MaskScalar(nn.Module):
    def forward(self, x):
        y = x * 2
        y[x > 0] = 0.5
        return y * x


@case("views: a mask on the left, a tensor expression on the right", floats(3, 4))
class MaskTensor(nn.Module):
    def forward(self, x):
        y = x * 2
        mask = x > 0
        y[mask] = x[0, 0] * 3
        return y * x


@case("views: an augmented assignment to a mask", floats(3, 4), refuses="boolean mask")
class MaskAugmented(nn.Module):
    def forward(self, x):
        y = x * 2
        y[x > 0] *= 3
        return y * x


@case("views: a row mask on the left, a broadcast row on the right", floats(4, 3))
class MaskRows(nn.Module):
    def forward(self, x):
        y = x.clone()
        y[x[:, 0] > 0] = x.sum(0)
        return y


@case("views: masked_fill_ and masked_scatter_ of a slice", floats(4, 3))
class MaskedFill(nn.Module):
    def forward(self, x):
        y = x * 3
        y[1:].masked_fill_(x[1:] > 0, -1.0)
        y[:2].masked_scatter_(x[:2] > 0, x.flatten() * 3)
        return y * x


@case("views: scatter_ and scatter_add_ into a transposed view", floats(3, 4), integers(3, 3, 4))
class ScatterTransposed(nn.Module):
    def forward(self, x, index):
        y = torch.zeros(4, 3)
        y.t().scatter_add_(0, index, x)
        y.t()[:, 0].scatter_(0, index[:1, 0], x[0, :1] * 2)
        return y * x.t()


@case("views: index_add_, index_copy_ and index_fill_ on a slice", floats(4, 3))
class IndexFamily(nn.Module):
    def forward(self, x):
        y, where = x.sin(), torch.tensor([0, 2])
        y[:, :2].index_add_(0, where, x[:2, 1:], alpha=2)
        y[1:].index_copy_(0, where, x[2:] * 4)
        return y.index_fill_(1, torch.tensor([1]), 0.25) * x


@case("views: copy_ broadcasts and converts", floats(3, 4), integers(5, 4))
class Copy(nn.Module):
    def forward(self, x, whole):
        y = x.sin()
        y[1:].copy_(whole)
        y[0].copy_(x[2, 0].double())
        return y * x


@case("views: out= of a fresh tensor and of a view", floats(3, 4))
class Out(nn.Module):
    def forward(self, x):
        plain = x.detach()
        y = torch.empty(4, 3, 4)
        torch.mul(plain, 2, out=y[0])
        torch.add(plain, plain.sin(), out=y[1])
        torch.cat([plain[1:], plain[:1]], out=y[2])
        torch.exp(plain, out=y[3])
        return y * x


@case("views: select, narrow and diagonal are written", floats(4, 4))
class SelectNarrowDiagonal(nn.Module):
    def forward(self, x):
        y = x.sin()
        y.select(1, 2).add_(x[0])
        y.narrow(0, 1, 2).mul_(x[:2])
        y.diagonal(1).copy_(x[:3, 3] * 2)
        torch.diagonal(y, offset=-1).fill_(0.5)
        return y * x


@case("views: fill_diagonal_ of a batch entry", floats(2, 3, 3), refuses="could not be captured")
class FillDiagonal(nn.Module):
    def forward(self, x):
        y = x * 2
        y[1].fill_diagonal_(7.0)
        return y * x


@case("views: as_strided is written", floats(3, 4))
class AsStrided(nn.Module):
    def forward(self, x):
        y = x.sin()
        y.as_strided((3,), (5,)).mul_(3)
        y.as_strided((2, 2), (4, 1), 1).add_(x[1:, :2])
        return y * x


@case("views: expand is read after its base was written", floats(3, 1))
class Expanded(nn.Module):
    def forward(self, x):
        y = x.sin()
        wide = y.expand(3, 4)
        y.add_(x * 2)
        return wide * wide


@case("views: unfold and movedim are written", floats(2, 6))
class Unfolded(nn.Module):
    def forward(self, x):
        y = x.sin()
        y.unfold(1, 2, 2)[:, 1].mul_(4)
        y.movedim(0, 1)[3] = x[:, 0] * 2
        return y * x


@case("views: unbind, then the pieces are written", floats(3, 4))
class Unbound(nn.Module):
    def forward(self, x):
        y = x.sin()
        first, second, _ = (y[i] for i in range(3))
        first.add_(second)
        second.zero_()
        return torch.stack(y.unbind(0)[::-1])


@case("views: a chunk of a detached base is written", floats(4, 3))
class ChunkDetached(nn.Module):
    def forward(self, x):
        y = x.detach().clone()
        low, high = y.chunk(2)
        low.add_(high)
        for piece in y.unbind(1)[1:]:
            piece.fill_(1.5)
        y.split([1, 3])[1].mul_(2)
        return y * x


@case("views: the base of a split is written", floats(6, 3))
class SplitBase(nn.Module):
    def forward(self, x):
        y = x.detach() * 2
        low, high = torch.split(y, 3)
        y[2:4].add_(1)
        return low * high * x[3:]
