"""Launches: recorded for an architecture, not run on meta tensors, and configured from tables."""

import pytest
import torch

pytest.importorskip("triton")

from kinema.ops.common.launch import Config, forced, recording, select_config
from kinema.ops.norm_modulate.triton import norm_modulate

META, CPU = torch.device("meta"), torch.device("cpu")
TABLE = {0: Config({"BLOCK": 16}), 80: Config({"BLOCK": 64}), 90: Config({"BLOCK": 128}, warps=8)}


def test_on_meta_tensors_an_op_is_its_own_fake():
    x = torch.empty(2, 6, 40, dtype=torch.bfloat16, device=META)
    y = norm_modulate(x, eps=1e-6)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, META)
    q = norm_modulate(x, eps=1e-6, quantize="fp8")
    assert (q.data.dtype, q.scale.shape) == (torch.float8_e4m3fn, (2, 6, 1))


def test_a_recording_keeps_launches_and_runs_nothing():
    x = torch.ones(1, 3, 40)
    untouched = torch.full_like(x, float("nan"))
    with recording(90) as kept:
        norm_modulate(x, eps=1e-6, out=untouched)
    (launch,) = kept.launches
    assert untouched.isnan().all()
    assert launch.arguments["channels"] == 40 and launch.arguments["BLOCK_C"] == 64
    assert set(launch.arguments) == {p.name for p in launch.kernel.params} if hasattr(launch.kernel, "params") else True


@pytest.mark.parametrize(("arch", "block"), [(80, 64), (89, 64), (90, 128), (120, 128)])
def test_the_newest_entry_that_is_not_too_new_is_used(arch, block):
    with recording(arch):
        assert select_config("some", TABLE, META).blocks["BLOCK"] == block


def test_the_interpreter_has_tiles_of_its_own():
    assert select_config("some", TABLE, CPU).blocks["BLOCK"] == 16


def test_configurations_can_be_forced():
    with forced({"some": Config({"BLOCK": 32})}):
        assert select_config("some", TABLE, CPU).blocks["BLOCK"] == 32
        assert select_config("other", TABLE, CPU).blocks["BLOCK"] == 16
    assert select_config("some", TABLE, CPU).blocks["BLOCK"] == 16
