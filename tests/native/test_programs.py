"""Programs: the same calls once more by one call of the library, ended by the first that is refused or interrupted."""

import ctypes
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kinema.ops.common import Target, native
from kinema.ops.common.interrupts import Interrupted, StopFlag, stopped_by
from kinema.ops.common.precision import PRECISIONS
from kinema.ops.common.program import NotRecordable, record
from kinema.ops.linear.cpu import linear, pack_linear
from kinema.ops.norm_modulate.cpu import norm_modulate

pytestmark = pytest.mark.skipif(not native.instruction_sets(), reason="the native kernels are not built")
HEADER = Path(__file__).parents[2] / "csrc" / "include" / "kinema.h"
CPU = Target(torch.device("cpu"), PRECISIONS["cpu"]["fp32"])


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


@pytest.fixture
def body():
    """Two calls, and what they read; the first one's result is a tensor of its own."""
    x, weight = numbers(1, 40, 32), pack_linear(numbers(48, 32, seed=1), numbers(48, seed=2), target=CPU)
    return x, lambda: linear(norm_modulate(x, eps=1e-6), weight, activation="gelu")


def test_the_ops_are_numbered_as_in_the_header():
    (listed,) = re.findall(r"enum kinema_op \{(.*?)\}", HEADER.read_text(), re.DOTALL)
    found = dict(re.findall(r"KINEMA_(\w+) = (\d+)", listed))
    assert {name.upper(): str(i) for i, name in enumerate(native.PROGRAM_OPS)} == found


def test_a_program_reads_its_inputs_anew(body):
    x, run = body
    program, result = record(run)
    assert program.length == 2
    for seed in range(3):
        x.copy_(numbers(*x.shape, seed=seed + 10))
        spoiled = [torch.full((n,), float("nan"), dtype=torch.float32) for n in (1280, 1920, 4096) for _ in range(30)]
        del spoiled
        wanted = run()
        result.fill_(float("nan"))
        program()
        assert torch.equal(result, wanted)


def test_a_flag_ends_it(body):
    _, run = body
    program, result = record(run)
    flag = StopFlag()
    flag.set()
    result.fill_(7.0)
    with stopped_by(flag), pytest.raises(Interrupted):
        program()
    assert (result == 7.0).all(), "nothing was begun"


def test_calls_of_two_instruction_sets_are_not_recorded(body):
    x, run = body
    known = native.instruction_sets()
    if len(known) < 2:
        pytest.skip("one instruction set")

    def both():
        run()
        with native.forced(known[1]):
            return norm_modulate(x, eps=1e-6)

    with pytest.raises(NotRecordable, match=known[1]):
        record(both)


def test_what_cannot_be_appended(body):
    library, handle = native.cpu().library, native.cpu().handle
    program = ctypes.c_void_p()
    assert library.kinema_program_create(handle, ctypes.byref(program)) == 0
    arguments = ctypes.create_string_buffer(1024)  # zeros: every size 0
    for op in (-1, len(native.PROGRAM_OPS)):
        assert library.kinema_program_append(program, op, arguments) == 7
    assert library.kinema_program_append(program, 0, None) == 5
    assert library.kinema_program_run(program, None) == 0, "of no calls"
    library.kinema_program_destroy(program)


def test_a_call_that_is_refused_ends_it(body):
    _, run = body
    program, result = record(run)
    arguments, _ = program._held[0]
    arguments.threads = -1
    result.fill_(7.0)
    with pytest.raises(ValueError, match="native kernel"):
        program()
    assert (result == 7.0).all(), "the call behind it was not made"


def test_recording_imports_no_compiler():
    """A second of a short program's start."""
    code = """
import sys, torch
from kinema.ops.common.program import record
from kinema.ops.norm_modulate.cpu import norm_modulate
x = torch.ones(1, 4, 8, dtype=torch.float32)
record(lambda: norm_modulate(x, eps=1e-6).view(4, 8))
print([name for name in ("torch._dynamo", "sympy", "triton") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
