"""Lays kinema out as a tree of links to its sources, the way an installed package looks; needs nothing but Python 3.10.

python benchmarks/source_tree.py FOLDER              for editors and type checkers (`make types`)
python benchmarks/source_tree.py FOLDER WORDS ...    then runs `kinema WORDS ...` from it, without an installation
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def links() -> dict[Path, Path]:
    """{path in the tree: file or folder on disk}, as setup.py maps them."""
    wanted = {Path("kinema", "bench"): ROOT / "benchmarks"}
    for folder, name in (("engine", "kinema"), ("engine/ops", "kinema/ops"), ("kernels", "kinema/ops")):
        for path in (ROOT / folder).iterdir():
            if path not in (ROOT / "engine" / "ops", ROOT / folder / "__pycache__"):
                wanted[Path(name, path.name)] = path
    return wanted


def lay(tree: Path) -> None:
    """Make `tree` hold these links and no others."""
    wanted = links()
    for package in ("kinema", "kinema/ops"):
        (tree / package).mkdir(parents=True, exist_ok=True)
        for path in (tree / package).iterdir():
            if path.is_symlink() and wanted.get(path.relative_to(tree)) != path.readlink():
                path.unlink()
    for name, path in wanted.items():
        if not (tree / name).is_symlink():
            (tree / name).symlink_to(path)


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036, this file runs where nothing has been checked yet
        sys.exit(f"kinema needs Python 3.10 or newer, this is {sys.version.split()[0]} ({sys.executable})")
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    tree, *words = sys.argv[1:]
    lay(Path(tree))
    if words:
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(tree).resolve()), *([before] if before else [])])
        os.execv(sys.executable, [sys.executable, "-m", "kinema", *words])


if __name__ == "__main__":
    main()
