"""The mutator itself: its edits are single, they compile, and they reach every kind of mistake."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("kernel_mutator", Path(__file__).with_name("mutate.py"))
mutator = sys.modules["kernel_mutator"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutator)

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
SOURCE = '''
"""A file."""
import triton
import triton.language as tl

LIMIT = 3


def launch(x):
    return x + 1


@triton.jit
def kernel(x, y, n, stride, BLOCK: tl.constexpr):
    """What it does: 1 + 1."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = (i < n) & (i >= 2)
    h = tl.load(x + i * stride, mask=mask, other=0.0)
    h = tl.where(mask, h, 1.5)
    total = tl.sum(h, axis=0)
    total += 2.0
    if BLOCK > 16:
        total = tl.maximum(total, 0.0)
    tl.store(y + i, total, mask=mask)
'''


@pytest.fixture(scope="module")
def found():
    return mutator.mutants(SOURCE)


def test_every_kind_of_mistake_is_made(found):
    said = "\n".join(m.what for m in found)
    for part in (
        "i < n with LtE",
        "i * stride with Add",
        "without its right side",
        "0.0 becomes 0.125",
        "1.5 becomes 2.375",
        "h = tl.where(mask, h, 1.5) dropped",
        "by max",
        "by minimum",
        "total += 2.0 turned",
        "if BLOCK > 16 negated",
    ):
        assert part in said, part


def test_each_differs_in_one_statement_and_only_in_the_kernel(found):
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in found:
        lines = mutant.source.splitlines()
        assert len(lines) == len(plain)
        different = [i for i, (a, b) in enumerate(zip(lines, plain, strict=True)) if a != b]
        assert len(different) == 1, mutant.what
        assert different[0] > plain.index("@triton.jit")
        compile(mutant.source, "mutant", "exec")
    assert len({m.what for m in found}) > 0.9 * len(found)


def test_axes_shapes_and_texts_are_left_alone(found):
    for mutant in found:
        assert "axis=0" in mutant.source and "tl.arange(0, BLOCK)" in mutant.source and "1 + 1." in mutant.source


def test_samples_are_spread_and_repeatable(found):
    assert mutator.sample(found, 5) == mutator.sample(found, 5)
    assert len(mutator.sample(found, 5)) == 5
    assert mutator.sample(found, 5, seed=1) != mutator.sample(found, 5)


def test_mutants_of_the_kernels_compile():
    for file in KERNELS.glob("*/triton*.py"):
        made = mutator.mutants(file.read_text(encoding="utf-8"))
        for name in {m.function for m in made}:
            compile(next(m.source for m in made if m.function == name), str(file), "exec")
