"""Kernels that are built ahead of a session: the same key as a launch's, and found where the folder was taken to."""

import json
import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from kinema.bench.gpu_session.kernel_cache import NEEDED, take

CASE = "unpatchify: sample 80, bf16"


def build(folder, *words):
    """How many kernels are wanted, and what was built, by a process that compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kinema.bench.gpu_session.kernel_cache", str(folder), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wanted, *built = map(json.loads, done.stdout.splitlines())
    return wanted["wanted"], built


def test_what_is_built_is_found_again_in_another_folder(tmp_path):
    built, cache = tmp_path / "built", tmp_path / "cache"
    wanted, (first,) = build(built, "--only", CASE, "--lean")
    assert (wanted, first["taken"], first["failed"], first["case"]) == (1, False, None, CASE) and first["seconds"] > 0
    assert {path.suffix for path in built.glob("*/*")} == set(NEEDED)
    assert take(shutil.move(built, tmp_path / "moved"), cache) == 1
    _, (again,) = build(cache, "--only", CASE)
    assert again["taken"] and again["failed"] is None


def test_what_is_wanted_is_a_case_with_the_other_tiles_of_its_table(tmp_path):
    assert build(tmp_path, "--only", "linear: 1.3B 32760 qkv, bf16", "--seconds", "0") == (3, [])
