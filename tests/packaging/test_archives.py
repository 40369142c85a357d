"""The wheel and the source archive: what is in them, and that they work away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import kinema

DATA = ("py.typed", "sample/model/")
LIBRARY = "kinema/ops/common/libkinema_cpu.so"


def shipped(source: Path) -> set[str]:
    """What belongs in the wheel: every module, and the package's data."""
    files = set()
    for folder, name in (("engine", "kinema"), ("kernels", "kinema/ops"), ("benchmarks", "kinema/bench")):
        for path in (source / folder).rglob("*"):
            relative = path.relative_to(source / folder).as_posix()
            if path.is_file() and (path.suffix == ".py" or (folder == "engine" and relative.startswith(DATA))):
                files.add(f"{name}/{relative}")
    return files


def files_of(wheel: Path) -> tuple[set[str], set[str]]:
    """(the package's files, the metadata's)."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"kinema-{kinema.__version__}.dist-info/"
    return {name for name in names if not name.startswith(info)}, {name.removeprefix(info) for name in names}


def test_the_wheel_is_kinema_and_nothing_else(wheel, source, native):
    files, metadata = files_of(wheel)
    assert {name.split("/")[0] for name in files} == {"kinema"}
    assert files == shipped(source) | ({LIBRARY} if native else set())
    assert {"kinema/py.typed", "kinema/ops/linear/reference.py", "kinema/bench/registry.py"} <= files
    assert {"METADATA", "RECORD", "licenses/LICENSE", "entry_points.txt"} <= metadata


def test_the_wheel_serves_every_python_of_its_platform(wheel, native):
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_") if native else "any"
    assert wheel.name == f"kinema-{kinema.__version__}-py3-none-{platform}.whl"


def test_without_a_compiler_kinema_is_built_all_the_same(source, building, tmp_path):
    """And says what it lacks, in test_native.py; a build that must have the kernels fails."""
    environment = {**building, "KINEMA_NATIVE": "auto", "CXX": "no-such-compiler"}
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path]
    copy = shutil.copytree(source, tmp_path / "source", ignore=shutil.ignore_patterns("build", "tests", "sample"))
    command = [sys.executable, "-m", "pip", "wheel", *options, copy]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    files, _ = files_of(built)
    assert "kinema/ops/common/native.py" in files and LIBRARY not in files
    failed = subprocess.run(command, env={**environment, "KINEMA_NATIVE": "on"}, capture_output=True, text=True)
    assert failed.returncode != 0 and "the native kernels could not be built" in failed.stdout + failed.stderr


def test_the_source_archive_builds_the_same_wheel(source, wheel, building, tmp_path):
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.iterdir()
    assert archive.name == f"kinema-{kinema.__version__}.tar.gz"
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    assert {"LICENSE", "README.md", "Makefile", "constraints.txt", "tests"} <= set(os.listdir(unpacked))
    (tmp_path / "again").mkdir()
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path / "again"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, unpacked], check=True, env=building)
    assert files_of(tmp_path / "again" / wheel.name) == files_of(wheel)


@pytest.fixture
def elsewhere(installed, tmp_path):
    """Run something away from the checkout, with the installed wheel."""

    def run(*command):
        environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_the_installed_wheel_is_what_runs(elsewhere, installed):
    code = "import kinema, kinema.ops, kinema.ops.linear.reference as r; print(kinema.__file__, r.__file__)"
    done = elsewhere(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(f"{installed}{os.sep}kinema{os.sep}") for path in done.stdout.split())


def test_the_commands_of_the_installed_wheel(elsewhere, installed):
    version = f"kinema {kinema.__version__}\n"
    assert elsewhere(sys.executable, "-m", "kinema", "--version").stdout == version
    assert elsewhere(installed / "bin" / "kinema", "--version").stdout == version
    doctor = elsewhere(sys.executable, "-m", "kinema", "doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert doctor.stdout.startswith(f"kinema {kinema.__version__}, in {installed}")


def test_the_installed_wheel_makes_a_video(elsewhere, installed, tmp_path):
    if not (installed / "kinema" / "sample" / "model" / "model_index.json").exists():
        pytest.skip("the sample model has not been trained")
    words = ("generate", "a red circle moving left", "-o", "out.mp4", "--steps", "2")
    done = elsewhere(sys.executable, "-m", "kinema", *words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 1000
