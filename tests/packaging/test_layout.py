"""The house rules of the folders: an op is a folder with everything that belongs to it, and the map knows all."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest

from kinema.ops.plan import OPS

TARGETS = [("cpu", "fp32"), ("cpu", "bf16"), ("cpu", "int8")]


def test_no_file_in_the_root_shadows_or_collects(root):
    for name in ("kernels/__init__.py", "__init__.py", "conftest.py", "tests/__init__.py", "kernels.py"):
        assert not (root / name).exists(), f"{name} would shadow the public package kernels, or change how tests import"


def test_every_test_file_has_a_name_of_its_own(root):
    names = [path.name for path in (root / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "importlib mode tells modules apart by their names"


def test_the_map_of_packages_is_what_is_on_disk(root, package_dir):
    found = {}
    for folder, name in (("engine", "kinema"), ("kernels", "kinema.ops"), ("benchmarks", "kinema.bench")):
        for path in (root / folder).rglob("*.py"):
            package = path.parent.relative_to(root / folder)
            found[".".join((name, *package.parts))] = path.parent.relative_to(root).as_posix()
    assert package_dir == found, "a folder of modules without __init__.py is not installed"


def test_every_mapped_package_is_the_one_that_is_imported(root, package_dir):
    for name, folder in package_dir.items():
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None, f"{name}: install kinema again (make test)"
        assert spec.origin == str(root / folder / "__init__.py")


def test_every_folder_of_kernels_is_an_op_of_the_plan(root):
    folders = {path.parent.name for path in (root / "kernels").glob("*/__init__.py")} - {"common"}
    assert folders == {op.name for op in OPS}


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_an_op_is_complete(root, op):
    folder = root / "kernels" / op.name
    for name in ("__init__.py", "check.py", "reference.py", "README.md"):
        assert (folder / name).is_file(), f"kernels/{op.name}/{name} is missing"
    assert (root / "tests" / "ops" / f"test_{op.name}_contract.py").is_file()
    assert "reference" in {implementation.backend for implementation in op.implementations}


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_implementation_imports_or_says_why_not(op):
    from kinema.ops import target_for

    for implementation in op.implementations:
        reasons = [implementation.unsupported(target_for(*target)) for target in TARGETS]
        if all(reasons):
            continue
        module = implementation.load()
        assert [name for name in op.functions if not callable(getattr(module, name, None))] == []


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_implementation_is_checked(op):
    """What does not fit is refused by the one check of the op, also where this machine cannot run the kernel."""
    check = importlib.import_module(f"kinema.ops.{op.name}.check")
    for implementation in op.implementations:
        if implementation.backend == "triton" and importlib.util.find_spec("triton") is None:
            continue
        function = getattr(implementation.load(), op.name)
        assert function.__code__ is not inspect.unwrap(function).__code__
        assert function.__code__.co_filename == check.__file__


def test_kernels_do_not_reach_up(root):
    """All arrows run down: what is below kinema.ops knows nothing of the engine."""
    for path in (root / "kernels").rglob("*.py"):
        for module in re.findall(r"^\s*(?:from|import)\s+(kinema[\w.]*)", path.read_text(), re.MULTILINE):
            assert module.startswith("kinema.ops."), f"{path.relative_to(root)} imports {module}"


def test_the_engine_does_not_name_the_libraries_that_it_is_measured_against(root):
    for path in (root / "engine").rglob("*.py"):
        found = re.findall(r"^\s*(?:from|import)\s+(diffusers|transformers)\b", path.read_text(), re.MULTILINE)
        assert not found, f"{path.relative_to(root)} imports {found[0]}"


def test_everything_that_make_installs_is_pinned(root):
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + [dependency for name in extras if name != "cuda" for dependency in extras[name]]
    lines = (root / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    assert {re.split(r"[><=\[;]", dependency)[0] for dependency in wanted} <= pinned


def test_every_verb_that_a_document_names_is_one_of_make(root):
    phony = re.findall(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.MULTILINE)
    verbs = {verb for line in phony for verb in line.split()}
    for path in (root / "CONTRIBUTING.md", root / "README.md", *(root / "docs").glob("*.md"), root / ".ci" / "run"):
        for words in re.findall(r"(?:^ *|`)make ((?:[a-z-]+ ?)+)", path.read_text(), re.MULTILINE):
            assert set(words.split()) <= verbs, f"{path.relative_to(root)}: make {words}"
    shown = (root / "CONTRIBUTING.md").read_text()
    unnamed = {verb for verb in verbs if not re.search(rf"make ([a-z-]+ )*{verb}\b", shown)}
    assert unnamed <= {"test-gpu", "aot-update", "fuzz", "tools", "clean"}, "CONTRIBUTING.md says what a verb is for"
