"""What the machine or the environment makes fail is one line and exit code 1; a mistake of kinema's is a traceback."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import warnings

import pytest

import kinema.cli.generate as verb
from kinema.errors import KinemaWarning

SIZE = ("--height", 32, "--width", 48, "--num-frames", 5, "--steps", 1, "--seed", 1)
EXHAUSTED = "no more memory or threads"


@pytest.mark.parametrize(
    ("error", "phrases"),
    [
        (MemoryError(), [EXHAUSTED, "MemoryError"]),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            [EXHAUSTED, "you tried"],
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), [EXHAUSTED, "2.00 GiB"]),
        (RuntimeError("can't start new thread"), [EXHAUSTED]),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), [EXHAUSTED]),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), [EXHAUSTED, "libtorch_cpu.so"]),
        (ImportError("libgomp.so.1: cannot open\nshared object"), ["a library does not load", "libgomp.so.1"]),
        (OSError(errno.EMFILE, "Too many open files", "a\x1b.png"), ["Too many open files", "a\\x1b.png"]),
        (PermissionError(errno.EACCES, "Permission denied"), ["error: Permission denied"]),
        (KinemaWarning("it is cut"), ["it is cut", "PYTHONWARNINGS"]),
        (DeprecationWarning("a library's"), ["a library's (a DeprecationWarning", "PYTHONWARNINGS"]),
    ],
)
def test_it_is_one_line(cli, tiny, out, monkeypatch, error, phrases):
    def fail(*given):
        raise error

    monkeypatch.setattr(verb, "request_from", fail)
    cli("generate", "x", "-m", tiny, "-o", out / "a.npy").assert_refused(1, *phrases)
    monkeypatch.setenv("KINEMA_TRACEBACK", "1")
    with pytest.raises(type(error)):
        cli("generate", "x", "-m", tiny, "-o", out / "a.npy")


@pytest.mark.parametrize("error", [TypeError("a mistake"), RuntimeError("a mistake"), AssertionError(), KeyError("a")])
def test_a_mistake_is_not_explained_away(cli, tiny, out, monkeypatch, error):
    def fail(*given):
        raise error

    monkeypatch.setattr(verb, "request_from", fail)
    with pytest.raises(type(error)):
        cli("generate", "x", "-m", tiny, "-o", out / "a.npy")


def in_a_process(*words, code="from kinema.cli.main import console; console()", before=None, **environment):
    command = [sys.executable, "-c", code, *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=before, timeout=300)


@pytest.mark.parametrize("mebibytes", [100, 400, 640])
def test_too_little_address_space(tiny, out, mebibytes):
    """Where it fails, while torch is imported or later, depends on the machine."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20,) * 2)

    done = in_a_process("generate", "x", "-m", tiny, "-o", out / "a.npy", *SIZE, before=limit)
    assert "Traceback" not in done.stderr
    if done.returncode == 1:
        assert done.stderr.startswith("kinema: error: ") and done.stderr.count("\n") == 1
    assert os.listdir(out) == ([] if done.returncode else ["a.npy"])


def test_warnings_that_are_errors(cli, damaged):
    (damaged / "pytorch_lora_weights.safetensors").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cli("inspect", damaged).assert_refused(1, "pytorch_lora_weights", "PYTHONWARNINGS")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["generate", "--help"], ["bench", "--help"]])
def test_help_that_cannot_be_written_is_an_error(words):
    if not os.path.exists("/dev/full"):
        pytest.skip("has no /dev/full")
    for unbuffered in ("", "1"):
        code = "import sys; sys.stdout = open('/dev/full', 'w')\nfrom kinema.cli.main import main; sys.exit(main())"
        done = in_a_process(*words, code=code, PYTHONUNBUFFERED=unbuffered)
        assert done.returncode == 1
        assert done.stderr == "kinema: error: cannot write to standard output: No space left on device\n"
