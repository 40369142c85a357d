"""Every example runs as its first line says, leaves what it promises, and is short."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))
LONGEST = 40
CLIPS = {
    "text_to_video.py": {"text_to_video.mp4": 17},
    "serving_loop.py": {"request_0.mp4": 17, "request_3.mp4": 17, "request_5.mp4": 9},
    "swap_kernel.py": {"other.gif": 17},
}


def run(name: str, folder: Path, *arguments: str) -> str:
    """stdout of an example that was run in `folder`, and ended with 0."""
    command = [sys.executable, str(FOLDER / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def assert_clips(folder: Path, clips: dict[str, int]) -> None:
    assert {path.name for path in folder.iterdir()} == set(clips)
    for name, count in clips.items():
        clip = frames(folder / name)
        assert clip.shape == (count, 64, 64, 3) and clip.std() > 5, name


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_short_and_says_how_it_is_run(name):
    text = (FOLDER / name).read_text()
    assert len(text.splitlines()) <= LONGEST
    assert f": python examples/{name} [" in ast.get_docstring(ast.parse(text)).splitlines()[0]


def test_the_readme_lists_each():
    readme = (FOLDER.parent / "README.md").read_text()
    assert [name for name in EXAMPLES if f"(examples/{name})" not in readme] == []


def test_text_to_video(tmp_path):
    run("text_to_video.py", tmp_path)
    assert_clips(tmp_path, CLIPS["text_to_video.py"])


def test_serving_loop(tmp_path):
    """A request joins while others run, and the first to come is not the first to be done."""
    said = run("serving_loop.py", tmp_path)
    assert_clips(tmp_path, CLIPS["serving_loop.py"])
    assert "turn 3: 4/12 1/6\n" in said and "turn 5: 6/12 3/6 1/8\n" in said and "turn 12: 8/8\n" in said


def test_diffusers_twin(tmp_path):
    said = run("diffusers_twin.py", tmp_path)
    saved = np.load(tmp_path / "diffusers_twin.npz")
    theirs, ours = saved["diffusers"], saved["kinema"]
    assert theirs.shape == ours.shape == (1, 17, 64, 64, 3) and theirs.std() > 0.02
    assert 0 < np.abs(theirs - ours).max() <= 1e-3
    assert f"{np.abs(theirs - ours).max():.1e}" in said


def test_swap_kernel_writes_where_it_is_told(tmp_path):
    said = run("swap_kernel.py", tmp_path, "other.gif")
    assert "20 calls of my_scheduler_step" in said
    assert_clips(tmp_path, CLIPS["swap_kernel.py"])
