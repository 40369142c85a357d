"""`patch_embed` in Triton: products of bf16 parts are fp32 products, and no wrong promise about memory is made."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from kinema.ops.common import PRECISIONS, Target  # noqa: E402
from kinema.ops.common.launch import recording  # noqa: E402
from kinema.ops.patch_embed import triton as op  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET = Target(DEVICE, PRECISIONS["cuda"]["bf16"])
multiply, parts = op._multiply, op._parts


@triton.jit
def _multiplied(a, w, out, SIZE: tl.constexpr):
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    acc = tl.zeros((SIZE, SIZE), tl.float32)
    tl.store(out + i * SIZE + j, multiply(tl.load(a + i * SIZE + j), tl.load(w + i * SIZE + j), acc))


@triton.jit
def _split(x, high, middle, low, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    h, m, lo = parts(tl.load(x + i))
    tl.store(high + i, h.to(tl.float32))
    tl.store(middle + i, m.to(tl.float32))
    tl.store(low + i, lo.to(tl.float32))


def test_three_parts_are_the_number():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, generator=generator) * 2.0 ** torch.randint(-90, 90, (4096,), generator=generator)
    made = [torch.empty_like(x, device=DEVICE) for _ in range(3)]
    _split[(1,)](x.to(DEVICE), *made, SIZE=4096)
    high, middle, low = (part.cpu() for part in made)
    assert torch.equal(high.double() + middle.double() + low.double(), x.double())
    assert torch.equal(high, x.bfloat16().float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_of_parts_are_as_exact_as_fp32_products(dtype):
    """Seen with few products, none of which cancel: a part left out would show as 2^-8 or 2^-17 of the result."""
    generator = torch.Generator().manual_seed(1)
    a = torch.zeros(16, 16, dtype=dtype)
    a[:, :2] = (torch.rand(16, 2, generator=generator) + 0.5).to(dtype)
    w = torch.rand(16, 16, generator=generator) + 0.5
    out = torch.empty(16, 16, device=DEVICE)
    _multiplied[(1,)](a.to(DEVICE), w.to(DEVICE), out, SIZE=16)
    truth = a.double() @ w.double()
    assert float(((out.cpu() - truth) / truth).abs().max()) <= 2 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("layout", "patch", "vector"),
    [("contiguous", 2, 2), ("contiguous", 4, 4), ("contiguous", 1, 1), ("odd rows", 2, 1), ("columns apart", 2, 1)],
)
def test_neighbours_are_promised_only_where_they_are(layout, patch, vector):
    """A wrong promise reads the wrong addresses on a GPU; the interpreter does not look at it."""
    x = torch.empty(2, 3, 4, 8, 16, dtype=torch.bfloat16)
    if layout == "odd rows":
        x = torch.empty(2, 3, 4, 8, 17, dtype=torch.bfloat16)[..., :16]
    elif layout == "columns apart":
        x = torch.empty(2, 3, 4, 8, 32, dtype=torch.bfloat16)[..., ::2]
    with recording(80) as kept:
        op.patch_embed(x, op.pack_patch_embed(torch.empty(6, 3, 1, 2, patch), target=TARGET))
    assert kept.launches[0].arguments["VECTOR"] == vector


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_behind_a_tensor_is_touched(guarded, dtype):
    """Rows, columns and features that no tile divides."""
    generator = torch.Generator().manual_seed(2)
    x = guarded(torch.randn(1, 3, 2, 6, 10, generator=generator).to(dtype))
    weight, bias = torch.randn(5, 3, 1, 2, 2, generator=generator), torch.randn(5, generator=generator)
    position, out = guarded(torch.randn(30, 5, generator=generator)), guarded(torch.empty(1, 30, 5, dtype=dtype))
    packed = op.pack_patch_embed(weight, bias, target=TARGET)
    packed = dataclasses.replace(packed, weight=guarded(packed.weight), bias=guarded(packed.bias))
    got = op.patch_embed(x, packed, position=position, out=out)
    wanted = F.conv3d(x.float(), weight, bias, stride=(1, 2, 2)).flatten(2).transpose(1, 2) + position
    torch.testing.assert_close(got, wanted.to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)


def test_a_position_of_another_shape_is_refused():
    weight = op.pack_patch_embed(torch.zeros(6, 3, 1, 2, 2, device=DEVICE), target=TARGET)
    x = torch.zeros(2, 3, 1, 4, 4, device=DEVICE)
    for shape in ((1, 6), (3, 4, 6), (4, 5)):
        with pytest.raises(ValueError, match="position"):
            op.patch_embed(x, weight, position=torch.zeros(shape, device=DEVICE))
