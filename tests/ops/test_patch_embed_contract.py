"""The contract of `patch_embed`, held against a float64 convolution whose stride is its kernel."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from kinema.ops import patch_embed
from kinema.ops.common import PRECISIONS

OP = patch_embed.OP
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


@dataclass(frozen=True)
class Case:
    """grid: tokens along T, H, W. position: None, "shared" [S, D] or "per_sample" [B, S, D]."""

    patch: tuple[int, int, int] = (1, 2, 2)
    grid: tuple[int, int, int] = (3, 4, 5)
    batch: int = 2
    channels: int = 4
    features: int = 10
    bias: bool = True
    position: str | None = None
    layout: str = "contiguous"
    out: bool = False
    dtype: torch.dtype = FP32
    checkpoint: torch.dtype = FP32


PATCHES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 3, 1), (3, 1, 2), (4, 8, 8))
CASES = {
    **{"x".join(map(str, p)): Case(p) for p in PATCHES},
    **{f"{d}": Case((2, 3, 1), dtype=d, position="shared") for d in (BF16, FP16, FP64)},
    **{y: Case((2, 3, 1), layout=y) for y in ("transposed", "sliced", "channels_last", "frames_first")},
    "one_of_everything": Case((1, 1, 1), (1, 1, 1), 1, 1, 1),
    "many_features": Case((1, 2, 2), (1, 3, 3), 1, 16, 130),
    "many_tokens": Case((1, 2, 2), (2, 9, 11), 1, 3, 17),
    "samples_of_35_tokens": Case((1, 2, 2), (1, 5, 7), 3, 3, 17, position="per_sample"),
    "no_bias": Case(bias=False),
    "position": Case(position="shared"),
    "position_per_sample": Case((2, 3, 1), position="per_sample", batch=3),
    "from_bf16": Case((2, 3, 1), checkpoint=BF16),
    "own_buffer": Case((2, 3, 1), position="shared", out=True),
}


def laid_out(draw, x, layout):
    """[B, C, T, H, W] with the same values at other strides."""
    if layout == "transposed":  # height and width exchanged in memory
        return x.transpose(3, 4).contiguous().transpose(3, 4)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "frames_first":
        return x.permute(2, 0, 1, 3, 4).contiguous().permute(1, 2, 0, 3, 4)
    if layout == "sliced":  # every second frame of a longer, wider video
        batch, channels, frames, height, width = x.shape
        video = draw.normal(batch, channels + 3, 2 * frames, height + 2, width + 4, dtype=x.dtype)
        window = video[:, 1 : 1 + channels, ::2, 1 : 1 + height, 3 : 3 + width]
        window.copy_(x)
        return window
    return x


def check_patch_embed(impl, case: Case):
    target = impl.flowing(case.dtype)
    draw = impl.draw(seed=sum(case.patch) + case.features)
    wide = FP64 if case.dtype == FP64 else FP32
    size = [g * p for g, p in zip(case.grid, case.patch, strict=True)]
    tokens = case.grid[0] * case.grid[1] * case.grid[2]
    x = laid_out(draw, draw.normal(case.batch, case.channels, *size, dtype=case.dtype), case.layout)
    stored = FP64 if case.dtype == FP64 else case.checkpoint
    weight = draw.normal(case.features, case.channels, *case.patch, dtype=stored)
    bias = draw.normal(case.features, dtype=stored) if case.bias else None
    shape = {None: None, "shared": (tokens, case.features), "per_sample": (case.batch, tokens, case.features)}
    position = draw.normal(*shape[case.position], dtype=wide) if case.position is not None else None

    def convolved(x, weight, bias, position):
        y = F.conv3d(x, weight, bias, stride=case.patch).flatten(2).transpose(1, 2)
        return y if position is None else y + position

    terms = [t.double() if t is not None else None for t in (x, weight, bias, position)]
    truth = convolved(*terms)
    magnitude = convolved(*(t.abs() if t is not None else None for t in terms))

    def call(op):
        packed = op.pack_patch_embed(weight, bias, target=target)
        buffer = draw.poison(case.batch, tokens, case.features, dtype=case.dtype) if case.out else None
        got = op.patch_embed(x, packed, position=position, out=buffer)
        impl.expect(buffer is None or got.data_ptr() == buffer.data_ptr(), "did not write into out")
        return got

    impl.judge(call, truth, magnitude, case.dtype, unchanged=[t for t in (x, position) if t is not None])


@pytest.mark.parametrize("name", CASES)
def test_patch_embed(impl, name):
    check_patch_embed(impl, CASES[name])


def wrapped(impl, change=None, after=None):
    def run(x, weight, **options):
        if change is not None:
            x, options = change(x, dict(options))
        y = impl.functions.patch_embed(x, weight, **options)
        return y if after is None else after(y, x, weight)

    return {"patch_embed": run}


def reordered_weight(impl):
    """The patch read as (pt, ph, pw, C)."""

    def pack(weight, bias=None, *, target):
        mixed = weight.permute(0, 2, 3, 4, 1).reshape(weight.shape)
        return impl.functions.pack_patch_embed(mixed, bias, target=target)

    return {"pack_patch_embed": pack}


def width_before_height(y, x, weight):
    """Tokens run T, then W, then H."""
    t, h, w = (n // p for n, p in zip(x.shape[2:], weight.patch, strict=True))
    return y.unflatten(1, (t, h, w)).transpose(2, 3).flatten(1, 3)


def contiguous_strides(x, options):
    """The memory read as if it were contiguous."""
    return torch.as_strided(x, x.shape, torch.empty(x.shape).stride()), options


def last_token_unwritten(y, x, weight):
    y[-1, -1] = float("nan")
    return y


def result_cut(impl):
    def run(x, weight, **options):
        if x.dtype != BF16:
            return impl.functions.patch_embed(x, weight, **options)
        return impl.cut_to_bf16(impl.functions.patch_embed(x.float(), weight, **options))

    return {"patch_embed": run}


def position_of_the_first(x, options):
    if options.get("position") is not None:
        options["position"] = options["position"].reshape(-1, *options["position"].shape[-2:])[0]
    return x, options


def option_dropped(name):
    return lambda x, options: (x, {k: v for k, v in options.items() if k != name})


def flipped_patch(impl):
    """A convolution for a correlation."""

    def pack(weight, bias=None, *, target):
        return impl.functions.pack_patch_embed(weight.flip(2, 3, 4), bias, target=target)

    return {"pack_patch_embed": pack}


MISTAKES = {
    "channels_last_weight": reordered_weight,
    "flipped": flipped_patch,
    "width_before_height": lambda impl: wrapped(impl, after=width_before_height),
    "strides_ignored": lambda impl: wrapped(impl, contiguous_strides),
    "position_dropped": lambda impl: wrapped(impl, option_dropped("position")),
    "position_of_the_first_sample": lambda impl: wrapped(impl, position_of_the_first),
    "bias_dropped": lambda impl: {
        "pack_patch_embed": lambda w, b=None, *, target: impl.functions.pack_patch_embed(w, None, target=target)
    },
    "result_cut": result_cut,
    "input_in_bf16": lambda impl: wrapped(impl, lambda x, o: (x.to(BF16).to(x.dtype), o)),
    "last_token_unwritten": lambda impl: wrapped(impl, after=last_token_unwritten),
}


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    if mistake == "result_cut":
        impl.flowing(torch.bfloat16)
    assert impl.catches(check_patch_embed, CASES, **MISTAKES[mistake](impl))


@pytest.mark.parametrize(
    "shape", [(1, 4, 3, 6, 4), (1, 4, 4, 7, 4), (1, 4, 4, 6, 5), (1, 3, 4, 6, 4), (1, 4, 1, 6, 4), (1, 5, 4, 6, 4)]
)
def test_sizes_that_do_not_divide_are_refused(impl, shape):
    """Never padded, never cropped."""
    draw = impl.draw()
    packed = impl.functions.pack_patch_embed(draw.normal(6, 4, 2, 3, 2), target=impl.flowing(FP32))
    assert (packed.patch, packed.in_channels, packed.out_features) == ((2, 3, 2), 4, 6)
    with pytest.raises(ValueError, match="divide"):
        impl.functions.patch_embed(draw.normal(*shape), packed)


def test_the_result_is_never_narrower_than_fp32_arithmetic(impl):
    """The weights stay fp32 in every precision: rounded to bf16 they would cost three digits."""
    draw = impl.draw()
    x, weight = draw.normal(1, 4, 2, 6, 4), draw.normal(6, 4, 1, 2, 2)
    truth = F.conv3d(x.double(), weight.double(), stride=(1, 2, 2)).flatten(2).transpose(1, 2)
    for precision in PRECISIONS["cpu"].values():
        packed = impl.functions.pack_patch_embed(weight, target=impl.target(precision))
        assert float((impl.functions.patch_embed(x, packed).double() - truth).abs().max()) <= 1e-5
