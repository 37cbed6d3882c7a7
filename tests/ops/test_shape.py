"""Views, joins, pads: every row runs float32, bfloat16, int64 and bool through one capture."""

import jax
import jax.export
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from parity_checks import Function, agree, check, lower

from esper.errors import RefusedError
from esper.jax_backend.evaluate import evaluate
from esper.jax_backend.lowerings.strided import as_strided
from esper.program import flatten

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)
X = torch.arange(24.0).reshape(2, 3, 4) - 5
IMAGE = torch.arange(64.0).reshape(2, 2, 4, 4) / 7

CASES = {
    "as_strided": lambda x: (x.as_strided((2, 3), (1, 2), 5), x.as_strided((3,), (7,))),
    "as_strided_copy": lambda x: torch.as_strided_copy(x, (2, 2), (1, 1)),
    "as_strided_scatter": lambda x: torch.as_strided_scatter(x.detach(), x[0, 0, :2], (2,), (5,), 3),
    "atleast": lambda x: (torch.atleast_1d(x.sum()), torch.atleast_3d(x[0, 0])),
    "block_diag": lambda x: torch.block_diag(x[0], x[1], x[0, 0]),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[:1, :1]),
    "broadcast_to": lambda x: x.broadcast_to(5, 2, 3, 4),
    "cartesian_prod": lambda x: torch.cartesian_prod(x[0, 0], x[0, 1, :2]),
    "cat": lambda x: torch.cat([x, x[:, :1], x], 1),
    "cat_negative": lambda x: torch.cat([x, x], -1),
    "cat_empty": lambda x: torch.cat([torch.zeros(0, dtype=x.dtype), x], 1),
    "cat_mixed": lambda x: torch.cat([x, x.half()], 0),
    "channel_shuffle": lambda x: F.channel_shuffle(x.permute(0, 2, 1), 2),
    "chunk": lambda x: x.chunk(3, 2),
    "column_stack": lambda x: torch.column_stack([x[0, 0], x[0, 1]]),
    "diag": lambda x: (torch.diag(x[0, 0]), torch.diag(x[0], 1), torch.diagflat(x[0], -1)),
    "diag_embed": lambda x: (torch.diag_embed(x), torch.diag_embed(x, 1, 0, 2), torch.diag_embed(x, -2)),
    "diagonal": lambda x: (x.diagonal(), x.diagonal(1, 1, 2), x.diagonal(-1, -1, 0)),
    "dstack": lambda x: torch.dstack([x, x]),
    "expand": lambda x: x[:, :1].expand(-1, 5, 4),
    "expand_as": lambda x: x[:1].expand_as(x),
    "expand_new": lambda x: x[0, 0].expand(2, 1, -1),
    "flatten": lambda x: (x.flatten(), x.flatten(1), x.flatten(0, -2)),
    "flip": lambda x: (x.flip(0, -1), torch.fliplr(x), torch.flipud(x)),
    "getitem": lambda x: (x[..., None, 1:3], x[:, -1], x[:, ::2, 1], x[0][None], x[:, 5:], x[:, -2:-1]),
    "hstack": lambda x: torch.hstack([x, x]),
    "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[0, 1, :2], indexing="ij"),
    "meshgrid_xy": lambda x: torch.meshgrid(x[0, 0], x[0, 1, :2], indexing="xy"),
    "movedim": lambda x: (x.movedim(0, -1), x.movedim((0, 1), (2, 0))),
    "narrow": lambda x: (x.narrow(2, 1, 2), x.narrow(-1, -2, 1)),
    "permute": lambda x: x.permute(2, -3, 1),
    "repeat": lambda x: (x.repeat(2, 1, 3), x.repeat(2, 1, 1, 1)),
    "repeat_interleave": lambda x: (x.repeat_interleave(2), x.repeat_interleave(3, dim=1)),
    "reshape": lambda x: (x.reshape(-1), x.reshape(x.shape[0], -1, 2), x.view(6, 4), x.transpose(0, 1).reshape(3, 8)),
    "roll": lambda x: (x.roll(1), x.roll(-2, 1), x.roll((1, 2), (0, 2))),
    "rot90": lambda x: (x.rot90(), x.rot90(-1, (1, 2))),
    "select": lambda x: (x.select(1, -1), x.select(-1, 2)),
    "slice_step": lambda x: x[:, :, 1::2],
    "split": lambda x: (x.split(2, 1), x.split((1, 3), -1), x.tensor_split(3, 2), x.tensor_split((1, 2), 1)),
    "squeeze": lambda x: (x[:, :1].squeeze(), x[:, :1].squeeze(1), x.squeeze(0), x[:, :1, :1].squeeze((1, 2))),
    "stack": lambda x: (torch.stack([x, x]), torch.stack([x, x + x], -1), torch.stack([x, x], 1)),
    "t": lambda x: (x[0].t(), x.mT, x.transpose(0, -1), x.swapaxes(1, 2), x[0].T, x[0, 0].t()),
    "tile": lambda x: (x.tile(2), x.tile(2, 1, 1, 2)),
    "tril": lambda x: (x.tril(), x.triu(1), x.tril(-1)),
    "unbind": lambda x: x.unbind(1),
    "unflatten": lambda x: x.flatten(1).unflatten(-1, (2, 6)),
    "unfold": lambda x: (x.unfold(2, 2, 1), x.unfold(1, 3, 1), x.unfold(-1, 3, 2), x.unfold(0, 1, 1)),
    "unsqueeze": lambda x: (x.unsqueeze(0), x.unsqueeze(-1), x.unsqueeze(2)),
    "view_as": lambda x: x.view_as(x.new_zeros(4, 6)),
    "vstack": lambda x: torch.vstack([x[0], x[1]]),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    check(lambda *xs: [CASES[name](x) for x in xs], *(X.to(dtype) for dtype in DTYPES))


IMAGES = {
    "circular": lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"),
    "constant": lambda x: F.pad(x, (1, 2, 0, 3), value=2.5),
    "constant_crop": lambda x: F.pad(x, (-1, 2, 1, -2)),
    "constant_all": lambda x: F.pad(x, (0, 0, 1, 1, 2, 0, 1, 0)),
    "crop_reflect": lambda x: F.pad(x, (-1, 1, 1, 1), mode="reflect"),
    "fold": lambda x: F.fold(F.unfold(x, 2, padding=1, stride=2), (4, 4), 2, padding=1, stride=2),
    "fold_overlap": lambda x: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.reshape(2, 8, 2, 2), 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "reflect": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "crop_reflect_far": lambda x: F.pad(x, (-3, 3, 1, -2), mode="reflect"),
    "crop_replicate": lambda x: F.pad(x, (-1, 2, -3, 1), mode="replicate"),
    "crop_replicate_all": lambda x: F.pad(x, (-4, 2, 1, 1), mode="replicate"),
    "reflect_1d": lambda x: F.pad(x[0], (2, 1), mode="reflect"),
    "reflect_3d": lambda x: F.pad(x[None], (1, 1, 1, 1, 1, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 5, 0), mode="replicate"),
    "replicate_1d": lambda x: F.pad(x[0], (2, 1), mode="replicate"),
    "replicate_3d": lambda x: F.pad(x[None], (1, 0, 0, 1, 2, 1), mode="replicate"),
    "unfold": lambda x: F.unfold(x, (2, 3), dilation=(2, 1), padding=(0, 1), stride=(1, 2)),
}


@pytest.mark.parametrize("name", IMAGES)
def test_image(name):
    check(IMAGES[name], IMAGE)


SCALARS = {
    "as_strided": lambda x: x.as_strided((2, 2), (0, 0)),
    "expand": lambda x: x.expand(2, 3),
    "flatten": lambda x: x.flatten(),
    "reshape": lambda x: x.reshape(1, 1),
    "repeat": lambda x: x.repeat(3),
    "repeat_interleave": lambda x: x.repeat_interleave(3),
    "squeeze": lambda x: (x.squeeze(), x.squeeze(0)),
    "meshgrid": lambda x: torch.meshgrid(x, torch.stack([x, x]), indexing="ij"),
    "stack": lambda x: (torch.stack([x, x]), torch.hstack([x, x])),
    "transpose": lambda x: x.transpose(0, -1),
    "unfold": lambda x: x.unfold(0, 1, 1),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "flip": lambda x: x.flip(()),
    "roll": lambda x: x.roll(1),
}


@pytest.mark.parametrize("name", SCALARS)
def test_without_dimensions(name):
    check(SCALARS[name], torch.tensor(2.5))


def test_of_nothing():
    check(lambda x: (x.flip(0), x.transpose(0, 1), x.reshape(0, 3), torch.cat([x, x], 1), x.split(2, 1), x.sum(1)),
          torch.zeros(3, 0))  # fmt: skip


def test_a_strided_view_written_into():
    def run(x):
        y = x * 1
        y.as_strided((2, 2), (4, 1), 1).mul_(3)
        return y

    check(run, X)


def test_as_strided_beyond_the_tensor():
    with pytest.raises(RefusedError, match="elements 0 to 9 "):
        as_strided(jnp.zeros(8), (4,), (3,))


def test_resize():
    check(lambda x: (x.detach().clone().resize_(3, 2), x.detach().clone().resize_as_(x[0])), X, gradients=False)


def test_in_place_writes_to_views():
    def write(x):
        x = x.clone()
        x[:, 0] = 1
        x[..., 1:] = x[..., :-1] * 2
        x[:, 1, ::2] += 3
        x.diagonal(0, 1, 2).mul_(2)
        x[x > 6] = 0
        x[1].neg_()
        return x

    check(write, X)


def test_symbolic_batch_survives():
    def shapes(x):
        batch, rows, columns = x.shape
        y = x.reshape(batch * rows, columns).view(batch, -1)
        z = torch.cat([y, y[:, :1].expand(batch, 2)], 1).repeat(1, 2).unflatten(1, (2, -1))
        return z, x.new_zeros(batch, 1), torch.stack([x, x]).flatten(0, 1), x.mean(0), x.sum() / batch, x[:-1], x[-1]

    program = check(shapes, X.repeat(2, 1, 1)[:3])
    assert isinstance(program.user_inputs[0].type.shape[0], str)


@pytest.mark.parametrize(
    "name", ["cat", "expand", "flatten", "getitem", "repeat", "repeat_interleave", "roll", "unfold"]
)
def test_under_a_symbolic_batch_of_jax_export(name):
    program, _, _, (array,), constants = lower(Function(CASES[name]), (X,))
    batch, *rest = program.user_inputs[0].type.shape
    assert isinstance(batch, str)
    sizes = jax.export.symbolic_shape(f"b, {rest[0]}, {rest[1]}", constraints=["b >= 2"])
    run = jax.jit(lambda x: evaluate(program, {}, {}, [x], constants=constants)[0])
    exported = jax.export.export(run)(jax.ShapeDtypeStruct(sizes, array.dtype))
    longer = X.repeat(3, 1, 1)[:5]
    for found, wanted in zip(exported.call(longer.numpy()), flatten(CASES[name](longer))[0], strict=True):
        agree(found, wanted)
