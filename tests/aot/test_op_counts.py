"""FLOPs, traffic and bounds of calls, against what a reader would count by hand."""

from functools import partial

import pytest
import torch

from kinema.bench.gpus import GPUS, bound
from kinema.bench.op_counts import Count, count
from kinema.ops.calls import Inputs
from kinema.ops.cases import all_cases
from kinema.ops.common import PRECISIONS, Quantized, Target
from kinema.ops.plan import OPS

META = torch.device("meta")
A100, ADA, H100, B200 = GPUS


def new(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device=META)


def counted(op, name, precision):
    """The case's count, of the reference on meta tensors: a count belongs to the contract, not to a kernel."""
    case = next(c for c in all_cases() if (c.op, c.name) == (op, name))
    reference = next(i for o in OPS if o.name == op for i in o.implementations if i.backend == "reference")
    call = case.prepare(reference.load(), Target(META, PRECISIONS["cuda"][precision]), Inputs(META))
    return count(op, call, call())


def test_names_of_cases_are_unique():
    names = [(case.op, case.name) for case in all_cases()]
    assert len(names) == len(set(names))


def test_linear():
    rows, dim = 32760, 1536
    made = counted("linear", "1.3B 32760 out", "bf16")
    assert (made.unit, made.flops) == ("bf16", 2 * rows * dim * dim)
    # x, residual and result in 2 bytes; weights in 2; bias and gate in 4
    assert made.bytes == 3 * rows * dim * 2 + dim * dim * 2 + 2 * dim * 4


def test_linear_in_8_bits():
    rows, dim = 32760, 1536
    made = counted("linear", "1.3B 32760 cross out", "int8")
    assert (made.unit, made.flops) == ("int8", 2 * rows * dim * dim)
    assert made.bytes == rows * (dim + 4) + 2 * rows * dim * 2 + dim * dim + 2 * dim * 4  # scales of tokens and columns


def test_gated_linear():
    assert counted("linear", "UMT5 gated", "bf16").flops == 2 * (2 * 512 * 4096 * 10240)


def test_attention():
    made = counted("attention", "sample 1280 cross", "bf16")
    assert made.flops == 4 * 3 * 64 * 1280 * 512 and made.exponentials == 3 * 1280 * 512
    assert made.bytes == 3 * 64 * 2 * (2 * 1280 + 2 * 512)


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("1.3B causal", sum(4680 * 4680 * (block + 1) for block in range(7))),
        ("1.3B one tile in nine", 32760 * 29 * 128),
        ("1.3B chunk and cache", 4680 * (4680 + 28080)),
    ],
)
def test_attention_counts_what_queries_see(name, pairs):
    case = next(c for c in all_cases() if c.name == name)
    functions = type("Functions", (), {"attention": staticmethod(lambda q, kv, **_: (new(1, q.shape[2], 1536),))})
    call = case.prepare(functions, Target(META, PRECISIONS["cuda"]["bf16"]), Inputs(META))
    assert count("attention", call, call()).exponentials == 12 * pairs


def test_conv3d_reads_and_writes_its_cache():
    made = counted("conv3d", "VAE 96", "fp32")
    values = 96 * 480 * 832
    assert made.flops == 2 * 27 * 96 * 4 * values
    # input, residual and result of four frames, two past frames twice; weights, bias and norm
    assert made.bytes == 4 * ((3 * 4 + 2 * 2) * values + 27 * 96 * 96 + 2 * 96)


def test_what_an_axis_repeats_is_read_once():
    x, scale = new(1, 8, 64), new(1, 1, 64, dtype=torch.float32).expand(1, 8, 64)
    call = partial(lambda *_, **__: None, x, eps=1e-6, scale=scale)
    assert count("norm_modulate", call, new(1, 8, 64)).bytes == 2 * 8 * 64 * 2 + 64 * 4


def test_a_quantized_result_has_its_scales():
    call = partial(lambda *_: None, new(1, 8, 64), "int8")
    result = Quantized(new(1, 8, 64, dtype=torch.int8), new(1, 8, 1, dtype=torch.float32))
    assert count("quantize", call, result).bytes == 8 * 64 * 2 + 8 * 64 + 8 * 4


def test_bounds():
    work = Count("bf16", flops=int(989.4e9), exponentials=0, bytes=int(3.35e9))
    assert bound(H100, work).microseconds == pytest.approx(1000.0)
    assert bound(H100, Count("bf16", int(989.4e9), 0, 0)).by == "bf16"
    assert bound(H100, Count("bf16", 0, 0, int(3.35e9))).by == "memory"
    assert bound(A100, Count("fp8", 1, 0, 1)) is None, "an A100 multiplies no fp8"


def test_fp32_takes_the_faster_way():
    assert A100.peak("fp32") == pytest.approx(52.0)  # six bf16 products
    assert ADA.peak("fp32") == pytest.approx(82.6)  # its own units


def test_the_exponentials_of_attention_outlast_b200s_tensor_cores():
    made = counted("attention", "sample 1280 self", "bf16")
    wide = Count("bf16", made.flops * 10**4, made.exponentials * 10**4, 0)
    assert bound(B200, Count("bf16", 512 * 10**9, 10**9, 0)).by == "exp2"  # D = 128
    assert bound(H100, Count("bf16", 512 * 10**9, 10**9, 0)).by == "bf16"
    assert bound(B200, wide).by == "exp2"
