"""The norm before `linear`: held against a float64 computation, and against the two ops it stands for."""

import dataclasses
import math
from dataclasses import dataclass, replace

import pytest
import torch

from kinema.ops import linear, norm_modulate
from kinema.ops.common import PRECISIONS, Precision, Quantized, Target
from kinema.ops.norm_modulate import Norm

OP = linear.OP
CPU, GPU = PRECISIONS["cpu"], PRECISIONS["cuda"]


@dataclass(frozen=True)
class Case:
    """size: B, S, in, out. scale, shift: groups of each (None: not given). mean, std: of x.

    shared: one modulation for all samples. narrow: the norm's tensors in x's dtype. residual: "x" is x itself.
    """

    size: tuple[int, int, int, int] = (2, 12, 13, 10)
    precision: Precision = CPU["fp32"]
    kind: str = "layer"
    eps: float = 1e-6
    weight: bool = False
    bias: bool = False
    scale: int | None = None
    shift: int | None = None
    shared: bool = False
    narrow: bool = False
    layout: str = "plain"
    mean: float = 0.0
    std: float = 1.0
    activation: str = "none"
    gated: bool = False
    gate: int | None = None
    residual: str = "none"
    out: str = "new"
    float64: bool = False


MODULATED = Case(scale=1, shift=1)
SIZES = ((1, 1, 1, 1), (3, 7, 13, 5), (2, 19, 65, 31), (1, 66, 72, 37))  # and more than a slice of the depth: "deep"

CASES = {
    **{f"{k}_{n[0]}x{n[1]}x{n[2]}": replace(MODULATED, size=n, precision=CPU[k]) for k in CPU for n in SIZES},
    **{f"gpu_{k}": replace(MODULATED, size=(2, 19, 65, 31), precision=GPU[k]) for k in GPU if k != "fp32"},
    **{f"rms_{k}": Case(kind="rms", weight=True, precision=CPU[k]) for k in ("fp32", "int8")},
    **{f"affine_{k}": Case(weight=True, bias=True, precision=CPU[k]) for k in ("fp32", "int8")},
    **{f"by_{g}": Case(scale=g, shift=g) for g in (2, 4, 12)},
    "deep": replace(MODULATED, size=(1, 7, 777, 18), scale=7, shift=7),
    "deep_int8": replace(MODULATED, size=(1, 7, 1545, 18), precision=CPU["int8"]),
    "plain_layer": Case(),
    "rms_with_bias": Case(kind="rms", weight=True, bias=True),
    "scale_only": Case(scale=3),
    "shift_only": Case(shift=3),
    "bias_only": Case(bias=True),
    "everything": Case(weight=True, bias=True, scale=2, shift=6),
    "everything_narrow": Case(
        weight=True, bias=True, scale=2, shift=6, narrow=True, precision=GPU["bf16"], size=(2, 12, 40, 24)
    ),
    "shared_by_samples": replace(MODULATED, scale=6, shift=6, shared=True),
    "eps_matters": replace(MODULATED, std=1e-3),
    "rms_eps_matters": replace(MODULATED, kind="rms", std=1e-3, eps=1e-5),
    "large_mean": replace(MODULATED, mean=300.0, size=(2, 6, 65, 10)),
    "columns_of_a_wider_tensor": replace(MODULATED, layout="columns"),
    "samples_inside_tokens": replace(MODULATED, layout="transposed", scale=3),
    "own_buffer": replace(MODULATED, out="buffer"),
    "gelu_in_place": replace(MODULATED, activation="gelu_tanh", gate=3, residual="given", out="residual"),
    "x_is_the_residual": replace(MODULATED, size=(2, 12, 16, 16), residual="x", gate=4),
    "gated": replace(MODULATED, gated=True, activation="silu"),
    "gated_int8": replace(MODULATED, gated=True, activation="silu", precision=CPU["int8"]),
    "float64": replace(MODULATED, float64=True, weight=True, bias=True, scale=3),
}


def row_of_each_token(modulation, batch, tokens):
    """[B or 1, G, C] → [B, S, C]: token s reads row s // (S / G)."""
    rows = [s // (tokens // modulation.shape[1]) for s in range(tokens)]
    return modulation.double()[:, rows].expand(batch, tokens, -1)


def normed(x, norm):
    """The norm of x in float64, and the size of the terms that its error comes from."""
    batch, tokens, _ = x.shape
    mean = x.mean(-1, keepdim=True) if norm.kind == "layer" else torch.zeros_like(x[..., :1])
    deviation = ((x - mean).square().mean(-1, keepdim=True) + norm.eps).sqrt()
    n, size = (x - mean) / deviation, (x.abs() + mean.abs()) / deviation
    if norm.weight is not None:
        n, size = n * norm.weight.double(), size * norm.weight.double().abs()
    if norm.bias is not None:
        n, size = n + norm.bias.double(), size + norm.bias.double().abs()
    if norm.scale is not None:
        row = row_of_each_token(norm.scale, batch, tokens)
        n, size = n * (1 + row), size * (1 + row.abs())
    if norm.shift is not None:
        row = row_of_each_token(norm.shift, batch, tokens)
        n, size = n + row, size + row.abs()
    return n, size


def to_e4m3(x):
    """The nearest e4m3 value, ties to even, in float64."""
    step = 2.0 ** ((torch.frexp(x).exponent - 1).clamp(min=-6).double() - 3)
    return (torch.round(x / step) * step).clamp(-448, 448)


def in_eight_bits(x, kind, top, nudge=0.0):
    """x [B, S, C] or a weight in 8 bits, in float64: codes of 0 to `top`, else as `quantize` has them.

    nudge: how far, in steps, a value is moved before it is rounded.
    """
    if top is not None:
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        scale = (high - low).clamp(min=1e-12) / top
        zero = torch.round(-low / scale)
        return (torch.round(x / scale + nudge) + zero).clamp(0, top).sub(zero) * scale
    limit = 448.0 if kind == "fp8" else 127.0
    scale = (x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / limit).float().double()
    steps = x / scale
    if kind == "int8":
        return torch.round(steps + nudge).clamp(-127, 127) * scale
    return to_e4m3(steps * (1 + nudge)) * scale


def as_stored(weight, precision):
    kinds = {torch.float8_e4m3fn: "fp8", torch.int8: "int8"}
    if precision.weights in kinds:
        return in_eight_bits(weight.double(), kinds[precision.weights], None)
    return weight.double() if weight.dtype == torch.float64 else weight.to(precision.weights).double()


def arrange(x, draw, layout):
    """The same values at other strides over samples and tokens."""
    if layout == "columns":
        wider = draw.normal(*x.shape[:2], x.shape[2] + 9, dtype=x.dtype)
        wider[..., 4:-5] = x
        return wider[..., 4:-5]
    return x.transpose(0, 1).contiguous().transpose(0, 1) if layout == "transposed" else x


def activate(y, size, activation):
    """No activation here is steeper than 1.13."""
    if activation == "gelu_tanh":
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    elif activation == "silu":
        y = y / (1 + torch.exp(-y))
    return y, y.abs() + 1.13 * size


def check_linear(impl, case: Case):
    batch, tokens, into, out = case.size
    precision, kind = case.precision, case.precision.quantize_activations
    dtype = torch.float64 if case.float64 else precision.activations
    target = impl.flowing(dtype) if case.float64 else impl.target(precision)
    draw = impl.draw(seed=sum(case.size))
    wide = torch.float64 if case.float64 else torch.float32
    own = dtype if case.narrow else wide

    x = arrange(draw.normal(batch, tokens, into, mean=case.mean, std=case.std, dtype=dtype), draw, case.layout)
    rows = 1 if case.shared else batch
    table = {g: draw.normal(rows, g, 6, into, std=0.5, dtype=own) for g in {case.scale, case.shift} - {None}}
    norm = Norm(
        case.eps,
        case.kind,
        draw.uniform(into, dtype=own) if case.weight else None,
        draw.normal(into, dtype=own) if case.bias else None,
        table[case.scale][:, :, 1] if case.scale is not None else None,
        table[case.shift][:, :, 0] if case.shift is not None else None,
    )
    w, b = draw.normal(out, into, std=into**-0.5, dtype=wide), draw.normal(out, std=0.5, dtype=wide)
    gate_w, gate_b = (draw.normal(out, into, std=into**-0.5, dtype=wide), b + 1) if case.gated else (None, None)
    gate = draw.normal(batch, case.gate, out, dtype=wide) if case.gate is not None else None
    residual = x if case.residual == "x" else None
    if case.residual == "given":
        residual = draw.normal(batch, tokens, out, std=2.0, dtype=dtype)

    n, size = normed(x.double(), norm)
    packed_alike = impl.functions.pack_linear(torch.ones(1, 1, device=impl.device), target=target)
    top, rounds_to = packed_alike.code_top, packed_alike.rounds_to
    unsure = torch.zeros_like(n)
    if kind is not None:
        # where the last bit of n decides, either neighbour will do
        nudge = 1e-5 if kind == "fp8" else 1e-3
        unsure = (in_eight_bits(n, kind, top, nudge) - in_eight_bits(n, kind, top, -nudge)).abs()
        n = in_eight_bits(n, kind, top)
    if rounds_to is not None:
        near = size * 2.0**-22
        unsure = ((n + near).to(rounds_to).double() - (n - near).to(rounds_to).double()).abs()
        n = n.to(rounds_to).double()

    def call(op):
        if op is impl.plain and top is not None:  # codes are this implementation's own
            exact = Target(impl.device, dataclasses.replace(precision, quantize_activations=None))
            return run(op, n.float(), exact, norm=None)
        if op is impl.plain and rounds_to is not None:
            return run(op, n.float(), target, norm=None)
        return run(op, x, target, norm=norm)

    def run(op, read, target, norm):
        packed = op.pack_linear(w, b, gate_weight=gate_w, gate_bias=gate_b, target=target)
        held = residual.clone() if case.out == "residual" else residual
        buffer = {"new": None, "residual": held, "buffer": draw.poison(batch, tokens, out, dtype=dtype)}[case.out]
        got = op.linear(read, packed, norm=norm, activation=case.activation, gate=gate, residual=held, out=buffer)
        if buffer is not None:
            impl.expect(got.data_ptr() == buffer.data_ptr(), "did not write into out")
        return got

    def project(weight, bias):
        y = torch.einsum("bsi,oi->bso", n, weight) + bias.double()
        return y, torch.einsum("bsi,oi->bso", size + n.abs() + unsure * 2.0**23, weight.abs()) + bias.double().abs()

    y, magnitude = project(as_stored(w, precision), b)
    if case.gated:
        g, g_magnitude = activate(*project(as_stored(gate_w, precision), gate_b), case.activation)
        y, magnitude = g * y, g_magnitude * y.abs() + g.abs() * magnitude
    else:
        y, magnitude = activate(y, magnitude, case.activation)
    if gate is not None:
        rows = row_of_each_token(gate, batch, tokens)
        y, magnitude = rows * y, rows.abs() * magnitude
    if residual is not None:
        y, magnitude = residual.double() + y, residual.double().abs() + magnitude
    inputs = [t for t in (x, norm.weight, norm.bias, norm.scale, norm.shift, gate, residual) if t is not None]
    # in 16 bits n itself is rounded
    impl.judge(call, y, magnitude, dtype, rounded=magnitude if dtype.itemsize == 2 else None, unchanged=inputs)


@pytest.mark.parametrize("name", CASES)
def test_linear_of_a_norm(impl, name):
    check_linear(impl, CASES[name])


def changed(**change):
    """`linear` whose norm has other fields, functions of what was given."""

    def plant(impl):
        def run(x, weight, *, norm=None, **options):
            if norm is not None:
                given = {name: getattr(norm, name) for name in change}
                norm = replace(norm, **{k: change[k](v) for k, v in given.items() if v is not None})
            return impl.functions.linear(x, weight, norm=norm, **options)

        return run

    return plant


def without_norm(impl):
    return lambda x, weight, *, norm=None, **options: impl.functions.linear(x, weight, **options)


def norm_of_the_first_tokens(impl):
    """As a kernel that takes a tile's moments from its first row."""

    def run(x, weight, *, norm=None, **options):
        first = x[:, :1].expand(x.shape) if norm is not None and x.shape[1] > 1 else x
        return impl.functions.linear(first, weight, norm=norm, **options)

    return run


MISTAKES = {
    "no_norm": without_norm,
    "one_row_for_all": norm_of_the_first_tokens,
    "rms_for_layer": changed(kind=lambda kind: "rms" if kind == "layer" else "layer"),
    "another_eps": changed(eps=lambda eps: 3 * eps),
    "scale_without_one": changed(scale=lambda s: s - 1),
    "shift_dropped": changed(shift=lambda s: 0 * s),
    "scale_one_group_off": changed(scale=lambda s: s.roll(1, 1)),
    "shift_one_group_off": changed(shift=lambda s: s.roll(1, 1)),
    "shift_of_the_first_sample": changed(shift=lambda s: s[:1]),
    "bias_dropped": changed(bias=lambda b: 0 * b),
    "weight_one_off": changed(weight=lambda w: w.roll(1)),
}
BY_COST = dict(sorted(CASES.items(), key=lambda named: math.prod(named[1].size)))


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    assert impl.catches(check_linear, BY_COST, linear=MISTAKES[mistake](impl))


@pytest.mark.parametrize("precision", CPU)
def test_it_is_the_two_ops(impl, precision):
    """To the last bit, of one backend's own: fused or not is nobody's business."""
    if impl.backend == "torch":
        pytest.skip("has no norm_modulate of its own: it takes the best there is")
    own = next(i for i in norm_modulate.OP.implementations if i.backend == impl.backend).load()
    draw, target = impl.draw(), impl.target(CPU[precision])
    table = draw.normal(2, 3, 6, 40)
    x, shift, scale = draw.normal(2, 9, 40), table[:, :, 0], table[:, :, 1]
    packed = impl.functions.pack_linear(draw.normal(33, 40), draw.normal(33), target=target)
    n = own.norm_modulate(x, eps=1e-6, scale=scale, shift=shift)
    kind = CPU[precision].quantize_activations
    if kind is not None and packed.code_top is None:
        n = own.norm_modulate(x, eps=1e-6, scale=scale, shift=shift, quantize=kind)
    got = impl.functions.linear(x, packed, norm=Norm(1e-6, scale=scale, shift=shift))
    assert torch.equal(got, impl.functions.linear(n, packed))


@pytest.mark.parametrize("change", ["pair", "quantised", "kind", "scale", "features"])
def test_what_does_not_fit_is_refused(impl, change):
    draw, target = impl.draw(), impl.target(CPU["fp32"])
    packed = impl.functions.pack_linear(draw.normal(5, 4), target=target)
    x, norm = draw.normal(2, 6, 4), Norm(1e-6)
    if change == "pair":
        x = (x[..., :2], x[..., 2:])
    elif change == "quantised":
        x = Quantized(x.to(torch.int8), draw.uniform(2, 6, 1))
    elif change == "kind":
        norm = Norm(1e-6, "batch")
    elif change == "scale":
        norm = Norm(1e-6, scale=draw.normal(2, 4, 4))  # 4 groups of 6 tokens
    else:
        x = draw.normal(2, 6, 3)
    with pytest.raises((ValueError, RuntimeError), match=r"wanted|shapes"):
        impl.functions.linear(x, packed, norm=norm)


def test_gradients_flow_through_the_reference(impl):
    """Training runs on the reference."""
    if impl.backend != "reference":
        pytest.skip("only the reference is trained through")
    draw = impl.draw()
    shapes = ((2, 6, 3), (3,), (3,), (2, 2, 3), (2, 3, 3), (5, 3))
    x, weight, bias, scale, shift, w = leaves = [draw.normal(*shape).requires_grad_() for shape in shapes]
    packed = impl.functions.pack_linear(w, target=impl.target(CPU["fp32"]))
    norm = Norm(1e-6, "layer", weight, bias, scale, shift)
    impl.functions.linear(x, packed, norm=norm, activation="silu").square().sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None and bool((leaf.grad != 0).any()) and bool(leaf.grad.isfinite().all())


def test_case_fields_are_all_used():
    """Every option of the table is in some case: an option that no case takes is not tested."""
    default = Case()
    for field in dataclasses.fields(Case):
        assert any(getattr(case, field.name) != getattr(default, field.name) for case in CASES.values()), field.name
