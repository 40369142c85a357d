"""noise_max_step: an SDE's steps up to this length in λ, an ODE's beyond; against diffusers and plain formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch

from kinema import schedulers
from kinema.errors import CheckpointError, RequestError
from kinema.ops.scheduler_step import reference

NAME = "DPMSolverMultistepScheduler"
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SDE = {"_class_name": NAME, **FLOW, "algorithm_type": "sde-dpmsolver++"}
SHAPE = (2, 3, 5, 4)


def model(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return torch.tanh(1.3 * sample.roll(1, -1)) + 0.001 * timestep


def first() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def lengths(levels: list[float]) -> list[float]:
    """Of each step in λ = log((1 - σ) / σ)."""
    lam = [math.log((1 - level) / level) if level else math.inf for level in levels]
    return [end - start for start, end in pairwise(lam)]


def run(config: dict[str, Any], steps: int) -> torch.Tensor:
    """All samples of one run [steps, *SHAPE]."""
    core = schedulers.core_from_config(config)
    state = schedulers.start(core, core.grid(steps), generator=torch.Generator().manual_seed(5))
    sample, trajectory = first(), []
    while not state.done:
        sample = schedulers.step(reference, state, sample, model(sample, state.timestep))
        trajectory.append(sample)
    return torch.stack(trajectory)


@pytest.mark.parametrize("steps", [1, 4, 8, 20])
@pytest.mark.parametrize("longest", [0.3, 0.55, 1.0])
@pytest.mark.parametrize("options", [{}, {"solver_order": 1}, {"solver_order": 3}, {"solver_type": "heun"}], ids=str)
def test_it_is_diffusers_with_its_algorithm_exchanged_on_the_way(options, longest, steps):
    theirs = getattr(diffusers, NAME).from_config({**SDE, **options})
    theirs.set_timesteps(steps)
    generator = torch.Generator().manual_seed(5)
    sample, trajectory, kinds = first(), [], set()
    for i, timestep in enumerate(theirs.timesteps):
        noisy = lengths(theirs.sigmas.tolist())[i] <= longest
        kinds.add(noisy)
        theirs.register_to_config(algorithm_type="sde-dpmsolver++" if noisy else "dpmsolver++")
        if not noisy:
            torch.randn(SHAPE, generator=generator)  # diffusers' ODE draws none
        sample = theirs.step(model(sample, timestep), timestep, sample, generator=generator, return_dict=False)[0]
        trajectory.append(sample)
    found, wanted = run({**SDE, **options, "noise_max_step": longest}, steps), torch.stack(trajectory)
    assert kinds == {True, False} or steps < 20
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("longest", [0.5, 0.8])
def test_it_is_the_plain_formulas(longest):
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), algorithm 2 and its SDE, on flow levels in float64."""
    core = schedulers.core_from_config(SDE)
    levels = core.grid(9).sigmas.double().tolist()
    lam = [math.log((1 - s) / s) if s else math.inf for s in levels]
    generator = torch.Generator().manual_seed(5)
    sample, before = first().double(), None
    for i, (start, final) in enumerate(pairwise(levels)):
        x0 = sample - start * model(sample.float(), core.grid(9).timesteps[i]).double()
        noise = torch.randn(SHAPE, generator=generator).double()
        h = lam[i + 1] - lam[i]
        slope = 0 if before is None or not final else (x0 - before) * h / (lam[i] - lam[i - 1])
        noisy = h <= longest
        rate = 2 if noisy else 1
        gain = 1 - math.exp(-rate * h)
        keep = final / start * math.exp(-(rate - 1) * h) if final else 0.0
        sample = keep * sample + (1 - final) * gain * (x0 + 0.5 * slope)
        sample = sample + (final * math.sqrt(gain) * noise if noisy else 0)
        before = x0
    found = run({**SDE, "noise_max_step": longest}, 9)[-1]
    assert (found - sample).abs().max() <= 2e-5 * sample.abs().max()


def test_none_changes_no_byte_and_zero_is_the_ode():
    assert torch.equal(run(SDE, 8), run({**SDE, "noise_max_step": None}, 8))
    ode = run({**SDE, "algorithm_type": "dpmsolver++"}, 8)
    assert torch.equal(run({**SDE, "noise_max_step": 0.0}, 8), ode)
    assert not torch.equal(run(SDE, 8), ode)


def test_steps_without_noise_draw_it_so_that_later_requests_of_one_generator_do_not_depend_on_it():
    left = []
    for longest in (None, 0.0):
        core = schedulers.core_from_config({**SDE, "noise_max_step": longest})
        generator = torch.Generator().manual_seed(5)
        state, sample = schedulers.start(core, core.grid(4), generator=generator), first()
        while not state.done:
            sample = schedulers.step(reference, state, sample, model(sample, state.timestep))
        left.append(torch.randn(3, generator=generator))
    assert torch.equal(*left)


def test_what_it_cannot_be_set_for_says_so():
    with pytest.raises(CheckpointError, match=r"noise_max_step=0.8 needs an SDE.*or use 'sde-dpmsolver\+\+'"):
        schedulers.core_from_config({**SDE, "algorithm_type": "dpmsolver++", "noise_max_step": 0.8})
    with pytest.raises(CheckpointError, match="noise_max_step"):
        schedulers.core_from_config({**SDE, "noise_max_step": -0.1})
    euler = schedulers.core_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    with pytest.raises(RequestError, match="noise_max_step is for DPM-Solver"):
        schedulers.with_noise_max_step(euler, 0.8)


def test_a_scheduler_without_noise_has_no_end_of_it():
    core = schedulers.with_noise_max_step(schedulers.core_from_config(SDE), 0.8)
    assert core.config.noise_max_step == 0.8 and core.without_noise().config.noise_max_step is None
