"""The clean sample that an output implies, beside diffusers' own conversion of every prediction type."""

import pytest
import torch

from kinema import schedulers
from kinema.ops.scheduler_step import reference
from kinema.schedulers.clean import combined, guided_output, noise_levels

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
randn = torch.randn


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("UniPCMultistepScheduler", FLOW),
        ("DPMSolverMultistepScheduler", FLOW),
        ("DPMSolverMultistepScheduler", {"prediction_type": "epsilon"}),
        ("DPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
        ("UniPCMultistepScheduler", {"prediction_type": "sample"}),
    ],
)
def test_of_multistep_solvers(name, config):
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers")
    theirs = getattr(diffusers, name)(**config)
    core = schedulers.core_from_config({"_class_name": name, **config})
    theirs.set_timesteps(8)
    grid = core.grid(8)
    for index, timestep in enumerate(theirs.timesteps):
        sample, output = randn(2, 3, 4, dtype=torch.float32), randn(2, 3, 4, dtype=torch.float32)
        theirs._step_index = index
        args = () if name.startswith("DPM") else (timestep,)
        wanted = theirs.convert_model_output(output, *args, sample=sample)
        got = combined(reference, [sample, output], core.clean(grid, index))
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_of_ddim(prediction):
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers")
    config = {"prediction_type": prediction, "clip_sample": False}
    theirs = diffusers.DDIMScheduler(**config)
    core = schedulers.core_from_config({"_class_name": "DDIMScheduler", **config})
    theirs.set_timesteps(6)
    grid = core.grid(6)
    for index, timestep in enumerate(theirs.timesteps):
        sample, output = randn(1, 5, dtype=torch.float32), randn(1, 5, dtype=torch.float32)
        wanted = theirs.step(output, timestep, sample).pred_original_sample
        got = combined(reference, [sample, output], core.clean(grid, index))
        torch.testing.assert_close(got, wanted, rtol=2e-5, atol=2e-5)


def test_levels_of_flow_matching_are_its_sigmas():
    core = schedulers.core_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    grid = core.grid(9)
    assert noise_levels(core, grid, 2) == pytest.approx(grid.sigmas[2:-1].tolist())
    assert core.clean(grid, 4) == (1.0, -float(grid.sigmas[4]))


def test_levels_of_variance_preserving_samplers_fall_from_one():
    core = schedulers.core_from_config({"_class_name": "DDIMScheduler", "clip_sample": False})
    levels = noise_levels(core, core.grid(20))
    assert levels[0] > 0.9 and levels[-1] < 0.1 and list(levels) == sorted(levels, reverse=True)


def test_guided_output():
    cond, uncond = torch.tensor([[3.0]], dtype=torch.float32), torch.tensor([[1.0]], dtype=torch.float32)
    assert float(guided_output(reference, cond, uncond, 2.5)) == 6.0
    assert torch.equal(guided_output(reference, cond), cond)
