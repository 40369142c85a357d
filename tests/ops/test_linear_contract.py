"""The contract of `linear`, held against a float64 computation that shares no code with it."""

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch

from kinema.ops import linear
from kinema.ops.common import PRECISIONS, Precision, Quantized, Target
from kinema.ops.common.launch import architecture

OP = linear.OP
CPU, GPU = PRECISIONS["cpu"], PRECISIONS["cuda"]


@dataclass(frozen=True)
class Case:
    """size: B, S, in, out. groups: of the gate (None: no gate). checkpoint: the dtype that weights come in."""

    size: tuple[int, int, int, int] = (2, 12, 13, 10)
    precision: Precision = CPU["fp32"]
    activation: str = "none"
    gated: bool = False
    groups: int | None = None
    shared_gate: bool = False
    residual: str = "none"
    source: str = "plain"
    stacked: int = 1
    bias: bool = True
    std: float = 1.0
    dtype: torch.dtype | None = None
    out: bool = False
    checkpoint: torch.dtype = torch.float32
    narrow_gate: bool = False


ACTIVATIONS = ("none", "gelu", "gelu_tanh", "quick_gelu", "silu")
SIZES = ((1, 1, 1, 1), (3, 7, 13, 5), (2, 33, 65, 31), (1, 130, 72, 97))

CASES = {
    **{f"{k}_{b}x{s}x{i}": Case((b, s, i, o), CPU[k], residual="given") for k in CPU for b, s, i, o in SIZES},
    # of a panel's columns one more than a vector, on AVX2 and on AVX-512
    **{f"{k}_{o}_columns": Case((1, 5, 9, o), CPU[k]) for k in CPU for o in (41, 49)},
    **{f"gpu_{k}_{b}x{s}x{i}": Case((b, s, i, o), GPU[k]) for k in GPU if k != "fp32" for b, s, i, o in SIZES[1:3]},
    **{a: Case(activation=a) for a in ACTIVATIONS},
    **{f"{a}_large": Case(activation=a, std=40.0) for a in ACTIVATIONS},
    **{f"gated_{a}": Case(activation=a, gated=True) for a in ACTIVATIONS},
    **{f"gpu_bf16_{a}": Case(precision=GPU["bf16"], activation=a) for a in ACTIVATIONS},
    **{f"gpu_fp16_gated_{a}": Case(precision=GPU["fp16"], activation=a, gated=True) for a in ("gelu_tanh", "silu")},
    **{f"{k}_gated": Case(precision=CPU[k], activation="gelu_tanh", gated=True) for k in CPU},
    **{f"gate_by_{g}": Case(groups=g, residual="given") for g in (1, 3, 12)},
    "gate_without_residual": Case(groups=4),
    "gate_shared_by_samples": Case(groups=4, shared_gate=True, residual="given"),
    "gate_after_gated_activation": Case(groups=2, gated=True, activation="silu", residual="given"),
    "gate_bf16": Case(precision=GPU["bf16"], groups=3, residual="given"),
    "in_place": Case(residual="aliased"),
    "in_place_with_gate": Case(groups=6, residual="aliased", activation="gelu_tanh"),
    "own_buffer": Case(out=True, groups=3, residual="given"),
    "pair": Case(source="pair"),
    "pair_int8": Case(source="pair", precision=CPU["int8"]),
    "int8_in_blocks": Case((1, 300, 16, 5), source="int8", precision=CPU["int8"]),
    "int8_below_the_floor": Case(std=1e-13, bias=False, precision=CPU["int8"]),
    "pair_in_slices": Case((1, 3, 600, 5), source="pair"),  # of a depth that is summed in several
    "pair_with_all": Case(source="pair", groups=4, residual="aliased", activation="gelu"),
    **{f"{s}_{k}": Case(source=s, precision=CPU[k]) for s in ("fp8", "int8") for k in ("fp32", "bf16", "fp8", "int8")},
    **{f"gpu_{k}_quantised": Case(source=k, precision=GPU[k], groups=2, residual="given") for k in ("fp8", "int8")},
    "stacked": Case(stacked=3),
    "stacked_int8": Case(stacked=2, precision=CPU["int8"]),
    **{f"{k}_from_bf16": Case(precision=CPU[k], checkpoint=torch.bfloat16) for k in CPU},
    "fp32_from_fp16": Case(checkpoint=torch.float16),
    "gate_in_bf16": Case(precision=GPU["bf16"], groups=3, narrow_gate=True, residual="given"),
    "no_bias": Case(bias=False),
    "no_bias_int8": Case(bias=False, precision=CPU["int8"]),
    "no_bias_gated_stored_fp8": Case(bias=False, gated=True, activation="silu", precision=CPU["fp8"]),
    "columns_of_a_wider_tensor": Case(source="columns"),
    "samples_inside_tokens": Case(source="transposed", residual="given"),
    "float64": Case(dtype=torch.float64, activation="gelu_tanh", groups=3, residual="given"),
}


def round_to_e4m3(x: torch.Tensor) -> torch.Tensor:
    """The nearest e4m3 value, ties to even, in float64: 3 bits after the leading one, exponents from −6, to 448."""
    exponent = (torch.frexp(x).exponent - 1).clamp(min=-6).double()
    step = 2.0 ** (exponent - 3)
    return (torch.round(x / step) * step).clamp(-448, 448)


def in_eight_bits(x: torch.Tensor, kind: str) -> torch.Tensor:
    """x rounded to fp8 or int8 with one fp32 scale per row, in float64."""
    limit = 448.0 if kind == "fp8" else 127.0
    scale = (x.double().abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / limit).float().double()
    steps = x.double() / scale
    return (round_to_e4m3(steps) if kind == "fp8" else torch.round(steps).clamp(-127, 127)) * scale


def without_ties(x: torch.Tensor, kind: str, top: int | None) -> torch.Tensor:
    """x with 0 for the values that lie between two representable ones: 16-bit inputs often do, and then the last
    bit of the scale decides."""
    if top is not None:
        steps = x.double() / code_scale(x, top)[0]
        return torch.where((steps - 1e-4).round() == (steps + 1e-4).round(), x, torch.zeros_like(x))
    limit = 448.0 if kind == "fp8" else 127.0
    steps = x.double() / (x.double().abs().amax(dim=-1, keepdim=True) / limit)
    nudged = [round_to_e4m3(s) if kind == "fp8" else torch.round(s) for s in (steps * (1 - 1e-5), steps * (1 + 1e-5))]
    return torch.where(nudged[0] == nudged[1], x, torch.zeros_like(x))


def in_codes(x: torch.Tensor, top: int) -> torch.Tensor:
    """x in the steps of an int8 weight's `code_top`, with one fp32 scale per row, in float64."""
    scale, zero = code_scale(x, top)
    return (torch.round(x.double() / scale) + zero).clamp(0, top).sub(zero) * scale


def code_scale(x: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = x.double().amin(-1, keepdim=True).clamp(max=0), x.double().amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low).clamp(min=1e-12) / top).float().double()
    return scale, torch.round(-low / scale)


def as_stored(weight: torch.Tensor, precision: Precision) -> torch.Tensor:
    if precision.weights == torch.float8_e4m3fn:
        return in_eight_bits(weight, "fp8")
    if precision.weights == torch.int8:
        return in_eight_bits(weight, "int8")
    return weight.double() if weight.dtype == torch.float64 else weight.to(precision.weights).double()


def project(x, weight, bias):
    """x·Wᵀ + b, float64, and two sizes [2, …] that its error comes from: of all its terms, and of the two."""
    value = torch.einsum("bsi,oi->bso", x, weight)
    size = torch.stack((torch.einsum("bsi,oi->bso", x.abs(), weight.abs()), value.abs()))
    return (value, size) if bias is None else (value + bias.double(), size + bias.double().abs())


def activate(value, size, activation):
    """No activation here is steeper than 1.13."""
    if activation == "gelu":
        y = 0.5 * value * (1 + torch.erf(value / math.sqrt(2)))
    elif activation == "gelu_tanh":
        y = 0.5 * value * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))
    elif activation == "quick_gelu":
        y = value / (1 + torch.exp(-1.702 * value))
    elif activation == "silu":
        y = value / (1 + torch.exp(-value))
    else:
        y = value
    return y, y.abs() + 1.13 * size


def row_of_each_token(modulation, batch, tokens):
    """[B or 1, G, C] → [B, S, C]: token s reads row s // (S / G)."""
    rows = [s // (tokens // modulation.shape[1]) for s in range(tokens)]
    return modulation.double()[:, rows].expand(batch, tokens, -1)


def in_e4m3(read, precision):
    """Whether x is multiplied as e4m3."""
    return (
        read.data.dtype == torch.float8_e4m3fn
        if isinstance(read, Quantized)
        else (precision.quantize_activations == "fp8")
    )


def check_linear(impl, case: Case):
    batch, tokens, into, out = case.size
    precision = case.precision
    dtype = case.dtype or precision.activations
    target = impl.target(precision) if case.dtype is None else impl.flowing(case.dtype)
    draw = impl.draw(seed=sum(case.size))
    wide = torch.float64 if case.dtype == torch.float64 else case.checkpoint

    def weights():
        w = draw.normal(out, into, std=into**-0.5, dtype=wide)
        w[0] *= 100.0  # one loud channel: a scale per tensor would drown the others
        if out > 4:
            w[-1] = 0.0
        return w, draw.normal(out, std=0.5, dtype=wide) if case.bias else None

    stack = [weights() for _ in range(case.stacked)]
    gate_half = weights() if case.gated else (None, None)
    total = out * case.stacked

    packed_alike = impl.functions.pack_linear(torch.ones(1, 1, device=impl.device), target=target)
    top, rounds_to = packed_alike.code_top, packed_alike.rounds_to
    read, x = source_of(case, draw, dtype, batch, tokens, into, top)
    if precision.quantize_activations is not None and not isinstance(read, Quantized):
        x = in_eight_bits(x, precision.quantize_activations) if top is None else in_codes(x, top)
    if rounds_to is not None and not isinstance(read, Quantized):
        x = x.to(rounds_to).double()
    gate = None
    if case.groups is not None:
        # a row of a modulation table, as the blocks pass it
        rows = 1 if case.shared_gate else batch
        table = draw.normal(rows, case.groups, 6, total, dtype=dtype if case.narrow_gate else wide)
        gate = table.unbind(2)[2]
    residual = draw.normal(batch, tokens, total, std=2.0, dtype=dtype) if case.residual != "none" else None

    def call(op):
        if op is impl.plain and top is not None:
            exact = dataclasses.replace(precision, quantize_activations=None)
            return call_with(op, x.float(), Target(impl.device, exact))
        if op is impl.plain and rounds_to is not None:
            return call_with(op, x.float(), target)
        return call_with(op, read, target)

    def call_with(op, read, target):
        if case.stacked > 1:
            packed = op.pack_linear([w for w, _ in stack], [b for _, b in stack], target=target)
        else:
            w, b = stack[0]
            packed = op.pack_linear(w, b, gate_weight=gate_half[0], gate_bias=gate_half[1], target=target)
        held = residual.clone() if case.residual == "aliased" else residual
        buffer = held if case.residual == "aliased" else None
        if case.out:
            buffer = draw.poison(batch, tokens, total, dtype=dtype)
        got = op.linear(read, packed, activation=case.activation, gate=gate, residual=held, out=buffer)
        if buffer is not None:
            impl.expect(got.data_ptr() == buffer.data_ptr(), "did not write into out")
        return got

    weight = torch.cat([as_stored(w, precision) for w, _ in stack])
    bias = torch.cat([b for _, b in stack]) if case.bias else None
    y, size = project(x, weight, bias)
    if case.gated:
        g, g_size = activate(*project(x, as_stored(gate_half[0], precision), gate_half[1]), case.activation)
        y, size = g * y, g_size * y.abs() + g.abs() * size
    else:
        y, size = activate(y, size, case.activation)
    if gate is not None:
        rows = row_of_each_token(gate, batch, tokens)
        y, size = rows * y, rows.abs() * size
    if residual is not None:
        y, size = residual.double() + y, residual.double().abs() + size
    inputs = [t for t in (read if isinstance(read, tuple) else (read,)) if isinstance(t, torch.Tensor)]
    inputs += [t for t in (gate, residual) if t is not None]
    # the tensor cores of Ada and Hopper add e4m3 products with about 14 bits (arXiv 2412.19437, 3.3.2)
    eight = precision.weights == torch.float8_e4m3fn and in_e4m3(read, precision)
    lost = 2.0**-13 if eight and architecture(impl.device) in (89, 90) else 0.0
    # plain PyTorch rounds to x's dtype after every step, but sums a row's terms in fp32
    impl.judge(call, y, size[0], dtype, rounded=size[1], unchanged=inputs, lost=lost)


def source_of(case, draw, dtype, batch, tokens, into, top):
    """What the op reads, and the same as one float64 tensor."""
    if case.source in ("fp8", "int8"):
        scale = draw.uniform(batch, tokens, 1, low=0.01, high=0.03)
        steps = draw.normal(batch, tokens, into, std=50.0)
        steps = round_to_e4m3(steps.double()) if case.source == "fp8" else steps.round().clamp(-127, 127)
        data = steps.to(torch.float8_e4m3fn if case.source == "fp8" else torch.int8)
        return Quantized(data, scale), data.double() * scale.double()
    x = draw.normal(batch, tokens, into, std=case.std, dtype=dtype)
    if case.precision.quantize_activations is not None:
        x = without_ties(x, case.precision.quantize_activations, top)
    if case.source == "pair":
        return (x[..., :5].contiguous(), x[..., 5:].contiguous()), x.double()
    if case.source == "columns":
        wider = draw.normal(batch, tokens, into + 9, dtype=dtype)
        wider[..., 4 : 4 + into] = x
        return wider[..., 4 : 4 + into], x.double()
    if case.source == "transposed":
        return x.transpose(0, 1).contiguous().transpose(0, 1), x.double()
    return x, x.double()


@pytest.mark.parametrize("name", CASES)
def test_linear(impl, name):
    check_linear(impl, CASES[name])


def wrapped(impl, before=None, after=None):
    """The implementation's `linear` with its arguments changed before, or its result after."""

    def run(x, weight, **options):
        if before is not None:
            x, weight, options = before(x, weight, dict(options))
        out = options.get("out")
        y = impl.functions.linear(x, weight, **options)
        if after is None:
            return y
        y = after(y.clone(), options)
        return y if out is None else out.copy_(y)

    return run


def with_options(**changed):
    """Options replaced by functions of what was given."""

    def before(x, weight, options):
        for key, change in changed.items():
            if options.get(key) is not None:
                options[key] = change(options[key])
        return x, weight, options

    return before


def drop_last_feature(x, weight, options):
    if isinstance(x, torch.Tensor):
        x = x.clone()
        x[..., -1] = 0
    return x, weight, options


def swap_pair(x, weight, options):
    return (torch.cat(x, -1).roll(5, -1) if isinstance(x, tuple) else x), weight, options


def half_inputs(x, weight, options):
    return (x.to(torch.bfloat16).to(x.dtype) if isinstance(x, torch.Tensor) else x), weight, options


def quantise_each_source_alone(x, weight, options):
    if isinstance(x, tuple):
        x = torch.cat([in_eight_bits(part, "int8").float() for part in x], dim=-1)
    return x, weight, options


def gate_the_residual_too(y, options):
    if options.get("gate") is None or options.get("residual") is None or options.get("out") is not None:
        return y
    rows = row_of_each_token(options["gate"], y.shape[0], y.shape[1]).to(y.dtype)
    return y + (rows - 1) * options["residual"]


def last_row_unwritten(y, options):
    y[-1, -1] = float("nan")
    return y


def result_cut(impl):
    def run(x, weight, **options):
        if not isinstance(x, torch.Tensor) or x.dtype != torch.bfloat16:
            return impl.functions.linear(x, weight, **options)
        return impl.cut_to_bf16(impl.functions.linear(x.float(), weight, **options))

    return {"linear": run}


def repack(impl, change):
    def pack(weight, bias=None, **options):
        return impl.functions.pack_linear(*change(weight, bias, options), **options)

    return pack


def scale_per_tensor(weight, bias, options):
    if isinstance(weight, torch.Tensor) and options["target"].precision.weights == torch.int8:
        weight = in_eight_bits(weight.reshape(1, -1), "int8").reshape(weight.shape).float()
    return weight, bias


def truncate_weights(weight, bias, options):
    if isinstance(weight, torch.Tensor) and options["target"].precision.weights == torch.bfloat16:
        weight = (weight.contiguous().view(torch.int32) & -65536).view(torch.float32)
    return weight, bias


def drop_bias(weight, bias, options):
    return weight, torch.zeros_like(bias) if isinstance(bias, torch.Tensor) else bias


def swap_gate_and_value(weight, bias, options):
    if options.get("gate_weight") is not None:
        weight, options["gate_weight"] = options["gate_weight"], weight
        bias, options["gate_bias"] = options["gate_bias"], bias
    return weight, bias


def swap_stacked(weight, bias, options):
    return (weight[::-1] if isinstance(weight, list) else weight), bias


def other_gelu(activation):
    return {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}.get(activation, activation)


MISTAKES = {
    "erf_for_tanh": lambda impl: {"linear": wrapped(impl, with_options(activation=other_gelu))},
    "gate_one_group_off": lambda impl: {"linear": wrapped(impl, with_options(gate=lambda g: g.roll(1, 1)))},
    "gate_of_the_first_sample": lambda impl: {"linear": wrapped(impl, with_options(gate=lambda g: g[:1]))},
    "gate_on_the_residual": lambda impl: {"linear": wrapped(impl, after=gate_the_residual_too)},
    "residual_dropped": lambda impl: {"linear": wrapped(impl, with_options(residual=torch.zeros_like))},
    "last_feature_dropped": lambda impl: {"linear": wrapped(impl, drop_last_feature)},
    "last_row_unwritten": lambda impl: {"linear": wrapped(impl, after=last_row_unwritten)},
    "sources_swapped": lambda impl: {"linear": wrapped(impl, swap_pair)},
    "sources_quantised_alone": lambda impl: {"linear": wrapped(impl, quantise_each_source_alone)},
    "result_cut": result_cut,
    "inputs_in_bf16": lambda impl: {"linear": wrapped(impl, half_inputs)},
    "scale_per_tensor": lambda impl: {"pack_linear": repack(impl, scale_per_tensor)},
    "weights_truncated": lambda impl: {"pack_linear": repack(impl, truncate_weights)},
    "bias_dropped": lambda impl: {"pack_linear": repack(impl, drop_bias)},
    "gate_and_value_swapped": lambda impl: {"pack_linear": repack(impl, swap_gate_and_value)},
    "stack_reversed": lambda impl: {"pack_linear": repack(impl, swap_stacked)},
}


# Small cases first: interpreted kernels are slow, and most mistakes show anywhere.
BY_COST = dict(sorted(CASES.items(), key=lambda named: math.prod(named[1].size)))


@pytest.mark.planted
@pytest.mark.parametrize("mistake", MISTAKES)
def test_planted_mistakes_are_noticed(impl, mistake):
    if mistake == "result_cut":
        impl.flowing(torch.bfloat16)
    assert impl.catches(check_linear, BY_COST, **MISTAKES[mistake](impl))


@pytest.mark.parametrize("precision", CPU)
def test_packed_weights_have_the_size_of_their_precision(impl, precision):
    out, into = 320, 256
    weight = impl.draw().normal(out, into)
    packed = impl.functions.pack_linear(
        weight, gate_weight=weight, gate_bias=None, bias=None, target=impl.target(CPU[precision])
    )
    assert (packed.in_features, packed.out_features, packed.gated) == (into, out, True)
    ideal = 2 * out * into * CPU[precision].weights.itemsize
    assert ideal <= packed.nbytes <= 1.1 * ideal


@pytest.mark.parametrize("change", ["gate", "out", "activation", "gate_bias"])
def test_what_does_not_fit_is_refused(impl, change):
    draw, target = impl.draw(), impl.target(CPU["fp32"])
    packed = impl.functions.pack_linear(draw.normal(5, 3), target=target)
    options = {
        "gate": {"gate": draw.normal(2, 4, 5)},  # 4 groups of 6 tokens
        "out": {"out": draw.poison(2, 6, 4)},
        "activation": {"activation": "relu"},
        "gate_bias": {},
    }[change]
    with pytest.raises(ValueError, match=r"wanted|writes|match"):
        if change == "gate_bias":
            bias = draw.normal(5)
            impl.functions.pack_linear(draw.normal(5, 3), bias, gate_weight=draw.normal(5, 3), target=target)
        impl.functions.linear(draw.normal(2, 6, 3), packed, **options)


def test_gradients_flow_through_the_reference(impl):
    """Training runs on the reference."""
    if impl.backend != "reference":
        pytest.skip("only the reference is trained through")
    draw = impl.draw()
    weight, gate_weight = (draw.normal(5, 3).requires_grad_() for _ in range(2))
    bias = draw.normal(5).requires_grad_()
    x, gate, residual = (draw.normal(*shape).requires_grad_() for shape in ((2, 6, 3), (2, 3, 5), (2, 6, 5)))
    packed = impl.functions.pack_linear(
        weight, bias, gate_weight=gate_weight, gate_bias=bias, target=impl.target(CPU["fp32"])
    )
    impl.functions.linear(x, packed, activation="gelu_tanh", gate=gate, residual=residual).square().sum().backward()
    for leaf in (weight, gate_weight, bias, x, gate, residual):
        assert leaf.grad is not None and bool((leaf.grad != 0).any()) and bool(leaf.grad.isfinite().all())


def test_case_fields_are_all_used():
    """Every option of the table is in some case: an option that no case takes is not tested."""
    default = Case()
    for field in dataclasses.fields(Case):
        assert any(getattr(case, field.name) != getattr(default, field.name) for case in CASES.values()), field.name
