"""Standard streams that are closed, missing or broken: what was asked for is done, and nobody is told otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import av
import numpy as np
import pytest

SIZE = ("--height", 32, "--width", 48, "--num-frames", 5, "--steps", 1, "--seed", 1)


def shell(words, redirection):
    line = " ".join([sys.executable, "-m", "kinema", *(f"'{word}'" for word in words), redirection])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize(
    ("redirection", "output"),
    [(">&-", "a.mp4"), ("2>&-", "a.npy"), ("<&- >&- 2>&-", "a.mp4"), ("2>/dev/full", "a.npy")],
)
def test_closed_streams_do_not_fail_what_was_written(tiny, out, redirection, output):
    if "full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("has no /dev/full")
    done = shell(["generate", "x", "-m", tiny, "-o", out / output, *SIZE], redirection)
    assert done.returncode == 0 and "Traceback" not in done.stderr + done.stdout
    assert os.listdir(out) == [output]
    if output == "a.npy":
        assert np.load(out / output).shape == (5, 32, 48, 3)
    else:
        with av.open(out / output) as container:
            assert sum(1 for _ in container.decode(video=0)) == 5
    if ">&-" not in redirection.replace("2>&-", ""):
        assert done.stdout.startswith(f"{out / output}: 5 frames")


def test_what_libraries_print_does_not_land_in_the_file(tiny, out):
    """A file that is opened when descriptor 2 is free becomes it."""
    code = (
        "import os, sys, kinema.cli.main as cli\n"
        "from kinema.media.writer import VideoWriter\n"
        "write = VideoWriter.write\n"
        "def noisy(writer, frames):\n"
        "    os.write(2, b'a warning') ; os.write(1, b'and more')\n"
        "    write(writer, frames)\n"
        "VideoWriter.write = noisy\n"
        "cli.console()\n"
    )
    words = ["generate", "x", "-m", str(tiny), "-o", str(out / "a.npy"), *map(str, SIZE)]
    line = f'exec {sys.executable} -c "$CODE" {" ".join(words)} <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", line], env={**os.environ, "CODE": code}, timeout=120)
    assert done.returncode == 0 and np.load(out / "a.npy").shape == (5, 32, 48, 3)
    assert b"warning" not in (out / "a.npy").read_bytes()


@pytest.mark.parametrize("redirection", ["2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(
    ("words", "code"), [(("generate", "x", "-m", "no/such/model"), 1), (("bogus",), 2), (("--version",), 0)]
)
def test_errors_without_a_standard_error_keep_their_code(redirection, words, code):
    """And are not printed as if they were results."""
    done = shell(words, redirection)
    assert done.returncode == code and done.stderr == ""
    assert done.stdout == "" or words == ("--version",)


@pytest.mark.parametrize("words", [("doctor", "--json"), ("bench", "--list")])
def test_reports_without_a_standard_output(words):
    done = shell(words, ">&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Broken:
    """A stream of the host's that fails at everything."""

    def __init__(self, error):
        self.error = error

    def _fail(self, *given):
        raise self.error

    write = flush = isatty = fileno = _fail


STREAMS = {
    "none": lambda: None,
    "plain": lambda: type("Log", (), {"write": lambda self, text: None})(),
    "empty": object,
    "not callable": lambda: type("Log", (), {"write": None, "isatty": None})(),
    "window closed": lambda: Broken(RuntimeError("the window is gone")),
    "gone": lambda: Broken(OSError(5, "Input/output error")),
    "closed": lambda: Broken(ValueError("I/O operation on closed file")),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_a_host_without_a_usual_standard_error(tiny, out, monkeypatch, stream):
    """With a progress bar and without, by the API and by main()."""
    import kinema
    from kinema.cli.main import main

    pipe = kinema.VideoPipeline.from_pretrained(tiny, device="cpu")
    monkeypatch.setattr(sys, "stderr", STREAMS[stream]())
    call = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2, "seed": 1}
    frames = [pipe("x", **call, progress=progress).frames for progress in (None, True, False)]
    assert all(np.array_equal(frames[0], other) for other in frames)
    assert main(["generate", "x", "-m", str(tiny), "-o", str(out / "a.npy"), *map(str, SIZE)]) == 0
    assert main(["generate", "x", "-m", "no/such/model"]) == 1
    assert main(["bogus"]) == 2


def test_a_warning_that_cannot_be_shown_ends_nothing(monkeypatch):
    """Of words that the sample model does not know, and a size that it was not trained for."""
    import warnings

    import kinema

    shown = []

    def show(*given, **named):
        shown.append(given[0])
        raise RuntimeError("the window is gone")

    monkeypatch.setattr(warnings, "showwarning", show)
    pipe = kinema.VideoPipeline.from_pretrained("sample", device="cpu")
    pipe("a zebra", height=48, width=32, num_frames=1, num_inference_steps=1, output_type="latent")
    assert len(shown) == 2


def test_a_warning_is_still_an_error_where_the_host_says_so():
    import warnings

    from kinema.errors import KinemaWarning, warn

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KinemaWarning, match="so and so"):
            warn("so and\nso")
    with pytest.warns(KinemaWarning) as seen:
        warn("here")
    assert seen[0].filename == __file__


@pytest.mark.parametrize("stream", ["none", "plain", "empty", "closed", "not callable", "window closed"])
def test_a_host_without_a_usual_standard_output(tiny, out, monkeypatch, capsys, stream):
    from kinema.cli.main import main

    monkeypatch.setattr(sys, "stdout", STREAMS[stream]())
    assert main(["generate", "x", "-m", str(tiny), "-o", str(out / "a.npy"), *map(str, SIZE)]) == 0
    assert np.load(out / "a.npy").shape == (5, 32, 48, 3)
    assert capsys.readouterr().err == ""


ENDING = """
import atexit, sys, threading, time
import kinema.cli.main as cli

class Slow:
    def __del__(self):
        time.sleep(30)

sys.modules["slow"] = Slow()  # what taking an interpreter apart would wait for
atexit.register(lambda: print("exit handlers ran"))
{more}
cli.console()
"""


def ended(words, more="", **options):
    command = [sys.executable, "-c", ENDING.format(more=more), *(str(word) for word in words)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
    return done, time.monotonic() - started


def test_the_command_is_gone_when_its_file_is_written(tiny, out):
    done, seconds = ended(["generate", "x", "-m", tiny, "-o", out / "a.npy", *SIZE])
    assert done.returncode == 0 and seconds < 29
    assert done.stdout.startswith(f"{out / 'a.npy'}: 5 frames") and done.stdout.endswith("exit handlers ran\n")
    assert np.load(out / "a.npy").shape == (5, 32, 48, 3)


@pytest.mark.parametrize(("words", "code"), [(("generate", "x", "-m", "no/such/model"), 1), (("bogus",), 2)])
def test_codes_of_errors_survive(words, code):
    done, seconds = ended(words)
    assert done.returncode == code and seconds < 29 and done.stderr.startswith("kinema")


def test_a_thread_that_is_not_ours_is_waited_for():
    more = (
        "threading.Thread(target=lambda: (time.sleep(0.5), print('written'))).start()\nSlow.__del__ = lambda self: None"
    )
    done, _ = ended(["bench", "--list"], more)
    assert done.returncode == 0 and "written" in done.stdout


def test_worker_processes_end_too():
    more = (
        "import multiprocessing\n"
        "worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,), daemon=True)\n"
        "worker.start(); print('worker', worker.pid)"
    )
    done, seconds = ended(["bench", "--list"], more)
    pid = int(done.stdout.split()[1])
    assert done.returncode == 0 and seconds < 29
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_main_returns_to_its_caller(tiny, out):
    """Only the command ends the process: hosts and tests call main()."""
    code = "import sys; from kinema.cli.main import main; print(main(sys.argv[1:])); print('still here')"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("0\nstill here\n")


def test_the_installed_command_is_the_one_that_ends_at_once(request):
    root = request.config.rootpath
    assert 'kinema = "kinema.cli.main:console"' in (root / "pyproject.toml").read_text()
