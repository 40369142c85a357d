"""`linear` by PyTorch's products in 8 bits: what goes to them keeps the contract, what cannot goes to F.linear.

torch._scaled_mm and torch._int_mm run on the CPU too, so the real ones are called, behind a door that also demands what
they demand on a GPU.
"""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kinema.errors import UnsupportedError
from kinema.ops import plan_ops
from kinema.ops.common import PRECISIONS, Precision, Quantized, Target
from kinema.ops.common.launch import recording
from kinema.ops.linear import libraries, scaled_mm
from kinema.ops.linear import reference as plain


def neighbour(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


contract = neighbour("test_linear_contract")
shared = neighbour("conftest")
Case, GPU, CPU = contract.Case, PRECISIONS["cuda"], PRECISIONS["cpu"]
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
DEVICE, META = torch.device("cpu"), torch.device("meta")

SIZE = (2, 12, 48, 32)
CASES = {
    **{f"{k}_{b}x{s}x{i}x{o}": Case((b, s, i, o), GPU[k]) for k in ("fp8", "int8") for b, s, i, o in (
        (1, 17, 16, 16), (3, 7, 112, 48), (2, 33, 64, 160), (1, 24, 256, 32),
    )},
    **{f"{k}_{a}": Case(SIZE, GPU[k], activation=a) for k in ("fp8", "int8") for a in contract.ACTIVATIONS},
    **{f"{k}_gated": Case(SIZE, GPU[k], activation="gelu_tanh", gated=True) for k in ("fp8", "int8")},
    **{f"{k}_gate": Case(SIZE, GPU[k], groups=3, residual="given") for k in ("fp8", "int8")},
    **{f"{k}_in_place": Case(SIZE, GPU[k], groups=4, residual="aliased") for k in ("fp8", "int8")},
    **{f"{k}_given": Case(SIZE, GPU[k], source=k, residual="given") for k in ("fp8", "int8")},
    **{f"{k}_pair": Case(SIZE, GPU[k], source="pair") for k in ("fp8", "int8")},
    **{f"{k}_no_bias": Case(SIZE, GPU[k], bias=False, out=True) for k in ("fp8", "int8")},
    **{f"{k}_stacked": Case(SIZE, GPU[k], stacked=3) for k in ("fp8", "int8")},
    **{f"{k}_columns": Case(SIZE, GPU[k], source="columns") for k in ("fp8", "int8")},
    **{f"{k}_transposed": Case(SIZE, GPU[k], source="transposed") for k in ("fp8", "int8")},
    "int8_fp32": Case(SIZE, CPU["int8"], groups=2, residual="given"),
    "fp8_one_token": Case((1, 1, 48, 32), GPU["fp8"]),
}  # fmt: skip
UNTAKEN = {
    "fp8_odd_inputs": Case((2, 12, 40, 32), GPU["fp8"]),
    "fp8_odd_outputs": Case((2, 12, 48, 40), GPU["fp8"]),
    "fp8_given_int8": Case(SIZE, GPU["fp8"], source="int8"),
    "int8_given_fp8": Case(SIZE, GPU["int8"], source="fp8"),
    "int8_few_rows": Case((2, 8, 48, 32), GPU["int8"]),
    "bf16": Case(SIZE, GPU["bf16"], groups=2),
    "fp32": Case(SIZE, GPU["fp32"]),
    "stored_fp8": Case(SIZE, CPU["fp8"]),
    "one_side_in_fp8": Case(SIZE, Precision("one side", BF16, BF16, "fp8")),
    "epilogue": Case(SIZE, GPU["bf16"], activation="gelu_tanh", groups=2, residual="given", out=True),
    "in_place": Case(SIZE, GPU["bf16"], residual="aliased"),
}


@pytest.fixture
def door(monkeypatch):
    """Counts the products, and refuses what a GPU refuses."""
    made = []
    scaled, whole = torch._scaled_mm, torch._int_mm

    def demand(a, b):
        into, out = b.shape
        assert a.stride() == (into, 1) and b.stride() == (1, into), (a.stride(), b.stride())
        assert into % 16 == out % 16 == 0, (into, out)

    def scaled_mm(a, b, scale_a, scale_b, bias=None, scale_result=None, out_dtype=None, use_fast_accum=False):
        demand(a, b)
        assert a.dtype == b.dtype == FP8 and scale_a.dtype == scale_b.dtype == torch.float32
        assert scale_a.shape == (a.shape[0], 1) and scale_b.shape == (1, b.shape[1])
        assert scale_a.is_contiguous() and scale_b.is_contiguous()
        assert out_dtype == BF16 and (bias is None or bias.dtype == BF16) and not use_fast_accum
        made.append("scaled_mm")
        return scaled(a, b, scale_a, scale_b, bias, scale_result, out_dtype, use_fast_accum)

    def int_mm(a, b):
        demand(a, b)
        assert a.dtype == b.dtype == torch.int8 and a.shape[0] > 16
        made.append("int_mm")
        return whole(a, b)

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    monkeypatch.setattr(torch, "_int_mm", int_mm)
    return made


def candidate(**mistakes):
    functions, reference = (SimpleNamespace(linear=m.linear, pack_linear=m.pack_linear) for m in (scaled_mm, plain))
    vars(functions).update(mistakes)
    return shared.Candidate("linear", "torch", DEVICE, lambda target: [], functions, reference)


@pytest.mark.parametrize("name", CASES)
def test_products_in_8_bits_keep_the_contract(door, name):
    contract.check_linear(candidate(), CASES[name])
    assert door == ["int_mm" if name.startswith("int8") else "scaled_mm"]


@pytest.mark.parametrize("name", UNTAKEN)
def test_what_they_cannot_goes_to_plain_products(door, name):
    contract.check_linear(candidate(), UNTAKEN[name])
    assert door == []


def test_nothing_and_other_dtypes_go_to_plain_products(door):
    target = Target(DEVICE, GPU["fp8"])
    packed = scaled_mm.pack_linear(torch.randn(32, 48), target=target)
    assert scaled_mm.linear(torch.empty(2, 0, 48, dtype=BF16), packed).shape == (2, 0, 32)
    wide = scaled_mm.linear(torch.randn(1, 20, 48), packed)
    assert wide.dtype == torch.float32 and door == []


def test_whole_numbers_are_given_in_the_dtype_of_the_input(door):
    packed = scaled_mm.pack_linear(torch.randn(32, 48), target=Target(DEVICE, GPU["int8"]))
    x = torch.randn(1, 20, 48)
    assert scaled_mm.linear(x, packed).dtype == torch.float32
    assert scaled_mm.linear(x.half(), packed).dtype == torch.float16
    assert door == ["int_mm", "int_mm"]


def test_weights_are_the_reference_s_bit_for_bit():
    weight, bias = torch.randn(32, 48), torch.randn(32)
    for kind in ("fp8", "int8"):
        target = Target(DEVICE, GPU[kind])
        ours, theirs = (m.pack_linear(weight, bias, target=target) for m in (scaled_mm, plain))
        assert isinstance(ours, scaled_mm.QuantizedWeight)
        assert torch.equal(ours.weight.float(), theirs.weight.float()) and torch.equal(ours.scale, theirs.scale)
        assert torch.equal(ours.bias, theirs.bias) and ours.nbytes == theirs.nbytes


def test_inputs_are_quantised_by_whoever_is_best(door):
    pytest.importorskip("triton")
    with recording(90) as made:
        packed = scaled_mm.pack_linear(torch.empty(32, 48, device=META), target=Target(META, GPU["fp8"]))
        y = scaled_mm.linear(torch.empty(1, 20, 48, dtype=BF16, device=META), packed)
    assert y.shape == (1, 20, 32) and door == ["scaled_mm"]
    assert [launch.kernel.__name__ for launch in made.launches] == ["_quantize"]


# ---- planted mistakes


def other_row_scale(x, weight):
    return Quantized(x.data, x.scale.roll(1, 1)), weight


def other_channel_scale(x, weight):
    return x, replace(weight, scale=weight.scale.roll(1))


def other_bias(x, weight):
    return x, replace(
        weight,
        bias=weight.bias.roll(1) if weight.bias is not None else None,
        bias_bf16=weight.bias_bf16.roll(1) if weight.bias_bf16 is not None else None,
    )


def bias_left_out(x, weight):
    return x, replace(weight, bias=None, bias_bf16=None)


def last_feature_left_out(x, weight):
    data = x.data.clone()
    data[..., -1] = 0
    return Quantized(data, x.scale), weight


@pytest.mark.parametrize("kind", ["fp8", "int8"])
@pytest.mark.parametrize(
    "mistake", [other_row_scale, other_channel_scale, other_bias, bias_left_out, last_feature_left_out]
)
def test_mistakes_in_the_product_are_noticed(monkeypatch, kind, mistake):
    product = scaled_mm._product
    monkeypatch.setattr(scaled_mm, "_product", lambda x, weight, dtype: product(*mistake(x, weight), dtype))
    named = {name: case for name, case in CASES.items() if name.startswith(kind)}
    named = dict(sorted(named.items(), key=lambda item: math.prod(item[1].size)))
    assert candidate().catches(contract.check_linear, named)


# ---- the plan


def choice(arch, precision, backend="auto"):
    with recording(arch):
        made = plan_ops(Target(META, GPU[precision]), backend)
    return next(c for c in made.choices if c.op == "linear")


@pytest.mark.parametrize("arch", [80, 89, 90, 100, 120])
def test_triton_is_preferred_and_the_reason_is_given(arch):
    pytest.importorskip("triton")
    for precision in GPU:
        made = choice(arch, precision)
        if (arch, precision) == (80, "fp8"):
            assert made.backend == "reference" and "8.9" in dict(made.rejected)["torch"]
            continue
        if (arch, precision) == (90, "fp8"):  # measured to be faster
            assert made.backend == "torch" and "torch is preferred" in dict(made.rejected)["triton"]
            continue
        assert made.backend == "triton" and made.rest is None
        assert "separate passes" in dict(made.rejected)["torch"]


def test_without_triton_it_is_torch(monkeypatch):
    monkeypatch.setattr(libraries, "triton_unsupported", lambda target: ["triton is not installed"])
    assert libraries.torch_not_preferred(Target(META, GPU["fp8"])) == []
    assert libraries.torch_not_preferred(Target(META, GPU["bf16"])) == []


def test_an_old_torch_has_no_scale_per_row_everywhere(monkeypatch):
    monkeypatch.setattr(libraries, "torch_version", lambda: (2, 7))
    reasons = {}
    for arch in (80, 89, 90, 100, 103, 120):
        with recording(arch):
            reasons[arch] = libraries.torch_unsupported(Target(META, GPU["fp8"]))
            assert libraries.torch_unsupported(Target(META, GPU["bf16"])) == []
    assert [arch for arch, reason in reasons.items() if not reason] == [89, 90]
    assert "from torch 2.8 on" in reasons[103][0] and "from torch 2.9 on" in reasons[120][0]
    with recording(hip=True):
        assert "NVIDIA" in libraries.torch_unsupported(Target(META, GPU["fp8"]))[0]


def test_a_cpu_multiplies_them_too_but_has_the_reference():
    for precision in (*CPU.values(), GPU["fp8"]):
        assert libraries.torch_unsupported(Target(DEVICE, precision)) == []
        assert libraries.torch_not_preferred(Target(DEVICE, precision)) == [
            "on a CPU the reference makes the same calls"
        ]


def test_an_older_gpu_is_named():
    with recording(86):
        reasons = libraries.torch_unsupported(Target(META, GPU["fp8"]))
    assert reasons == ["e4m3 needs compute capability 8.9, the GPU has 8.6"]


def test_forced_it_runs_or_raises_with_its_reasons():
    assert choice(90, "fp8", "torch").backend == "torch"
    assert choice(80, "bf16", "torch").backend == "torch"
    with pytest.raises(UnsupportedError, match=r"'torch' cannot run linear here: e4m3 needs compute capability 8.9"):
        choice(80, "fp8", "torch")


def test_the_version_of_torch_is_read():
    assert libraries.torch_version() >= (2, 6)
