"""What a killed run leaves, and what a new result leaves of an old one."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from kinema.errors import OutputError
from kinema.media import exchange, temporary
from kinema.media.video import Video
from kinema.media.writer import open_video

CLIP = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
NAMES = ["out.mp4", "out.gif", "out.webp", "out.npy", "out/"]
OLD = 7 * 24 * 3600

# begins a file, says so, and then waits to be killed
WRITING = """
import sys, time, numpy as np
from kinema.media.writer import open_video
with open_video(sys.argv[1], 16) as writer:
    writer.write(np.zeros((2, 16, 16, 3), np.uint8))
    print("began", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writing(tmp_path):
    """Starts a process that has begun to write tmp_path/<name>; killed at the end."""
    started = []

    def start(name: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITING, f"{tmp_path}/{name}"], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "began\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def parts(folder) -> list:
    return sorted(path for path in folder.iterdir() if path.name.endswith(".part"))


def make_old(path, seconds: int = OLD) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("name", ["out.npy", "out/"])
def test_what_a_killed_run_left_goes_when_it_is_old_and_not_before(tmp_path, writing, name):
    process = writing(name)
    (part,) = parts(tmp_path)
    make_old(part)
    Video(CLIP).save(tmp_path / "other.npy")
    assert parts(tmp_path) == [part], "its run is alive, however old it is"
    process.send_signal(signal.SIGKILL)
    process.wait()
    os.utime(part)
    Video(CLIP).save(tmp_path / "other.npy")
    assert parts(tmp_path) == [part], "it is not old"
    make_old(part)
    Video(CLIP).save(tmp_path / "frames")
    assert parts(tmp_path) == []


def test_a_run_of_this_process_keeps_its_file(tmp_path):
    with open_video(tmp_path / "a.npy", 16) as writer, open_video(tmp_path / "b/", 16) as other:
        writer.write(CLIP)
        other.write(CLIP)
        for part in parts(tmp_path):
            make_old(part)
        Video(CLIP).save(tmp_path / "c.gif")
    assert sorted(os.listdir(tmp_path)) == ["a.npy", "b", "c.gif"]


def test_only_our_own_temporary_files_are_removed(tmp_path, monkeypatch):
    name = ".kinema-0123456789ab.part"
    kept = [
        ".kinema-0123456789ab.part.txt",
        ".kinema-xyz.part",
        "kinema-0123456789ab.part",
        ".kinema-0123456789AB.part",
    ]
    for other in kept:
        (tmp_path / other).write_text("mine")
        make_old(tmp_path / other)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept.txt").write_text("mine")
    (tmp_path / ".kinema-00000000000a.part").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / ".kinema-00000000000b.part")
    make_old(tmp_path / ".kinema-00000000000b.part")
    kept += [".kinema-00000000000a.part", ".kinema-00000000000b.part", "elsewhere"]
    (tmp_path / name).write_text("left")
    make_old(tmp_path / name)

    user = os.geteuid()
    monkeypatch.setattr(temporary.os, "geteuid", lambda: user + 1)
    temporary.remove_abandoned(tmp_path)
    assert (tmp_path / name).exists(), "another user's"
    monkeypatch.undo()
    temporary.remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    assert (tmp_path / "elsewhere" / "kept.txt").read_text() == "mine"
    temporary.remove_abandoned(tmp_path / "none")


def test_where_there_are_no_locks_nothing_is_abandoned(tmp_path, monkeypatch):
    import fcntl

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".kinema-0123456789ab.part").touch()
    make_old(tmp_path / ".kinema-0123456789ab.part")
    monkeypatch.setattr(fcntl, "flock", unsupported)
    Video(CLIP).save(tmp_path / "out.npy")
    assert sorted(os.listdir(tmp_path)) == [".kinema-0123456789ab.part", "out.npy"]


@pytest.mark.parametrize("name", NAMES)
def test_the_lock_ends_with_the_writer(tmp_path, name):
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(3):
        Video(CLIP).save(f"{tmp_path}/{name}")
        with pytest.raises(ZeroDivisionError), open_video(f"{tmp_path}/{name}", 16) as writer:
            writer.write(CLIP)
            raise ZeroDivisionError
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o777])
@pytest.mark.parametrize("name", NAMES)
def test_a_replaced_result_keeps_its_mode(tmp_path, name, mode):
    Video(CLIP).save(f"{tmp_path}/{name}")
    os.chmod(f"{tmp_path}/{name}", mode | 0o700 * name.endswith("/"))
    wanted = stat.S_IMODE(os.stat(f"{tmp_path}/{name}").st_mode)
    seen = []
    with open_video(f"{tmp_path}/{name}", 16) as writer:
        seen += [stat.S_IMODE(part.stat().st_mode) for part in parts(tmp_path)]
        writer.write(CLIP[:1])
    assert stat.S_IMODE(os.stat(f"{tmp_path}/{name}").st_mode) == wanted
    assert seen == [0o700 if name.endswith("/") else 0o600], (
        "what replaces a private file is private from its beginning"
    )


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("name", NAMES)
def test_a_new_result_follows_the_umask(tmp_path, name, umask):
    before = os.umask(umask)
    try:
        Video(CLIP).save(f"{tmp_path}/{name}")
        with open_video(f"{tmp_path}/again{name}", 16) as writer:
            writer.write(CLIP)
    finally:
        os.umask(before)
    wanted = (0o777 if name.endswith("/") else 0o666) & ~umask
    for place in (f"{tmp_path}/{name}", f"{tmp_path}/again{name}"):
        assert stat.S_IMODE(os.stat(place).st_mode) == wanted


def test_a_result_that_went_while_it_was_replaced_follows_the_umask(tmp_path):
    path = tmp_path / "out.npy"
    path.touch(mode=0o600)
    with open_video(path, 16) as writer:
        writer.write(CLIP)
        path.unlink()
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


needs_exchange = pytest.mark.skipif(sys.platform != "linux", reason="two names are swapped on Linux")


@needs_exchange
def test_two_folders_swap_their_names(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "of a").touch()
    if not exchange.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert os.listdir(tmp_path / "b") == ["of a"] and os.listdir(tmp_path / "a") == []
    with pytest.raises(FileNotFoundError):
        exchange.exchange(tmp_path / "a", tmp_path / "c")


KILLED = """
import os, signal, sys, numpy as np
from kinema.media import exchange
from kinema.media.writer import open_video
moment = sys.argv[2]
def kill(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
def killed_after(call):
    def called(*arguments, **named):
        call(*arguments, **named)
        kill()
    return called
if moment == "before":
    exchange.exchange = kill
elif moment == "after":
    exchange.exchange = killed_after(exchange.exchange)
else:
    exchange.exchange = lambda *_: False
    if moment == "first rename":
        exchange.os.rename = killed_after(os.rename)
    else:
        exchange.shutil.rmtree = kill
with open_video(sys.argv[1], 16) as writer:
    writer.write(np.full((3, 16, 16, 3), 9, np.uint8))
"""


@needs_exchange
@pytest.mark.parametrize("moment", ["before", "after", "first rename", "second rename"])
def test_kills_while_a_folder_is_replaced(tmp_path, moment):
    old = np.full((2, 16, 16, 3), 1, np.uint8)
    Video(old).save(tmp_path / "frames")
    done = subprocess.run([sys.executable, "-c", KILLED, f"{tmp_path}/frames/", moment], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    count = {"before": 2, "after": 3, "first rename": None, "second rename": 3}[moment]
    if count is None:  # only where the system cannot swap names: then the old frames have another name
        assert not (tmp_path / "frames").exists()
        assert len(os.listdir(exchange.earlier_name(tmp_path / "frames"))) == 2
        exchange.restore_earlier(tmp_path / "frames")
        assert len(os.listdir(tmp_path / "frames")) == 2
    else:
        assert len(os.listdir(tmp_path / "frames")) == count
    for part in parts(tmp_path):
        make_old(part)
    with open_video(tmp_path / "frames", 16) as writer:
        assert (tmp_path / "frames").exists(), "the next run puts it back"
        writer.write(CLIP)
    assert os.listdir(tmp_path) == ["frames"] and len(os.listdir(tmp_path / "frames")) == 3


def test_a_folder_that_cannot_be_swapped_is_replaced_by_two_renames(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "exchange", lambda *_: False)
    Video(CLIP[:2]).save(tmp_path / "frames")
    Video(CLIP).save(tmp_path / "frames")
    assert os.listdir(tmp_path) == ["frames"] and len(os.listdir(tmp_path / "frames")) == 3
    rename = os.rename

    def once(source, target):
        if str(target).endswith("frames") and len(os.listdir(source)) == 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(exchange.os, "rename", once)
    with pytest.raises(OutputError, match="Input/output error"):
        Video(CLIP[:1]).save(tmp_path / "frames")
    assert os.listdir(tmp_path) == ["frames"] and len(os.listdir(tmp_path / "frames")) == 3


def test_an_error_of_the_swap_leaves_what_was_there(tmp_path, monkeypatch):
    Video(CLIP[:2]).save(tmp_path / "frames")

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(exchange, "exchange", fails)
    with pytest.raises(OutputError, match="Input/output error"):
        Video(CLIP).save(tmp_path / "frames")
    assert os.listdir(tmp_path) == ["frames"] and len(os.listdir(tmp_path / "frames")) == 2


def test_times_that_a_format_cannot_hold_are_an_error(tmp_path):
    """A GIF's frame is shown for 655 seconds at most; seven equal frames are one."""
    with pytest.raises(OutputError, match="cannot write"):
        Video(np.zeros((7, 4, 4, 3), np.uint8), 0.01).save(tmp_path / "out.gif")
    assert os.listdir(tmp_path) == []
