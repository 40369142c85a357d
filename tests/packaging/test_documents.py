"""What the documents point at is there."""

from __future__ import annotations

import re

import pytest

LINK = re.compile(r"\]\(([^)#\s]+)[^)\s]*\)")
PATH = re.compile(r"(?<![\w/.-])((?:engine|kernels|benchmarks|csrc|tests|docs|examples)/[\w./-]*\w)")
MODULE = re.compile(r"\bkinema(?:\.\w+)+")
NOT_YET = {"docs/gpu.jsonl"}  # what a run on a GPU will have written
OTHERS = {"kernels/gemm/educational_b200"}  # in another project's repository
NO_MODULES = {"kinema.ops.scheduler_step.toy", "kinema.h"}  # made up; a header


def documents(root):
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    return [*(root / name for name in names), *(root / "docs").glob("*.md"), *(root / "kernels").glob("*/README.md")]


def test_every_link_leads_somewhere(root):
    for page in documents(root):
        targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
        missing = [target for target in targets if not (page.parent / target).exists()]
        assert missing == [], page.relative_to(root)


def test_every_path_is_there(root):
    for page in documents(root):
        missing = {path for path in PATH.findall(page.read_text()) if not (root / path).exists()} - NOT_YET - OTHERS
        assert missing == set(), page.relative_to(root)


def test_every_module_is_there(root, package_dir):
    """kinema.a.b, or the file that has the name b in its text."""
    for page in documents(root):
        for name in set(MODULE.findall(page.read_text())) - NO_MODULES:
            assert known(root, package_dir, name), f"{page.relative_to(root)}: {name}"


def known(root, package_dir, name):
    parts = name.split(".")
    packages = [".".join(parts[: i + 1]) for i in range(len(parts)) if ".".join(parts[: i + 1]) in package_dir]
    folder, rest = root / package_dir[packages[-1]], parts[len(packages) :]
    if not rest:
        return True
    file = folder / f"{rest[0]}.py"
    if not file.is_file():
        file, rest = folder / "__init__.py", ["", *rest]
    return len(rest) < 2 or re.search(rf"\b{rest[1]}\b", file.read_text()) is not None


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("kinema.ops.plan", True),
        ("kinema.errors.Interrupted", True),
        ("kinema.load_vae", True),
        ("kinema.models", False),
        ("kinema.models.wan", False),
        ("kinema.errors.Nonsense", False),
    ],
)
def test_a_module_that_went_away_is_noticed(root, package_dir, name, wanted):
    assert known(root, package_dir, name) is wanted
