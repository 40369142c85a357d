"""docs/environment.md has every environment variable that is read, and none that is not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

FOLDERS = ("engine", "kernels", "benchmarks", "csrc")
BUILDING = ("setup.py", "Makefile", "CMakeLists.txt")
NAME = re.compile(r"\bKINEMA_[A-Z0-9_]*[A-Z0-9](?![A-Za-z0-9_])")  # not the beginning of one that CMake makes
GETENV = re.compile(r'getenv\(\s*"(\w+)"')


def sources(root: Path) -> list[Path]:
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file()]
    kinds = (".py", ".cpp", ".h", ".cu", ".cuh")
    return [*(path for path in files if path.suffix in kinds), *(root / name for name in BUILDING)]


def ours(path: Path) -> set[str]:
    """Names of kinema's: in Python those in a text, in C++ those that are read; there, others are constants."""
    text = path.read_text()
    if path.suffix == ".py":
        texts = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        return {name for value in texts if isinstance(value, str) for name in NAME.findall(value)}
    if path.suffix:
        names = NAME.findall(text) if path.name == "CMakeLists.txt" else GETENV.findall(text)
        return set(names)
    return set(NAME.findall(text))


def read(source: str) -> set[str]:
    """What Python code takes from os.environ, whoever's it is; "?" for what is no name here."""
    tree, found = ast.parse(source), set()
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            key = node.slice
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            *("os.environ.get", "os.environ.pop", "os.environ.setdefault"),
            *("os.getenv", "getenv", "environ.get"),
        ):
            key = node.args[0]
        if isinstance(key, ast.Constant):
            found.add(str(key.value))
        elif key is not None:
            found.add(str(constants.get(ast.unparse(key), "?")))
    return found


@pytest.fixture(scope="module")
def page(root: Path) -> set[str]:
    """Whatever the page shows as code and is written like a variable."""
    text = (root / "docs" / "environment.md").read_text()
    return set(re.findall(r"`([A-Z][A-Z0-9_]+)`", text))


def test_every_name_of_ours_is_on_the_page(root, page):
    found = {name: path for path in sources(root) for name in ours(path)}
    assert {"KINEMA_CACHE", "KINEMA_CPU_ISA", "KINEMA_NATIVE", "KINEMA_SANITIZE", "KINEMA_TRACEBACK"} <= set(found)
    assert {name: str(path.relative_to(root)) for name, path in found.items() if name not in page} == {}


def test_the_page_has_no_name_of_ours_that_nothing_knows(root, page):
    found = {name for path in sources(root) for name in ours(path)}
    assert {name for name in page if name.startswith("KINEMA_")} - found == set()


def test_every_variable_that_is_read_is_on_the_page(root, page):
    for path in sources(root):
        if path.suffix == ".py":
            assert read(path.read_text()) <= page, path.relative_to(root)


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('os.environ.get("A")', {"A"}),
        ('os.environ["A"] = "1"', {"A"}),
        ('os.getenv("A", "b")', {"A"}),
        ('A = "KINEMA_B"\nos.environ.get(A)', {"KINEMA_B"}),
        ("os.environ.get(name)", {"?"}),
        ("dict(os.environ)", set()),
    ],
)
def test_what_is_read_is_found(source, names):
    assert read(source) == names
