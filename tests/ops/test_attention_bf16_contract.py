"""`attention` of queries and keys in bf16 beside values in fp32: its error is that of rounding values and weights.

The judge is float64 attention of the queries and keys as they are given and of the exact values. Of each term of a sum
a value and a weight may be rounded once, and so is the sum of weights that it is divided by: three times half a step of
bf16. Keys that are rotated on read are rounded once more.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kinema.ops.attention import KV, BlockCausal
from kinema.ops.common import program
from kinema.ops.common.native import forced, instruction_sets

_spec = importlib.util.spec_from_file_location(
    "int8_contract", Path(__file__).with_name("test_attention_int8_contract.py")
)
int8 = sys.modules["int8_contract"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(int8)
contract = int8.contract

OP, Case, Segment, keys = contract.OP, contract.Case, contract.Segment, contract.keys
FP32, BF16 = torch.float32, torch.bfloat16
NAN = float("nan")
STEP = 2.0**-8  # between neighbours in bf16, as a part of the larger

CASES = {
    **{name: case for name, case in contract.CASES.items() if case.dtype == FP32},
    "1x1x3x40x333": Case((1, 1, 333), (3,), keys(40)),
    "over_two_packs": Case((1, 1, 18), (4,), (Segment(600), Segment(500, (423,)))),
    # a pair of keys of which only one is to be seen
    "odd_tiles": Case(queries=(22,), keys=keys(37), tiles=(4, 7)),
    "odd_tiles_of_one": Case(queries=(5,), keys=keys(11), tiles=(2, 1)),
    "odd_tiles_large": Case((1, 2, 34), (70,), keys(700), tiles=(35, 33)),
    "odd_tiles_behind_free_slots": Case(queries=(9,), keys=(Segment(9, (4, 9)), Segment(12)), tiles=(3, 5)),
    # a query sees whole panels of keys less than others of its block
    "causal_over_panels": Case((1, 1, 16), (70,), keys(140), causal=BlockCausal(35, offset=35)),
    "odd_causal_blocks": Case(queries=(12,), keys=keys(31), causal=BlockCausal(3)),
}
QUANTIZED = ("2x1x33x65x34", "1x2x130x257x64", "video_text_lengths", "bias_and_lengths", "odd_tiles", "causal_blocks")


def uneven(v):
    """Values of bf16 as such of fp32 that have to be rounded."""
    return v.float() * torch.linspace(0.99, 1.01, v.shape[-1], device=v.device)


def mixed(impl, case):
    """A case's arrangement with q and k in bf16, v and residual in fp32, and v's values such as are not bf16's."""
    if impl.backend not in ("reference", "cpu"):
        pytest.skip("it gets q and k in fp32 (check.py), as in every other test")
    made, draw = contract.arrange(impl, replace(case, dtype=BF16)), impl.draw()
    made.segments = tuple(replace(s, v=contract.strided(draw, uneven(s.v), case.layout)) for s in made.segments)
    made.samples = [(q, k, uneven(v).double(), row, sees) for q, k, v, row, sees in made.samples]
    if made.options["residual"] is not None:
        made.options["residual"] = made.options["residual"].float()
    return made


def check_bf16(impl, case, quantize=None):
    made = mixed(impl, case)
    options = dict(made.options)
    residual = options.pop("residual")
    truth, size = [], []
    for b, (query, key, value, row, sees) in enumerate(made.samples):
        if quantize is not None:
            query, key = int8.rounded(case, b, made.samples[b])
        average, both = contract.softmax_average(query, key, value, made.scale, row, sees)
        truth.append(average)
        size.append(both)
    truth, (shifted, _) = int8.in_order(truth), int8.in_order(size).transpose(0, 1)
    spread = int8.in_order([contract.softmax_average(q, k, v.abs(), made.scale, *r)[0] for q, k, v, *r in made.samples])
    held = residual.clone() if case.residual == "aliased" else residual
    shapes = [(case.size[0], s, case.size[1] * case.size[2]) for s in case.queries]
    out = tuple(impl.draw().poison(*shape) for shape in shapes) if case.out else None
    out = held if case.residual == "aliased" else out
    got = impl.functions.attention(tuple(made.q), made.segments, quantize=quantize, residual=held, out=out, **options)
    y = torch.cat(got, dim=1)
    impl.expect(y.dtype == FP32, f"gave {y.dtype}, wanted values' own")
    if residual is not None:
        truth, spread = truth + residual.double(), spread + STEP * residual.double().abs()
    turned = any(segment.rope for segment in case.keys)
    again = STEP if turned or quantize else 2.0**-20  # of a logit
    allowed = 1.5 * STEP * (1.01 if quantize is None else 1.5) * spread + again * shifted + 1e-30
    error = torch.nan_to_num((y.double() - truth).abs() / allowed, nan=float("inf"))
    impl.expect(bool((error <= 1.0).all()), f"{float(error.max()):.3g} times the error of rounding")
    lean = float(((y.double() - truth) * truth.sign() / (STEP * spread + 1e-30)).mean())
    impl.expect(truth.numel() < 200 or abs(lean) < 0.05, f"leans by {lean:.3g} of a step")


@pytest.mark.parametrize("name", CASES)
def test_the_error_is_that_of_rounding(impl, name):
    check_bf16(impl, CASES[name])


@pytest.mark.parametrize("name", QUANTIZED)
def test_logits_in_int8_and_values_in_bf16(impl, name):
    int8.able(impl)
    check_bf16(impl, CASES[name], "int8")


def random_qkv(impl, *, batch=1, heads=2, queries=40, slots=301, head_dim=64):
    draw = impl.draw(3)
    q, k, v = (draw.normal(batch, heads, n, head_dim) for n in (queries, slots, slots))
    return q.to(BF16), k.to(BF16), v


def test_every_implementation_takes_them(impl):
    q, k, v = random_qkv(impl, heads=1, queries=5, slots=9, head_dim=16)
    (y,) = impl.functions.attention(q, KV(k, v), out=impl.draw().poison(1, 5, 16))
    torch.testing.assert_close(y.double(), int8.exactly(q, k, v), atol=0.02, rtol=0)
    joint = impl.functions.attention((q, q[:, :, :0]), (KV(k[:, :, :0], v[:, :, :0]), KV(k, v)))
    assert torch.equal(joint[0], y) and joint[1].dtype == FP32 and joint[1].shape == (1, 0, 16)
    (nothing,) = impl.functions.attention(q, KV(k[:, :, :0], v[:, :, :0]))
    assert nothing.dtype == FP32 and not nothing.any()


def test_weights_add_up_to_one(impl):
    """The sum is of the rounded weights: an average of ones is one, far nearer than weights are rounded to."""
    if impl.backend not in ("reference", "cpu"):
        pytest.skip("it gets q and k in fp32 (check.py)")
    q, k, v = random_qkv(impl)
    (y,) = impl.functions.attention(q, KV(k, torch.ones_like(v)))
    assert float((y - 1.0).abs().max()) < 2e-6


@pytest.mark.parametrize("seen", [1, 2, 9, 32, 33, 255, 256, 257])
def test_what_no_query_sees_is_not_read(impl, seen):
    """Also the other key of a pair, whose weight is 0: 0 times NaN would be NaN."""
    if impl.backend != "cpu":
        pytest.skip("native pairs")
    q, k, v = random_qkv(impl)
    lengths = torch.tensor([seen])
    (wanted,) = impl.functions.attention(q, KV(k, v, lengths))
    poisoned = v.clone()
    poisoned[:, :, seen:] = NAN
    (causal,) = impl.functions.attention(q, KV(k, poisoned), causal=BlockCausal(1000, offset=seen - 1000))
    assert not causal.any(), "keys from `offset` on belong to a later block"
    (got,) = impl.functions.attention(q, KV(k, poisoned, lengths))
    assert torch.equal(got, wanted)
    (first,) = impl.functions.attention(q[:, :, :1], KV(k, poisoned), causal=BlockCausal(1, offset=seen - 1))
    assert torch.equal(first, wanted[:, :1]), "the last key that a query sees is one of a pair"


def test_nan_and_infinity_reach_the_queries_that_see_them(impl):
    if impl.backend != "cpu":
        pytest.skip("native pairs")
    q, k, v = random_qkv(impl, heads=1, head_dim=32)
    q[:, :, 3], v[:, :, 7, 5] = NAN, float("inf")
    (y,) = impl.functions.attention(q, KV(k, v))
    assert y[:, 3].isnan().all() and y[:, [0, 1, 2, 4], 5].isinf().all()
    assert y[:, 4, :5].isfinite().all() and y[:, 4, 6:].isfinite().all()


def test_results_do_not_depend_on_threads(impl):
    if impl.backend != "cpu":
        pytest.skip("native threads")
    q, k, v = random_qkv(impl, heads=3, queries=230, slots=700)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(impl.functions.attention(q, KV(k, v))[0])
    torch.set_num_threads(1)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_it_enters_a_recording(impl):
    if impl.backend != "cpu" or instruction_sets()[0] != "avx512bf16":
        pytest.skip("native products of bf16")
    q, k, v = random_qkv(impl)
    recorded, result = program.record(lambda: impl.functions.attention(q, KV(k, v))[0])
    q.copy_(q.flip(2))
    recorded()
    assert torch.equal(result, impl.functions.attention(q, KV(k, v))[0])


def test_tables_without_such_products_widen(impl):
    """Elsewhere it is attention in fp32 of the same queries and keys."""
    if impl.backend != "cpu":
        pytest.skip("native tables")
    q, k, v = random_qkv(impl)
    with forced("portable"):
        (y,) = impl.functions.attention(q, KV(k, v))
        (wanted,) = impl.functions.attention(q.float(), KV(k.float(), v))
    assert torch.equal(y, wanted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": FP32}, "k is torch.float32"),
        ({"v": torch.float64}, "v is torch.float64"),
        ({"v": torch.float16}, "v is torch.float16"),
        ({"q": torch.float16, "k": torch.float16}, "v is torch.float32"),
        ({"q": FP32, "k": FP32, "v": BF16}, "v is torch.bfloat16"),
    ],
)
def test_other_mixtures_are_refused(impl, change, said):
    q, k, v = random_qkv(impl, heads=1, queries=2, slots=3, head_dim=8)
    given = SimpleNamespace(**{name: t.to(change.get(name, t.dtype)) for name, t in (("q", q), ("k", k), ("v", v))})
    with pytest.raises(ValueError, match=said):
        impl.functions.attention(given.q, KV(given.k, given.v))
    with pytest.raises(ValueError, match=r"out is torch\.bfloat16"):
        impl.functions.attention(q, KV(k, v), out=torch.empty(1, 2, 8, dtype=BF16, device=impl.device))
