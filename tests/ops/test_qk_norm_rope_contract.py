"""The contract of `qk_norm_rope` and of the rotation table, held against loops in float64."""

import cmath
import dataclasses
import math
from dataclasses import dataclass, replace

import pytest
import torch

from kinema.ops import qk_norm_rope
from kinema.ops.common import Rope
from kinema.ops.qk_norm_rope import HeadNorm

OP = qk_norm_rope.OP
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


@dataclass(frozen=True)
class Case:
    """size: B, S, N, D. rope: the tokens that rotate, (start, length), (0, None) for all; None: no rotation.

    operands: how many share the heads, each with a norm of its own.
    narrow: the norm's weights in x's dtype as well.
    """

    size: tuple[int, int, int, int] = (2, 13, 3, 10)
    norm: str | None = None
    across: bool = False
    operands: int = 1
    affine: bool = True
    eps: float = 1e-6
    rope: tuple[int, int | None] | None = None
    per_sample: bool = False
    fractional: bool = False
    interleaved: bool = True
    far: float = 0.0
    layout: str = "contiguous"
    out: str = "new"
    std: float = 1.0
    dtype: torch.dtype = FP32
    narrow: bool = False


ALL = (0, None)
KINDS = {
    "bare": {},
    "rms": {"norm": "rms"},
    "layer": {"norm": "layer"},
    "rms_across": {"norm": "rms", "across": True},
    "layer_across": {"norm": "layer", "across": True},
}
CASES = {
    **{
        f"{n}_{'x'.join(map(str, size))}": Case(size, rope=ALL, **k)
        for n, k in KINDS.items()
        for size in ((1, 1, 1, 2), (2, 7, 3, 10), (2, 33, 4, 34))
    },
    **{f"{n}_unrotated": Case(**k) for n, k in KINDS.items()},
    **{f"{n}_half_split": Case(rope=ALL, interleaved=False, **k) for n, k in KINDS.items()},
    **{f"{n}_{d}": Case(rope=ALL, dtype=d, **k) for n, k in KINDS.items() for d in (BF16, FP16, FP64)},
    "all_bf16": Case(norm="layer", rope=ALL, dtype=BF16, narrow=True),
    "production_head": Case((1, 5, 2, 128), norm="rms", across=True, rope=ALL),
    "video_after_text": Case(norm="layer", rope=(5, 8)),
    "video_before_text": Case(norm="rms", rope=(0, 9)),
    "middle_tokens": Case(norm="rms", rope=(3, 4), per_sample=True),
    "per_sample_positions": Case(norm="rms", across=True, rope=ALL, per_sample=True),
    "per_sample_half_split": Case(rope=ALL, per_sample=True, interleaved=False),
    "fractional_positions": Case(norm="rms", rope=ALL, fractional=True),
    "far_positions": Case(rope=ALL, far=4096.0),
    "without_weight": Case(norm="rms", affine=False, rope=ALL),
    "layer_without_weight": Case(norm="layer", affine=False),
    "eps_matters": Case(norm="rms", std=1e-3, rope=ALL),
    "layer_eps_matters": Case(norm="layer", std=1e-3, eps=1e-5),
    "across_eps_matters": Case(norm="rms", across=True, std=1e-3),
    "out_of_a_fused_projection": Case(norm="rms", across=True, rope=ALL, layout="fused"),
    "out_of_a_fused_projection_per_head": Case(norm="layer", rope=(5, 8), layout="fused"),
    "samples_inside_tokens": Case(norm="rms", rope=ALL, layout="transposed"),
    "into_a_cache": Case(norm="rms", across=True, layout="fused", out="cache"),
    "into_a_cache_rotated": Case(rope=ALL, out="cache"),
    "queries_and_keys": Case((2, 13, 6, 10), norm="rms", across=True, operands=2, rope=ALL, layout="fused"),
    "queries_and_keys_of_a_head": Case((1, 9, 2, 8), norm="layer", across=True, operands=2, rope=(2, 5)),
    "queries_and_keys_per_head": Case((2, 7, 6, 10), norm="layer", operands=2, rope=ALL, layout="fused", out="buffer"),
    "queries_and_keys_bf16": Case((1, 33, 4, 34), norm="rms", operands=2, rope=ALL, interleaved=False, dtype=BF16),
    "queries_and_keys_unrotated": Case((2, 7, 10, 6), norm="layer", across=True, operands=2, out="cache"),
    "three_operands": Case((2, 7, 9, 10), norm="rms", across=True, operands=3, rope=ALL, dtype=FP64),
    "three_operands_without_weight": Case((2, 7, 9, 8), norm="layer", across=True, operands=3, affine=False),
    "own_buffer": Case(norm="rms", rope=ALL, out="buffer"),
}


def axis_dims(head_dim):
    """An uneven split of a head's channels over t, h, w."""
    if head_dim == 2:
        return (2,)
    spatial = 2 * (head_dim // 6)
    return (head_dim - 2 * spatial, spatial, spatial)


def positions_of(case, draw):
    """[R, A] or [B, R, A], float64: as a grid would never give them."""
    batch, tokens, _, head_dim = case.size
    count = tokens - case.rope[0] if case.rope[1] is None else case.rope[1]
    shape = (batch, count, len(axis_dims(head_dim))) if case.per_sample else (count, len(axis_dims(head_dim)))
    drawn = draw.uniform(*shape, low=0.0, high=40.0, dtype=FP64)
    return (drawn if case.fractional else drawn.round()) + case.far


def angles(position, dims, theta=10000.0):
    """Angles of one token's pairs, from its position on each axis."""
    return [p / theta ** (2 * j / dim) for p, dim in zip(position, dims, strict=True) for j in range(dim // 2)]


def rotate(vector, token_angles, interleaved):
    """One head of one token, a list of floats: each pair is a complex number, turned."""
    half = len(vector) // 2
    turned = list(vector)
    for j, angle in enumerate(token_angles):
        a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + half)
        z = complex(vector[a], vector[b]) * cmath.exp(1j * angle)
        turned[a], turned[b] = z.real, z.imag
    return turned


def pair_sizes(vector, interleaved):
    """|a| + |b| of the pair that each channel belongs to."""
    half = len(vector) // 2
    size = [0.0] * len(vector)
    for j in range(half):
        a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + half)
        size[a] = size[b] = vector[a] + vector[b]
    return size


def normed(row, kind, eps, weight, bias):
    """A float64 vector: its norm, and the size of its terms."""
    mean = row.mean() if kind == "layer" else row.new_zeros(())
    deviation = ((row - mean).square().mean() + eps).sqrt()
    n, size = (row - mean) / deviation, (row.abs() + mean.abs()) / deviation
    if weight is not None:
        n, size = n * weight.double(), size * weight.double().abs()
    if bias is not None:
        n, size = n + bias.double(), size + bias.double().abs()
    return n, size


def expected(x, case, norm, positions):
    batch, tokens, heads, head_dim = case.size
    y = torch.empty(batch, heads, tokens, head_dim, dtype=FP64)
    size = torch.empty_like(y)
    for b in range(batch):
        for s in range(tokens):
            row = x[b, s].double().cpu()
            n, m = row, row.abs()
            if norm is not None and case.across:
                operands = zip(row.chunk(case.operands), *of_operands(norm), strict=True)
                parts = [normed(part, norm.kind, norm.eps, w, b) for part, w, b in operands]
                n, m = (torch.cat(each) for each in zip(*parts, strict=True))
            for h in range(heads):
                head, terms = n[h * head_dim : (h + 1) * head_dim], m[h * head_dim : (h + 1) * head_dim]
                if norm is not None and not case.across:
                    weight, bias = (t[h // (heads // case.operands)] for t in of_operands(norm))
                    head, terms = normed(head, norm.kind, norm.eps, weight, bias)
                head, terms = head.tolist(), terms.tolist()
                r = s - case.rope[0] if case.rope is not None else -1
                if case.rope is not None and 0 <= r < positions.shape[-2]:
                    position = (positions[b] if case.per_sample else positions)[r].tolist()
                    head = rotate(head, angles(position, axis_dims(head_dim)), case.interleaved)
                    terms = pair_sizes(terms, case.interleaved)
                y[b, h, s], size[b, h, s] = torch.tensor(head, dtype=FP64), torch.tensor(terms, dtype=FP64)
    return y.to(x.device), size.to(x.device)


def of_operands(norm):
    """The weight and bias of each."""
    count = norm.operands
    return [[None] * count if t is None else t.cpu().chunk(count) for t in (norm.weight, norm.bias)]


def check_qk_norm_rope(impl, case: Case):
    impl.flowing(case.dtype)
    batch, tokens, heads, head_dim = case.size
    draw = impl.draw(seed=sum(case.size))
    wide = case.dtype if case.narrow or case.dtype == FP64 else FP32
    channels = heads * head_dim
    x = draw.normal(batch, tokens, channels, std=case.std, mean=0.3 * case.std, dtype=case.dtype)
    if case.layout == "fused":
        qkv = draw.normal(batch, tokens, 3 * channels, dtype=case.dtype)
        qkv[..., channels : 2 * channels] = x
        x = qkv.chunk(3, dim=-1)[1]
    elif case.layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    norm = None
    if case.norm is not None:
        features = channels if case.across else case.operands * head_dim
        weight = draw.uniform(features, dtype=wide) if case.affine else None
        bias = draw.normal(features, std=0.5, dtype=wide) if case.affine and case.norm == "layer" else None
        norm = HeadNorm(case.norm, case.eps, weight, bias, case.across, case.operands)
    positions = positions_of(case, draw) if case.rope is not None else None
    rope = None
    if positions is not None:
        start = case.rope[0]
        rope = Rope.from_positions(positions, axis_dims(head_dim), interleaved=case.interleaved, start=start)
    truth, size = expected(x, case, norm, positions)

    def call(op):
        buffer = None
        if case.out == "cache":
            cache = draw.poison(batch, heads, tokens + 9, head_dim, dtype=case.dtype)
            buffer = cache[:, :, 4 : 4 + tokens]
        elif case.out == "buffer":
            buffer = draw.poison(batch, heads, tokens, head_dim, dtype=case.dtype)
        got = op.qk_norm_rope(x, heads, norm=norm, rope=rope, out=buffer)
        if buffer is not None:
            impl.expect(got.data_ptr() == buffer.data_ptr(), "did not write into out")
            if case.out == "cache":
                kept = torch.cat((cache[:, :, :4], cache[:, :, 4 + tokens :]), dim=2)
                impl.expect(bool(kept.isnan().all()), "wrote to other slots of the cache")
        else:
            impl.expect(got.is_contiguous(), f"strides {got.stride()} of {tuple(got.shape)} are not contiguous")
        return got

    if case.dtype == FP64:
        size = size * (torch.finfo(FP32).eps / torch.finfo(FP64).eps)  # the table is fp32
    impl.judge(call, truth, size, case.dtype, unchanged=[x])


@pytest.mark.parametrize("name", CASES)
def test_qk_norm_rope(impl, name):
    check_qk_norm_rope(impl, CASES[name])


@pytest.mark.parametrize("far", [0.0, 1e4])
@pytest.mark.parametrize("theta", [256.0, 10000.0])
def test_the_table_is_cos_and_sin_of_each_position(impl, far, theta):
    """float64 angles: in float32 a position of 10,000 would cost three digits."""
    positions = impl.draw().uniform(2, 9, 3, low=0.0, high=30.0, dtype=FP64) + far
    dims = (4, 6, 2)
    rope = Rope.from_positions(positions, dims, theta=theta)
    wanted = [[angles(token, dims, theta) for token in sample] for sample in positions.tolist()]
    cos = torch.tensor([[[math.cos(a) for a in token] for token in sample] for sample in wanted], dtype=FP64)
    sin = torch.tensor([[[math.sin(a) for a in token] for token in sample] for sample in wanted], dtype=FP64)
    assert rope.cos.dtype == rope.sin.dtype == FP32
    assert float((rope.cos.cpu().double() - cos).abs().max()) <= torch.finfo(FP32).eps
    assert float((rope.sin.cpu().double() - sin).abs().max()) <= torch.finfo(FP32).eps


def test_angles_can_be_taken_in_float32(impl):
    """Models whose tables were made so are matched so: the same table to the last bit."""
    positions = torch.tensor([[0.0], [1.5], [777.0]], device=impl.device)
    rope = Rope.from_positions(positions, (8,), angle_dtype=FP32)
    rate = 1.0 / 10000.0 ** (torch.arange(0, 8, 2, dtype=FP32, device=impl.device) / 8)
    assert torch.equal(rope.cos, (positions * rate).cos())


def test_a_rotation_that_does_not_fit_is_refused(impl):
    x = impl.draw().normal(1, 6, 8)
    rope = Rope.from_positions(torch.zeros(4, 1, device=impl.device), (4,), start=3)
    with pytest.raises(ValueError, match="rotation covers"):
        impl.functions.qk_norm_rope(x, 2, rope=rope)
    with pytest.raises(ValueError, match="rotation covers"):
        impl.functions.qk_norm_rope(x, 1, rope=dataclasses.replace(rope, start=0))
    with pytest.raises(ValueError, match="heads"):
        impl.functions.qk_norm_rope(x, 3)
    with pytest.raises(ValueError, match="axis_dims"):
        Rope.from_positions(torch.zeros(4, 2), (8,))


@pytest.mark.parametrize("interleaved", [True, False])
def test_only_distances_matter(impl, interleaved):
    """q·k of rotated vectors depends on the difference of their positions: what a moving cache window rests on."""
    draw = impl.draw()
    q, k = draw.normal(2, 7, 30), draw.normal(2, 7, 30)
    positions = draw.uniform(7, 3, low=0.0, high=20.0, dtype=FP64)

    def logits(shift):
        rope = Rope.from_positions(positions + shift, axis_dims(10), interleaved=interleaved)
        turned = [impl.functions.qk_norm_rope(t, 3, rope=rope).double() for t in (q, k)]
        return torch.einsum("bnid,bnjd->bnij", *turned)

    still = logits(0.0)
    error = (logits(torch.tensor([100.0, 7.0, -3.5], dtype=FP64, device=impl.device)) - still).abs().max()
    assert float(error) <= 1e-5
    unrotated = torch.einsum("bind,bjnd->bnij", *(t.double().unflatten(-1, (3, 10)) for t in (q, k)))
    assert float((unrotated - still).abs().max()) > 1.0


@pytest.mark.parametrize("head_dim", [1, 10, 34, 128])
def test_a_result_in_bf16_is_the_other_rounded_once(impl, head_dim):
    impl.flowing(torch.float32)
    draw, tokens = impl.draw(4), 5
    x = draw.normal(2, tokens, 3 * head_dim)
    x[0, 0, 0], x[1, 1, 0] = float("nan"), float("inf")
    norm = HeadNorm("rms", 1e-6, draw.uniform(head_dim))
    rope = Rope(draw.normal(3, head_dim // 2), draw.normal(3, head_dim // 2), start=1) if head_dim > 1 else None
    exact = impl.functions.qk_norm_rope(x, 3, norm=norm, rope=rope)
    y = impl.functions.qk_norm_rope(x, 3, norm=norm, rope=rope, dtype=BF16)
    assert y.dtype == BF16 and y.is_contiguous()
    torch.testing.assert_close(y, exact.to(BF16), atol=0, rtol=0, equal_nan=True)
    slots = draw.poison(2, 5, tokens, head_dim, dtype=BF16)[:, 1:4]
    into = impl.functions.qk_norm_rope(x, 3, norm=norm, rope=rope, dtype=BF16, out=slots)
    assert into.data_ptr() == slots.data_ptr()
    torch.testing.assert_close(into, y, atol=0, rtol=0, equal_nan=True)
    assert impl.functions.qk_norm_rope(x[:, :0], 3, dtype=BF16).dtype == BF16


def test_other_results_are_refused(impl):
    x = impl.draw().normal(1, 2, 8)
    with pytest.raises(ValueError, match="wanted bfloat16 or the same"):
        impl.functions.qk_norm_rope(x, 2, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"the op writes torch\.bfloat16"):
        impl.functions.qk_norm_rope(x, 2, dtype=BF16, out=torch.empty(1, 2, 2, 4, device=impl.device))


def wrapped(impl, change=None, after=None):
    def run(x, heads, **options):
        if change is not None:
            x, options = change(x, heads, dict(options))
        out = options.get("out")
        y = impl.functions.qk_norm_rope(x, heads, **options)
        if after is None:
            return y
        y = after(y.clone(), options)
        return y.contiguous() if out is None else out.copy_(y)

    return {"qk_norm_rope": run}


def changed_rope(**fields):
    def change(x, heads, options):
        rope = options.get("rope")
        if rope is not None:
            options["rope"] = replace(rope, **{name: value(getattr(rope, name)) for name, value in fields.items()})
        return x, options

    return change


def changed_norm(**fields):
    def change(x, heads, options):
        norm = options.get("norm")
        if norm is not None:
            new = {
                name: value(getattr(norm, name)) for name, value in fields.items() if getattr(norm, name) is not None
            }
            options["norm"] = replace(norm, **new)
        return x, options

    return change


def norm_per_head(x, heads, options):
    norm = options.get("norm")
    if norm is not None and norm.across_heads and norm.weight is not None:
        cut = norm.operands * (x.shape[-1] // heads)
        bias = norm.bias[:cut] if norm.bias is not None else None
        options["norm"] = replace(norm, across_heads=False, weight=norm.weight[:cut], bias=bias)
    return x, options


def one_operand(x, heads, options):
    """Statistics over the heads of all operands, or the first's weights for all."""
    norm = options.get("norm")
    if norm is not None and norm.operands > 1:
        kept = len(norm.weight) // (1 if norm.across_heads else norm.operands) if norm.weight is not None else 0
        weight, bias = (t[:kept] if t is not None else None for t in (norm.weight, norm.bias))
        options["norm"] = replace(norm, weight=weight, bias=bias, operands=1)
    return x, options


def operands_swapped(x, heads, options):
    """The weights of the keys for the queries."""
    norm = options.get("norm")
    if norm is not None and norm.operands > 1:
        parts = (None if t is None else t.chunk(norm.operands)[::-1] for t in (norm.weight, norm.bias))
        weight, bias = (None if part is None else torch.cat(part) for part in parts)
        options["norm"] = replace(norm, weight=weight, bias=bias)
    return x, options


def start_of_the_next(start):
    return max(start - 1, 0)


def rotated_first(impl):
    """The norm taken of the rotated vector: the weight then meets the wrong channels."""

    def run(x, heads, norm=None, rope=None, out=None):
        if norm is None or rope is None or norm.across_heads:
            return impl.functions.qk_norm_rope(x, heads, norm=norm, rope=rope, out=out)
        turned = impl.functions.qk_norm_rope(x, heads, rope=rope)
        y = impl.functions.qk_norm_rope(turned.transpose(1, 2).flatten(2), heads, norm=norm)
        return y if out is None else out.copy_(y)

    return {"qk_norm_rope": run}


def result_cut(impl):
    def run(x, heads, **options):
        if x.dtype != BF16 or options.get("out") is not None:
            return impl.functions.qk_norm_rope(x, heads, **options)
        return impl.cut_to_bf16(impl.functions.qk_norm_rope(x.float(), heads, **options))

    return {"qk_norm_rope": run}


def heads_not_transposed(y, options):
    return y.transpose(1, 2).reshape(y.shape)


def rotate_the_rest_too(x, heads, options):
    """Tokens beyond the range turned as the last of it."""
    rope = options.get("rope")
    missing = x.shape[1] - rope.start - rope.cos.shape[-2] if rope is not None else 0
    if missing > 0:
        tail = [t[..., -1:, :].expand(*t.shape[:-2], missing, -1) for t in (rope.cos, rope.sin)]
        cos, sin = (torch.cat(pair, dim=-2) for pair in zip((rope.cos, rope.sin), tail, strict=True))
        options["rope"] = replace(rope, cos=cos, sin=sin)
    return x, options


MISTAKES = {
    "interleaved_swapped": lambda impl: wrapped(impl, changed_rope(interleaved=lambda i: not i)),
    "turned_backwards": lambda impl: wrapped(impl, changed_rope(sin=torch.neg)),
    "positions_of_the_first_sample": lambda impl: wrapped(
        impl, changed_rope(cos=lambda t: t[0] if t.ndim == 3 else t, sin=lambda t: t[0] if t.ndim == 3 else t)
    ),
    "table_in_bf16": lambda impl: wrapped(impl, changed_rope(cos=lambda t: t.to(BF16).float())),
    "one_token_early": lambda impl: wrapped(impl, changed_rope(start=start_of_the_next)),
    "rest_rotated_too": lambda impl: wrapped(impl, rotate_the_rest_too),
    "not_rotated": lambda impl: wrapped(impl, lambda x, heads, options: (x, {**options, "rope": None})),
    "norm_per_head": lambda impl: wrapped(impl, norm_per_head),
    "one_operand": lambda impl: wrapped(impl, one_operand),
    "operands_swapped": lambda impl: wrapped(impl, operands_swapped),
    "other_norm": lambda impl: wrapped(impl, changed_norm(kind=lambda k: "rms" if k == "layer" else "layer")),
    "eps_tenfold": lambda impl: wrapped(impl, changed_norm(eps=lambda eps: eps * 10)),
    "weight_dropped": lambda impl: wrapped(impl, changed_norm(weight=torch.ones_like)),
    "bias_dropped": lambda impl: wrapped(impl, changed_norm(bias=torch.zeros_like)),
    "rotated_before_the_norm": rotated_first,
    "result_cut": result_cut,
    "heads_not_transposed": lambda impl: wrapped(impl, after=heads_not_transposed),
    "input_in_bf16": lambda impl: wrapped(impl, lambda x, heads, o: (x.to(BF16).to(x.dtype), o)),
}


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    if mistake == "result_cut":
        impl.flowing(torch.bfloat16)
    assert impl.catches(check_qk_norm_rope, CASES, **MISTAKES[mistake](impl))
