"""Nothing is half-written: full disks, ctrl-C, bad paths, bad frames."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from kinema.errors import Interrupted, OutputError, RequestError
from kinema.media import staging
from kinema.media.staging import check_writable
from kinema.media.video import Video
from kinema.media.writer import open_video

NAMES = ["out.mp4", "out.gif", "out.webp", "out.npy", "out.png", "out.jpg", "out/"]
NOISE = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)


def frames_for(name: str) -> np.ndarray:
    return NOISE[:1] if name.endswith((".png", ".jpg")) else NOISE


@contextlib.contextmanager
def small_files_only(limit: int):
    """Writes that would make a file longer than `limit` bytes fail, as on a full disk (Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def earlier(tmp_path, request):
    """An earlier result at the same path; afterwards it must be the only thing there, as it was."""
    name = request.getfixturevalue("name")
    Video(frames_for(name)[:1] // 2).save(f"{tmp_path}/{name}")
    before = contents(tmp_path)
    yield
    assert contents(tmp_path) == before


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_leaves_what_was_there(tmp_path, name, earlier):
    with (
        small_files_only(5000),
        pytest.raises(OutputError, match="File too large; this place limits") as e,
    ):
        Video(frames_for(name)).save(f"{tmp_path}/{name}")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, Interrupted, ZeroDivisionError, MemoryError])
def test_an_error_between_chunks_leaves_what_was_there(tmp_path, name, kind, earlier):
    with pytest.raises(kind), open_video(f"{tmp_path}/{name}", 16) as writer:
        writer.write(frames_for(name))
        raise kind


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moment", ["write", "finish", "publish"])
@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError, "No space left on device; free some space"),
        (OSError(errno.EROFS, "Read-only file system"), OutputError, "Read-only file system"),
        (RuntimeError("two\nlines"), OutputError, "two lines"),
        (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug"),
    ],
)
def test_an_error_while_encoding_leaves_what_was_there(
    tmp_path, name, moment, error, expected, message, earlier, monkeypatch
):
    def fail(*_):
        raise error

    with pytest.raises(expected, match=message), open_video(f"{tmp_path}/{name}", 16) as writer:
        owner = writer._staging if moment == "publish" else writer._encoder
        monkeypatch.setattr(owner, moment, fail)
        writer.write(frames_for(name))


ON_A_FULL_DISK = """
import os, subprocess, sys
import numpy as np
from kinema.errors import OutputError
from kinema.media.staging import check_writable
from kinema.media.writer import open_video

place = sys.argv[1]
noise = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), dtype=np.uint8)
for name in ("out.mp4", "out.gif", "out.webp", "out.npy", "out/"):
    try:
        with open_video(f"{place}/{name}", 16) as writer:
            writer.write(noise)
    except OutputError as error:
        print(error)
    print(os.listdir(place))
for prepare in (lambda: open(f"{place}/filler", "wb").write(bytes(64 * 1024)), lambda: subprocess.run(
    ["mount", "-o", "remount,ro", place], check=True
)):
    prepare()
    try:
        check_writable(f"{place}/out.mp4")
    except OutputError as error:
        print(error)
"""


def test_a_really_full_disk(tmp_path):
    """A 64 KiB file system in a mount namespace of its own."""
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"', tmp_path]
    try:
        subprocess.run([*mount, "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("may not mount a small file system here")
    done = subprocess.run(
        [*mount, sys.executable, "-c", ON_A_FULL_DISK, tmp_path], check=True, capture_output=True, text=True
    )
    full = "No space left on device; free some space or write elsewhere"
    expected = []
    for name in ("out.mp4", "out.gif", "out.webp", "out.npy", "out/"):
        expected += [f"cannot write {tmp_path}/{name}: {full}", "[]"]
    expected += [f"cannot write {tmp_path}/out.mp4: {full}"]
    expected += [f"cannot write {tmp_path}/out.mp4: Read-only file system; write elsewhere"]
    assert done.stdout.splitlines() == expected


@pytest.mark.parametrize("name", ["out.mp4", "out/"])
def test_ctrl_c_in_a_running_program(tmp_path, name):
    program = (
        "import signal, sys, numpy as np\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it\n"
        "from kinema.media.writer import open_video\n"
        "with open_video(sys.argv[1], 16) as writer:\n"
        "    while True:\n"
        "        writer.write(np.random.randint(0, 256, (2, 64, 64, 3), np.uint8))\n"
        "        print('wrote', flush=True)\n"
    )
    command = [sys.executable, "-c", program, f"{tmp_path}/{name}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "wrote\n"
        assert len(list(tmp_path.iterdir())) == 1, "the temporary file is beside the destination"
        time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0
    assert list(tmp_path.iterdir()) == []


def bad_paths(folder):
    (folder / "file").write_text("x")
    (folder / "folder.mp4").mkdir()
    (folder / "mixed").mkdir()
    (folder / "mixed" / "notes.txt").write_text("mine")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    return {
        "": "is not a path",
        "a\0.mp4": "is not a path",
        f"{folder}/out.avi": r"unknown suffix '.avi'; wanted .mp4, .gif",
        f"{folder}/.mp4": "no name before '.mp4'",
        f"{folder}/none/out.mp4": "none does not exist; create it first",
        f"{folder}/none/deeper/out.mp4": "does not exist",
        f"{folder}/file/out.mp4": "file is not a folder",
        f"{folder}/file/deeper/out.mp4": "file is not a folder",
        f"{folder}/folder.mp4": "it is a folder; give a file name",
        f"{folder}/file": "it is a file, and a name without suffix means a folder",
        f"{folder}/file/": "it is a file, and a name without suffix means a folder",
        f"{folder}/mixed": r"holds other files \(notes.txt\)",
        f"{folder}/pipe.mp4": "not a regular file",
        f"{folder}/loop.mp4": "not a regular file|symbolic links",
        f"{folder}/{'x' * 300}.mp4": "name too long",
    }


def test_bad_paths_are_refused_before_and_when_saving(tmp_path):
    paths = bad_paths(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for path, message in paths.items():
        for act in (check_writable, Video(NOISE).save, lambda path: open_video(path, 16)):
            with pytest.raises(OutputError, match=message) as caught:
                act(path)
            assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    Video(NOISE).save(tmp_path / "out.npy")
    monkeypatch.setattr(staging.os, "access", lambda *_: False)  # root may write everything, so chmod shows nothing
    with pytest.raises(OutputError, match="write-protected"):
        check_writable(tmp_path / "out.npy")


def test_checking_leaves_nothing_and_creates_nothing(tmp_path):
    for name in NAMES:
        check_writable(f"{tmp_path}/{name}", fps=16, num_frames=1, height=48, width=64)
        open_video(f"{tmp_path}/{name}", 16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_wrong_frames_are_refused_and_leave_nothing(tmp_path, name):
    good = frames_for(name)
    wrong = {
        r"uint8 \[t, H, W, 3\], got float32": good.astype(np.float32),
        r"uint8 \[t, H, W, 3\], got uint8 \[96, 96, 3\]": good[0],
        r"got uint8 \[\d, 96, 96, 4\]": np.concatenate([good, good[..., :1]], axis=-1),
        "one size: got 94x96 after 96x96": good[:, :94],
    }
    for message, frames in wrong.items():
        with pytest.raises(RequestError, match=message), open_video(f"{tmp_path}/{name}", 16) as writer:
            writer.write(good)
            writer.write(frames)
    with pytest.raises(OutputError, match="no frames"), open_video(f"{tmp_path}/{name}", 16):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_second_frame_for_a_still_is_refused(tmp_path):
    with pytest.raises(OutputError, match="holds one frame, got 2"), open_video(tmp_path / "out.png", 16) as writer:
        writer.write(NOISE[:1])
        writer.write(NOISE[1:2])
    assert list(tmp_path.iterdir()) == []
