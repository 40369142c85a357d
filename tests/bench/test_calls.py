"""kinema bench calls: tiny calls, with their kernels and without."""

import json

import pytest
import torch

from kinema.bench.calls import tiny_calls, without_kernels
from kinema.cli.main import main
from kinema.ops.common import native

pytestmark = pytest.mark.skipif(not native.instruction_sets(), reason="the native kernels are not built")


def test_without_its_kernel_a_call_writes_nothing_and_the_next_does():
    call = tiny_calls(["linear"])["linear"]
    wanted = call()
    assert wanted.isfinite().all()
    out = torch.full_like(wanted, float("nan"))
    without_kernels(lambda: call(out=out))()
    assert out.isnan().all()
    call(out=out)
    assert torch.equal(out, wanted)


def test_every_op_has_a_row_whose_python_is_a_share_of_the_call(tmp_path, capsys):
    file = tmp_path / "calls.json"
    assert main(["bench", "calls", "--rounds", "8", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert {row["case"] for row in rows} == set(tiny_calls())
    assert all(0 < row["python_share"]["median"] < 2 for row in rows)
    assert "of it Python" in capsys.readouterr().out


def test_an_unknown_op_is_refused(capsys):
    assert main(["bench", "calls", "--op", "lineal"]) != 0
    assert "lineal" in capsys.readouterr().err
