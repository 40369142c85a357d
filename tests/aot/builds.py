"""Compiles and measures many kernels, each once: what is known by its content is read from the build folder."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from compiled import Job
from measure import Measure, measure

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "aot"
# what a measure is made by: a change of these files makes the stored ones unknown
READERS = ("amdgcn.py", "listing.py", "measure.py", "sass.py")


def build(
    jobs: Iterable[Job], *, folder: Path = FOLDER, processes: int = 2, report: Callable[[str], None] = lambda line: None
) -> dict[str, Measure | str]:
    """{key of a job: its measure, or why it did not compile}. Each compilation is a process of its own, and polite."""
    unique = {job.key: job for job in jobs}
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Measure | str] = {}
    for key in unique:
        if (known := _file(folder, key)).is_file():
            found[key] = Measure.from_json(json.loads(known.read_text(encoding="utf-8")))
    waiting = [job for key, job in unique.items() if key not in found]
    total, children = len(waiting), {}
    with tempfile.TemporaryDirectory(prefix="kinema-aot-") as scratch:
        while waiting or children:
            while waiting and len(children) < processes:
                job = waiting.pop(0)
                children[_start(job, folder, Path(scratch))] = job
            child, status = os.wait()
            job = children.pop(child)
            found[job.key] = _outcome(job, folder, Path(scratch), os.waitstatus_to_exitcode(status))
            report(f"[{total - len(waiting) - len(children)}/{total}] {job.kernel} for {job.chip.name}")
    return found


def _start(job: Job, folder: Path, scratch: Path) -> int:
    """A forked process: the compiler may abort, and what it holds is given back. Returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.nice(19)
        os.environ["TRITON_CACHE_DIR"] = str(scratch / job.key)
        quiet = os.open(os.devnull, os.O_WRONLY)  # what does not compile is printed whole
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        made = json.dumps(measure(job.compile()).as_json())
        written = folder / f"{job.key}.{os.getpid()}"
        written.write_text(made, encoding="utf-8")
        written.replace(_file(folder, job.key))
        code = 0
    except BaseException as error:
        (scratch / f"{job.key}.error").write_text(f"{type(error).__name__}: {error}\n\n{traceback.format_exc()}")
    finally:
        os._exit(code)


def _outcome(job: Job, folder: Path, scratch: Path, code: int) -> Measure | str:
    if code == 0:
        return Measure.from_json(json.loads(_file(folder, job.key).read_text(encoding="utf-8")))
    error = scratch / f"{job.key}.error"
    return error.read_text(encoding="utf-8") if error.is_file() else f"the compiler ended with {code}"


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}-{_readers()}.json"


def _readers() -> str:
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in READERS)
    return hashlib.sha256(sources).hexdigest()[:8]
