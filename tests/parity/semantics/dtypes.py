"""Dtypes: autocast, half and double modules, complex ones, promotion, integers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from parity.case import Call
from parity.semantics.table import case, floats, given, integers


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2))


class Autocast(nn.Module):
    def __init__(self, dtype, enabled=True):
        super().__init__()
        self.net, self.dtype, self.enabled = _net(), dtype, enabled

    def forward(self, x):
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.enabled):
            return self.net(x)


@case("dtypes: autocast to bfloat16")
def _autocast_bfloat16():
    return Call(Autocast(torch.bfloat16), (floats(2, 3)(),))


@case("dtypes: autocast to float16")
def _autocast_float16():
    return Call(Autocast(torch.float16), (floats(2, 3)(),))


@case("dtypes: autocast that is not enabled")
def _autocast_off():
    return Call(Autocast(torch.bfloat16, enabled=False), (floats(2, 3)(),))


@case("dtypes: autocast switched off for an inner region", floats(2, 3), through="bfloat16")
class AutocastNested(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.first(x)
            with torch.autocast("cpu", enabled=False):
                z = self.second(y.to(self.second.weight.dtype))
            return self.first(z), y @ y.T, z


@case("dtypes: autocast keeps what it must in float32", floats(2, 3), floats(2, 3))
class AutocastLists(nn.Module):
    def forward(self, x, y):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = x @ y.T
            promoted = torch.cat((product, x[:, :2]))
            return product, product.softmax(-1), F.mse_loss(product, product.detach() * 2), promoted, product.exp()


@case(
    "dtypes: autocast around convolution, pooling, batch norm and attention",
    floats(2, 4, 6, 6),
    train=True,
    through="bfloat16",
)
class AutocastVision(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        x = F.max_pool2d(self.norm(self.conv(x)).relu(), 2).flatten(2)
        return F.scaled_dot_product_attention(x, x, x)


@case("dtypes: autocast, weights cast once and used twice", floats(2, 3))
class AutocastCache(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.layer(self.layer(x))
        return self.layer(x.to(self.layer.weight.dtype))


@case("dtypes: a float32 part of a bfloat16 model", floats(2, 3, dtype=torch.bfloat16))
class Upcast(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4).bfloat16()
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.layer(x).float()).to(x.dtype) + 1


@case("dtypes: a bfloat16 module")
def _bfloat16():
    return Call(_net().bfloat16(), (floats(2, 3, dtype=torch.bfloat16)(),))


@case("dtypes: a float16 module")
def _float16():
    return Call(_net().half(), (floats(2, 3, dtype=torch.float16)(),))


@case("dtypes: a bfloat16 convolution with BatchNorm, train")
def _bfloat16_conv():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.SiLU()).bfloat16()
    return Call(net, (floats(4, 2, 5, 5, dtype=torch.bfloat16)(),), train=True)


@case("dtypes: a float64 module, wide")
def _float64():
    return Call(_net().double(), (floats(2, 3, dtype=torch.float64)(),), wide=True)


@case("dtypes: float64 in the middle of a float32 model, wide", floats(2, 3), wide=True)
class Widened(nn.Module):
    def forward(self, x):
        y = x.double()
        return (y - y.mean()).float(), y.cumsum(1), x * y[0], torch.finfo(y.dtype).eps + y


@case("dtypes: float64 constants and buffers, wide", floats(2, 3), wide=True)
class WideBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 3, dtype=torch.float64))

    def forward(self, x):
        return x + self.table, x + self.table[1], torch.tensor(0.1, dtype=torch.float64) * 3


@case("dtypes: int64 beyond 32 bits, wide", integers(100, 4), wide=True)
class Wide64(nn.Module):
    def forward(self, n):
        hashed = (n * 2654435761 + 12345678901) % (2**61 - 1)
        return hashed, hashed >> 7, hashed // 1000, hashed.to(torch.int32), hashed.double()


@case("dtypes: an int64 hash within 32 bits", integers(100, 4))
class Narrow(nn.Module):
    def forward(self, n):
        return (n * 7919 + 104729) % 65537, n**2, n // 3, -n // 3, n % -7, (-n) % 7, -n >> 1


@case("dtypes: a complex Linear", floats(2, 3, dtype=torch.complex64))
class ComplexLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=torch.complex64)

    def forward(self, x):
        return self.layer(x)


@case("dtypes: complex to real and back", floats(2, 4))
class ComplexParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(3, 2))

    def forward(self, x):
        spectrum = torch.fft.rfft(x) * torch.view_as_complex(self.filter)
        parts = torch.view_as_real(spectrum)
        magnitude, phase = spectrum.abs(), spectrum.angle()
        return torch.fft.irfft(spectrum, n=4), parts, torch.polar(magnitude, phase), spectrum.conj() * spectrum


@case("dtypes: real times complex, complex conjugation and its imaginary part", floats(3, dtype=torch.complex64))
class ComplexArithmetic(nn.Module):
    def forward(self, z):
        return z.real * z + 1j, z.conj().imag, (2 * z).exp(), z.mean() / (1 + z), z.mT if z.dim() > 1 else z.sgn()


@case("dtypes: an int tensor and a float number", integers(5, 2, 3))
class IntAndFloat(nn.Module):
    def forward(self, n):
        return n * 0.5, n + 1, n / 2, n / n.clamp(min=1), n + True, n * torch.tensor(0.5), n**0.5, 2.0**n


@case("dtypes: 0-d tensors do not promote, 1-d ones do", floats(2, 3, dtype=torch.bfloat16), floats(3))
class ZeroDim(nn.Module):
    def forward(self, x, y):
        return x * torch.tensor(1.5), x * y[0], x * y, x * torch.tensor([1.5]), torch.where(x > 0, x, torch.tensor(0.5))


@case("dtypes: int8, int16, uint8 and bool among themselves", integers(5, 3))
class SmallInts(nn.Module):
    def forward(self, n):
        small, byte, short, flag = n.to(torch.int8), n.to(torch.uint8), n.short(), n > 2
        return small + byte, short * byte, small + flag, byte + 1, small * 1.0, flag + flag, flag * 2, flag.sum()


@case("dtypes: half and bfloat16 meet", floats(3, dtype=torch.float16), floats(3, dtype=torch.bfloat16))
class Halves(nn.Module):
    def forward(self, x, y):
        return x + y, x * 2.5, y * torch.tensor(3), torch.cat((x, y)), torch.stack((x.float(), y.float()))


@case("dtypes: uint8 and int8 overflow wrap around", given(250, 3, 200, dtype=torch.uint8))
class Overflow(nn.Module):
    def forward(self, b):
        return b + 10, b * 2, b - 5, -b, b.to(torch.int8), b.to(torch.int8) * 2, b.sum(), b.cumsum(0), ~b


@case("dtypes: shifts and bitwise operators", given(5, -9, 64, dtype=torch.int32))
class Bits(nn.Module):
    def forward(self, n):
        return n << 2, n >> 1, n & 3, n | 8, n ^ n.flip(0), ~n, 1 << (n & 7), n.bool() ^ True, n & True


@case("dtypes: bool arithmetic and logic", given(True, False, True))
class Bools(nn.Module):
    def forward(self, b):
        numbers = b.long().cumsum(0), b.float().mean(), b * 0.5, b + b, b * b, b | ~b, b.logical_xor(b.flip(0))
        return numbers, b.any(), b.all(), b.sum(), b.to(torch.uint8) * 255, b.prod(), b.max()


@case("dtypes: division of ints, rounded each way", given(-7, 7, 5), given(2, -2, 3))
class Division(nn.Module):
    def forward(self, n, d):
        floor, trunc = torch.div(n, d, rounding_mode="floor"), torch.div(n, d, rounding_mode="trunc")
        return n / d, n // d, floor, trunc, n % d, torch.fmod(n, d), torch.remainder(n, d), n / 2, n.divide(0)


@case(
    "dtypes: division of floats, rounded each way", given(-7.5, 7.0, 5.2, grad=False), given(2.0, -2.0, 0.3, grad=False)
)
class FloatDivision(nn.Module):
    def forward(self, x, d):
        return x // d, torch.div(x, d, rounding_mode="trunc"), x % d, torch.fmod(x, d), 3 // x, 2 % d


@case("dtypes: type_as, to, half, float, double and bool", floats(2, 3))
class Casts(nn.Module):
    def forward(self, x):
        n = x.to(torch.int64)
        y = x.half().to(torch.bfloat16).type_as(x) * x.to("cpu", torch.float16).float() * x.to(n.float())
        return y, n, x.bool(), x.int(), x.type(torch.int16), x.to(x.device), x.to(dtype=torch.float32, copy=True)


@case("dtypes: float to int truncates, bool to float, int to half", given(-2.7, 2.7, 0.4, -0.4))
class Truncation(nn.Module):
    def forward(self, x):
        return x.long(), x.to(torch.int8), (x > 0).float() * x, x.long().half() + x.half(), x.round().int()


@case("dtypes: integer indices and counting", integers(4, 5))
class Counting(nn.Module):
    def forward(self, n):
        hot = F.one_hot(n, 4)
        order = n.argsort(stable=True)
        return hot, hot.sum(0), n[order], n.max(), n.argmax(), n.float().mean(), n.sum() // 2


@case("dtypes: reductions choose their dtype", integers(5, 2, 3), floats(2, 3, dtype=torch.float16))
class Reductions(nn.Module):
    def forward(self, n, h):
        kept = n.to(torch.int8)
        sums = kept.sum(), kept.prod(1), kept.amax(0), kept.cumsum(1), n.sum(dtype=torch.float32)
        return sums, h.sum(), h.sum(dtype=torch.float32), h.softmax(-1, dtype=torch.float32), h.mean(1), h.norm()


@case("dtypes: in-place operators keep the dtype", floats(2, 3, dtype=torch.bfloat16), floats(2, 3))
class InPlaceDtype(nn.Module):
    def forward(self, x, y):
        out = x * 1
        out += y
        out.mul_(torch.tensor(2.0))
        count = torch.zeros(3, dtype=torch.int32)
        count += 3
        out[0] = y[0]
        return out, count


@case("dtypes: a default dtype is read, not written", floats(2, 3))
class DefaultDtype(nn.Module):
    def forward(self, x):
        table = torch.zeros(3, dtype=torch.get_default_dtype())
        return x + table, torch.result_type(x, 1) == torch.float32, torch.promote_types(torch.int8, x.dtype).itemsize


@case("dtypes: comparison of mixed dtypes", integers(5, 2, 3), floats(2, 3))
class Comparison(nn.Module):
    def forward(self, n, x):
        return n > x, n == 2.5, x >= n, torch.maximum(n.float(), x), torch.where(n > 2, n, x), n.isnan(), x.eq(True)
