"""The contract of `conv3d`, held against float64 sums over the kernel's taps."""

from dataclasses import dataclass, fields, replace

import pytest
import torch

from kinema.ops import conv3d
from kinema.ops.common import PRECISIONS, Target
from kinema.ops.conv3d import cpu as native_conv3d

OP = conv3d.OP
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
WINOGRAD_LOST = 3 * 2.0**-23  # of the sum of absolute terms of the largest output of a tile
REACHES_ONEDNN = (1, 40, 3, (16, 30, 2))  # more than one clip's 20480 = Cin·T·H that torch runs naively


@dataclass(frozen=True)
class Case:
    """size: B, Cin, Cout, (T, H, W). chunks: frames per call on one cache (None: one call without a cache).

    past: what the cache starts with. layout: of x in memory. std: of x; zeros: positions of x that are all zero.
    """

    size: tuple[int, int, int, tuple[int, int, int]] = (2, 5, 7, (4, 6, 5))
    kernel: tuple[int, ...] = (3, 3, 3)
    stride: tuple[int, int, int] = (1, 1, 1)
    padding: tuple[int, int, int, int] | None = None
    norm: bool = True
    activation: str = "silu"
    upsample: int = 1
    chunks: tuple[int, ...] | None = None
    past: str = "zeros"
    residual: bool = False
    bias: bool = True
    layout: str = "contiguous"
    dtype: torch.dtype = FP32
    std: float = 1.0
    zeros: bool = False
    out: bool = False


PLAIN = Case(norm=False, activation="none")
HALVING = Case(kernel=(3, 3), stride=(1, 2, 2), padding=(0, 1, 0, 1), norm=False, activation="none")
TIME_HALVING = replace(PLAIN, kernel=(3, 1, 1), stride=(2, 1, 1), size=(2, 6, 6, (8, 3, 5)))
SIZES = ((1, 1, 1, (1, 1, 1)), (1, 3, 13, (1, 7, 9)), (3, 17, 5, (5, 4, 3)), (1, 24, 16, (2, 8, 8)), REACHES_ONEDNN)

# in an order in which planted mistakes are soon found: what is special or small first, what is large last
CASES = {
    "silent_positions": Case(zeros=True),
    "uneven_padding": replace(PLAIN, padding=(2, 0, 1, 3), chunks=(2, 2)),
    **{f"one_call_of_{t}": Case((1, 4, 6, (t, 5, 3)), chunks=(t,), past="given") for t in (1, 2, 3, 5)},
    **{"_then_".join(map(str, c)): Case((2, 4, 3, (sum(c), 5, 3)), chunks=c) for c in ((1, 4, 4), (1, 1, 1), (3, 2))},
    **{f"{d}": Case((2, 9, 5, (4, 5, 6)), dtype=d, residual=True, chunks=(1, 3)) for d in (BF16, FP16, FP64)},
    **{f"plain_{d}": replace(PLAIN, dtype=d) for d in (FP32, BF16, FP16, FP64)},
    # tiles of several widths, and what they leave over
    **{f"{c}_columns": replace(PLAIN, size=(1, 4, c, (1, 3, 4)), residual=True) for c in (30, 90, 180)},
    "150_columns": replace(PLAIN, size=(1, 16, 150, (2, 3, 4)), kernel=(3, 1, 1)),
    "32_channels": replace(PLAIN, size=(1, 32, 5, (1, 3, 4)), kernel=(3, 3)),
    # more taps of time and channels than a product sums up at once, of which the first see nothing
    "112_channels": replace(PLAIN, size=(2, 112, 5, (2, 4, 3)), chunks=(1, 1)),
    "norm_alone": Case(activation="none"),
    "silu_alone": Case(norm=False),
    "quiet": Case(std=1e-7),
    "loud": Case(std=1e6),
    "no_bias": replace(PLAIN, bias=False),
    "one_by_one": replace(PLAIN, kernel=(1, 1, 1), chunks=(1, 3), residual=True),
    "image_kernel": replace(PLAIN, kernel=(3, 3), chunks=(1, 3)),
    "time_kernel": replace(PLAIN, kernel=(3, 1, 1), chunks=(1, 2, 1)),
    "odd_kernel": Case(kernel=(2, 5, 3), chunks=(2, 2)),
    "halving": HALVING,
    "halving_one_frame": replace(HALVING, size=(1, 5, 4, (1, 8, 6)), chunks=(1,)),
    "lines_nobody_sees": replace(
        PLAIN, stride=(1, 3, 3), padding=(0, 0, 0, 0), size=(1, 3, 4, (3, 8, 8)), chunks=(1, 2)
    ),
    "no_padding": replace(PLAIN, padding=(0, 0, 0, 0)),
    "time_halving": TIME_HALVING,
    "time_halving_chunks": replace(TIME_HALVING, chunks=(4, 2, 2), past="given"),
    "time_halving_one_clip": replace(TIME_HALVING, size=(1, 6, 4, (6, 3, 5)), chunks=(4, 2)),
    "upsample": Case((2, 5, 4, (3, 3, 4)), upsample=2),
    "upsample_image_kernel": replace(PLAIN, kernel=(3, 3), upsample=2, size=(1, 5, 4, (2, 3, 4))),
    "upsample_in_chunks": Case((1, 5, 4, (3, 3, 2)), upsample=3, chunks=(1, 2), past="given"),
    "channels_last": Case(layout="channels_last", chunks=(1, 3), residual=True),
    "channels_last_one_frame": Case((1, 6, 5, (1, 4, 3)), layout="channels_last"),
    "part_of_a_frame": Case(layout="tile", chunks=(1, 3)),
    "some_of_the_channels": Case(layout="channels", chunks=(1, 3)),
    "frames_of_a_clip": Case(layout="frames", residual=True),
    "own_buffer": Case(out=True, residual=True),
    "own_buffer_halving": replace(HALVING, out=True),
    "own_buffer_in_bf16": Case(out=True, dtype=BF16, chunks=(1, 3)),
    **{f"{b}x{ci}to{co}x{t}x{h}x{w}": Case((b, ci, co, (t, h, w)), residual=True) for b, ci, co, (t, h, w) in SIZES},
    "chunks_of_a_large_clip": Case(REACHES_ONEDNN, chunks=(1, 1, 14), residual=True),
    "halving_a_large_clip": replace(HALVING, size=REACHES_ONEDNN),
}


@pytest.fixture(autouse=True)
def transforms_at_every_size(monkeypatch):
    """The native kernels transform every 3×3 kernel, however few its channels: `cpu-direct` sums the same cases."""
    monkeypatch.setattr(native_conv3d, "WINOGRAD_CHANNELS", 1)


def prepared(x, norm, activation, upsample):
    """Norm, activation and upsampling of a float64 x, and the size of the terms that its error comes from."""
    h, size = x, x.abs()
    if norm is not None:
        squares = sum(x[:, c] ** 2 for c in range(x.shape[1])).unsqueeze(1)
        gain = norm.double()[:, None, None, None] * x.shape[1] ** 0.5 / squares.sqrt().clamp(min=1e-12)
        h, size = h * gain, size * gain.abs()
    if activation == "silu":
        h = h / (1 + torch.exp(-h))
        size = h.abs() + 1.1 * size  # SiLU is nowhere steeper
    rows = torch.arange(h.shape[3] * upsample) // upsample
    columns = torch.arange(h.shape[4] * upsample) // upsample
    return h[:, :, :, rows][..., columns], size[:, :, :, rows][..., columns]


def summed(h, weight, stride, padding):
    """Σ over taps of weight · shifted h, where h [B, C, T, H, W] begins with its past."""
    top, bottom, left, right = padding
    batch, channels, frames, height, width = h.shape
    wide = h.new_zeros(batch, channels, frames, height + top + bottom, width + left + right)
    wide[..., top : top + height, left : left + width] = h
    sizes = [(n - k) // s + 1 for n, k, s in zip(wide.shape[2:], weight.shape[2:], stride, strict=True)]
    y = h.new_zeros(batch, weight.shape[0], *sizes)
    for tap in torch.cartesian_prod(*(torch.arange(k) for k in weight.shape[2:])).view(-1, 3).tolist():
        t, i, j = (slice(o, o + (n - 1) * s + 1, s) for o, n, s in zip(tap, sizes, stride, strict=True))
        y += torch.einsum("oc,bcthw->bothw", weight[:, :, tap[0], tap[1], tap[2]], wide[:, :, t, i, j])
    return y


def arranged(x, draw, layout):
    """The same values at other strides."""
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last_3d)
    if layout == "tile":
        wider = draw.normal(*x.shape[:3], x.shape[3] + 3, x.shape[4] + 2, dtype=x.dtype)
        wider[..., 1 : 1 + x.shape[3], 2:] = x
        return wider[..., 1 : 1 + x.shape[3], 2:]
    if layout == "channels":  # of pixels that lie side by side and have more
        wider = draw.normal(x.shape[0], x.shape[1] + 3, *x.shape[2:], dtype=x.dtype)
        wider = wider.to(memory_format=torch.channels_last_3d)
        wider[:, 2 : 2 + x.shape[1]] = x
        return wider[:, 2 : 2 + x.shape[1]]
    if layout == "frames":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x


def check_conv3d(impl, case: Case):
    target = impl.flowing(case.dtype)
    batch, into, out, (frames, height, width) = case.size
    draw = impl.draw(seed=batch + into + out + frames)
    wide = FP64 if case.dtype == FP64 else FP32
    x = draw.normal(batch, into, frames, height, width, std=case.std, dtype=case.dtype)
    if case.zeros:
        x[:, :, 1:3, 2] = 0
    x = arranged(x, draw, case.layout)
    fan_in = into * torch.Size(case.kernel).numel()
    weight = draw.normal(out, into, *case.kernel, std=fan_in**-0.5, dtype=wide)
    bias = draw.normal(out, std=0.5, dtype=wide) if case.bias else None
    norm = draw.uniform(into, dtype=wide) if case.norm else None

    taps = weight.double() if weight.ndim == 5 else weight.double().unsqueeze(2)
    kt, kh, kw = taps.shape[2:]
    history = max(kt - case.stride[0], 0)
    padding = case.padding or ((kh - 1) // 2, (kh - 1) // 2, (kw - 1) // 2, (kw - 1) // 2)
    past = torch.zeros(batch, into, history, height * case.upsample, width * case.upsample, dtype=case.dtype)
    past = draw.normal(*past.shape, dtype=case.dtype) if case.past == "given" else past.to(x.device)

    h, h_size = prepared(x.double(), norm, case.activation, case.upsample)
    h, h_size = torch.cat((past.double(), h), dim=2), torch.cat((past.double().abs(), h_size), dim=2)
    y, size = (summed(a, b, case.stride, padding) for a, b in ((h, taps), (h_size, taps.abs())))
    if bias is not None:
        y, size = (a + b.double()[:, None, None, None] for a, b in ((y, bias), (size, bias.abs())))
    residual = draw.normal(*y.shape, std=2.0, dtype=case.dtype) if case.residual else None
    if residual is not None:
        y, size = y + residual.double(), size + residual.double().abs()

    def call(op):
        packed = op.pack_conv3d(weight, bias, stride=case.stride, padding=case.padding, target=target)
        impl.expect(packed.history == history, f"keeps {packed.history} past frames")
        cache = past.clone() if case.chunks and history else None
        options = {"norm": norm, "activation": case.activation, "upsample": case.upsample, "cache": cache}
        parts, done = [], 0
        for count in case.chunks or (frames,):
            start = sum(p.shape[2] for p in parts)
            stop = start + -(-count // case.stride[0])
            some = residual[:, :, start:stop] if residual is not None else None
            buffer = draw.poison(*y[:, :, start:stop].shape, dtype=case.dtype) if case.out else None
            given = x[:, :, done : done + count]
            got = op.conv3d(given, packed, residual=some, out=buffer, **options)
            if buffer is not None:
                impl.expect(got.data_ptr() == buffer.data_ptr(), "did not write into out")
            elif case.layout == "channels_last":
                impl.expect(got.is_contiguous(memory_format=torch.channels_last_3d), "lost channels-last")
            parts.append(got)
            done += count
        if cache is not None:
            off = (cache.double() - h[:, :, -history:]).abs().max()
            allowed = 8 * torch.finfo(case.dtype).eps * h_size.max()
            impl.expect(bool(off <= allowed), f"the cache is off by {off:.3g}, at most {allowed:.3g} allowed")
        return torch.cat(parts, dim=2)

    inputs = [t for t in (x, weight, bias, norm, residual) if t is not None]
    lost = 0.0
    if impl.backend == "cpu":  # Winograd's 4×4 outputs share their errors: kernels/conv3d/README.md, "Error budget"
        size, lost = torch.nn.functional.max_pool3d(size, (1, 7, 7), stride=1, padding=(0, 3, 3)), WINOGRAD_LOST
    # what is normed and activated is rounded to x's dtype before the sum, which is in fp32
    impl.judge(call, y, size, case.dtype, rounded=size, unchanged=inputs, lost=lost)


@pytest.mark.parametrize("name", CASES)
def test_conv3d(impl, name):
    check_conv3d(impl, CASES[name])


def test_chunks_equal_the_whole(impl):
    """Bit for bit would be luck; to a rounding it is the contract."""
    draw, target = impl.draw(), Target(impl.device, PRECISIONS[impl.device.type]["fp32"])
    packed = impl.functions.pack_conv3d(draw.normal(6, 4, 3, 3, 3, std=0.1), draw.normal(6), target=target)
    x, norm = draw.normal(1, 4, 7, 5, 7), draw.uniform(4)
    whole = impl.functions.conv3d(x, packed, norm=norm, activation="silu")
    for chunks in ((1, 3, 3), (2, 5), (1,) * 7):
        cache = torch.zeros(1, 4, 2, 5, 7, device=x.device)
        parts = [
            impl.functions.conv3d(part, packed, norm=norm, activation="silu", cache=cache)
            for part in x.split(chunks, dim=2)
        ]
        torch.testing.assert_close(torch.cat(parts, dim=2), whole, rtol=1e-5, atol=1e-5)


def test_a_cache_or_buffer_of_another_shape_is_refused(impl):
    draw, target = impl.draw(), Target(impl.device, PRECISIONS[impl.device.type]["fp32"])
    packed = impl.functions.pack_conv3d(draw.normal(6, 4, 3, 3, 3), draw.normal(6), target=target)
    x = draw.normal(2, 4, 3, 5, 7)
    for shape in ((2, 4, 1, 5, 7), (1, 4, 2, 5, 7), (2, 4, 2, 7, 5)):
        with pytest.raises(ValueError, match="cache"):
            impl.functions.conv3d(x, packed, cache=draw.normal(*shape))
    with pytest.raises(ValueError, match="out"):
        impl.functions.conv3d(x, packed, out=draw.normal(2, 6, 3, 5, 6))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("upsample", [1, 2])
def test_gradients_of_the_reference_pass_through_chunks(batch, upsample):
    """Training goes through the reference, a clip chunk by chunk."""
    reference = next(i for i in OP.implementations if i.backend == "reference").load()
    target = Target(torch.device("cpu"), PRECISIONS["cpu"]["fp32"])
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (batch, 2, 3, 3, 2), "weight": (2, 2, 3, 3, 3), "bias": (2,), "norm": (2,)}
    inputs = [torch.randn(s, generator=generator, dtype=FP64, requires_grad=True) for s in shapes.values()]

    def in_chunks(x, weight, bias, norm):
        packed = reference.pack_conv3d(weight, bias, target=target)
        cache = torch.zeros(batch, 2, 2, 3 * upsample, 2 * upsample, dtype=FP64)
        options = {"norm": norm, "activation": "silu", "upsample": upsample, "cache": cache}
        return torch.cat([reference.conv3d(part, packed, **options) for part in x.split((1, 2), dim=2)], dim=2)

    assert torch.autograd.gradcheck(in_chunks, inputs)


def wrapped(impl, before=None, after=None):
    """The implementation's `conv3d` with its arguments changed before, or its result after."""

    def run(x, weight, **options):
        if before is not None:
            x = before(x, options)
        out = options.get("out")
        y = impl.functions.conv3d(x, weight, **options)
        if after is None:
            return y
        y = after(y.clone())
        return y if out is None else out.copy_(y)

    return {"conv3d": run}


def repacked(impl, change):
    def pack(weight, bias=None, **options):
        return impl.functions.pack_conv3d(*change(weight, bias, options), **options)

    return {"pack_conv3d": pack}


def option(name, value):
    """An option replaced by a function of what was given."""

    def before(x, options):
        if options.get(name) is not None:
            options[name] = value(options[name])
        return x

    return before


def norm_without_channel_scale(x, options):
    if options["norm"] is not None:
        options["norm"] = options["norm"] / x.shape[1] ** 0.5
    return x


def norm_with_eps(x, options):
    if options["norm"] is not None:
        rms = (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
        x = x / rms * options["norm"].view(-1, 1, 1, 1)
        options["norm"] = None
    return x


def norm_of_nothing_is_nan(x, options):
    if options["norm"] is not None:
        return torch.where((x == 0).all(1, keepdim=True), float("nan"), x)
    return x


def cache_not_updated(x, options):
    if options["cache"] is not None:
        options["cache"] = options["cache"].clone()
    return x


def activation_dropped(x, options):
    options["activation"] = "none"
    return x


def weights_in_bf16(weight, bias, options):
    return weight.to(BF16).to(weight.dtype), bias


def padding_turned(weight, bias, options):
    if options["padding"] is not None:
        top, bottom, left, right = options["padding"]
        options["padding"] = (bottom, top, right, left)
    return weight, bias


def last_row_unwritten(y):
    y[-1, -1, -1, -1] = float("nan")
    return y


MISTAKES = {
    "silu_dropped": lambda impl: wrapped(impl, activation_dropped),
    "channel_scale_dropped": lambda impl: wrapped(impl, norm_without_channel_scale),
    "norm_with_eps": lambda impl: wrapped(impl, norm_with_eps),
    "norm_of_nothing": lambda impl: wrapped(impl, norm_of_nothing_is_nan),
    "cache_not_updated": lambda impl: wrapped(impl, cache_not_updated),
    "cache_not_read": lambda impl: wrapped(impl, option("cache", torch.zeros_like)),
    "residual_dropped": lambda impl: wrapped(impl, option("residual", torch.zeros_like)),
    "channels_shifted": lambda impl: wrapped(impl, after=lambda y: y.roll(1, 1)),
    "one_frame_late": lambda impl: wrapped(impl, after=lambda y: y.roll(1, 2)),
    "last_row_unwritten": lambda impl: wrapped(impl, after=last_row_unwritten),
    "bias_dropped": lambda impl: repacked(impl, lambda w, b, o: (w, None)),
    "time_reversed": lambda impl: repacked(impl, lambda w, b, o: (w.flip(2) if w.ndim == 5 else w, b)),
    "rows_and_columns_swapped": lambda impl: repacked(impl, lambda w, b, o: (w.mT if w.shape[3:] == (3, 3) else w, b)),
    "padding_turned": lambda impl: repacked(impl, padding_turned),
    "weights_in_bf16": lambda impl: repacked(impl, weights_in_bf16),
}


@pytest.mark.planted
@pytest.mark.parametrize("name", MISTAKES)
def test_planted_mistakes_are_noticed(impl, name):
    assert impl.catches(check_conv3d, CASES, **MISTAKES[name](impl))


def test_case_fields_are_all_used():
    """An option that no case takes is not tested."""
    for field in fields(Case):
        assert any(getattr(case, field.name) != field.default for case in CASES.values()), field.name
