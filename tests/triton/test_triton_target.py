"""What the capability records say about an architecture that is only recorded: no GPU is asked."""

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.common import PRECISIONS, Target
from kinema.ops.common.launch import HIP_ARCHITECTURE, architecture, is_hip, recording
from kinema.ops.common.triton_target import fp8_unsupported, triton_unsupported
from kinema.ops.plan import OPS

META = torch.device("meta")
PRODUCTS_OF_E4M3 = "e4m3 needs compute capability 8.9, the GPU has 8.0"


def target(precision):
    return Target(META, PRECISIONS["cuda"][precision])


def reasons(op, precision):
    (triton,) = (i for o in OPS if o.name == op for i in o.implementations if i.backend == "triton")
    return triton.unsupported(target(precision))


@pytest.mark.parametrize("op", ["linear", "quantize", "norm_modulate"])
def test_fp8_is_refused_where_no_instruction_multiplies_it(op):
    with recording(80):
        assert reasons(op, "fp8") == [PRODUCTS_OF_E4M3]
        assert [reasons(op, other) for other in ("fp32", "bf16", "fp16", "int8")] == [[]] * 4


@pytest.mark.parametrize("arch", [89, 90, 100, 120])
def test_fp8_is_taken_from_ada_on(arch):
    with recording(arch):
        assert fp8_unsupported(target("fp8")) == []


def test_what_is_older_than_ampere_is_refused():
    with recording(75):
        assert triton_unsupported(target("bf16")) == ["Triton needs compute capability 8.0, the GPU has 7.5"]
        assert fp8_unsupported(target("fp8")) == ["Triton needs compute capability 8.0, the GPU has 7.5"]


def test_a_gpu_of_amd_does_not_emulate_fp8():
    with recording(hip=True):
        assert is_hip() and architecture(META) == HIP_ARCHITECTURE
        assert [triton_unsupported(target(p)) for p in ("fp32", "bf16", "fp16", "int8")] == [[]] * 4
        (reason,) = fp8_unsupported(target("fp8"))
        assert "e4m3 is emulated" in reason


def test_meta_tensors_alone_are_for_no_architecture():
    assert triton_unsupported(target("bf16")) == fp8_unsupported(target("fp8")) == []
