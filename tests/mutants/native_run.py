"""Mutation run over the native kernels: `make mutants-native`, or `python tests/mutants/native_run.py --file gemm.h`.

Each mutant is built in a folder of its own, for the best instruction set of this processor and for the portable one,
and the tests of what the file computes run on it until one fails. A crash or a run that takes too long is a kill as
well; what does not compile is no mutant. Survivors that change nothing are explained in native_by_hand.py.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from kinema.ops.common import native

sys.path.insert(0, str(Path(__file__).parent))

import native_by_hand
import session
from mutate import sample
from native_mutate import mutants
from session import Job

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "csrc" / "cpu"
LINEAR = ("linear",)
ROWS = ("norm_modulate", "qk_norm_rope", "quantize", "scheduler_step")
CONVOLUTIONS = ("conv3d",)
ATTENTION = ("attention",)
# the contract tests of a file's kernels; tests/native run for every file
TESTS: dict[str, tuple[str, ...]] = {
    "attention.h": ATTENTION,
    "attention_bf16.h": ("attention_bf16",),
    "attention_i8.h": ATTENTION,
    "attention_keys.h": ATTENTION,
    "bf16.h": (*LINEAR, "attention_bf16"),
    "conv3d.h": CONVOLUTIONS,
    "conv3d_copy.h": CONVOLUTIONS,
    "conv3d_few.h": CONVOLUTIONS,
    "epilogue.h": LINEAR,
    "gemm.h": LINEAR,
    "linear.h": LINEAR,
    "math.h": LINEAR,
    "micro.h": (*LINEAR, *ATTENTION),
    "panels.h": LINEAR,
    "patches.h": ("patch_embed", "unpatchify"),
    "rows.h": ROWS,
    "winograd.h": CONVOLUTIONS,
    "winograd_transforms.h": CONVOLUTIONS,
}


def jobs(files: list[str], each: int, seed: int, only_by_hand: bool) -> list[Job]:
    made = []
    for name in files:
        file = KERNELS / name
        made += session.by_hand("cpu", file, native_by_hand.MUTANTS.get(name, ()))
        if not only_by_hand:
            made += [Job("cpu", file, m) for m in sample(mutants(file.read_text(encoding="utf-8")), each, seed)]
    return made


def build(job: Job, folder: Path, isa: str) -> Path | None:
    """The library with the mutant in it; None if that does not compile."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copy(ROOT / "CMakeLists.txt", folder)
    (folder / "csrc" / "cpu" / job.file.name).write_text(job.mutant.source, encoding="utf-8")
    made = folder / "build"
    # tests of a mutant take less time than its optimisation would
    options = ["-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -w", f"-DKINEMA_TABLES={isa}"]
    for command in (["cmake", "-S", str(folder), "-B", str(made), *options], ["cmake", "--build", str(made)]):
        if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode:
            return None
    return made / "libkinema_cpu.so"


def survives(job: Job, isa: str) -> bool | None:
    with tempfile.TemporaryDirectory() as folder:
        library = build(job, Path(folder), isa)
        if library is None:
            return None
        return session.survives(lambda: _test(job, library))


def _test(job: Job, library: Path) -> int:
    """The tests of the file's kernels, on the mutant."""
    torch.set_num_threads(2)
    os.environ[native.LIBRARY_VARIABLE] = str(library)
    native.LIBRARY = library
    native._load.cache_clear()
    native._cpu.cache_clear()
    contracts = [str(path) for op in TESTS[job.file.name] for path in sorted(Path("tests/ops").glob(f"test_{op}*.py"))]
    chosen = "(cpu-cpu or direct-cpu or native) and not portable and not doctor"
    options = ["-x", "-q", "-p", "no:cacheprovider", "-k", chosen]
    return int(pytest.main([*contracts, "tests/native/test_native.py", *options], plugins=[session.Spread()]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", action="append", choices=list(TESTS), help="only this file; may be repeated")
    parser.add_argument("--each", type=int, default=3, help="mutants of each function (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="side by side (%(default)s)")
    parser.add_argument("--by-hand", action="store_true", help="only the hand-written ones")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    known = native.instruction_sets()
    if not known:
        raise SystemExit("the native kernels are not built: make native")
    files = [name for name in arguments.file or TESTS if known[0] == "avx512bf16" or name != "bf16.h"]
    work = jobs(files, arguments.each, arguments.seed, arguments.by_hand)
    tested, survivors = session.run(work, lambda job: survives(job, known[0]), arguments.processes)
    return session.verdict(tested, survivors, lambda job: native_by_hand.reason(job.file.name, job.mutant.what))


if __name__ == "__main__":
    raise SystemExit(main())
