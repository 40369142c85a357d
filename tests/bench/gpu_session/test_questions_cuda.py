"""csrc/cuda/conformance compiles, for every architecture that it has parts for, and writes what is read here."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kinema.bench.gpu_session import number_formats as formats
from kinema.bench.gpu_session.questions.conformance import OPTIONS, SOURCE, architecture
from kinema.bench.gpu_session.vectors import read_recording

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

# what main.cu would write, of made-up results: without a GPU no kernel runs
WRITER = """
#include "vectors.h"
int main(int, char **argv) {
    using namespace conformance;
    Vectors to(7);
    std::vector<float> x(3000);
    std::vector<uint16_t> bf16, fp16;
    std::vector<uint8_t> e4m3;
    for (float &value : x) {
        value = std::ldexp(to.random.normal(), to.random.below(9) - 4);
        bf16.push_back(to_bf16(value)), fp16.push_back(to_fp16(value)), e4m3.push_back(to_e4m3(value));
    }
    to.begin("first", "kind", "a.b");
    to.option("count", 4);
    to.option("flag", true);
    to.array("x", {30, 100}, x);
    to.array("bf16", {3000}, bf16);
    to.begin("second", "kind", "c.d");
    to.array("fp16", {3000}, fp16);
    to.array("e4m3", {3000}, e4m3);
    to.array("whole", {2}, std::vector<int32_t>{-5, 1 << 30});
    to.array("bits", {1}, std::vector<uint32_t>{0xdeadbeef});
    to.absent("third", "is not here");
    to.absent("fourth", "neither");
    to.write(argv[1], "a GPU", 90, 13000, 13000);
    Vectors nothing(1);
    nothing.write(argv[2], "a GPU", 90, 13000, 13000);
}
"""


def nvcc(*words):
    done = subprocess.run(["nvcc", *OPTIONS, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_kernels_compile_for_hopper(tmp_path):
    """A product that the compiler has to serialise would be a warning."""
    cubin = tmp_path / "conformance.cubin"
    assert "warning" not in nvcc("-cubin", "-gencode", architecture((9, 0)), SOURCE, "-o", cubin).lower()
    names = cubin.read_bytes()
    kernels = ("load_matrices", "multiply", "multiply_chain", "copy_boxes", "drive_barrier", "convert")
    assert all(kernel.encode() in names for kernel in kernels)


@pytest.mark.slow
def test_the_program_is_built_for_every_gpu_and_looks_at_every_code(tmp_path):
    every = [word for gpu in ((8, 0), (8, 9), (9, 0), (12, 0)) for word in ("-gencode", architecture(gpu))]
    said = nvcc(*every, "-Xcompiler", "-Wall,-Wextra", SOURCE, "-o", tmp_path / "conformance")
    assert "warning" not in said.lower()
    run = subprocess.run([tmp_path / "conformance", tmp_path], capture_output=True, text=True, check=False)
    if run.returncode == 0:  # there is a GPU
        assert read_recording(tmp_path).vectors
    else:
        assert "cudaGetDeviceProperties" in run.stderr and not (tmp_path / "vectors.json").exists()
    usage = subprocess.run([tmp_path / "conformance"], capture_output=True, text=True, check=False)
    assert usage.returncode == 1 and "usage" in usage.stderr


def test_what_the_program_writes_is_read(tmp_path):
    (tmp_path / "writer.cu").write_text(WRITER)
    (tmp_path / "empty").mkdir()
    nvcc("-I", SOURCE.parent, tmp_path / "writer.cu", "-o", tmp_path / "writer")
    subprocess.run([tmp_path / "writer", tmp_path, tmp_path / "empty"], check=True)
    found = read_recording(tmp_path)
    assert found.head == {
        **{"format": 1, "gpu": "a GPU", "capability": 90, "driver": 13000, "runtime": 13000},
        "seed": 7,
    }
    assert found.absent == {"third": "is not here", "fourth": "neither"}
    first, second = found.vectors
    assert (first.name, first.kind, first.instruction) == ("first", "kind", "a.b")
    assert first.options == {"count": 4, "flag": 1} and second.options == {}
    x = first.arrays["x"]
    assert x.shape == (30, 100) and 0.5 < np.median(np.abs(x)) < 1.5, "normal numbers, made larger and smaller"
    x = x.reshape(-1)
    assert np.array_equal(first.arrays["bf16"], formats.to_bf16(x))
    small = {"fp16": 2.0**-14, "e4m3": 2.0**-6}  # what is subnormal there is drawn as zero
    for name, to in (("fp16", formats.to_fp16), ("e4m3", formats.to_e4m3)):
        normal = np.abs(x) >= small[name]
        assert np.array_equal(second.arrays[name][normal], to(x)[normal])
        assert np.all(second.arrays[name][~normal] & (0x7FFF if name == "fp16" else 0x7F) == 0)
    assert list(second.arrays["whole"]) == [-5, 1 << 30] and second.arrays["bits"][0] == 0xDEADBEEF
    assert json.loads((tmp_path / "empty" / "vectors.json").read_text())["vectors"] == []


def test_an_architecture_has_its_own_instructions():
    assert architecture((8, 9)) == "arch=compute_89,code=sm_89"
    assert architecture((9, 0)) == "arch=compute_90a,code=sm_90a"
    assert Path(SOURCE).is_file()
