"""`conv3d` in Triton: memory as the VAE lays it out, caches of another dtype, and nothing touched behind a tensor."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.common import PRECISIONS, Target
from kinema.ops.common.launch import Config, forced, recording
from kinema.ops.common.triton_numerics import FEWEST_FP32
from kinema.ops.conv3d import reference
from kinema.ops.conv3d.triton import WIDTHS, conv3d, pack_conv3d

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET = Target(DEVICE, PRECISIONS["cuda"]["fp32"])
FP32, BF16 = torch.float32, torch.bfloat16


def drawn(*shape, dtype=FP32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def close(got, wanted, dtype=FP32):
    tolerance = {FP32: 2e-6, BF16: 2e-2}[dtype]
    torch.testing.assert_close(got.float(), wanted.float(), rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("layout", ["channels last", "part of a larger cache"])
def test_caches_and_residuals_in_any_memory(layout, frames):
    """One frame is a chunk shorter than the past: part of the old cache moves forward."""
    x, norm, past = drawn(2, 6, frames, 5, 3), drawn(6, seed=1), drawn(2, 6, 2, 5, 3, seed=2)
    residual = channels_last(drawn(2, 4, frames, 5, 3, seed=3))
    weight, bias = 0.1 * drawn(4, 6, 3, 3, 3, seed=4), drawn(4, seed=5)
    if layout == "channels last":
        cache = channels_last(past.clone())
    else:
        larger = torch.full((3, 2, 9, 3, 8), float("nan"), device=DEVICE)
        cache = larger.permute(1, 4, 0, 2, 3)[:, 1:7, 1:, 2:7]
        cache.copy_(past)
    wanted_cache = past.clone()
    options = {"norm": norm, "activation": "silu", "residual": residual}
    wanted = reference.conv3d(x, reference.pack_conv3d(weight, bias, target=TARGET), cache=wanted_cache, **options)
    got = conv3d(x, pack_conv3d(weight, bias, target=TARGET), cache=cache, **options)
    close(got, wanted)
    close(cache, wanted_cache)
    if layout != "channels last":
        assert int(larger.isnan().sum()) == larger.numel() - cache.numel()


@pytest.mark.parametrize(("x_dtype", "cache_dtype"), [(BF16, FP32), (FP32, BF16)])
def test_a_cache_of_another_dtype(x_dtype, cache_dtype):
    x, weight = drawn(1, 5, 2, 4, 3, dtype=x_dtype), 0.1 * drawn(3, 5, 3, 1, 1, seed=1)
    wanted_cache = drawn(1, 5, 2, 4, 3, dtype=cache_dtype, seed=2)
    cache = wanted_cache.clone()
    wanted = reference.conv3d(x, reference.pack_conv3d(weight, target=TARGET), cache=wanted_cache)
    got = conv3d(x, pack_conv3d(weight, target=TARGET), cache=cache)
    close(got, wanted, BF16)
    assert got.dtype == x_dtype and torch.equal(cache, wanted_cache)


def test_the_past_survives_an_output_over_nothing_else():
    """A cache of zeros and no cache are the same clip; the clip after it is not."""
    x, packed = drawn(1, 4, 2, 3, 5), pack_conv3d(drawn(4, 4, 3, 3, 3, seed=1), target=TARGET)
    cache = torch.zeros(1, 4, 2, 3, 5, device=DEVICE)
    first, again = conv3d(x, packed, cache=cache), conv3d(x, packed, cache=cache)
    assert torch.equal(first, conv3d(x, packed))
    assert not torch.equal(again, first)
    assert torch.equal(cache, x)


@pytest.mark.parametrize("case", ["halving", "time", "upsampled", "strided"])
def test_nothing_behind_a_tensor_is_touched(guarded, case):
    kernel, options = {
        "halving": ((3, 3), {"stride": (1, 2, 2), "padding": (0, 1, 0, 1)}),
        "time": ((3, 1, 1), {}),
        "upsampled": ((3, 3), {}),
        "strided": ((1, 1, 1), {}),
    }[case]
    x, upsample = guarded(drawn(1, 5, 2, 6, 7)), 2 if case == "upsampled" else 1
    if case != "strided":
        x = guarded(x.movedim(1, -1)).movedim(-1, 1)
    weight, bias = drawn(3, 5, *kernel, seed=1), drawn(3, seed=2)
    packed = pack_conv3d(weight, bias, target=TARGET, **options)
    packed = dataclasses.replace(packed, weight=guarded(packed.weight), bias=guarded(packed.bias))
    cache = guarded(drawn(1, 5, 2, 6, 7, seed=3)) if case == "time" else None
    norm = guarded(drawn(5, seed=4)) if case == "time" else None
    plain = reference.pack_conv3d(weight, bias, target=TARGET, **options)
    wanted = reference.conv3d(
        x, plain, norm=norm, upsample=upsample, cache=cache.clone() if cache is not None else None
    )
    residual, out = guarded(drawn(*wanted.shape, seed=5)), guarded(wanted)
    got = conv3d(x, packed, norm=norm, upsample=upsample, cache=cache, residual=residual, out=out)
    close(got, wanted + residual)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_the_tiles_of_a_gpu(dtype):
    """Rows and channels of the products that GPUs run, on a shape that none of them divides."""
    x, weight = drawn(1, 40, 2, 9, 8, dtype=dtype), 0.03 * drawn(7, 40, 1, 3, 3, seed=1)
    wanted = reference.conv3d(x, reference.pack_conv3d(weight, target=TARGET))
    with recording(90) as kept:
        conv3d(x, pack_conv3d(weight, target=TARGET))
    blocks = kept.launches[0].config.blocks
    tile = Config({"ROWS": blocks["ROWS"], "FEATURES": blocks["FEATURES"]})
    with forced({"conv3d": tile, "conv3d/fp32": tile}):
        close(conv3d(x, pack_conv3d(weight, target=TARGET)), wanted, dtype)


@pytest.mark.parametrize(
    ("channels", "width"),
    [(3, 16), (12, 16), (16, 16), (32, 32), (96, 96), (160, 160), (192, 96), (256, 128), (384, 128), (640, 160)],
)
def test_columns_of_published_vaes_are_not_wasted(channels, width):
    x = torch.empty(1, 16, 1, 4, 4, device=DEVICE)
    with recording(90) as kept:
        conv3d(x, pack_conv3d(torch.empty(channels, 16, 1, 1, 1, device=DEVICE), target=TARGET))
    blocks = kept.launches[0].config.blocks
    assert (blocks["COLUMNS"], blocks["MORE"]) in WIDTHS and blocks["COLUMNS"] + blocks["MORE"] == width


@pytest.mark.parametrize(
    ("channels", "dtype", "features"),
    [
        *[(3, FP32, 8), (12, FP32, 8), (24, FP32, 8), (16, FP32, 16), (96, FP32, 16)],
        *[(3, BF16, 16), (12, BF16, 16), (24, BF16, 16), (16, BF16, 16), (96, BF16, 32)],
    ],
)
def test_channels_of_published_vaes_are_not_wasted(channels, dtype, features):
    if dtype == FP32:
        features = max(features, FEWEST_FP32)
    x = torch.empty(1, channels, 1, 4, 4, dtype=dtype, device=DEVICE)
    with recording(90) as kept:
        conv3d(x, pack_conv3d(torch.empty(4, channels, 1, 1, 1, device=DEVICE), target=TARGET))
    assert kept.launches[0].config.blocks["FEATURES"] == features
    assert kept.launches[0].arguments["WHOLE"] == (channels % features == 0)


def test_what_does_not_fit_is_refused():
    packed = pack_conv3d(drawn(4, 3, 1, 3, 3), padding=(0, 0, 0, 0), target=TARGET)
    for x, options, match in (
        (drawn(1, 4, 1, 3, 3), {}, "channels"),
        (drawn(1, 3, 1, 2, 3), {}, "too small"),
        (drawn(1, 3, 1, 3, 3), {"norm": drawn(4)}, "norm"),
        (drawn(1, 3, 1, 3, 3), {"residual": drawn(1, 4, 1, 3, 3)}, "residual"),
        (drawn(1, 3, 1, 3, 3), {"activation": "gelu"}, "activation"),
    ):
        with pytest.raises(ValueError, match=match):
            conv3d(x, packed, **options)
