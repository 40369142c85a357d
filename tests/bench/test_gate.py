"""Nothing that is wrong gets a speed: distances, what is allowed, and a planted mistake in `bench ops`."""

import dataclasses
import json
import math
import sys
import types
from functools import partial
from importlib import import_module

import pytest
import torch

from kinema.bench import torch_ops
from kinema.bench.gate import Distance, allowance, distance, refusal
from kinema.bench.ops import TORCH
from kinema.cli.main import main
from kinema.ops import calls as op_calls
from kinema.ops import plan, target_for
from kinema.ops.calls import Inputs
from kinema.ops.cases import all_cases
from kinema.ops.common import Implementation, Quantized
from kinema.ops.unpatchify import reference


def test_the_distance_is_of_the_whole_result():
    truth = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert distance(torch.tensor([3.0, -4.0]), truth) == Distance(0.0, 0.0)
    found = distance(torch.tensor([3.0, -3.5]), truth)
    assert found.relative == pytest.approx(0.1) and found.largest == pytest.approx(0.125)
    both = distance((torch.tensor([3.0]), torch.tensor([-3.5])), (truth[:1], truth[1:]))
    assert both == found, "a tuple is one result"


def test_what_cannot_be_compared_is_infinitely_far():
    truth = torch.ones(2, dtype=torch.float64)
    for result in (torch.ones(3), torch.tensor([1.0, float("nan")]), (torch.ones(2), torch.ones(2))):
        assert distance(result, truth).relative == math.inf


def test_eight_bits_are_compared_by_what_they_stand_for():
    x = Quantized(torch.tensor([[2, 4]], dtype=torch.int8), torch.tensor([[0.5]]))
    assert distance(x, torch.tensor([[1.0, 2.0]], dtype=torch.float64)).relative == 0.0


def test_twice_the_plain_error_is_allowed_and_rounding():
    plain = Distance(1e-3, 1e-2)
    allowed = allowance(plain, torch.float32)
    assert 2e-3 < allowed.relative < 2.01e-3 and 2e-2 < allowed.largest < 2.01e-2
    assert refusal(Distance(2e-3, 2e-2), allowed) is None
    for far in (Distance(2.1e-3, 0.0), Distance(0.0, 2.1e-2), Distance(math.inf, math.inf)):
        assert "its speed means nothing" in refusal(far, allowed)
    assert allowance(Distance(0, 0), torch.bfloat16).relative > allowance(Distance(0, 0), torch.float32).relative
    assert allowance(Distance(0, 0), torch.float32, torch.int8).relative > 1e-3


def run_ops(tmp_path, capsys, *words):
    file = tmp_path / "report.json"
    command = ["bench", "ops", "--rounds", "5", "--threads", "1", "--json", str(file), *words]
    assert main(command) == 0
    return json.loads(file.read_text()), capsys.readouterr().out


@pytest.fixture
def planted(monkeypatch):
    """An implementation of unpatchify beside the others, whose result is changed by `spoil`."""

    def plant(spoil):
        module = types.ModuleType("planted")
        module.unpatchify = lambda *a, **k: spoil(reference.unpatchify(*a, **k))
        monkeypatch.setitem(sys.modules, "planted", module)
        fast = Implementation("fast", "planted")
        ops = [
            dataclasses.replace(op, implementations=(fast, *op.implementations)) if op.name == "unpatchify" else op
            for op in plan.OPS
        ]
        monkeypatch.setattr(plan, "OPS", tuple(ops))

    return plant


@pytest.mark.parametrize("spoil", [lambda y: y * 1.0001, lambda y: y.flip(-1), lambda y: y[..., 1:]])
def test_a_wrong_kernel_has_no_speed(planted, tmp_path, capsys, spoil):
    planted(spoil)
    report, printed = run_ops(tmp_path, capsys, "--op", "unpatchify", "--backend", "fast")
    wrong, right = report["rows"]
    assert (wrong["implementation"], right["implementation"]) == ("fast", "reference")
    assert wrong["refused"].startswith("wrong: errs by")
    assert not {"samples", "seconds", "than_reference", "of_peak"} & set(wrong)
    (line,) = (line for line in printed.splitlines() if ", fast" in line)
    assert line.endswith("its speed means nothing")
    assert len(right["samples"]) == 5


def test_a_right_one_is_timed_beside_the_reference(planted, tmp_path, capsys):
    planted(lambda y: y)
    report, printed = run_ops(tmp_path, capsys, "--op", "unpatchify", "--backend", "fast")
    row = report["rows"][0]
    assert row["error"] == {"relative": 0.0, "largest": 0.0} and len(row["samples"]) == 5
    ratio = row["than_reference"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert row["of_copy"] == pytest.approx(
        row["bytes"] / row["seconds"]["median"] / report["peaks"]["copy"]["per_second"]
    )
    assert row["name"] in printed and "measured here" in printed


def test_every_implementation_of_every_kind_of_op_is_right_on_the_sample_model(tmp_path, capsys):
    words = [word for op in ("linear", "attention", "conv3d", "norm_modulate") for word in ("--op", op)]
    report, _ = run_ops(tmp_path, capsys, "--case", "sample 80 ", "--rounds", "1", *words)
    assert len({row["implementation"] for row in report["rows"]}) >= 2
    assert not [row["name"] for row in report["rows"] if "refused" in row or "failed" in row]
    own = [row for row in report["rows"] if row["implementation"] == "torch's own op"]
    assert {row["op"] for row in own} == {"linear", "attention", "norm_modulate"}


def test_all_precisions_at_once(tmp_path, capsys):
    report, _ = run_ops(tmp_path, capsys, "--op", "linear", "--case", "sample 80 up", "--precision", "all")
    assert {row["precision"] for row in report["rows"]} == {"fp32", "bf16"}
    assert {c.precisions for c in all_cases() if c.name == "sample 80 up"} == {("fp32", "bf16")}


def test_an_implementation_that_raises_loses_its_row_alone(planted, tmp_path, capsys):
    def fail(y):
        raise IndexError("of its own\nand more")

    planted(fail)
    report, printed = run_ops(tmp_path, capsys, "--op", "unpatchify", "--op", "norm_modulate", "--backend", "fast")
    rows = {(row["op"], row["implementation"]): row for row in report["rows"]}
    assert rows["unpatchify", "fast"]["failed"] == "IndexError: of its own" and "IndexError: of its own" in printed
    assert "samples" not in rows["unpatchify", "fast"]
    assert len(rows["unpatchify", "reference"]["samples"]) == len(rows["norm_modulate", "reference"]["samples"]) == 5


def test_one_that_raises_later_loses_its_row_alone(planted, tmp_path, capsys):
    calls = []

    def fail(y):
        calls.append(1)
        if len(calls) > 3:
            raise MemoryError
        return y

    planted(fail)
    report, _ = run_ops(tmp_path, capsys, "--op", "unpatchify", "--backend", "fast")
    rows = {row["implementation"]: row for row in report["rows"]}
    assert rows["fast"]["failed"] == "out of memory" and "samples" not in rows["fast"]
    assert len(rows["reference"]["samples"]) == 5


def test_a_case_that_cannot_be_made_has_a_reason(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise RuntimeError("no inputs")

    cases = [dataclasses.replace(case, prepare=fail) if case.op == "unpatchify" else case for case in all_cases()]
    monkeypatch.setattr("kinema.ops.cases.all_cases", lambda: cases)
    report, _ = run_ops(tmp_path, capsys, "--op", "unpatchify", "--op", "patch_embed")
    assert {row["failed"] for row in report["rows"] if row["op"] == "unpatchify"} == {"RuntimeError: no inputs"}
    assert all("samples" in row for row in report["rows"] if row["op"] == "patch_embed")


@pytest.mark.parametrize(("case", "whole"), [("sample 80 qkv", True), ("sample 80 up", False)])
def test_torchs_own_op_is_gated_too(tmp_path, capsys, monkeypatch, case, whole):
    words = ("--op", "linear", "--case", case, "--backend", "reference")
    (own,) = (row for row in run_ops(tmp_path, capsys, *words)[0]["rows"] if row["implementation"] == TORCH)
    assert own["error"]["relative"] < 1e-6 and len(own["samples"]) == 5
    right = torch_ops.torch_call

    def wrong_in_fp32(op, call):
        found = right(op, call)
        assert found.whole is whole
        return dataclasses.replace(found, call=lambda: (y := found.call()) * (1.001 if y.dtype == torch.float32 else 1))

    monkeypatch.setattr(torch_ops, "torch_call", wrong_in_fp32)
    (own,) = (row for row in run_ops(tmp_path, capsys, *words)[0]["rows"] if row["implementation"] == TORCH)
    assert own["refused"].startswith("wrong: errs by") and "samples" not in own


@pytest.mark.parametrize(
    ("op", "prepare"),
    [
        ("linear", partial(op_calls.linear, 5, 24, 16)),
        ("attention", partial(op_calls.attention, 2, 8, 5, 7, fused=True)),
        ("norm_modulate", partial(op_calls.affine, 5, 24, "layer")),
        ("norm_modulate", partial(op_calls.affine, 5, 24, "rms")),
        ("patch_embed", partial(op_calls.patch_embed, 3, 10, (2, 4, 6))),
        ("conv3d", partial(op_calls.conv3d, 3, 4, (3, 3, 3), (2, 5, 7))),
        ("conv3d", partial(op_calls.conv3d, 3, 4, (3, 1, 1), (4, 5, 7), stride=(2, 1, 1))),
    ],
)
def test_torchs_op_is_the_contract_where_it_says_so(op, prepare):
    functions = import_module(f"kinema.ops.{op}.reference")
    call = prepare(functions, target_for("cpu", "fp32"), Inputs(torch.device("cpu")))
    nearest = torch_ops.torch_call(op, call)  # before the call, which renews a cache
    assert nearest.whole
    assert distance(nearest.call(), call()).relative < 1e-6


@pytest.mark.parametrize(
    ("op", "prepare"),
    [
        ("linear", partial(op_calls.linear, 5, 24, 16, activation="silu")),
        ("linear", partial(op_calls.linear, 5, 24, 16, residual=True)),
        ("linear", partial(op_calls.linear, 5, 24, 16, norm=5)),
        ("linear", partial(op_calls.linear, 5, 24, 16, gated=True)),
        ("norm_modulate", partial(op_calls.modulated, 5, 24, 1)),
        ("conv3d", partial(op_calls.conv3d, 3, 4, (3, 3, 3), (2, 5, 7), norm=True)),
        ("conv3d", partial(op_calls.conv3d, 3, 4, (3, 3, 3), (2, 5, 7), residual=True)),
    ],
)
def test_a_part_of_the_contract_is_not_the_whole(op, prepare):
    functions = import_module(f"kinema.ops.{op}.reference")
    call = prepare(functions, target_for("cpu", "fp32"), Inputs(torch.device("cpu")))
    nearest = torch_ops.torch_call(op, call)
    assert not nearest.whole
    assert distance(nearest.call(), call()).relative > 0.01


def test_a_long_call_is_beside_what_the_peaks_loops_held(tmp_path, capsys):
    report, printed = run_ops(tmp_path, capsys, "--op", "linear", "--case", "1.3B on a CPU 1280 cross out")
    rows = report["rows"]
    assert all(row["flops"] > 2e9 and 0 < row["of_held"]["median"] < 1.2 for row in rows)
    assert f"{rows[0]['of_held']['median']:.0%}" in printed
    assert {row["implementation"] for row in rows} >= {"cpu", "reference"}, "what the loops take has no row"
