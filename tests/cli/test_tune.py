"""kinema tune: what it refuses, what it runs, and what it says; its clock is a stand-in, its GPU the interpreter."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("triton")

from kinema.cli import tune
from kinema.ops import calls as op_calls
from kinema.ops.cases import Case
from kinema.ops.common import tuned
from kinema.ops.common.launch import Config
from kinema.ops.conv3d import triton as conv3d
from kinema.ops.linear import triton as linear
from kinema.ops.linear.triton_tables import LARGE_FP32
from kinema.ops.tuner import Tuner

TILES = (LARGE_FP32[0], Config({**LARGE_FP32[0].blocks, "COLUMNS": 32}), Config({"ROWS": 3}))
CASES = (
    Case("linear", "wide", ("fp32",), partial(op_calls.linear, 20, 24, 40)),
    Case("linear", "as wide", ("fp32",), partial(op_calls.linear, 30, 24, 40)),
    Case("linear", "gated", ("fp32",), partial(op_calls.linear, 20, 24, 40, gated=True)),
    Case("linear", "in bf16", ("bf16",), partial(op_calls.linear, 20, 24, 40)),
    Case("quantize", "elsewhere", ("fp32",), partial(op_calls.quantize, 20, 24)),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("KINEMA_CACHE", str(tmp_path / "cache"))
    tuned._choices.cache_clear()
    yield tmp_path / "cache"
    tuned._choices.cache_clear()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The interpreter passes for a GPU on which the second candidate takes half as long as the first."""
    if torch.cuda.is_available():
        pytest.skip("kernels are not interpreted here")
    monkeypatch.setattr(tune, "check_gpu", lambda target: None)
    monkeypatch.setattr("kinema.ops.cases.all_cases", lambda: CASES)
    monkeypatch.setitem(linear.TABLES, "linear/large_fp32", {0: TILES})
    asked = []

    def timer(device):
        def timed(call):
            asked.append(call)
            return 1e-3 if call.args[1] == TILES[0] else 5e-4

        return timed

    monkeypatch.setattr("kinema.ops.tuner.GpuTimer", timer)
    return asked


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("words", [(), ("--model", "sample"), ("--json",)])
def test_without_a_gpu_it_says_so(cli, words):
    cli("tune", *words).assert_refused(1, "the device is cpu", "tiles are tuned on a GPU", "kinema doctor")
    cli("tune", "--device", "cuda", *words).assert_refused(1, "torch sees no GPU")


def test_a_clip_of_no_model_is_refused(cli):
    cli("tune", "--height", 32, "--num-frames", 5).assert_refused(1, "height, num_frames", "add --model")


def test_production_cases_are_tuned_once(cli, as_on_a_gpu):
    result = cli("tune")
    assert (result.code, result.err) == (0, "")
    wide, gated = (line for line in result.out.splitlines() if line.startswith("linear/"))
    assert (
        wide.split()[:5] == ["linear/large_fp32:", "32", "64", "32", "500.0"]
        and "50.0% less  ROWS 32, COLUMNS 32" in wide
    )
    assert "32 64 32 gated" in gated
    failed = [line for line in result.out.splitlines() if line.startswith("    not ROWS 3, 4 warps")]
    assert len(failed) == 2 and all("Error" in line for line in failed)
    assert "2 kinds of calls, 2 faster than with the default tiles; " in result.out
    assert str(tuned.file("interpreter")) in result.out
    assert {name: choice.candidate for name, choice in tuned.read("interpreter")[0].items()} == {
        "linear/large_fp32: 32 64 32": 1,
        "linear/large_fp32: 32 64 32 gated": 1,
    }

    measured = len(as_on_a_gpu)
    assert "nothing new: 2 kinds of calls are tuned in" in cli("tune").out
    assert len(as_on_a_gpu) == measured
    assert cli("tune", "--again").code == 0
    assert len(as_on_a_gpu) == 2 * measured


def test_json_is_one_object(cli, as_on_a_gpu):
    result = cli("tune", "--json")
    assert result.code == 0 and result.out.count("\n") == 1
    report = json.loads(result.out)
    assert (report["gpu"], report["path"]) == ("interpreter", str(tuned.file("interpreter")))
    first = report["outcomes"][0]
    assert (first["key"], first["choice"], first["seconds"]) == ("linear/large_fp32: 32 64 32", 1, [1e-3, 5e-4, None])
    assert list(first["failures"]) == ["2"] and len(first["candidates"]) == 3


def test_a_damaged_file_is_said_and_made_anew(cli, as_on_a_gpu):
    tuned.file("interpreter").parent.mkdir(parents=True)
    tuned.file("interpreter").write_text("{")
    with pytest.warns(UserWarning, match="is damaged"):
        assert cli("tune").code == 0
    assert len(tuned.read("interpreter")[0]) == 2


def test_what_does_not_fit_into_memory_is_passed_over(cli, as_on_a_gpu, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    cases = (replace(CASES[0], name="huge", prepare=full), CASES[2])
    monkeypatch.setattr("kinema.ops.cases.all_cases", lambda: cases)
    monkeypatch.setattr(tune, "kinds", lambda case, functions, target: {case.name})
    result = cli("tune")
    assert result.code == 0 and "linear huge: out of memory, passed over" in result.out
    assert "1 kinds of calls" in result.out


def test_a_vae_is_fp32_in_every_precision(cli, as_on_a_gpu, monkeypatch):
    cases = (Case("conv3d", "small", ("fp32",), partial(op_calls.conv3d, 3, 4, (1, 3, 3), (1, 4, 4))), CASES[0])
    monkeypatch.setattr("kinema.ops.cases.all_cases", lambda: cases)
    monkeypatch.setitem(conv3d.TABLES, "conv3d/fp32", {0: (conv3d.PRODUCT[0], Config({"ROWS": 32, "FEATURES": 16}))})
    report = json.loads(cli("tune", "--precision", "bf16", "--json").out)
    assert [outcome["key"] for outcome in report["outcomes"]] == ["conv3d/fp32: 16 4 4 16"]


def test_where_no_kernel_runs_there_is_nothing_to_tune(cli, as_on_a_gpu, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    cli("tune").assert_refused(1, "nothing to tune: needs a GPU")


def test_a_model_is_run_one_step_and_two_chunks(cli, tiny, as_on_a_gpu, monkeypatch):
    called = []

    def spy(tuner, function, *arguments, **options):
        called.append((function.__module__, [a.shape for a in arguments if isinstance(a, torch.Tensor)]))
        return function(*arguments, **options)

    monkeypatch.setattr(Tuner, "call", spy)
    size = ("--height", 32, "--width", 48, "--num-frames", 9, "--guidance-scale", 1)
    result = cli("tune", "-m", tiny, *size, "--backend", "reference")
    assert (
        result.code == 0 and result.out == "nothing to tune: on interpreter none of these calls has a choice of tiles\n"
    )
    names = [module.split(".")[2] for module, _ in called]
    assert {"linear", "attention", "conv3d", "norm_modulate"} <= set(names)
    assert names.count("patch_embed") == names.count("unpatchify") == 1, "one forward"
    frames = [shapes[0][2] for module, shapes in called if module.endswith("conv3d.reference")]
    assert {1, 2} <= set(frames), "the first chunk is one frame, the next are more once they are doubled"


def test_the_doctor_knows(cli, monkeypatch):
    report = json.loads(cli("doctor", "--json").out)
    if not torch.cuda.is_available():
        assert report["tuning"] == {"kernels": "nothing to tune on a cpu"}
    assert "\ntuning\n  kernels " in cli("doctor").out
