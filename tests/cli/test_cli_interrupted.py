"""What ends a run from outside: signals, full disks, readers that leave."""

from __future__ import annotations

import os
import signal

import pytest

from kinema.media.writer import VideoWriter
from kinema.pipeline import VideoPipeline

CLIP = ("--height", 32, "--width", 48, "--num-frames", 9)

# says when the first denoising step has been done
SAY_STEP = """
from kinema.pipeline import VideoPipeline
step = VideoPipeline.step
def said(pipe, states):
    step(pipe, states)
    print("ready", flush=True)
VideoPipeline.step = said
"""


def test_ctrl_c_in_the_denoising_loop(process, tiny, out):
    running = process("generate", "x", "-m", tiny, "-o", out / "a.mp4", "--steps", 900, *CLIP, before=SAY_STEP)
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == (130, "kinema: interrupted\n")
    assert os.listdir(out) == []


def test_sigterm_in_the_denoising_loop(process, tiny, out):
    running = process("generate", "x", "-m", tiny, "-o", out / "a.mp4", "--steps", 900, *CLIP, before=SAY_STEP)
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGTERM)
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == (143, "kinema: terminated\n")
    assert os.listdir(out) == []


@pytest.fixture
def usual_signals():
    """As in a foreground process; a test run in the background or under nohup ignores some of them."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    after = {number: signal.signal(number, handler) for number, handler in before.items()}
    assert after == usual, "main() left its handlers behind"


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "hangup")],
)
@pytest.mark.parametrize("name", ["a.mp4", "frames/"])
@pytest.mark.usefixtures("usual_signals")
def test_a_signal_while_the_file_is_written(cli, tiny, out, monkeypatch, name, number, said):
    """What was there before is still there, and nothing else."""
    written = []
    write = VideoWriter.write

    def interrupted(writer, frames):
        write(writer, frames)
        written.extend(file for file in os.listdir(out) if file.endswith(".part"))
        signal.raise_signal(number)

    monkeypatch.setattr(VideoWriter, "write", interrupted)
    if name == "a.mp4":
        (out / name).write_text("an earlier result")
    result = cli("generate", "x", "-m", tiny, "-o", f"{out}/{name}", "--steps", 1, *CLIP)
    assert result == (128 + number, "", f"kinema: {said}\n")
    assert len(written) == 1  # the file was begun
    if name == "a.mp4":
        assert os.listdir(out) == ["a.mp4"] and (out / name).read_text() == "an earlier result"
    else:
        assert os.listdir(out) == []


def test_an_ignored_signal_stays_ignored(cli, tiny, out, monkeypatch):
    """nohup kinema generate ... goes on when its terminal is closed."""
    step = VideoPipeline.step

    def hung_up(pipe, states):
        step(pipe, states)
        signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(VideoPipeline, "step", hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        result = cli("generate", "x", "-m", tiny, "-o", out / "a.npy", "--steps", 2, *CLIP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (result.code, result.err) == (0, "")
    assert os.listdir(out) == ["a.npy"]


def test_a_disk_that_becomes_full(process, tiny, out):
    """A limit on the size of files fails as a full disk does: in the middle of a write."""
    files = [out / f"a.{suffix}" for suffix in ("mp4", "npy", "gif", "webp")]
    words = [str(word) for word in ("generate", "x", "-m", tiny, "--steps", 1, *CLIP, "-o")]
    before = f"""
import resource
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (4500, 4500))
from kinema.cli.main import main
print([main([*{words}, file]) for file in {[str(file) for file in files]}])
"""
    running = process("--version", before=before)
    stdout, stderr = running.communicate(timeout=120)
    assert stdout.splitlines()[0] == "[1, 1, 1, 1]"
    reason = "File too large; this place limits the size of files; write elsewhere"
    assert stderr.splitlines() == [f"kinema: error: cannot write {file}: {reason}" for file in files]
    assert os.listdir(out) == []


@pytest.mark.parametrize("words", [["--help"], ["bench", "--list"]])
def test_a_reader_that_leaves(process, words):
    reader, writer = os.pipe()
    os.close(reader)
    running = process(*words, stdout=writer)
    os.close(writer)
    _, stderr = running.communicate(timeout=60)
    assert (running.returncode, stderr) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_on_a_full_disk(process, unbuffered):
    with open("/dev/full", "w") as full:
        running = process("bench", "--list", stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 1
    assert stderr == "kinema: error: cannot write to standard output: No space left on device\n"
