"""`attention` whose logits are of whole numbers: its error is that of its own rounding, for every pattern.

The judge is float64 attention of the queries and keys that the contract's rounding gives. Where keys are rotated on
read, an implementation's rotation may be an ulp off and a number be rounded the other way: there the error against
the exact result is judged.
"""

import importlib.util
import sys
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from kinema.ops.attention import INT8_TOP, KV, BlockCausal, reference
from kinema.ops.common import PRECISIONS, Target

_spec = importlib.util.spec_from_file_location(
    "attention_contract", Path(__file__).with_name("test_attention_contract.py")
)
contract = sys.modules["attention_contract"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(contract)

OP, Case, Segment, keys, CACHE = contract.OP, contract.Case, contract.Segment, contract.keys, contract.CACHE
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
NAN, INF = float("nan"), float("inf")
MORE = 1.05  # how much larger an error may be than that of the contract's rounding

SIZES = ("1x1x1x1x1", "3x2x7x13x10", "2x1x33x65x34", "1x2x130x257x64", "1x1x5x700x128")
CASES = {
    **{name: contract.CASES[name] for name in SIZES},
    "1x1x3x40x333": Case((1, 1, 333), (3,), keys(40)),
    **{f"{d}": Case((2, 2, 32), (9,), keys(33), dtype=d) for d in (BF16, FP16, FP64)},
    "over_two_packs": Case((1, 1, 18), (4,), (Segment(600), Segment(500, (423,)))),
    "video_text": Case(queries=(12, 5), keys=keys(12, 5)),
    "text_video_lengths": Case(queries=(5, 12), keys=(Segment(5, (0, 4)), Segment(12)), out=True),
    "three_segments": Case(queries=(7,), keys=(Segment(3), Segment(14, (5, 14)), Segment(7))),
    "lengths_odd_and_none": Case(keys=(Segment(19, (7, 0)),)),
    "lengths_around_a_tile": Case((4, 1, 16), (3,), (Segment(130, (63, 64, 65, 129)),)),
    "bias": Case(bias="b"),
    "bias_masked": Case(bias="bn", masked=True, keys=(Segment(7), Segment(12, (0, 5)))),
    "scale": Case(scale=0.7),
    "scale_negative": Case(scale=-0.3, keys=(Segment(19, (19, 18)),)),
    "loud": Case(loud=30.0),
    "causal": Case(queries=(19,), causal=BlockCausal(4)),
    "causal_after_a_segment": Case(queries=(8,), keys=(Segment(9), Segment(16)), causal=BlockCausal(4, offset=4)),
    "causal_from_before": Case(queries=(19,), causal=BlockCausal(4, offset=-6), residual="given"),
    "tiles": Case(queries=(22,), keys=keys(37), tiles=(4, 8)),
    "tiles_large": Case((1, 2, 16), (130,), keys(200), tiles=(64, 32)),
    "tiles_over_segments": Case(queries=(9,), keys=(Segment(5), Segment(17), Segment(4, (2, 4))), tiles=(3, 6)),
    "residual_in_place": Case(residual="aliased"),
    "residual_of_blind_queries": Case(residual="given", keys=(Segment(6, (0, 2)),)),
    "heads_inside_tokens": Case(layout="tokens_first", queries=(11, 3)),
    "fused": Case(layout="fused", keys=(Segment(6, (4, 6)), Segment(9, (9, 1)))),
    "rotated": Case(keys=(Segment(19, rope="shared"),)),
    "rotated_half_split": Case((2, 2, 34), (30,), (Segment(140, (9, 133), rope="half_split"),)),
    "rotated_range": Case(keys=(Segment(19, rope="range"), Segment(3))),
    "cache_video_text": Case(queries=(12, 5), keys=(CACHE, Segment(12), Segment(5, (5, 2)))),
}


def able(impl):
    """Skips what has no int8, with its own reason."""
    reasons = next(i for i in OP.implementations if i.backend == impl.backend).quantizes(
        Target(impl.device, PRECISIONS[impl.device.type]["fp32"]), "int8"
    )
    if reasons:
        pytest.skip(f"{impl.backend}: {'; '.join(reasons)}")


def in_int8(x):
    """x [N, S, D] as whole multiples of each token's step, float64. Divided in x's dtype, as the contract has it."""
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / INT8_TOP
    return (x / step).round().double() * step.double()


def rounded(case, b, sample):
    """Queries and keys [N, S, D] of sample b as the logits see them. What no query sees, and is NaN, is 0 in a mean."""
    query, key, _, _, sees = sample
    wide = FP64 if case.dtype == FP64 else FP32
    counted = key if case.tiles is None else torch.where(sees.any(1).unsqueeze(-1), key, 0.0)
    count = sum(s.slots if s.lengths is None else s.lengths[b] for s in case.keys)
    mean = (counted.sum(1, keepdim=True) / max(count, 1)).to(wide)
    return in_int8(query.to(wide)), in_int8(key.to(wide) - mean)


def in_order(x):
    """[B, …, N, S, D] → [B, …, S, N·D]."""
    return torch.stack(x).transpose(-3, -2).flatten(-2)


def rms(x):
    return float(x.double().square().mean().sqrt())


def check_int8(impl, case):
    impl.flowing(case.dtype)
    made = contract.arrange(impl, case)
    options = dict(made.options)
    residual = options.pop("residual")
    exact, judged, size = [], [], []
    for b, (query, key, value, row, sees) in enumerate(made.samples):
        exact.append(contract.softmax_average(query, key, value, made.scale, row, sees)[0])
        average, both = contract.softmax_average(*rounded(case, b, made.samples[b]), value, made.scale, row, sees)
        judged.append(average)
        size.append(both)
    exact, judged, size = in_order(exact), in_order(judged), in_order(size).transpose(0, 1)
    if residual is not None:
        exact, judged = exact + residual.double(), judged + residual.double()
        size = size + residual.double().abs()

    def call(op):
        held = residual.clone() if case.residual == "aliased" else residual
        shapes = [(case.size[0], s, case.size[1] * case.size[2]) for s in case.queries]
        out = tuple(impl.draw().poison(*shape, dtype=case.dtype) for shape in shapes) if case.out else None
        out = held if case.residual == "aliased" else out
        got = op.attention(tuple(made.q), made.segments, quantize="int8", residual=held, out=out, **options)
        return torch.cat(got, dim=1)

    inputs = [*made.q, *(t for s in made.segments for t in (s.k, s.v))]
    if not any(segment.rope for segment in case.keys):
        impl.judge(call, judged, size[0], case.dtype, rounded=size[1], unchanged=inputs)
        return
    error, allowed = rms(call(impl.functions) - exact), MORE * rms(judged - exact) + 1e-6
    impl.expect(error <= allowed, f"an rms error of {error:.3g}, at most {allowed:.3g} allowed")


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_that_of_rounding(impl, name):
    able(impl)
    check_int8(impl, CASES[name])


# ---- planted mistakes


def without_mean(held, segments):
    return [reference._in_int8(k) for k in held]


def mean_of_each_segment(held, segments, right=reference._smoothed_in_int8):
    return [right([k], (s,))[0] for k, s in zip(held, segments, strict=True)]


def mean_over_free_slots(held, segments):
    """Counted, and 0 in the sum."""
    kept = [reference._real(k, s) for k, s in zip(held, segments, strict=True)]
    mean = sum(reference._finite(k).sum(2, keepdim=True) for k in kept) / sum(k.shape[2] for k in kept)
    return [reference._in_int8(k - mean) for k in held]


def one_step_for_all(x):
    step = x.abs().nan_to_num(0.0).amax((-2, -1), keepdim=True).clamp(min=1e-12) / INT8_TOP
    return (x / step).round() * step


def rounded_down(x):
    step = x.abs().nan_to_num(0.0).amax(-1, keepdim=True).clamp(min=1e-12) / INT8_TOP
    return (x / step).floor() * step


MISTAKES = {
    "not_rounded": {"_in_int8": lambda x: x},
    "rounded_down": {"_in_int8": rounded_down},
    "one_step_for_all": {"_in_int8": one_step_for_all},
    "finer_codes": {"INT8_TOP": 127.0},
    "without_mean": {"_smoothed_in_int8": without_mean},
    "mean_of_each_segment": {"_smoothed_in_int8": mean_of_each_segment},
    "mean_over_free_slots": {"_smoothed_in_int8": mean_over_free_slots},
}


@contextmanager
def mistaken(changes):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(reference, name, value)
        yield


def with_mistake(changes):
    def run(*args, **options):
        with mistaken(changes):
            return reference.attention(*args, **options)

    return run


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    if impl.backend != "reference":
        pytest.skip("the mistakes are made inside the reference")
    assert impl.catches(check_int8, CASES, attention=with_mistake(MISTAKES[mistake]))


# ---- properties


def random_qkv(impl, *, batch=1, heads=2, queries=40, slots=300, head_dim=64, offset=0.0):
    """offset: what every key has in common, channel by channel, beside its own numbers of order 1."""
    able(impl)
    draw = impl.draw(7)
    q, k, v = (draw.normal(batch, heads, n, head_dim) for n in (queries, slots, slots))
    return q, k + offset * draw.normal(1, heads, 1, head_dim), v


def exactly(q, k, v):
    logits = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
    return (logits.softmax(-1) @ v.double()).transpose(1, 2).flatten(2)


def distance(y, truth):
    return rms(y.double() - truth) / rms(truth)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_distance_is_a_hundredth(impl, head_dim):
    q, k, v = random_qkv(impl, head_dim=head_dim)
    (y,) = impl.functions.attention(q, KV(k, v), quantize="int8")
    assert 0.001 < distance(y, exactly(q, k, v)) < 0.015


@pytest.mark.parametrize("offset", [3.0, 30.0])
def test_what_keys_have_in_common_costs_nothing(impl, offset):
    """Logits of keys with an offset are far apart from 0 and no less exact; without smoothing they would be."""
    q, k, v = random_qkv(impl, offset=offset)
    truth = exactly(q, k, v)
    plain = random_qkv(impl)
    (y,), (near,) = (impl.functions.attention(a, KV(b, c), quantize="int8") for a, b, c in ((q, k, v), plain))
    allowed = 1.1 * distance(near, exactly(*plain))
    assert distance(y, truth) <= allowed
    with mistaken(MISTAKES["without_mean"]):
        (far,) = reference.attention(q, KV(k, v), quantize="int8")
    assert distance(far, truth) > 1.5 * allowed


def test_whole_numbers_are_exact(impl):
    """Numbers that are codes, of up to the largest size: every product is as large as it can be, and none saturates."""
    able(impl)
    draw = impl.draw(2)
    q, k = (draw.uniform(1, 2, n, 130, low=-90.0, high=90.0).round() for n in (13, 21))
    q[..., 0] = INT8_TOP
    q[:, :, 3], k[:, :, 0], k[:, :, 1] = INT8_TOP, INT8_TOP, -INT8_TOP
    q[:, :, 4] = -INT8_TOP
    k[..., 0] = INT8_TOP
    k = torch.cat([k, -k], dim=2)  # the mean is 0
    v = draw.normal(1, 2, 42, 130)
    (y,) = impl.functions.attention(q, KV(k, v), scale=2.0**-14, quantize="int8")
    (exact,) = reference.attention(q.double(), KV(k.double(), v.double()), scale=2.0**-14)
    # logits of up to 130 · 8100 / 2^14 = 64, an ulp of which weights feel
    assert float((y.double() - exact).abs().max()) <= 64 * 4 * torch.finfo(FP32).eps * float(v.abs().max())


def test_weights_sum_to_one(impl):
    q, k, v = random_qkv(impl, slots=21)
    kv = KV(k, torch.ones_like(v), torch.tensor([13], device=impl.device))
    (y,) = impl.functions.attention(4.0 * q, kv, quantize="int8")
    assert float((y.double() - 1.0).abs().max()) <= 4 * torch.finfo(FP32).eps


def test_what_lies_behind_a_length_has_no_part(impl):
    """Not in the weights, nor in the mean, nor in a step: not a bit of the result changes."""
    q, k, v = random_qkv(impl, slots=37)
    lengths = torch.tensor([29], device=impl.device)
    results = []
    for free in (NAN, INF, 1e30, 0.0):
        k[:, :, 29:], v[:, :, 29:] = free, free
        results.append(impl.functions.attention(q, KV(k, v, lengths), quantize="int8")[0])
    (short,) = impl.functions.attention(q, KV(k[:, :, :29], v[:, :, :29]), quantize="int8")
    assert all(torch.equal(y, results[0]) for y in results)
    assert contract.close(results[0], short)


def test_segments_are_one_sequence(impl):
    """One mean for all of them."""
    q, k, v = random_qkv(impl, slots=21, offset=5.0)
    (whole,) = impl.functions.attention(q, KV(k, v), quantize="int8")
    for cuts in ((4,), (1, 20), (10, 11)):
        segments = tuple(KV(k[:, :, a:b], v[:, :, a:b]) for a, b in pairwise([0, *cuts, 21]))
        parts = impl.functions.attention((q[:, :, :6], q[:, :, 6:]), segments, quantize="int8")
        assert contract.close(torch.cat(parts, dim=1), whole)


def test_a_query_that_is_not_a_number_stays_alone(impl):
    """A code has no NaN; a step has."""
    q, k, v = random_qkv(impl, queries=9, slots=21)
    (clean,) = impl.functions.attention(q, KV(k, v), quantize="int8")
    q[:, 0, 2, 5], q[:, 0, 4, 1] = NAN, INF
    (y,) = impl.functions.attention(q, KV(k, v), quantize="int8")
    others = [0, 1, 3, 5, 6, 7, 8]
    assert bool(y[:, [2, 4], :64].isnan().all()) and torch.equal(y[:, :, 64:], clean[:, :, 64:])
    assert torch.equal(y[:, others], clean[:, others])


def test_scales_follow_the_data(impl):
    """Whatever the size of an operand; one that is all zero has a step of its own."""
    q, k, v = random_qkv(impl, queries=9, slots=140)
    (y,) = impl.functions.attention(q, KV(k, v), quantize="int8")
    (large,) = impl.functions.attention(q * 2.0**20, KV(k * 2.0**-20, v * 2.0**60), quantize="int8")
    assert contract.close(large * 2.0**-60, y)
    for a, b in ((torch.zeros_like(q), k), (q, torch.zeros_like(k))):
        (mean,) = impl.functions.attention(a, KV(b, v), quantize="int8")
        assert contract.close(mean, v.mean(2).flatten(1).unsqueeze(1).expand_as(mean))


def test_other_formats_are_refused(impl):
    q = impl.draw().normal(1, 1, 2, 16)
    other = "int8" if impl.backend == "triton" else "int4"
    with pytest.raises(ValueError, match=f"does not quantize to '{other}'"):
        impl.functions.attention(q, KV(q, q), quantize=other)


def test_case_fields_are_all_used():
    """Every pattern of the contract has a case here, too."""
    default = Case()
    unused = {"shared_tiles"}  # how a list lies, which is not in 8 bits
    for field in fields(Case):
        used = any(getattr(case, field.name) != getattr(default, field.name) for case in CASES.values())
        assert used or field.name in unused, field.name
