"""The contract of `norm_modulate`, held against loops in float64."""

from dataclasses import dataclass, replace

import pytest
import torch

from kinema.ops import norm_modulate
from kinema.ops.common import Quantized

OP = norm_modulate.OP
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


@dataclass(frozen=True)
class Case:
    """size: B, S, C. scale_groups, shift_groups: G of each (None: not given). mean, std: of x.

    narrow: weights and modulation in x's dtype as well.
    """

    size: tuple[int, int, int] = (2, 12, 13)
    norm: str = "layer"
    eps: float = 1e-6
    weight: bool = False
    bias: bool = False
    scale_groups: int | None = None
    shift_groups: int | None = None
    shared: bool = False
    layout: str = "contiguous"
    dtype: torch.dtype = FP32
    mean: float = 0.0
    std: float = 1.0
    out: str = "new"
    quantize: str | None = None
    narrow: bool = False


SIZES = ((1, 1, 1), (3, 7, 13), (2, 33, 65), (1, 3, 1536))
BOTH = ("layer", "rms")
MODULATED = Case(scale_groups=1, shift_groups=1)

CASES = {
    **{f"{n}_{b}x{s}x{c}": Case((b, s, c), n, weight=True, bias=True) for n in BOTH for b, s, c in SIZES},
    **{f"{n}_{d}": Case((2, 6, 65), n, weight=True, dtype=d) for n in BOTH for d in (BF16, FP16, FP64)},
    **{f"{n}_modulated_{d}": replace(MODULATED, norm=n, dtype=d) for n in BOTH for d in (FP32, BF16, FP16, FP64)},
    **{f"by_{g}": Case(scale_groups=g, shift_groups=g) for g in (1, 2, 4, 12)},
    **{f"rms_by_{g}": Case(norm="rms", scale_groups=g, shift_groups=g, weight=True) for g in (3, 12)},
    **{
        f"{n}_all_bf16": Case(norm=n, weight=True, bias=True, scale_groups=3, shift_groups=3, dtype=BF16, narrow=True)
        for n in BOTH
    },
    "plain_layer": Case(),
    "plain_rms": Case(norm="rms"),
    "weight_only": Case(weight=True),
    "rms_with_bias": Case(norm="rms", bias=True, weight=True),
    "scale_only": Case(scale_groups=3),
    "shift_only": Case(shift_groups=3),
    "different_groups": Case(scale_groups=3, shift_groups=4, weight=True, bias=True),
    "shared_by_samples": Case(scale_groups=6, shift_groups=6, shared=True),
    "affine_and_modulated": Case(weight=True, bias=True, scale_groups=2, shift_groups=2),
    "eps_matters": replace(MODULATED, std=1e-3),
    "rms_eps_matters": replace(MODULATED, norm="rms", std=1e-3),
    "eps_1e-5_matters": replace(MODULATED, std=3e-3, eps=1e-5),
    "large_mean": replace(MODULATED, size=(2, 6, 65), mean=300.0),
    "larger_mean": replace(MODULATED, size=(2, 6, 256), mean=-3000.0),
    "large_mean_bf16": replace(MODULATED, size=(2, 6, 65), mean=20.0, dtype=BF16),
    "loud": replace(MODULATED, norm="rms", std=1e4),
    "columns_of_a_wider_tensor": replace(MODULATED, layout="columns", size=(2, 12, 24)),
    "a_range_of_tokens": replace(MODULATED, layout="tokens", size=(3, 4, 24)),
    "samples_inside_tokens": replace(MODULATED, layout="transposed", norm="rms"),
    "in_place": Case(scale_groups=4, shift_groups=4, out="x"),
    "in_place_rms_bf16": Case(norm="rms", weight=True, dtype=BF16, out="x"),
    "own_buffer": Case(scale_groups=1, shift_groups=1, out="buffer"),
    **{
        f"{n}_{q}_{d}": Case((2, 12, 40), n, scale_groups=3, shift_groups=3, quantize=q, dtype=d)
        for n in BOTH
        for q in ("fp8", "int8")
        for d in (FP32, BF16)
    },
    # rows that are small against eps, and so against any least scale that is not tiny
    **{f"quiet_{q}": Case((2, 12, 40), std=1e-5, quantize=q) for q in ("fp8", "int8")},
}


def normed(row, kind, eps, weight, bias):
    """One token, a float64 vector: its norm, and the size of the terms that its error comes from."""
    channels = len(row)
    if kind == "layer":
        mean = sum(row.tolist()) / channels
        centred = row - mean
        size = row.abs() + abs(mean)
    else:
        centred, size = row, row.abs()
    deviation = (sum(v * v for v in centred.tolist()) / channels + eps) ** 0.5
    n, size = centred / deviation, size / deviation
    if weight is not None:
        n, size = n * weight, size * weight.abs()
    if bias is not None:
        n, size = n + bias, size + bias.abs()
    return n, size


def expected(x, case, weight, bias, scale, shift):
    batch, tokens, _ = x.shape
    y, size = torch.empty_like(x, dtype=FP64), torch.empty_like(x, dtype=FP64)
    w = weight.double() if weight is not None else None
    b = bias.double() if bias is not None else None
    for i in range(batch):
        for s in range(tokens):
            n, m = normed(x[i, s].double(), case.norm, case.eps, w, b)
            if scale is not None:
                row = scale[i % scale.shape[0], s * scale.shape[1] // tokens].double()
                n, m = n * (1 + row), m * (1 + row.abs())
            if shift is not None:
                row = shift[i % shift.shape[0], s * shift.shape[1] // tokens].double()
                n, m = n + row, m + row.abs()
            y[i, s], size[i, s] = n, m
    return y, size


def arrange(x, draw, layout):
    """The same values at other strides over samples and tokens."""
    batch, tokens, channels = x.shape
    if layout == "columns":
        wider = draw.normal(batch, tokens, channels + 8, dtype=x.dtype)
        wider[..., 8:] = x
        return wider[..., 8:]
    if layout == "tokens":
        longer = draw.normal(batch, tokens + 5, channels, dtype=x.dtype)
        longer[:, 2 : 2 + tokens] = x
        return longer[:, 2 : 2 + tokens]
    if layout == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x


def check_norm_modulate(impl, case: Case):
    impl.flowing(case.dtype)
    batch, _, channels = case.size
    draw = impl.draw(seed=sum(case.size))
    wide = case.dtype if case.narrow or case.dtype == FP64 else FP32
    x = arrange(draw.normal(*case.size, mean=case.mean, std=case.std, dtype=case.dtype), draw, case.layout)
    weight = draw.uniform(channels, dtype=wide) if case.weight else None
    bias = draw.normal(channels, std=0.5, dtype=wide) if case.bias else None

    def modulation(groups, row):
        if groups is None:
            return None
        # a row of a table of six, as the blocks pass it
        return draw.normal(1 if case.shared else batch, groups, 6, channels, std=0.5, dtype=wide).unbind(2)[row]

    scale, shift = modulation(case.scale_groups, 4), modulation(case.shift_groups, 1)
    options = {"norm": case.norm, "eps": case.eps, "weight": weight, "bias": bias, "scale": scale, "shift": shift}
    truth, size = expected(x, case, weight, bias, scale, shift)
    inputs = [t for t in (x, weight, bias, scale, shift) if t is not None]

    if case.quantize is not None:
        check_eight_bits(
            impl, impl.functions.norm_modulate(x, **options, quantize=case.quantize), truth, size, case.quantize
        )
        return

    def call(op):
        held = x.clone() if case.out == "x" else x
        buffer = {"x": held, "buffer": draw.poison(*x.shape, dtype=x.dtype), "new": None}[case.out]
        got = op.norm_modulate(held, **options, out=buffer)
        if buffer is not None:
            impl.expect(got.data_ptr() == buffer.data_ptr(), "did not write into out")
        return got

    impl.judge(call, truth, size, case.dtype, unchanged=inputs)


def check_eight_bits(impl, got, truth, size, kind):
    """y rounded once, from fp32: half a step of the format away from the truth, and fp32's error."""
    impl.expect(isinstance(got, Quantized), f"gave a {type(got).__name__}")
    limit = 448.0 if kind == "fp8" else 127.0
    fuzz = 8 * torch.finfo(FP32).eps * size
    scale, data = got.scale.double(), got.data.double()
    wanted = truth.abs().amax(-1, keepdim=True) / limit
    impl.expect(
        bool(((scale - wanted).abs() <= fuzz.amax(-1, keepdim=True) / limit).all()), "scale is not max|y| / limit"
    )
    step = torch.ones_like(truth)
    if kind == "fp8":
        step = 2.0 ** ((torch.frexp(truth / scale).exponent - 1).clamp(min=-6).double() - 3)
    impl.expect(bool(((data * scale - truth).abs() <= 0.5 * step * scale + fuzz).all()), "a value is not the nearest")


@pytest.mark.parametrize("name", CASES)
def test_norm_modulate(impl, name):
    check_norm_modulate(impl, CASES[name])


def wrapped(impl, change=None, after=None):
    def run(x, **options):
        if change is not None:
            x, options = change(x, dict(options))
        out = options.get("out")
        y = impl.functions.norm_modulate(x, **options)
        if after is None or isinstance(y, Quantized):
            return y
        y = after(y.clone(), options)
        return y if out is None else out.copy_(y)

    return {"norm_modulate": run}


def option(name, value):
    """An option replaced by a function of what was given."""

    def change(x, options):
        if options.get(name) is not None:
            options[name] = value(options[name])
        return x, options

    return change


def swap_scale_and_shift(x, options):
    return x, {**options, "scale": options["shift"], "shift": options["scale"]}


def with_statistics(impl, statistics):
    """LayerNorm by the given mean and variance, where a case is simple enough."""

    def run(x, *, eps, norm="layer", weight=None, bias=None, scale=None, shift=None, quantize=None, out=None):
        if norm == "rms" or quantize is not None or scale is None or scale.shape[1] > 1 or weight is not None:
            return impl.functions.norm_modulate(
                x, norm=norm, eps=eps, weight=weight, bias=bias, scale=scale, shift=shift, quantize=quantize, out=out
            )
        h = x.to(torch.promote_types(x.dtype, FP32))
        mean, variance = statistics(h)
        y = ((h - mean) * (variance + eps).rsqrt() * (1 + scale) + shift).to(x.dtype)
        return y if out is None else out.copy_(y)

    return {"norm_modulate": run}


def one_pass(h):
    """E[x²] − mean², which cancels where the mean is large."""
    mean = h.mean(-1, keepdim=True)
    return mean, (h * h).mean(-1, keepdim=True) - mean * mean


def narrow_mean(h):
    mean = h.mean(-1, keepdim=True).to(BF16).to(h.dtype)
    return mean, (h - mean).square().mean(-1, keepdim=True)


def sample_variance(h):
    return h.mean(-1, keepdim=True), h.var(-1, keepdim=True)


def round_before_quantising(impl):
    def run(x, quantize=None, **options):
        y = impl.functions.norm_modulate(x, **options)
        if quantize is None:
            return y
        limit = 448.0 if quantize == "fp8" else 127.0
        y = y.to(BF16).float()
        scale = y.abs().amax(-1, keepdim=True) / limit
        steps = y / scale
        return Quantized(steps.to(torch.float8_e4m3fn) if quantize == "fp8" else steps.round().to(torch.int8), scale)

    return {"norm_modulate": run}


def result_cut(impl):
    def run(x, **options):
        if x.dtype != BF16 or options.get("out") is not None:
            return impl.functions.norm_modulate(x, **options)
        y = impl.functions.norm_modulate(x.float(), **options)
        return y if isinstance(y, Quantized) else impl.cut_to_bf16(y)

    return {"norm_modulate": run}


def unwritten_tail(y, options):
    y[-1, -1, -1] = float("nan")
    return y


MISTAKES = {
    "eps_tenfold": lambda impl: wrapped(impl, option("eps", lambda eps: eps * 10)),
    "rms_for_layer": lambda impl: wrapped(impl, option("norm", lambda norm: "rms")),
    "shift_for_scale": lambda impl: wrapped(impl, swap_scale_and_shift),
    "scale_without_one": lambda impl: wrapped(impl, option("scale", lambda s: s - 1)),
    "next_group": lambda impl: wrapped(impl, option("shift", lambda s: s.roll(-1, 1))),
    "first_sample": lambda impl: wrapped(impl, option("scale", lambda s: s[:1])),
    "weight_dropped": lambda impl: wrapped(impl, option("weight", torch.ones_like)),
    "bias_dropped": lambda impl: wrapped(impl, option("bias", torch.zeros_like)),
    "sample_variance": lambda impl: with_statistics(impl, sample_variance),
    "one_pass_variance": lambda impl: with_statistics(impl, one_pass),
    "narrow_mean": lambda impl: with_statistics(impl, narrow_mean),
    "rounded_before_quantising": round_before_quantising,
    "result_cut": result_cut,
    "unwritten_tail": lambda impl: wrapped(impl, after=unwritten_tail),
    "last_channel_not_counted": lambda impl: wrapped(
        impl, lambda x, o: (torch.cat((x[..., :-1], torch.zeros_like(x[..., -1:])), -1), o)
    ),
}


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    if mistake == "result_cut":
        impl.flowing(torch.bfloat16)
    assert impl.catches(check_norm_modulate, CASES, **MISTAKES[mistake](impl))


@pytest.mark.planted
def test_statistics_in_bf16_are_noticed_in_bf16(impl):
    """Where the result is rounded to bf16 anyway."""
    impl.flowing(BF16)
    cases = {name: case for name, case in CASES.items() if case.dtype == BF16}
    assert impl.catches(check_norm_modulate, cases, **with_statistics(impl, narrow_mean))


@pytest.mark.parametrize("change", ["groups", "channels", "norm", "out", "quantize"])
def test_what_does_not_fit_is_refused(impl, change):
    draw = impl.draw()
    options = {
        "groups": {"scale": draw.normal(2, 4, 5)},  # 4 groups of 6 tokens
        "channels": {"shift": draw.normal(2, 3, 4)},
        "norm": {"norm": "group"},
        "out": {"out": draw.poison(2, 6, 4)},
        "quantize": {"quantize": "int8", "out": draw.poison(2, 6, 5)},
    }[change]
    with pytest.raises(ValueError, match=r"wanted|writes|must be"):
        impl.functions.norm_modulate(draw.normal(2, 6, 5), eps=1e-6, **options)
