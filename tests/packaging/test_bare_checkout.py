"""kinema from a checkout that nothing was installed from: a tree of links, and what it may not need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# what an image for GPUs may lack; torch, numpy and Triton it has
ABSENT = ("av", "PIL", "safetensors", "tokenizers", "tqdm", "sentencepiece", "diffusers", "transformers", "accelerate")
BLOCKED = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
"""


@pytest.fixture
def bare(root, tmp_path):
    """Run `kinema WORDS` by way of a tree of links, in a process that has none of ABSENT."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCKED)

    def run(*words, cwd=tmp_path):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "blocked")}
        script = str(root / "benchmarks" / "source_tree.py")
        command = [sys.executable, script, str(tmp_path / "tree"), *words]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)

    run.tree = tmp_path / "tree"
    run.blocked = tmp_path / "blocked"
    return run


def test_the_tree_is_what_setup_maps(root, package_dir, bare):
    assert bare().returncode == 0
    for name, folder in package_dir.items():
        if name != "kinema.ops":
            assert Path(bare.tree, *name.split(".")).resolve() == (
                root / folder if name != "kinema" else bare.tree / name
            )
    assert (bare.tree / "kinema" / "ops" / "__init__.py").resolve() == root / "engine" / "ops" / "__init__.py"
    assert (bare.tree / "kinema" / "__init__.py").resolve() == root / "engine" / "__init__.py"


def test_a_tree_is_renewed_and_what_is_right_stays(bare, root):
    assert bare().returncode == 0
    stale, moved, kept = (bare.tree / "kinema" / name for name in ("gone.py", "errors.py", "pipeline.py"))
    stale.symlink_to(root / "engine" / "gone.py")
    moved.unlink()
    moved.symlink_to(root / "elsewhere" / "errors.py")
    before = kept.lstat()
    assert bare().returncode == 0
    assert not stale.is_symlink() and moved.resolve() == root / "engine" / "errors.py"
    assert kept.lstat().st_ino == before.st_ino


def test_the_checkout_is_what_runs(bare, root):
    done = bare("--version")
    assert (done.returncode, done.stdout[:7]) == (0, "kinema "), done.stderr
    code = "import kinema, sys; print(kinema.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(bare.tree)}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(bare.tree / "kinema" / "__init__.py")


def test_the_pipeline_imports_without_what_such_an_image_lacks(bare):
    assert bare().returncode == 0
    code = "import kinema.pipeline, kinema.bench.gpu_session.runner, sys; print(sys.modules['av'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (bare.tree, bare.blocked)))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


def test_the_questions_are_listed_without_it(bare):
    """What a question needs and does not find is its own reason, and no error of the list."""
    done = bare("bench", "gpu-session", "--list")
    assert done.returncode == 0, done.stderr
    assert "build_kernels: value" in done.stdout


def test_without_a_gpu_a_session_says_so_in_a_line(bare):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = bare("bench", "gpu-session")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("skipped: there is no GPU") and done.stdout.count("\n") == 1


def test_make_gives_its_variables_to_the_session(root):
    words = ["make", "--dry-run", "gpu-session", "PYTHON=some-python", "DRY=1", "ASK=--only ceilings"]
    alone = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }  # `make test`
    done = subprocess.run(words, cwd=root, env=alone, capture_output=True, text=True, check=True)
    said = " ".join(done.stdout.replace("\\", " ").split())
    assert said.endswith("bench gpu-session --dry-run --only ceilings")
