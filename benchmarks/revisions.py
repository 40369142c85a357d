"""Runs one benchmark on several git revisions of kinema, in turns, each from a temporary checkout.

The order alternates from turn to turn, and a row's samples of all turns are merged, so that drift affects all alike.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import kinema
from kinema.bench.report import Report, read_report
from kinema.errors import KinemaError, RequestError

LIBRARY = "libkinema_cpu.so"


def checkout() -> Path:
    """The git checkout that kinema runs from. Raises RequestError outside of one."""
    root = Path(kinema.__file__).resolve().parent.parent
    if not ((root / ".git").exists() and (root / "engine").is_dir()):
        raise RequestError("kinema does not run from a git checkout, so there are no revisions: give result files")
    return root


def commit_of(name: str, root: Path) -> str:
    """The full hash of a revision. Raises RequestError if there is no such revision."""
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except (OSError, subprocess.CalledProcessError) as error:
        raise RequestError(f"{name} is neither a result file nor a revision of {root}") from error


def measured(
    commits: Sequence[str], words: Sequence[str], root: Path, turns: int, progress: Callable[[str], None]
) -> list[Report]:
    """A report of every commit, of `kinema bench WORDS` run `turns` times. Raises KinemaError where one cannot run."""
    with tempfile.TemporaryDirectory(prefix="kinema-revisions-") as temporary:
        folder = Path(temporary)
        reports: list[list[Report]] = [[] for _ in commits]
        with _trees(commits, root, folder, progress) as trees:
            for turn in range(turns):
                order = list(enumerate(trees))
                for i, tree in order if turn % 2 == 0 else reversed(order):
                    progress(f"{commits[i][:10]}, {turn + 1} of {turns}: kinema bench {' '.join(words)}")
                    reports[i].append(_run(tree, words, folder / f"{i}-{turn}.json"))
    return [merged(found) for found in reports]


def merged(reports: Sequence[Report]) -> Report:
    """The first report, each row with the samples of all; a row that one of them did not time is not timed."""
    from kinema.bench.report import timing

    first, *others = reports
    rows = []
    for row in first.get("rows", []):
        same = [next((r for r in other.get("rows", []) if r["name"] == row["name"]), None) for other in others]
        untimed = next((r for r in [row, *same] if r is None or "samples" not in r), row)
        if untimed is None:
            rows.append({"name": row["name"], "failed": "not in every turn"})
        elif "samples" not in untimed:
            rows.append(untimed)
        else:
            samples = [value for r in [row, *same] if r is not None for value in r["samples"]]
            rows.append({**row, **timing(row["name"], samples)})
    return {**first, "rows": rows}


@contextmanager
def _trees(commits: Sequence[str], root: Path, folder: Path, progress: Callable[[str], None]) -> Iterator[list[Path]]:
    """A folder to import kinema from for each commit; removed afterwards, together with git's worktree records."""
    found: list[Path] = []
    try:
        for i, commit in enumerate(commits):
            source = folder / f"source-{i}"
            _checked(["git", "-C", str(root), "worktree", "add", "--quiet", "--detach", str(source), commit])
            _build(source, folder / f"build-{i}", progress)
            found.append(_importable(source, folder / f"packages-{i}"))
        yield found
    finally:
        for i in range(len(commits)):
            gone = ["git", "-C", str(root), "worktree", "remove", "--force", str(folder / f"source-{i}")]
            subprocess.run(gone, capture_output=True)
        subprocess.run(["git", "-C", root, "worktree", "prune"], capture_output=True)


def _build(source: Path, build: Path, progress: Callable[[str], None]) -> None:
    """Build the native kernels of a checkout, if it has any and they can be built; without them its report says so."""
    if os.environ.get("KINEMA_NATIVE") == "off" or shutil.which("cmake") is None:
        return
    if not (source / "CMakeLists.txt").is_file():
        return
    progress(f"building the native kernels of {source.name}")
    _checked(["cmake", "-S", str(source), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release"])
    _checked(["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)])
    shutil.copy2(build / LIBRARY, source / "kernels" / "common" / LIBRARY)


def _importable(source: Path, packages: Path) -> Path:
    """The checkout as a tree of links laid out like the installed package; setup.py maps the same folders."""
    ops = packages / "kinema" / "ops"
    ops.mkdir(parents=True)
    for folder, target in (("engine", packages / "kinema"), ("engine/ops", ops), ("kernels", ops)):
        for path in (source / folder).glob("*"):
            if path.name not in ("ops", "__pycache__"):
                (target / path.name).symlink_to(path)
    if (source / "benchmarks").is_dir():
        (packages / "kinema" / "bench").symlink_to(source / "benchmarks")
    return packages


def _run(packages: Path, words: Sequence[str], file: Path) -> Report:
    environment = {**os.environ, "PYTHONPATH": str(packages)}
    environment.pop("KINEMA_CPU_LIBRARY", None)  # it is another revision's
    _checked([sys.executable, "-m", "kinema", "bench", *words, "--json", str(file)], environment)
    return read_report(str(file))


def _checked(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    except OSError as error:
        raise KinemaError(f"{command[0]}: {error.strerror or error}") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines() or ["it said nothing"]
        raise KinemaError(f"{' '.join(map(str, command))} ended with code {error.returncode}: {said[-1]}") from error


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=True).stdout.strip()
