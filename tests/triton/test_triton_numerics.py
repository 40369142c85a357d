"""The helpers inside every Triton kernel, against torch, bit for bit where both round once."""

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from kinema.ops.common import triton_numerics as numerics  # noqa: E402
from kinema.ops.linear.reference import activate  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZE = 1024
LIMITS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


@triton.jit
def _narrow(x, out, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, numerics.cast(tl.load(x + i), out.dtype.element_ty))


@triton.jit
def _activate(x, out, NAME: tl.constexpr, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out + i, numerics.activate(tl.load(x + i), NAME))


@triton.jit
def _dot(a, b, c, out, M: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    m, k, n = tl.arange(0, M), tl.arange(0, K), tl.arange(0, N)
    left = tl.load(a + m[:, None] * K + k[None, :])
    right = tl.load(b + k[:, None] * N + n[None, :])
    start = tl.load(c + m[:, None] * N + n[None, :])
    if right.dtype == tl.float8e4nv:
        product = numerics.dot_fp8(left, right, start, True)
    else:
        product = numerics.dot(left, right, start)
    tl.store(out + m[:, None] * N + n[None, :], product)


def bits(values):
    return torch.tensor(values, dtype=torch.int64).to(torch.int32).view(torch.float32)


def samples(dtype):
    """Every magnitude, every tie between neighbours of the dtype, and one bit to either side of each tie."""
    generator = torch.Generator().manual_seed(0)
    exponent = torch.randint(-30, 20, (20000,), generator=generator).float()
    spread = torch.randn(20000, generator=generator) * 2.0**exponent
    if dtype == torch.int8:
        ties = torch.arange(-130, 130).float() + 0.5
    elif dtype == torch.float32:
        ties = torch.empty(0)
    else:
        codes = torch.arange(256 if dtype.itemsize == 1 else 65536)
        codes = codes.to(torch.uint8) if dtype.itemsize == 1 else codes.to(torch.uint16)
        known = codes.view(dtype).double()
        known = known[known.isfinite()].sort().values.unique()
        ties = ((known[1:] + known[:-1]) / 2).float()
        ties = ties[ties.isfinite()]
    around = [torch.nextafter(ties, torch.full_like(ties, way)) for way in (float("-inf"), float("inf"))]
    special = torch.tensor([0.0, -0.0, 1e-45, 3e38, -3e38, 448.0, 464.0, 480.0, 1e5, 126.5, 127.5, -128.0])
    drawn = torch.cat((spread, ties, *around, special))
    return torch.cat((drawn, drawn[: -len(drawn) % SIZE]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, *LIMITS], ids=str)
def test_narrowing_is_to_nearest_even_and_saturates(dtype):
    x = samples(dtype)
    out = torch.empty(x.shape, dtype=dtype, device=DEVICE)
    _narrow[(len(x) // SIZE,)](x.to(DEVICE), out, SIZE=SIZE)
    limit = LIMITS.get(dtype)
    wanted = x if limit is None else x.clamp(-limit, limit)
    wanted = (wanted.round() if dtype == torch.int8 else wanted).to(dtype)
    different = out.cpu().double() != wanted.double()
    assert not different.any(), f"{x[different][:5].tolist()} became {out.cpu()[different][:5].tolist()}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_nan_stays_nan(dtype):
    x = torch.full((SIZE,), float("nan"), device=DEVICE)
    out = torch.zeros(SIZE, device=DEVICE).to(dtype)
    _narrow[(1,)](x, out, SIZE=SIZE)
    assert out.float().isnan().all()


@pytest.mark.parametrize("name", ["none", "gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_activations(name):
    x = torch.linspace(-12, 12, 8 * SIZE, device=DEVICE)
    out = torch.empty_like(x)
    _activate[(8,)](x, out, NAME=name, SIZE=SIZE)
    truth = activate(x.double(), name)
    step = torch.finfo(torch.float32).eps * x.double().abs().clamp(min=0.1)
    error, plain = ((out - truth).abs() / step).max(), ((activate(x, name) - truth).abs() / step).max()
    assert error <= 2 * plain + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_dot(dtype):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(16, 64, generator=generator).to(dtype).to(DEVICE)
    b = torch.randn(64, 32, generator=generator).to(dtype).to(DEVICE)
    c = torch.randn(16, 32, generator=generator).to(DEVICE)
    if dtype == torch.float8_e4m3fn and DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("e4m3 needs compute capability 8.9")
    out = torch.full((16, 32), float("nan"), device=DEVICE)
    _dot[(1,)](a, b, c, out, M=16, K=64, N=32)
    truth = c.double() + a.double() @ b.double()
    size = c.double().abs() + a.double().abs() @ b.double().abs()
    assert ((out - truth).abs() <= 8 * torch.finfo(torch.float32).eps * size).all()
