"""Mutation run over the Triton kernels: `make mutants`, or `python tests/mutants/run.py --op linear --each 10`.

Each mutant is put in the place of its kernel file in a forked process, and the op's tests run until one fails. A crash
or a run that takes too long is a kill as well. Survivors that change nothing are explained in explained.py.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import by_hand
import explained
from mutate import Mutant, mutants, sample

ROOT = Path(__file__).resolve().parents[2]
LEAST_KILLED = 0.95
TIMEOUT = 240.0  # seconds of the processor, so that a busy machine kills no mutant; one may loop for ever


@dataclass(frozen=True)
class Job:
    op: str
    file: Path
    mutant: Mutant
    by_hand: bool = False


def kernel_files(op: str) -> list[Path]:
    return sorted((ROOT / "kernels" / op).glob("triton*.py"))


def jobs(ops: list[str], each: int, seed: int, only_by_hand: bool) -> Iterator[Job]:
    for op in ops:
        for file in kernel_files(op):
            source = file.read_text(encoding="utf-8")
            for name, old, new in by_hand.MUTANTS.get(f"{op}/{file.name}", ()):
                if source.count(old) != 1:
                    raise SystemExit(
                        f"by_hand.py, {op}/{file.name}, {name!r}: its text is there {source.count(old)} times"
                    )
                yield Job(op, file, Mutant("by hand", name, source.replace(old, new)), by_hand=True)
            if not only_by_hand:
                for mutant in sample(mutants(source), each, seed):
                    yield Job(op, file, mutant)


class Spread:
    """Runs the first case of every test, then the second of each and so on: a mistake shows in many cases of a test."""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        seen: Counter[str] = Counter()
        turns = {}
        for item in items:
            turns[item] = seen[item.originalname]
            seen[item.originalname] += 1
        items.sort(key=turns.__getitem__)


def survives(job: Job) -> bool:
    """Whether the op's tests stay green in a process of their own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.setitimer(signal.ITIMER_PROF, TIMEOUT)
            code = _test(job)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _test(job: Job) -> int:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    torch.set_num_threads(1)
    package = f"kinema.ops.{job.op}"
    for name in [n for n in sys.modules if n.startswith(f"{package}.triton")]:
        del sys.modules[name]
    with tempfile.TemporaryDirectory() as folder:
        changed = Path(folder) / job.file.name
        changed.write_text(job.mutant.source, encoding="utf-8")
        _load(f"{package}.{job.file.stem}", changed)
        importlib.import_module(f"{package}.triton")
        # a kernel's own tests first: they are the quicker ones
        own = sorted(Path("tests/triton").glob(f"*{job.op}*.py"))
        tests = map(str, own + sorted(Path("tests/ops").glob(f"test_{job.op}*contract.py"), reverse=True))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-k", "(triton or small_ops) and not planted and not noticed"]
        return int(pytest.main([*tests, *options], plugins=[Spread()]))


def _load(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def run(work: list[Job], processes: int, report: Callable[[str], None]) -> list[Job]:
    """The survivors."""
    alive: dict[int, tuple[int, Job, float]] = {}
    survivors, waiting = [], list(enumerate(work))
    while waiting or alive:
        while waiting and len(alive) < processes:
            number, job = waiting.pop(0)
            child = os.fork()
            if child == 0:
                os._exit(0 if survives(job) else 1)
            alive[child] = (number, job, time.monotonic())
        child, status = os.wait()
        number, job, started = alive.pop(child)
        survived = os.waitstatus_to_exitcode(status) == 0
        if survived:
            survivors.append(job)
        verdict = "SURVIVED" if survived else "killed"
        seconds = time.monotonic() - started
        report(f"[{number + 1}/{len(work)}] {verdict:8} {seconds:5.1f} s  {job.op}/{job.file.name} {job.mutant.what}")
    return survivors


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
    survivors = run(work, arguments.processes, lambda line: print(line, flush=True))
    unexplained = [j for j in survivors if explained.reason(j.op, j.mutant.what) is None]
    automatic = [j for j in work if not j.by_hand]
    lost = [j for j in survivors if j.by_hand]
    killed = len(automatic) - len([j for j in survivors if not j.by_hand])
    if automatic:
        print(f"{killed} of {len(automatic)} automatic mutants killed, {100 * killed / len(automatic):.1f} %")
    print(f"{len(work) - len(automatic) - len(lost)} of {len(work) - len(automatic)} hand-written mutants killed")
    for job in survivors:
        reason = explained.reason(job.op, job.mutant.what) or "NOT EXPLAINED"
        print(f"survivor: {job.op}/{job.file.name} {job.mutant.what}: {reason}")
    good = not unexplained and not lost and (not automatic or killed >= LEAST_KILLED * len(automatic))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
