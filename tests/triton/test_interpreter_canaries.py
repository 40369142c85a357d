"""The bugs of Triton's interpreter that the kernels work around. One of these failing is good news: drop a workaround.

kernels/common/triton_numerics.py says what each of them is the reason for.
"""

import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from kinema.ops.common.triton_target import interpreted  # noqa: E402

pytestmark = pytest.mark.skipif(not interpreted(), reason="a GPU does these right")

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


@triton.jit
def _add(x, y, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i) + tl.load(y + i))


@triton.jit
def _cast(x, out, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out + i, tl.load(x + i).to(out.dtype.element_ty))


@triton.jit
def _dot(a, b, out, SIZE: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    tl.store(out + i * SIZE + j, tl.dot(tl.load(a + i * SIZE + j), tl.load(b + i * SIZE + j)))


def cast(values, dtype):
    out = torch.empty(values.shape, dtype=dtype)
    _cast[(1,)](values, out, SIZE=len(values))
    return out.float()


def test_bf16_is_added_as_bit_patterns():
    one, out = torch.ones(16, dtype=BF16), torch.empty(16, dtype=BF16)
    _add[(1,)](one, one, out, SIZE=16)
    assert not torch.equal(out, torch.full_like(out, 2.0))


def test_bf16_is_multiplied_as_bit_patterns():
    one, out = torch.ones(16, 16, dtype=BF16), torch.empty(16, 16)
    _dot[(1,)](one, one, out, SIZE=16)
    assert not torch.equal(out, torch.full_like(out, 16.0))


def test_fp32_is_cut_to_bf16():
    assert cast(torch.full((16,), 1.0 + 2.0**-8 + 2.0**-10), BF16)[0] == 1.0


def test_the_carry_into_e4m3_is_lost():
    assert cast(torch.full((16,), 1.95), E4M3)[0] == 1.0


def test_e4m3_does_not_saturate():
    assert cast(torch.full((16,), 500.0), E4M3)[0] < 448.0


@pytest.mark.parametrize("dtype", [BF16, E4M3, torch.float16, torch.int8])
def test_widening_is_exact(dtype):
    """No bug: every kernel relies on it."""
    values = (torch.randn(256, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    assert torch.equal(cast(values, torch.float32), values.float())
