"""Training on a user's own clips: what is read, what is refused, and the whole command on a small folder."""

import json

import numpy as np
import pytest
import torch

from kinema import VideoPipeline
from kinema.cli import main
from kinema.errors import RequestError
from kinema.sample.clip_folder import ClipFolder
from kinema.sample.training import generator_for
from kinema.video import Video


def write(folder, name, frames, captions, suffix=".npy"):
    folder.mkdir(exist_ok=True)
    if suffix == ".npy":
        np.save(folder / f"{name}.npy", frames)
    else:
        Video(frames, 12).save(folder / f"{name}{suffix}")
    if captions is not None:
        (folder / f"{name}.txt").write_text(captions, encoding="utf-8")


def ramp(frames, height, width, start=0):
    """Frames that say their own number: every pixel of frame t is start + t."""
    levels = np.arange(start, start + frames, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "clips", "one", ramp(12, 32, 32), "A Dark thing\nsomething black\n")
    write(tmp_path / "clips", "two", ramp(30, 48, 64, start=100), "a grey, thing.", suffix=".mp4")
    return tmp_path / "clips"


def test_clips_are_files_in_turn_from_a_start_of_their_own(folder):
    source = ClipFolder(folder, 32, 9)
    assert source.words == ("a", "black", "dark", "grey", "something", "thing")
    assert source.lengths == [12, 30]
    videos = source.video([0, 1, 2, 2], 9)
    assert videos.shape == (4, 3, 9, 32, 32) and torch.equal(videos[2], videos[3])
    levels = ((videos[[0, 2]] + 1) * 127.5).mean(dim=(1, 3, 4))
    assert torch.allclose(levels.diff(dim=1), torch.ones(2, 8), atol=1e-3), "frames follow one another"
    starts = {round(float((source.video([2 * n], 9)[0, 0, 0, 0, 0] + 1) * 127.5)) for n in range(30)}
    assert starts == {0, 1, 2, 3}
    assert 90 < float(((videos[1] + 1) * 127.5).mean()) < 140


def test_captions_are_drawn_from_the_lines(folder):
    source = ClipFolder(folder, 32, 9)
    generator = generator_for(0)
    assert {source.caption(2 * n, generator, mention_motion=True) for n in range(20)} == {
        "A Dark thing",
        "something black",
    }


def test_crops_lie_inside(folder):
    source = ClipFolder(folder, 32, 9)
    crops = source.crops([0, 1, 3], 5, 16, generator_for(0))
    assert crops.shape == (3, 3, 5, 16, 16) and crops.min() >= -1 and crops.max() <= 1


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "one.txt").unlink(), r"one\.npy has no caption: wanted one\.txt"),
        (lambda f: (f / "one.txt").write_text("\n"), r"one\.txt is empty"),
        (lambda f: np.save(f / "one.npy", ramp(5, 32, 32)), r"one\.npy has 5 frames: wanted at least 9"),
        (lambda f: [p.unlink() for p in f.iterdir()], r"holds no clips: wanted files ending in \.mp4"),
        (lambda f: (f / "one.npy").write_bytes(b"nothing"), r"one\.npy"),
    ],
)
def test_folders_that_cannot_serve_are_refused(folder, break_it, message):
    break_it(folder)
    with pytest.raises(RequestError, match=message):
        ClipFolder(folder, 32, 9)


def test_a_model_is_trained_on_a_folder_and_generates(folder, tmp_path, capsys):
    """The whole command, two steps of each phase; run twice, the second goes on from the first."""
    model, runs = tmp_path / "model", tmp_path / "runs"
    command = ["train-sample", "--data", str(folder), "--runs", str(runs), "-o", str(model), "--size", "32"]
    command += ["--num-frames", "9", "--fps", "8", "--vae-steps", "2", "--steps", "2", "--threads", "1"]
    command += ["--set", "train_dit.noise_mean=2"]
    assert main(command) == 0
    assert "written after 2 steps" in capsys.readouterr().out
    assert json.loads((model / "training.json").read_text())["recipe"]["train_dit"]["noise_mean"] == 2.0
    pipe = VideoPipeline.from_pretrained(model)
    assert (pipe.defaults.num_frames, pipe.defaults.height, pipe.defaults.fps) == (9, 32, 8.0)
    out = pipe("a grey thing", seed=0, num_inference_steps=2)
    assert out.frames.shape == (1, 9, 32, 32, 3)
    assert main(command) == 0
    assert "written after 2 steps" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "message"), [(["--size", "40"], "size is 40"), (["--num-frames", "8"], "4k + 1")])
def test_sizes_that_do_not_fit_are_refused(folder, tmp_path, capsys, options, message):
    command = ["train-sample", "--data", str(folder), "--runs", str(tmp_path / "r"), *options]
    assert main(command) != 0
    assert message in capsys.readouterr().err
