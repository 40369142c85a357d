"""What errors say: one line of bounded length that does nothing to a terminal, whatever a file holds."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints import ComponentFiles, load_weights
from kinema.cli.output import complain, emit
from kinema.errors import (
    CheckpointError,
    KinemaError,
    KinemaWarning,
    OutputError,
    RequestError,
    cut,
    listed,
    one_line,
    shown,
)
from kinema.families.registry import open_folder

HOSTILE = {
    "clears the screen": "\x1b[2J\x1b[H",
    "sets the title": "\x1b]0;title\x07",
    "one byte introducer": "\x9b31m",
    "turns the line round": "\u202etxet\u202c",
    "isolates": "\u2066x\u2069",
    "goes back": "ok\r\x08\x08\x7f",
    "two lines": "a\nkinema: error: all is well",
    "other lines": "a\x0b\x0c\x1c\x85\u2028\u2029b",
    "zero width": "a\u200bb\ufeff\u00ad",
    "half a pair": "\ud800",
    "tags": "\U000e0041",
}


@pytest.mark.parametrize("kind", [KinemaError, RequestError, CheckpointError, OutputError])
@pytest.mark.parametrize("case", HOSTILE)
def test_text_from_a_file_is_shown_and_not_obeyed(kind: type[KinemaError], case: str) -> None:
    error = kind(f"the tensor {HOSTILE[case]} is missing")
    assert str(error).isprintable()
    assert f"{error}" == str(error)
    assert str(error).startswith("the tensor") and str(error).endswith("is missing")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("case", HOSTILE)
def test_warnings_are_shown_so_too(case: str) -> None:
    with pytest.warns(KinemaWarning) as caught:
        warnings.warn(f"the file {HOSTILE[case]} is not used", KinemaWarning, stacklevel=1)
    shown_as = warnings.formatwarning(caught[0].message, KinemaWarning, "x.py", 1, "")
    assert shown_as.rstrip("\n").isprintable()


def test_what_people_write_is_left_as_it_is() -> None:
    text = "Mädchen 猫 видео 🎬 C:\\models “quoted” ▁x"
    assert str(CheckpointError(text)) == text
    assert str(CheckpointError("first\n   second\r\nthird")) == "first second third"
    assert str(CheckpointError()) == ""


def test_long_messages_keep_their_beginning_and_their_end() -> None:
    message = str(CheckpointError(f"begin {'x' * 10**6} download it again"))
    assert message.startswith("begin xxx") and message.endswith("xxx download it again")
    assert "characters ...]" in message
    assert len(message) < 4100
    assert len(one_line("\x1b" * 10**6)) < 4100


def test_lists_are_cut_with_a_count() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed((str(i) for i in range(50)), "; ", most=3) == "0; 1; 2; and 47 more"
    assert listed([]) == ""
    assert len(listed(["x" * 10_000] * 3)) < 1000


def test_values_of_any_kind_have_a_short_form() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, 10**5000, "x" * 10**6, [1] * 10**6, {i: i for i in range(10**5)}, object(), "\x1b"):
        assert len(shown(value)) < 300
        assert shown(value).isprintable()
    while nested:
        nested = nested.pop()  # type: ignore[assignment]
    assert shown(["a", 1, None, True]) == "['a', 1, None, True]"
    assert cut("abc", 3) == "abc"


def test_a_checkpoint_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    names = {f"{text} {i}": torch.ones(1) for i, text in enumerate(HOSTILE.values()) if i != 9}
    save_file(names, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"surplus \\x1b\[2J") as caught:
        load_weights(ComponentFiles(tmp_path), {"a": (1,)})
    assert str(caught.value).isprintable()


def test_thousands_of_tensors_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    save_file({f"old.{i}": torch.ones(1) for i in range(3000)}, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"6000 tensors\): missing new\.0 \(1,\); .*; and 2975 more; surplus old.*; and 2975 more$",
    ):
        load_weights(ComponentFiles(tmp_path), {f"new.{i}": (1,) for i in range(3000)})


@pytest.mark.parametrize("case", HOSTILE)
def test_an_index_cannot_write_to_the_terminal(tmp_path: Path, case: str) -> None:
    text = HOSTILE[case]
    for index in ({"_class_name": text}, {"_class_name": "WanPipeline", text: ["a", text]}, {"_class_name": [text]}):
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError) as caught:
            open_folder(tmp_path)
        assert str(caught.value).isprintable()


def test_reports_keep_their_lines_and_escape_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    emit("\x1b[31mname\u202e\n  second line")
    complain("kinema: error: a\x1b[31m\n  b")
    out, err = capsys.readouterr()
    assert out == "\\x1b[31mname\\u202e\n  second line\n"
    assert err == "kinema: error: a\\x1b[31m b\n"
