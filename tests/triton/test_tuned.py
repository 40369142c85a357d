"""Tuned choices: which candidate a launch takes, what the file must be for that, and that no launch measures."""

import json
import os
import sys
import warnings

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.common import tuned
from kinema.ops.common.launch import Config, candidates, forced, recording, select_config, watching
from kinema.ops.common.tuned import Choice

CPU, META = torch.device("cpu"), torch.device("meta")
DEFAULT, SECOND, THIRD = (Config({"BLOCK": size}) for size in (16, 32, 64))
TABLE = {0: (DEFAULT, SECOND), 80: (SECOND, THIRD), 90: THIRD}
NAME = "linear/large"  # of an op that is there: its sources are what a choice holds for
KEY = "linear/large: 32768 1024 gated"
SHAPE = (32760, 1024, "gated", "")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, of which nothing is known yet."""
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache"
    forget()


def forget():
    tuned._choices.cache_clear()
    tuned.fingerprint.cache_clear()


def chosen(*shape):
    return select_config(NAME, TABLE, CPU, *(shape or SHAPE))


def changed(edit):
    """Tune the second candidate, then edit the file's content, as if another process had written it."""
    tuned.remember(CPU, {KEY: Choice(1, "BLOCK 32", (2.0, 1.0))})
    path = tuned.file("interpreter")
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    forget()


def test_untuned_is_the_first_candidate():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() == DEFAULT


def test_what_was_tuned_is_used_here_and_in_the_next_process():
    assert chosen() == DEFAULT
    tuned.remember(CPU, {KEY: Choice(1)})
    assert chosen() == SECOND
    forget()
    assert chosen() == SECOND


def test_the_file_is_read_once(monkeypatch):
    tuned.remember(CPU, {KEY: Choice(1)})
    assert chosen() == SECOND
    monkeypatch.setattr(tuned, "read", None)
    assert chosen() == SECOND
    assert chosen(7) == DEFAULT


@pytest.mark.parametrize("shape", [(32768, 1024, "gated"), (16385, 513, "gated"), (20000, 600, "", "gated")])
def test_calls_of_about_the_same_size_are_of_a_kind(shape):
    tuned.remember(CPU, {KEY: Choice(1)})
    assert chosen(*shape) == SECOND


@pytest.mark.parametrize("shape", [(32769, 1024, "gated"), (16384, 1024, "gated"), (32760, 512, "gated"), SHAPE[:2]])
def test_other_calls_are_not(shape):
    tuned.remember(CPU, {KEY: Choice(1)})
    assert chosen(*shape) == DEFAULT


def test_small_sizes_are_kept_apart():
    assert [tuned.key("some", (n,)) for n in range(6)] == [f"some: {n}" for n in (0, 1, 2, 4, 4, 8)]


def test_another_gpu_has_a_file_of_its_own(monkeypatch):
    tuned.remember(CPU, {KEY: Choice(1)})
    monkeypatch.setattr(tuned, "gpu_name", lambda device: "NVIDIA Other (80 GB)")
    assert chosen() == DEFAULT
    assert tuned.file("NVIDIA Other (80 GB)").name == "NVIDIA-Other-80-GB-.json"


def damaged(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"null",
        b'{"format": 1}',
        b"[" * 100_000,
        b'{"format": 1, "gpu": "interpreter"}',
    ],
    ids=lambda text: str(text[:12]),
)
def test_a_damaged_file_warns_once_and_is_not_used(text):
    damaged(tuned.file("interpreter"), text)
    with pytest.warns(UserWarning, match=r"interpreter\.json .*run `kinema tune` again") as caught:
        assert chosen() == DEFAULT
        assert chosen() == DEFAULT
    assert len(caught) == 1


@pytest.mark.parametrize("number", [-1, "1", None, 1.0])
def test_a_choice_that_is_no_number_warns(number):
    changed(lambda content: content["choices"][KEY].update(candidate=number))
    with pytest.warns(UserWarning, match="damaged"):
        assert chosen() == DEFAULT


def test_a_choice_that_the_table_does_not_have_is_the_default():
    changed(lambda content: content["choices"][KEY].update(candidate=2))
    assert chosen() == DEFAULT


def test_another_triton_warns():
    changed(lambda content: content.update(triton="1.0"))
    with pytest.warns(UserWarning, match=r"made with Triton 1\.0, this one is"):
        assert chosen() == DEFAULT


def test_without_triton_the_doctor_still_speaks(monkeypatch):
    changed(lambda content: None)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "this one is not installed" in tuned.status(CPU)


def test_another_format_or_gpu_in_the_file_warns():
    for key, value in (("format", 2), ("gpu", "another")):
        changed(lambda content, key=key, value=value: content.update({key: value}))
        with pytest.warns(UserWarning, match="wanted 1 for interpreter"):
            assert chosen() == DEFAULT


def test_kernels_that_changed_warn_and_the_others_are_used():
    other = "conv3d/fp32: 4096"
    tuned.remember(CPU, {other: Choice(1)})
    changed(lambda content: content["kernels"].update(linear="0"))
    with pytest.warns(UserWarning, match="other kernels of linear than these"):
        assert chosen() == DEFAULT
    assert select_config("conv3d/fp32", TABLE, CPU, 4096) == SECOND


def test_every_source_of_a_kernel_counts(tmp_path, monkeypatch):
    (tmp_path / "some").mkdir()
    (tmp_path / "common").mkdir()
    files = [tmp_path / "some" / "triton.py", tmp_path / "some" / "triton_tables.py"]
    files += [tmp_path / "common" / name for name in tuned._SHARED]
    for path in files:
        path.write_text("x = 1\n")
    monkeypatch.setattr(tuned, "_KERNELS", tmp_path)
    seen = {tuned.fingerprint("some")}
    for path in files:
        path.write_text("x = 2\n")
        tuned.fingerprint.cache_clear()
        seen.add(tuned.fingerprint("some"))
    assert len(seen) == 1 + len(files)


def test_without_a_home_nothing_is_known(monkeypatch):
    monkeypatch.delenv("KINEMA_CACHE")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert chosen() == DEFAULT


def test_what_another_run_found_is_kept_and_what_is_stale_is_not():
    changed(lambda content: None)
    tuned.remember(CPU, {"conv3d/fp32: 8": Choice(1)})
    assert set(tuned.read("interpreter")[0]) == {KEY, "conv3d/fp32: 8"}
    changed(lambda content: content["kernels"].update(linear="0"))
    tuned.remember(CPU, {"conv3d/fp32: 16": Choice(1)})
    found, wrong = tuned.read("interpreter")
    assert set(found) == {"conv3d/fp32: 8", "conv3d/fp32: 16"} and wrong is None


def test_a_file_is_whole_or_the_old_one(cache, monkeypatch):
    tuned.remember(CPU, {KEY: Choice(1)})

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "replace", full)
        with pytest.raises(OSError):
            tuned.remember(CPU, {KEY: Choice(0)})
    assert tuned.read("interpreter")[0][KEY].candidate == 1
    assert os.listdir(cache / "tuned") == ["interpreter.json"]


def test_a_recording_knows_of_no_machine(monkeypatch):
    tuned.remember(CPU, {KEY: Choice(1)})
    monkeypatch.setattr(tuned, "choices", None)
    with recording(80):
        assert select_config(NAME, TABLE, CPU, *SHAPE) == SECOND, "the default of sm_80"
    assert select_config(NAME, TABLE, META, *SHAPE) == DEFAULT


def test_a_gpu_of_amd_has_no_choice():
    assert candidates(TABLE, 80) == (SECOND, THIRD)
    assert candidates(TABLE, 80, hip=True) == (SECOND,)
    assert candidates({**TABLE, -1: DEFAULT}, 80, hip=True) == (DEFAULT,)


def test_watching_notes_what_has_a_choice():
    with watching() as visits:
        select_config(NAME, TABLE, CPU, *SHAPE)
        select_config("norm", {0: DEFAULT}, CPU, *SHAPE)
        with forced({NAME: THIRD}):
            assert select_config(NAME, TABLE, CPU, *SHAPE) == THIRD
    select_config(NAME, TABLE, CPU, *SHAPE)
    assert [(v.table, v.key, v.candidates) for v in visits] == [(NAME, KEY, (DEFAULT, SECOND))]


def test_status_says_what_there_is():
    assert "kinema tune" in tuned.status(CPU) and "default tiles" in tuned.status(CPU)
    tuned.remember(CPU, {KEY: Choice(1), "conv3d/fp32: 8": Choice(0)})
    assert tuned.status(CPU).startswith("2 kinds of calls tuned for interpreter")
    damaged(tuned.file("interpreter"), b"{")
    assert "damaged" in tuned.status(CPU) and "kinema tune" in tuned.status(CPU)
