"""`attention` in e4m3: its error is that of its own rounding, whatever the logits and wherever keys end.

The judge is a float64 emulation of what the contract says: the same operands rounded with the same scales.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kinema.ops.attention import FP8_BLOCK, FP8_PEAK, KV
from kinema.ops.common import PRECISIONS

_spec = importlib.util.spec_from_file_location(
    "attention_contract", Path(__file__).with_name("test_attention_contract.py")
)
contract = sys.modules["attention_contract"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

OP, Case, Segment, keys, CACHE = contract.OP, contract.Case, contract.Segment, contract.keys, contract.CACHE
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
NAN, INF = float("nan"), float("inf")
FP8 = PRECISIONS["cuda"]["fp8"]
E4M3_MAX = 448.0
MORE = 1.05  # how much larger an error may be than the emulation's

# around the edges of tiles of 16, 32, 64 and 128 keys, and of blocks that share a scale
LENGTHS = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 260)

CASES = {
    **{
        f"{b}x{n}x{q}x{k}x{d}": Case((b, n, d), (q,), keys(k))
        for b, n, q, k, d in ((1, 1, 40, 300, 64), (2, 1, 33, 129, 34), (1, 2, 7, 70, 128), (2, 3, 18, 19, 10))
    },
    **{f"{d}": Case((1, 2, 32), (30,), keys(140), dtype=d) for d in (BF16, FP16)},
    "lengths": Case((2, 2, 32), (20,), (Segment(150, (150, 131)),), dtype=BF16),
    "blind": Case((2, 1, 32), (17,), (Segment(20, (0, 11)),), residual="given"),
    "video_text": Case((1, 2, 32), (30, 5), keys(30, 135)),
    "cache_video_text": Case((2, 1, 16), (24, 9), (CACHE, Segment(33), Segment(9, (5, 2)))),
    "rotated_half_split": Case((2, 1, 16), (30,), (Segment(140, (9, 133), rope="half_split"),)),
    "bias": Case((2, 2, 16), (20,), keys(40), bias="b"),
    "bias_masked": Case((2, 2, 16), (20,), keys(40), bias="bnq", masked=True),
    "causal": Case((1, 2, 32), (40,), (Segment(20, (13,)), Segment(40)), causal=contract.BlockCausal(7)),
    "tiles": Case((1, 2, 32), (40,), keys(150), tiles=(16, 16)),
    "tiles_over_segments": Case((1, 2, 32), (40,), keys(50, 90), tiles=(20, 30)),
    "fused_in_place": Case((2, 2, 32), (20,), keys(30), layout="fused", residual="aliased", dtype=BF16),
    "scale_negative": Case((1, 1, 32), (20,), keys(140), scale=-0.3),
    "loud": Case((1, 2, 32), (40,), keys(140), loud=8.0),
    "very_loud": Case((1, 2, 32), (40,), keys(140), loud=300.0),
}


def to_e4m3(x):
    return x.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(FP64)


def scales(x, block):
    """[N, S, 1]: one scale for `block` tokens of a head."""
    parts = x.split(block, dim=1)
    tops = [part.abs().amax((1, 2), keepdim=True).clamp(min=1e-12).expand(-1, part.shape[1], 1) for part in parts]
    return torch.cat(tops, dim=1) / E4M3_MAX


def in_e4m3(x, block, scaled_as=None):
    """x [N, S, D] rounded; with the scales of another tensor if a mistake is planted."""
    own = scales(x, block)
    return to_e4m3(x / own) * (own if scaled_as is None else scales(scaled_as, block))


def emulated(
    sample, scale, slots, *, hidden=False, tile=128, peak=FP8_PEAK, stale=False, unrounded=False, swapped=False
):
    """One sample's output [N, Sq, D]. slots: keys of each segment. hidden: what no query sees holds NaN.

    The keywords after `tile` are mistakes to plant.
    """
    query, key, value, row, sees = sample
    if hidden:  # it has no part in a scale
        seen = sees.any(1).unsqueeze(-1)
        key, value = torch.where(seen, key, 0.0), torch.where(seen, value, 0.0)
    query = in_e4m3(query, 1)
    key, value = key.split(slots, dim=1), value.split(slots, dim=1)
    value = torch.cat([in_e4m3(v, FP8_BLOCK, k if swapped else None) for k, v in zip(key, value, strict=True)], dim=1)
    key = torch.cat([in_e4m3(k, FP8_BLOCK) for k in key], dim=1)
    logits = query @ key.transpose(1, 2) * scale + (0.0 if row is None else row)
    logits = torch.where(sees, logits, -INF)
    top = torch.full_like(logits[..., :1], -INF)
    y, total = torch.zeros_like(query), torch.zeros_like(top)
    tiles = [size for n in slots for size in [tile] * (n // tile) + [n % tile] if size]
    for x, v in zip(logits.split(tiles, dim=-1), value.split(tiles, dim=1), strict=True):
        higher = torch.maximum(top, x.amax(-1, keepdim=True))
        higher = torch.where(stale & (top > -INF), top, higher)
        base = torch.where(higher.isneginf(), 0.0, higher)
        weights = peak * torch.exp(x - base)
        rounded = to_e4m3(weights)
        fade = torch.exp(top - base)
        y, total = fade * y + rounded @ v, fade * total + (weights if unrounded else rounded).sum(-1, keepdim=True)
        top = higher
    return torch.where(total > 0, y / total, 0.0)


def rms(x):
    return float(x.double().square().mean().sqrt())


def check_fp8(impl, case):
    """The error against the exact result is hardly larger than the emulation's."""
    impl.target(FP8)
    made = contract.arrange(impl, case)
    exact = [contract.softmax_average(q, k, v, made.scale, row, sees)[0] for q, k, v, row, sees in made.samples]
    slots = [segment.slots for segment in case.keys]
    rounded = [emulated(sample, made.scale, slots, hidden=case.tiles is not None) for sample in made.samples]
    exact, rounded = (torch.stack(t).transpose(1, 2).flatten(2) for t in (exact, rounded))
    residual = made.options["residual"]
    if residual is not None:
        exact, rounded = exact + residual.double(), rounded + residual.double()
    options = dict(made.options)
    if case.residual == "aliased":
        options["out"] = options["residual"] = residual.clone()
    got = torch.cat(impl.functions.attention(tuple(made.q), made.segments, quantize="fp8", **options), dim=1)
    impl.expect(got.dtype == case.dtype and got.shape == exact.shape, f"gave {got.dtype} {tuple(got.shape)}")
    error, allowed = rms(got - exact), MORE * rms(rounded - exact)
    impl.expect(error <= allowed, f"an rms error of {error:.3g}, at most {allowed:.3g} allowed")


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_that_of_rounding(impl, name):
    check_fp8(impl, CASES[name])


# ---- planted mistakes

MISTAKES = {
    "saturated": {"peak": 4096.0},
    "underflown": {"peak": 2.0**-6},
    "stale_maximum": {"stale": True, "tile": 16},
    "swapped_scales": {"swapped": True},
    "sums_of_unrounded": {"peak": 0.5, "unrounded": True},
}
PLAIN = {name: case for name, case in CASES.items() if "x" in name or "loud" in name}


def mistaken(q, kv, *, scale=None, quantize=None, **mistake):
    """The emulation with a mistake in it, called as the op is; for queries and keys in one segment."""
    (q,), (kv,) = (x if isinstance(x, tuple) else (x,) for x in (q, kv))
    count = kv.k.shape[2] if kv.lengths is None else int(kv.lengths[0])
    sees = torch.ones(q.shape[1], q.shape[2], count, dtype=torch.bool, device=q.device)
    samples = [(a.double(), k.double(), v.double(), None, sees) for a, k, v in zip(q, kv.k, kv.v, strict=True)]
    samples = [(a, k[:, :count], v[:, :count], None, sees) for a, k, v, _, _ in samples]
    y = [emulated(sample, scale or q.shape[-1] ** -0.5, [count], **mistake) for sample in samples]
    return (torch.stack(y).transpose(1, 2).flatten(2).to(q.dtype),)


def with_mistake(mistake):
    return lambda q, kv, bias=None, causal=None, blocks=None, residual=None, **rest: mistaken(q, kv, **rest, **mistake)


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    if impl.backend != "reference":
        pytest.skip("the mistakes are an emulation's, not an implementation's")
    check_fp8(replace(impl, functions=SimpleNamespace(attention=with_mistake({}))), next(iter(PLAIN.values())))
    assert impl.catches(check_fp8, PLAIN, attention=with_mistake(MISTAKES[mistake]))


# ---- properties


def random_qkv(impl, std, *, batch=1, heads=1, queries=40, slots=300, head_dim=64, dtype=BF16):
    """Logits of standard deviation `std`; values of mean 0, which is hardest: errors do not cancel."""
    impl.target(FP8)
    draw = impl.draw(7)
    q = draw.normal(batch, heads, queries, head_dim, std=std**0.5, dtype=dtype)
    k = draw.normal(batch, heads, slots, head_dim, std=std**0.5, dtype=dtype)
    return q, k, draw.normal(batch, heads, slots, head_dim, dtype=dtype)


LEAST = {1.0: 0.998, 2.0: 0.996, 4.0: 0.994}  # std of the logits: cosine with the exact result
FULL = pytest.mark.full  # the same kernel on other data
COSINES = [
    (1.0, 64),
    (4.0, 128),
    *(pytest.param(*c, marks=FULL) for c in ((1.0, 128), (2.0, 64), (2.0, 128), (4.0, 64))),
]


@pytest.mark.parametrize(("std", "head_dim"), COSINES)
def test_cosine(impl, std, head_dim):
    q, k, v = random_qkv(impl, std, head_dim=head_dim)
    (y,) = impl.functions.attention(q, KV(k, v), quantize="fp8")
    logits = q.double() @ k.double().transpose(-1, -2) * head_dim**-0.5
    exact = (logits.softmax(-1) @ v.double()).transpose(1, 2).flatten(2)
    cosine = torch.nn.functional.cosine_similarity(y.double().flatten(), exact.flatten(), dim=0)
    assert float(cosine) >= LEAST[std]


def off_by(y):
    return float((y.double() - 1.0).abs().max())


SUMS = [
    *((1.0, FP32), (60.0, FP32), (4.0, BF16), (1.0, FP16)),
    *(pytest.param(*c, marks=FULL) for c in ((4.0, FP32), (1.0, BF16), (60.0, BF16), (4.0, FP16), (60.0, FP16))),
]


@pytest.mark.parametrize(("std", "dtype"), SUMS)
def test_weights_sum_to_one(impl, std, dtype):
    """Row sums are of the weights that multiply the values, and these are the largest e4m3 has: nothing is rounded."""
    q, k, v = random_qkv(impl, std, dtype=dtype)
    lengths = torch.tensor([273], device=impl.device)
    kv = KV(k, torch.ones_like(v), lengths)
    (y,) = impl.functions.attention(q, kv, quantize="fp8")
    assert off_by(y) <= (4 * torch.finfo(FP32).eps if dtype == FP32 else 0.0)
    if dtype == FP32:
        assert off_by(mistaken(q, kv, unrounded=True)[0]) > 4 * torch.finfo(FP32).eps


def check_alone(impl, q, k, v, count):
    """The first `count` keys of one sample [N, S, D], against the exact result and the emulation's error."""
    everything = torch.ones(q.shape[0], q.shape[1], count, dtype=torch.bool, device=impl.device)
    sample = (q.double(), k[:, :count].double(), v[:, :count].double(), None, everything)
    scale = q.shape[-1] ** -0.5
    exact, _ = contract.softmax_average(*sample[:3], scale, None, everything)
    allowed = MORE * rms(emulated(sample, scale, [count]) - exact) + 1e-6
    return lambda y: rms(y - exact.transpose(0, 1).flatten(1)) <= allowed


def test_keys_that_grow_do_not_saturate(impl):
    """Every tile raises the maximum: a weight that is taken behind an old one would not fit."""
    q, k, v = random_qkv(impl, 1.0, queries=20, dtype=FP32)
    q[..., 0], k[..., 0] = 8.0, torch.linspace(-6.0, 6.0, k.shape[2], device=impl.device)
    (y,) = impl.functions.attention(q, KV(k, v), quantize="fp8")
    fits = check_alone(impl, q[0], k[0], v[0], k.shape[2])
    assert fits(y[0])
    assert not fits(mistaken(q, KV(k, v), stale=True, tile=16)[0][0])


def test_lengths_at_every_tile_boundary(impl):
    """A sample with a length is as good as one that ends there; what lies behind is NaN."""
    q, k, v = random_qkv(impl, 2.0, batch=len(LENGTHS), heads=1, queries=5, slots=max(LENGTHS), head_dim=32, dtype=FP32)
    fits = [check_alone(impl, *sample) for sample in zip(q, k, v, LENGTHS, strict=True)]
    for b, length in enumerate(LENGTHS):
        k[b, :, length:], v[b, :, length:] = NAN, NAN
    (y,) = impl.functions.attention(q, KV(k, v, torch.tensor(LENGTHS, device=impl.device)), quantize="fp8")
    assert [length for length, fit, row in zip(LENGTHS, fits, y, strict=True) if not fit(row)] == []


def test_scales_follow_the_data(impl):
    """Whatever the size of an operand; one that is all zero has no scale of its own."""
    q, k, v = random_qkv(impl, 1.0, queries=9, slots=140, dtype=FP32)
    (y,) = impl.functions.attention(q, KV(k, v), quantize="fp8")
    (large,) = impl.functions.attention(q * 2.0**20, KV(k * 2.0**-20, v * 2.0**60), quantize="fp8")
    assert contract.close(large * 2.0**-60, y)
    (nothing,) = impl.functions.attention(q, KV(torch.zeros_like(k), torch.zeros_like(v)), quantize="fp8")
    assert bool((nothing == 0).all())
    v[:, :, :FP8_BLOCK] = 0.0
    (half,) = impl.functions.attention(q, KV(k, v), quantize="fp8")
    assert bool(half.isfinite().all())


def test_other_formats_are_refused(impl):
    q, k, v = random_qkv(impl, 1.0, queries=2, slots=3)
    with pytest.raises(ValueError, match="does not quantize to 'int4'"):
        impl.functions.attention(q, KV(k, v), quantize="int4")
