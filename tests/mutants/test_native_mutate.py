"""The mutator of the native kernels: single edits of what is computed; and hand-written mistakes that still apply."""

import importlib
import sys
from pathlib import Path

import pytest

KERNELS = Path(__file__).resolve().parents[2] / "csrc" / "cpu"
SOURCE = """\
// 1 + 1
constexpr int64_t BLOCK = 144; // rows

struct Shape {
    int64_t rows, line;

    explicit Shape(const Arguments &a) {
        rows = a.height + a.top;
    }
    int64_t first(int64_t y) const { return max(0, y) * line; }
    int64_t bytes() const { return 4 * rows; }
};

template <int R> inline void kernel(const float *x, int64_t count, float *y) {
    for (int64_t i = 0; i < count; i += W) { // a + b
        __builtin_prefetch(x + i);
        V v = fma(load(x + i), set1(1.0f), set1(0.0f));
        v = add(v, v);
        store(y + i, v);
    }
}
"""


@pytest.fixture(scope="module")
def module():
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        yield lambda name: importlib.import_module(name)
    finally:
        sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def found(module):
    return module("native_mutate").mutants(SOURCE)


def test_every_kind_of_mistake_is_made(found):
    said = {m.what for m in found}
    for part in (
        "Shape: rows = a.height + a.top; becomes rows = a.height - a.top;",
        "Shape: rows = a.height + a.top; dropped",
        "first: int64_t first(int64_t y) const { return max(0, y) * line; } becomes "
        "int64_t first(int64_t y) const { return min(0, y) * line; }",
        "kernel: for (int64_t i = 0; i < count; i += W) { becomes for (int64_t i = 0; i <= count; i += W) {",
        "kernel: v = add(v, v); becomes v = sub(v, v);",
        "kernel: v = add(v, v); dropped",
        "kernel: store(y + i, v); dropped",
        "kernel: store(y + i, v); becomes store(y - i, v);",
    ):
        assert part in said, part


def test_each_differs_in_one_line_that_computes(found):
    plain = SOURCE.splitlines()
    for mutant in found:
        lines = mutant.source.splitlines()
        different = [i for i, (a, b) in enumerate(zip(lines, plain, strict=True)) if a != b]
        assert len(different) == 1, mutant.what
        changed = plain[different[0]]
        assert not changed.startswith(("//", "constexpr")) and "prefetch" not in changed and "bytes" not in changed
    assert len({m.what for m in found}) == len(found)


def test_every_kernel_has_mutants(module):
    native_run = module("native_run")
    for name in native_run.TESTS:
        made = module("native_mutate").mutants((KERNELS / name).read_text(encoding="utf-8"))
        assert len(made) > 20, name
        assert len({m.what for m in made}) == len(made), name


def test_hand_written_mistakes_are_of_texts_that_are_there_once(module):
    session, by_hand = module("session"), module("native_by_hand")
    for name, mistakes in by_hand.MUTANTS.items():
        assert len(session.by_hand("cpu", KERNELS / name, mistakes)) == len(mistakes) > 0
