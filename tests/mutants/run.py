"""Mutation run over the Triton kernels: `make mutants`, or `python tests/mutants/run.py --op linear --each 10`.

Each mutant is put in the place of its kernel file in a forked process, and the op's tests run until one fails. A crash
or a run that takes too long is a kill as well. Survivors that change nothing are explained in explained.py.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import by_hand
import explained
import session
from mutate import mutants, sample
from session import Job

ROOT = Path(__file__).resolve().parents[2]


def kernel_files(op: str) -> list[Path]:
    return sorted((ROOT / "kernels" / op).glob("triton*.py"))


def jobs(ops: list[str], each: int, seed: int, only_by_hand: bool) -> Iterator[Job]:
    for op in ops:
        for file in kernel_files(op):
            yield from session.by_hand(op, file, by_hand.MUTANTS.get(f"{op}/{file.name}", ()))
            if not only_by_hand:
                for mutant in sample(mutants(file.read_text(encoding="utf-8")), each, seed):
                    yield Job(op, file, mutant)


def _test(job: Job) -> int:
    """The op's tests, on the mutant in the place of its kernel file."""
    torch.set_num_threads(1)
    package = f"kinema.ops.{job.group}"
    for name in [n for n in sys.modules if n.startswith(f"{package}.triton")]:
        del sys.modules[name]
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / job.file.name
        changed.write_text(job.mutant.source, encoding="utf-8")
        _load(f"{package}.{job.file.stem}", changed)
        importlib.import_module(f"{package}.triton")
        # a kernel's own tests first: they are the quicker ones
        own = sorted(Path("tests/triton").glob(f"*{job.group}*.py"))
        tests = map(str, own + sorted(Path("tests/ops").glob(f"test_{job.group}*contract.py"), reverse=True))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-k", "(triton or small_ops) and not planted and not noticed"]
        return int(pytest.main([*tests, *options], plugins=[session.Spread()]))


def _load(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [folder.name for folder in sorted((ROOT / "kernels").iterdir()) if kernel_files(folder.name)]
    known = [op for op in known if op != "common"]
    parser.add_argument("--op", action="append", choices=known, help="only this op; may be given several times")
    parser.add_argument("--each", type=int, default=8, help="mutants of each kernel (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (%(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="side by side (%(default)s)")
    parser.add_argument("--by-hand", action="store_true", help="only the hand-written ones")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    work = list(jobs(arguments.op or known, arguments.each, arguments.seed, arguments.by_hand))
    tested, survivors = session.run(work, lambda job: session.survives(lambda: _test(job)), arguments.processes)
    return session.verdict(tested, survivors, lambda job: explained.reason(job.group, job.mutant.what))


if __name__ == "__main__":
    raise SystemExit(main())
