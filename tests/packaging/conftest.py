"""Archives built from a copy of the checkout: building in place would leave build/ and stale files behind."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMPILES = shutil.which("cmake") is not None and any(
    map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))
)
BUILDING = {**os.environ, "KINEMA_NATIVE": "on" if COMPILES else "off", "CMAKE_BUILD_TYPE": "Debug"}


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def package_dir(root: Path) -> dict[str, str]:
    """setup.py's map, read without running a build."""
    import setuptools

    given: dict[str, Any] = {}
    patched = pytest.MonkeyPatch()
    with patched.context() as context:
        context.setattr(setuptools, "setup", given.update)
        runpy.run_path(str(root / "setup.py"))
    assert given["packages"] == list(given["package_dir"])
    found: dict[str, str] = given["package_dir"]
    return found


@pytest.fixture(scope="session")
def building() -> dict[str, str]:
    """The environment that archives are built in."""
    return BUILDING


@pytest.fixture(scope="session")
def native() -> bool:
    """Whether the native kernels can be built here."""
    return COMPILES


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without what a build or a test left in it, that builds one table of native kernels."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "out", "out.*", "*.so")
    copy = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "kinema", ignore=ignored))
    cmake, tables = copy / "CMakeLists.txt", "set(KINEMA_TABLES avx2 avx512 avx512vnni avx512bf16)"
    assert tables in cmake.read_text()
    cmake.write_text(cmake.read_text().replace(tables, "set(KINEMA_TABLES avx2)"))
    return copy


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))


def build_wheel(source: Path, folder: Path) -> Path:
    """With the setuptools of this environment, and no index; the native kernels unoptimised, which is soon done."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source], check=True, env=BUILDING)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed into a folder of its own; on PYTHONPATH it comes before an editable kinema."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--target", folder]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    return folder
