"""What cannot be made is refused before anything is looked at for each video; files that are something else say so."""

from __future__ import annotations

import os
import wave

import pytest

SIZE = ("--height", 32, "--width", 48, "--num-frames", 9, "--steps", 1)


@pytest.mark.parametrize("count", [100_000, 2_000_000_000])
def test_many_videos_are_refused_before_their_paths_are_looked_at(cli, tiny, out, monkeypatch, count):
    import kinema.media.staging as staging

    looked = []
    monkeypatch.setattr(staging, "_probe", looked.append)
    cli("generate", "x", "-m", tiny, "-o", out / "a.npy", "--num-videos", count, *SIZE).assert_refused(1, "GiB")
    assert len(looked) <= 2 and os.listdir(out) == []


def test_inspect_of_what_does_not_fit_says_so_and_fails(cli, tiny):
    result = cli("inspect", tiny, "--height", 160000, "--width", 160000)
    assert result.code == 1 and "tokens" in result.out and "GiB are available" in result.err
    assert cli("inspect", tiny).code == 0


def test_sound_is_no_video(cli, tiny, tmp_path, out):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    words = ("generate", "x", "-m", tiny, "-o", out / "a.npy", *SIZE, "--video", tmp_path / "a.wav")
    cli(*words).assert_refused(1, "a.wav", "no video that kinema reads")


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.npy"])
def test_a_pointer_of_git_lfs_is_named(cli, tiny, tmp_path, out, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    words = ("generate", "x", "-m", tiny, "-o", out / "a.npy", *SIZE, "--video", tmp_path / name)
    cli(*words).assert_refused(1, name, "git lfs pull")


def test_what_is_there_instead_of_a_folder_is_named(cli, damaged, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    cli("inspect", tmp_path / "pipe").assert_refused(1, "a pipe")
    (damaged / "vae").rename(damaged / "elsewhere")
    (damaged / "vae").write_text("x")
    cli("inspect", damaged).assert_refused(1, "vae is not a folder")
