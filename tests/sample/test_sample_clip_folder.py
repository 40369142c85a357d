"""Training on a user's own clips: what is read, what is refused, and the whole command on a small folder."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kinema import VideoPipeline
from kinema.cli.main import main
from kinema.errors import RequestError
from kinema.media.video import Video
from kinema.sample.clip_folder import ClipFolder
from kinema.sample.start import read_words
from kinema.sample.training import generator_for

# two steps show what they do on few clips, too
FEW = ("train_vae.batch=1", "train_dit.batch=4", "train_dit.image_batch=4", "train_dit.images.start=8")
LITTLE = [word for number in (*FEW, "train_dit.clips.start=8") for word in ("--set", number)]


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
    command += ["--set", "train_dit.noise_mean=2", *LITTLE]
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


def test_a_model_goes_on_with_captions_of_ones_own(folder, tmp_path, capsys):
    """Its words keep their ids and rows, new ones come behind them; each run's folder holds its own model."""
    first, second = tmp_path / "a" / "model", tmp_path / "b" / "model"
    command = ["train-sample", "--data", str(folder), "--size", "32", "--num-frames", "9", "--threads", "1", *LITTLE]
    begun = [*command, "--runs", str(tmp_path / "a"), "--vae-steps", "1", "--steps", "1"]
    assert main(begun) == 0
    record = (first / "training.json").read_bytes()
    for caption in folder.glob("*.txt"):
        caption.write_text("a zebra that nobody has named before\n")
    went_on = [*command, "--runs", str(tmp_path / "b"), "--steps", "1", "--start", str(first)]
    assert main(went_on) == 0, capsys.readouterr().err
    assert (first / "training.json").read_bytes() == record != (second / "training.json").read_bytes()
    before, after = read_words(str(first)), read_words(str(second))
    assert after[: len(before)] == before and {"zebra", "nobody", "named"} <= set(after[len(before) :])
    tables = [load_file(model / "text_encoder" / "model.safetensors")["shared.weight"] for model in (first, second)]
    assert len(tables[1]) - len(tables[0]) == len(after) - len(before) > 0
    assert tables[1][len(tables[0]) :].float().std() > 0.3, "rows of new words are not zero"
    assert (tables[1][: len(tables[0])] - tables[0]).abs().max() < 0.1, "rows of known words are those that were"
    out = VideoPipeline.from_pretrained(second)("a zebra", seed=0, num_inference_steps=1)
    assert out.frames.shape == (1, 9, 32, 32, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--vae-steps", "-1"], "--vae-steps is -1"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--set", "train_dit.noise_mean=inf"], "wanted a number"),
        (["--start", "sample", "--vae", "sample"], "not both"),
    ],
)
def test_what_makes_no_run_is_refused(folder, tmp_path, capsys, options, message):
    assert main(["train-sample", "--data", str(folder), "--runs", str(tmp_path / "r"), *options]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "r").exists()


@pytest.mark.parametrize("output", ["home", "home/notes.txt", "r", "r/..", "link"])
def test_nothing_but_a_trained_model_is_replaced(folder, tmp_path, capsys, output):
    """The model's folder is replaced as a whole, with all that lies in it."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "notes.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    options = ["--runs", str(tmp_path / "r"), "-o", str(tmp_path / output)]
    assert main(["train-sample", "--data", str(folder), *options]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert (tmp_path / "home" / "notes.txt").read_text() == "mine" and not (tmp_path / "r").exists()


def test_the_plan_is_said_first(folder, tmp_path, capsys):
    command = ["train-sample", "--data", str(folder), "--runs", str(tmp_path / "r"), "-o", str(tmp_path / "m")]
    command += ["--size", "32", "--num-frames", "9", "--vae-steps", "3", "--steps", "7", "--minutes", "0"]
    assert main([*command, "--device", "cpu", "--threads", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("phase 1, the VAE: 3 steps, about 0.0 hours")
    assert said[1].startswith("phase 2, the transformer and the text encoder: 7 steps")
    assert main([*command, "--device", "cpu", "--threads", "1"]) == 0
    assert capsys.readouterr().out.startswith("phase 1, the VAE: 3 steps, 1 done")


def test_the_state_of_another_run_is_refused(folder, tmp_path, capsys):
    command = ["train-sample", "--data", str(folder), "--runs", str(tmp_path / "r"), "-o", str(tmp_path / "m")]
    command += ["--size", "32", "--num-frames", "9", "--vae-steps", "1", "--steps", "1", "--threads", "1", *LITTLE]
    assert main(command) == 0
    for caption in folder.glob("*.txt"):
        caption.write_text("other words\n")
    capsys.readouterr()
    assert main(command) == 1
    assert "is not the state of this run" in capsys.readouterr().err
