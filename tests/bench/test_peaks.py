"""The peaks: what is probed by what, shares of them, and the native loop beside one of another hand."""

import ctypes
import os
import shutil
import subprocess
import time

import pytest
import torch

from kinema.bench import native_peak
from kinema.bench.peaks import Peaks, Rate, held, probe, said, units_of
from kinema.ops import target_for
from kinema.ops.common import native

CPU = torch.device("cpu")
needs_library = pytest.mark.skipif(
    native_peak.native_peak(1) is None, reason="the native kernels are not built: make native"
)


def test_the_best_of_two_looks_is_kept():
    one = Peaks({"fp32": Rate(2e9, "a"), "int8": Rate(1e9, "b")}, Rate(5e9, "c"))
    two = Peaks({"fp32": Rate(1e9, "d"), "int8": Rate(3e9, "e")}, Rate(6e9, "f"))
    best = Peaks({"fp32": Rate(2e9, "a"), "int8": Rate(3e9, "e")}, Rate(6e9, "f"))
    assert one.better(two) == two.better(one) == best
    assert said(best.as_dict()) == "2 GFLOP/s of fp32 (a), 3 GFLOP/s of int8 (e), copies of 6.0 GB/s (f)"


def test_work_of_several_units_has_the_sum_of_their_least_times():
    peaks = Peaks({"fp32": Rate(100.0, ""), "int8": Rate(400.0, "")}, Rate(10.0, ""))
    assert peaks.share_of_flops({"fp32": 100}, 2.0) == 0.5
    assert peaks.share_of_flops({"fp32": 100, "int8": 400}, 2.0) == 1.0
    assert peaks.share_of_flops({"fp32": 100, "bf16": 1}, 2.0) is None, "that unit has no peak"
    assert peaks.share_of_flops({"fp32": 100, "bf16": 0}, 1.0) == 1.0
    assert peaks.share_of_bytes(10.0, 4.0) == 0.25


def test_every_precision_of_a_run_has_its_peak():
    own = native_peak.native_peak(1)
    multiplied = ["bf16"] if own is not None and "bf16" in own.units else []
    assert units_of([target_for(CPU, name) for name in ("fp32", "bf16", "int8")]) == ["fp32", *multiplied, "int8"]
    found = probe(CPU, ["fp32", "int8"], rounds=2)
    assert set(found.flops) == {"fp32", "int8"}
    assert all(1e8 < rate.per_second < 1e15 for rate in (*found.flops.values(), found.copy))


@needs_library
def test_what_is_held_is_a_longer_look_of_the_same_loops():
    (peak,) = probe(CPU, ["fp32"], rounds=2).flops.values()
    call, operations = held(CPU, "fp32")
    started = time.perf_counter()
    call()
    assert 0.05 < operations / (time.perf_counter() - started) / peak.per_second < 1.1
    assert (held(CPU, "bf16") is None) is ("bf16" not in native_peak.native_peak(2).units)


@pytest.mark.parametrize(("unit", "by"), [("fp32", "torch.mm"), ("int8", "torch._int_mm"), ("bf16", "torch.mm")])
def test_without_the_library_torch_multiplies(unit, by, monkeypatch):
    monkeypatch.setattr("kinema.bench.peaks.native_peak", lambda threads: None)
    found = probe(CPU, [unit], rounds=2)
    assert found.flops[unit].how == f"{by} of 32 squared" and found.copy.how == "torch's copy"


@needs_library
@pytest.mark.parametrize("isa", native.instruction_sets())
def test_the_loop_does_what_it_counts(isa, monkeypatch):
    """More steps are more operations, in proportion; and each thread does its own."""
    with native.forced(isa):
        cpu = native.cpu()
    one, two = (native_peak.NativePeak(cpu, threads) for threads in (1, 2))
    one.arithmetic("fp32")  # declares the signature
    done = {}
    function, count = cpu.library.kinema_probe_arithmetic, ctypes.c_int64()
    for unit in one.units:
        for peak in (one, two):
            for steps in (512, 1536):  # a tile of int8 or bf16 is up to 512 deep
                dtype = native_peak.DTYPES[unit]
                assert function(cpu.handle, dtype, steps, peak.threads, ctypes.byref(count)) == 0
                done[peak.threads, steps] = count.value
        assert done[1, 1536] == 3 * done[1, 512] and done[2, 512] == 2 * done[1, 512] > 0
    for dtype in {native.BF16, native.F16, native.E4M3} - {native_peak.DTYPES[unit] for unit in one.units}:
        with pytest.raises(ValueError, match="a number format is not taken"):
            cpu.check(function(cpu.handle, dtype, 1, 1, ctypes.byref(count)))


@needs_library
def test_one_disturbed_call_does_not_make_the_probe_short(monkeypatch):
    """As the first of a process is, which makes the threads."""
    monkeypatch.setattr(native_peak, "SECONDS", 2e-3)
    undisturbed, calls = native_peak._seconds, []
    monkeypatch.setattr(native_peak, "_seconds", lambda call: calls.append(1) or undisturbed(call) + len(calls) % 3)
    probes = []
    for _ in range(3):  # a busy machine may disturb three calls in a row by itself, hardly so often
        call, operations = native_peak.native_peak(1).arithmetic("fp32")
        probes.append(min(undisturbed(call) for _ in range(9)))
        assert operations > 1e6
    assert max(probes) > 0.5e-3


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_copy_is_whole(threads):
    source, target = torch.randn(1001), torch.full((1001,), float("nan"))
    peak = native_peak.native_peak(threads)
    assert peak is not None
    peak.copy(source, target)()
    assert torch.equal(source, target)


# Another hand's loop: named sums, squares that fold back, no code of csrc
LOOP = """
#if defined(__AVX512F__)
typedef float v __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float v __attribute__((vector_size(32)));
#else
typedef float v __attribute__((vector_size(16)));
#endif
double run(long steps, float scale, float *out) {
    v s = {0}, a = s + 1, b = s + 2, c = s + 3, d = s + 4, e = s + 5, f = s + 6, g = s + 7, h = s + 8, i = s + 9,
      j = s + 10, m = s - scale, p = s + 0.25f;
    while (steps--) {
        a = p - a * m; b = p - b * m; c = p - c * m; d = p - d * m; e = p - e * m;
        f = p - f * m; g = p - g * m; h = p - h * m; i = p - i * m; j = p - j * m;
    }
    *out = (a + b + c + d + e + f + g + h + i + j)[0];
    return 10.0 * 2 * sizeof(v) / sizeof(float);
}
"""


@needs_library
@pytest.mark.slow
def test_the_peak_is_that_of_an_independent_loop(tmp_path, monkeypatch):
    """In one process, interleaved, the best of many short runs of each; three tries, since others disturb."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "loop.c").write_text(LOOP)
    flags = ["-O3", "-march=native", "-ffast-math", "-Wno-psabi", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, tmp_path / "loop.c", "-o", tmp_path / "loop.so"], check=True)
    run = ctypes.CDLL(str(tmp_path / "loop.so")).run
    run.restype, run.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.c_float, ctypes.c_void_p]
    monkeypatch.setattr(native_peak, "SECONDS", 1e-3)
    peak = native_peak.native_peak(1)
    assert peak is not None
    ours, operations = peak.arithmetic("fp32")
    out, steps = ctypes.c_float(), 100_000
    ratios = []
    for _ in range(3):
        best = [0.0, 0.0]
        for _ in range(300):
            started = time.perf_counter()
            ours()
            between = time.perf_counter()
            per_step = run(steps, 0.5, ctypes.byref(out))
            ended = time.perf_counter()
            best = [max(best[0], operations / (between - started)), max(best[1], steps * per_step / (ended - between))]
        ratios.append(best[0] / best[1])
        print(f"native {best[0] / 1e9:.1f} GFLOP/s, independent {best[1] / 1e9:.1f}, ratio {ratios[-1]:.4f}")
    assert any(abs(ratio - 1) < 0.05 for ratio in ratios), ratios
