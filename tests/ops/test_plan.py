"""The plan: one implementation per op, chosen once, and a reason for every candidate that was not."""

from types import SimpleNamespace

import pytest
import torch

from kinema.errors import KinemaError, UnsupportedError
from kinema.ops import build_ops, plan, plan_ops, target_for
from kinema.ops.common import PRECISIONS, Implementation, Op, Target, native

CPU = Target(torch.device("cpu"), PRECISIONS["cpu"]["fp32"])
INT8 = Target(torch.device("cpu"), PRECISIONS["cpu"]["int8"])


def wants_a_gpu(target):
    return [] if target.device.type == "cuda" else [f"needs an NVIDIA GPU, the device is {target.device.type}"]


def only_fp32(target):
    reasons = []
    if target.precision.weights != torch.float32:
        reasons.append(f"has no {target.precision.name} kernels")
    if target.precision.quantize_activations is not None:
        reasons.append("does not quantise activations")
    return reasons


REFERENCE = Implementation("reference", "fakes.reference")
FAST = Implementation("cpu", "fakes.cpu", only_fp32)
GPU = Implementation("triton", "fakes.triton", wants_a_gpu)


def op(name, *implementations):
    return Op(name, (name,), implementations)


@pytest.fixture
def fakes(monkeypatch):
    """Three ops: one with every kind of implementation, one with two, one with the reference alone."""
    monkeypatch.setattr(
        plan, "OPS", (op("linear", GPU, FAST, REFERENCE), op("attention", FAST, REFERENCE), op("quantize", REFERENCE))
    )


def decisions(made):
    return {choice.op: (choice.backend, dict(choice.rejected)) for choice in made.choices}


def test_the_first_that_can_run_is_chosen(fakes):
    assert decisions(plan_ops(CPU)) == {
        "linear": (
            "cpu",
            {"triton": "needs an NVIDIA GPU, the device is cpu", "reference": "cpu is preferred"},
        ),
        "attention": ("cpu", {"reference": "cpu is preferred"}),
        "quantize": ("reference", {}),
    }


def test_every_reason_against_a_candidate_is_given(fakes):
    backend, rejected = decisions(plan_ops(INT8))["linear"]
    assert backend == "reference"
    assert rejected["cpu"] == "has no int8 kernels; does not quantise activations"
    assert "GPU" in rejected["triton"]


def test_every_candidate_is_either_chosen_or_rejected_with_a_reason(fakes):
    for target in (CPU, INT8):
        for backend in ("auto", "reference"):
            for known, choice in zip(plan.OPS, plan_ops(target, backend).choices, strict=True):
                rejected = dict(choice.rejected)
                assert {choice.backend, *rejected} == {i.backend for i in known.implementations}
                assert choice.backend not in rejected
                assert all(rejected.values())


def test_a_forced_backend_runs_what_it_implements(fakes):
    assert decisions(plan_ops(CPU, "cpu")) == {
        "linear": ("cpu", {"triton": "backend='cpu' was asked for", "reference": "backend='cpu' was asked for"}),
        "attention": ("cpu", {"reference": "backend='cpu' was asked for"}),
        "quantize": ("reference", {}),  # the best of the rest where it has no kernel
    }


def test_the_forced_reference_beats_what_is_faster(fakes):
    made = decisions(plan_ops(CPU, "reference"))
    assert {backend for backend, _ in made.values()} == {"reference"}
    assert made["linear"][1]["cpu"] == "backend='reference' was asked for"


def test_a_forced_backend_that_cannot_run_is_an_error_with_its_reasons(fakes):
    with pytest.raises(UnsupportedError) as error:
        plan_ops(INT8, "cpu")
    message = str(error.value)
    assert "'cpu'" in message and "linear" in message
    assert "has no int8 kernels; does not quantise activations" in message
    with pytest.raises(UnsupportedError, match="needs an NVIDIA GPU"):
        plan_ops(CPU, "triton")


def test_an_unknown_backend_is_an_error_that_names_the_known(fakes):
    with pytest.raises(UnsupportedError, match=r"'cuda'.*\['cpu', 'reference', 'triton'\] or 'auto'"):
        plan_ops(CPU, "cuda")


def test_the_error_is_one_that_the_command_line_prints(fakes):
    with pytest.raises(KinemaError):
        plan_ops(CPU, "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        plan_ops(CPU, "nonsense")


def test_what_is_not_chosen_is_not_imported(monkeypatch):
    """An op whose Triton file needs triton must load without it."""
    broken = Implementation("triton", "kinema.ops.does_not_exist", wants_a_gpu)
    monkeypatch.setattr(plan, "OPS", tuple(Op(o.name, o.functions, (broken, *o.implementations)) for o in plan.OPS))
    made = plan_ops(CPU, "reference")
    assert dict(made.choices[0].rejected)["triton"] == "backend='reference' was asked for"
    ops = build_ops(made)
    assert ops.plan is made


def test_the_chosen_functions_are_bound(monkeypatch):
    """Two backends in one plan: each op gets its own."""
    modules = {
        "fakes.cpu": SimpleNamespace(attention=lambda: "cpu attention"),
        "fakes.linear": SimpleNamespace(
            linear=lambda: "cpu linear", pack_linear=lambda *args, **options: ("packed by cpu", options["target"])
        ),
    }
    monkeypatch.setattr("kinema.ops.common.capability.importlib.import_module", real_or(modules))
    changed = []
    for known in plan.OPS:
        candidates = known.implementations[-1:]
        if known.name in ("attention", "linear"):
            module = "fakes.cpu" if known.name == "attention" else "fakes.linear"
            candidates = (Implementation("cpu", module, only_fp32), *candidates)
        changed.append(Op(known.name, known.functions, candidates))
    monkeypatch.setattr(plan, "OPS", tuple(changed))

    ops = build_ops(plan_ops(CPU))
    assert ops.attention() == "cpu attention"
    assert ops.linear() == "cpu linear"
    assert ops.pack_linear(torch.zeros(1, 1)) == ("packed by cpu", CPU)
    assert ops.norm_modulate.__module__ == "kinema.ops.norm_modulate.reference"
    assert build_ops(plan_ops(INT8)).attention.__module__ == "kinema.ops.attention.reference"


def real_or(modules):
    import importlib

    real = importlib.import_module
    return lambda name: modules.get(name) or real(name)


# ---- the real ops


def test_every_op_has_a_reference_that_runs_everywhere():
    for known in plan.OPS:
        reference = [i for i in known.implementations if i.backend == "reference"]
        assert len(reference) == 1, known.name
        assert known.implementations[-1] is reference[0], f"{known.name}: the reference comes last, as the slowest"
        for precisions in PRECISIONS.values():
            for precision in precisions.values():
                assert reference[0].unsupported(Target(torch.device("cpu"), precision)) == []


def test_every_op_has_a_contract_test(request):
    folder = request.path.parent
    for known in plan.OPS:
        assert (folder / f"test_{known.name}_contract.py").exists(), known.name


def test_implementations_have_the_functions_of_their_contract():
    for known in plan.OPS:
        for implementation in known.implementations:
            if implementation.unsupported(CPU):
                continue
            module = implementation.load()
            for function in known.functions:
                assert callable(getattr(module, function)), f"{implementation.module} lacks {function}"


def test_ops_are_immutable():
    ops = build_ops(plan_ops(CPU))
    with pytest.raises(AttributeError):
        ops.linear = None
    with pytest.raises(AttributeError):
        ops.plan.choices = ()
    assert (ops.device, ops.dtype) == (torch.device("cpu"), torch.float32)


def test_auto_is_fp32():
    """Lower precision is never on unless asked for."""
    assert target_for().precision.name == "fp32"
    assert target_for("cpu", "bf16").precision is PRECISIONS["cpu"]["bf16"]
    assert target_for("cpu").device == torch.device("cpu")


def test_an_unknown_precision_is_an_error_that_names_the_known():
    with pytest.raises(UnsupportedError, match=r"'fp4'.*'bf16'.*'int8'"):
        target_for("cpu", "fp4")


@pytest.mark.parametrize("device", ["meta", "mps", "gpu", "cpu:zero"])
def test_an_unknown_device_is_an_error_that_names_the_known(device):
    with pytest.raises(UnsupportedError, match=r"'cpu'.*'cuda'"):
        target_for(device)


def test_a_gpu_that_is_not_there_is_an_error():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UnsupportedError, match="no GPU here"):
        target_for("cuda")


def test_exact_weights_keep_fp32_in_any_precision():
    ops = build_ops(plan_ops(INT8, "reference"))
    weight = torch.full((4, 4), 1.0 + 2.0**-20)
    exact, stored = ops.pack_linear(weight, storage="exact"), ops.pack_linear(weight)
    assert exact.nbytes == 64 and stored.nbytes < 64
    assert float(ops.linear(torch.ones(1, 1, 4), exact)[0, 0, 0]) == float(weight.sum(1)[0])


@pytest.mark.parametrize("precision", ["fp8", "int8", "bf16"])
def test_wide_weights_are_not_in_8_bits(precision):
    ops = build_ops(plan_ops(target_for("cpu", precision), "reference"))
    weight = torch.randn(4, 4)
    wide, stored = ops.pack_linear(weight, storage="wide"), ops.pack_linear(weight)
    assert wide.nbytes == (32 if precision == "bf16" else 64) and stored.nbytes <= 32


# ---- attention in 8 bits


def test_attention_is_exact_unless_asked_for():
    assert plan_ops(CPU).quantize_attention is None


def test_attention_multiplies_bf16_where_nothing_is_exact_and_the_processor_has_it():
    has = "avx512bf16" in native.instruction_sets()
    for precision, rounds in {"fp32": False, "fp16": False, "bf16": True, "fp8": True, "int8": True}.items():
        target = Target(torch.device("cpu"), PRECISIONS["cpu"][precision])
        for quantize in (None, "int8"):
            wanted = torch.bfloat16 if rounds and has and native.cpu().isa == "avx512bf16" else None
            assert plan_ops(target, quantize_attention=quantize).attention_dtype == wanted
        assert plan_ops(target, "reference").attention_dtype is None
        for isa in native.instruction_sets()[1:]:
            with native.forced(isa):
                assert plan_ops(target).attention_dtype is None


def test_attention_is_quantized_by_what_has_kernels_for_it(monkeypatch):
    """Not by the first that runs attention; and other ops are chosen as ever."""
    int8 = Implementation("cpu", "fakes.cpu", quantizes=lambda target, kind: [] if kind == "int8" else ["int8 alone"])
    library = Implementation("torch", "fakes.torch", partial=True)
    monkeypatch.setattr(plan, "OPS", (op("linear", FAST, REFERENCE), op("attention", library, int8, REFERENCE)))
    made = plan_ops(CPU, quantize_attention="int8")
    assert made.quantize_attention == "int8"
    assert decisions(made) == {
        "linear": ("cpu", {"reference": "cpu is preferred"}),
        "attention": (
            "cpu",
            {"torch": "does not multiply in int8", "reference": "int8 is no faster in PyTorch"},
        ),
    }
    for backend in ("auto", "cpu"):
        with pytest.raises(UnsupportedError, match=r"quantize_attention='fp8': .*int8 alone.*wanted .* None"):
            plan_ops(CPU, backend, "fp8")
    with pytest.raises(UnsupportedError, match=r"backend 'torch' cannot run attention here: does not multiply in int8"):
        plan_ops(CPU, "torch", "int8")
    for kind in ("fp8", "int8"):
        assert plan_ops(CPU, "reference", kind).backend("attention") == "reference"


def test_an_unknown_kind_is_an_error_that_names_the_known():
    with pytest.raises(UnsupportedError, match=r"quantize_attention 'int4'.*'fp8' or 'int8', or None"):
        plan_ops(CPU, quantize_attention="int4")


def test_kinds_are_those_that_an_implementation_takes():
    """What says that it has no kernel for a kind is Triton for int8 and a CPU's for fp8; the reference has both."""
    found = {i.backend: i for known in plan.OPS if known.name == "attention" for i in known.implementations}
    assert [bool(found["cpu"].quantizes(CPU, kind)) for kind in ("int8", "fp8")] == [False, True]
    assert [bool(found["reference"].quantizes(CPU, kind)) for kind in ("int8", "fp8")] == [False, False]
    assert "not in int8" in found["triton"].quantizes(CPU, "int8")[0]
