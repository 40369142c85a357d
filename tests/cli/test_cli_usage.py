"""The command line itself: help, mistakes in it, and what it costs to ask."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import kinema
from kinema.cli.main import VERBS

VERB_LIST = "generate, inspect, doctor, tune, bench, train-sample"


@pytest.mark.parametrize(
    ("words", "phrases"),
    [
        ([], ["no verb given", VERB_LIST, "see kinema --help"]),
        (["--"], ["no verb given"]),
        (["genrate", "a cat"], ["unknown verb 'genrate' (did you mean generate?)", VERB_LIST]),
        (["zzz"], ["unknown verb 'zzz': wanted"]),
        (["--verison"], ["unknown option --verison (did you mean --version?)"]),
        (["generate"], ["kinema generate: error: ", "prompt", "see kinema generate --help"]),
        (["generate", "a cat", "--stpes", "4"], ["unknown option --stpes (did you mean --steps?)"]),
        (["generate", "a cat", "--guidance=4"], ["unknown option --guidance (did you mean --guidance-scale?)"]),
        (["generate", "a cat", "--num-f", "4"], ["unknown option --num-f"]),
        (["generate", "a", "red", "cat"], ["unexpected argument 'red'", "quotes"]),
        (["generate", "a cat", "--steps", "four"], ["--steps", "'four'"]),
        (["generate", "a cat", "--steps", "4.5"], ["--steps", "'4.5'"]),
        (["generate", "a cat", "--steps"], ["--steps", "expected one argument"]),
        (["generate", "\udcff"], ["not valid UTF-8"]),
        (
            ["inspect", "model", "--heigth", "4"],
            ["kinema inspect: error: unknown option --heigth (did you mean --height?)"],
        ),
        (["doctor", "--steps", "4"], ["kinema doctor: error: unknown option --steps"]),
        (["bench", "genrate"], ["kinema bench: error: unknown verb 'genrate' (did you mean generate?)"]),
        (["bench", "generate", "--round", "4"], ["kinema bench generate: error: ", "(did you mean --rounds?)"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(cli, words, phrases):
    cli(*words).assert_refused(2, *phrases)


@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS), ["bench", "generate"]])
def test_help(cli, words):
    result = cli(*words, "--help")
    assert result.code == 0 and result.err == ""
    assert result.out.startswith(f"usage: {' '.join(['kinema', *words])} ")


def test_help_explains_every_option(cli):
    """No option without a word about it."""
    from kinema.cli.parser import VerbParser

    for module in ("generate", "inspect", "doctor", "tune"):
        parser = VerbParser(module=f"kinema.cli.{module}")
        with pytest.raises(SystemExit):
            parser.parse_args(["--help"])
        assert all(action.help for action in parser._actions), module


def test_version(cli):
    assert cli("--version") == (0, f"kinema {kinema.__version__}\n", "")


def test_bench_lists_its_verbs(cli):
    result = cli("bench", "--list")
    assert result.code == 0
    assert result.out.startswith("generate ")


def test_an_unfinished_error_of_ours_shows_its_origin_when_asked(cli, monkeypatch):
    monkeypatch.setenv("KINEMA_TRACEBACK", "1")
    with pytest.raises(kinema.errors.UnsupportedError, match="precision"):
        cli("doctor", "--precision", "fp31")


ASKING = [
    ["--help"],
    ["--version"],
    ["generate", "--help"],
    ["bench", "generate", "--help"],
    ["generate", "x", "--stpes"],
]


@pytest.mark.parametrize("words", ASKING)
def test_asking_does_not_import_torch(words):
    code = (
        "import sys; from kinema.cli.main import main; main(sys.argv[1:]);"
        "assert not {'torch', 'numpy', 'av', 'PIL'} & set(sys.modules), 'heavy'"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_m_kinema():
    done = subprocess.run([sys.executable, "-m", "kinema", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kinema {kinema.__version__}\n", "")


def test_a_warning_of_ours_is_one_line(cli, tiny, out):
    """And the work goes on: a video that is longer than a clip is cut."""
    np.save(out / "in.npy", np.zeros((6, 32, 48, 3), np.uint8))
    words = ("-m", tiny, "--height", 32, "--width", 48, "--steps", 2)
    for more, said in (
        ((), "kinema: warning: the video has 6 frames, and this model makes 5 or 9: its first 5 are taken\n"),
        (("--num-frames", 5), ""),
    ):
        result = cli("generate", "x", *words, "--video", out / "in.npy", *more, "-o", out / "a.npy")
        assert (result.code, result.err) == (0, said)
        assert np.load(out / "a.npy").shape == (5, 32, 48, 3)
    result = cli("generate", "x", *words, "--video", out / "in.npy", "--num-frames", 9, "-o", out / "a.npy")
    result.assert_refused(1, "num_frames is 9, the video has 6", "ask for fewer")
