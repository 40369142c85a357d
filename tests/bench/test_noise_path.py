"""The noise of many steps summed to few: the formula, the path between levels, and a whole run of a known model."""

import math

import pytest
import torch

from kinema import schedulers
from kinema.bench.noise_path import NoisePath, coupled_noises, times_of
from kinema.errors import UnsupportedError
from kinema.ops.scheduler_step import reference

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SDE = {"_class_name": "DPMSolverMultistepScheduler", **FLOW, "algorithm_type": "sde-dpmsolver++", "solver_order": 1}
CORE = schedulers.core_from_config(SDE)
SHAPE = (4, 50_000)


def source(seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator, dtype=torch.float32)


@pytest.mark.parametrize("short", [10, 5, 4])
def test_levels_that_both_runs_have_sum_by_the_formula(short):
    """A coarse noise is the fine ones times e^-(λ_end - λ)·√(1 - e^-2h), at unit variance."""
    long, few = CORE.grid(20), CORE.grid(short)
    lam = [math.log(alpha / sigma) for alpha, sigma in (CORE.noising(long, i) for i in range(20))]
    fine = [source()() for _ in range(1)]  # the first draw, to check the order
    draw = source()
    drawn = [draw() for _ in range(20)]
    assert torch.equal(fine[0], drawn[0])
    ratio, found = 20 // short, coupled_noises(CORE, long, few, source())
    assert len(found) == short - 1
    for i, noise in enumerate(found):
        steps = range(i * ratio, (i + 1) * ratio)
        weights = [
            math.exp(lam[j + 1] - lam[steps[-1] + 1]) * math.sqrt(1 - math.exp(-2 * (lam[j + 1] - lam[j])))
            for j in steps
        ]
        wanted = sum(w * drawn[j].double() for w, j in zip(weights, steps, strict=True)) / math.hypot(*weights)
        assert (noise - wanted).abs().max() < 2e-2, (
            "the grids' levels agree to fp32, and 1 - σ near σ = 1 to a per mille"
        )


def test_levels_between_are_a_brownian_bridge():
    """13 of 20: standard normal, steps independent of each other, and each like the long run's noise around it."""
    long, few = CORE.grid(20), CORE.grid(13)
    found = torch.stack(coupled_noises(CORE, long, few, source())).flatten(1)
    correlations = torch.corrcoef(found)
    assert (found.mean(1).abs() < 0.01).all() and (found.var(1) - 1).abs().max() < 0.02
    assert (correlations - torch.eye(12)).abs().max() < 0.02
    drawn = [draw() for draw in [source()] for _ in range(20)]
    times, wanted = times_of(CORE, long), times_of(CORE, few)
    for i, noise in enumerate(found):
        for j, fine in enumerate(drawn[:19]):
            shared = max(0.0, min(wanted[i + 1], times[j + 1]) - max(wanted[i], times[j]))
            expected = shared / math.sqrt((wanted[i + 1] - wanted[i]) * (times[j + 1] - times[j]))
            assert float((noise * fine.flatten()).mean()) == pytest.approx(expected, abs=0.02)


def test_a_level_that_was_asked_for_is_remembered():
    path = NoisePath([0.0, 1.0, 4.0], [source(1)(), source(2)()], source(3))
    halves = path.noise(0.0, 2.0) * math.sqrt(2) + path.noise(2.0, 4.0) * math.sqrt(2)
    assert torch.allclose(halves, path.noise(0.0, 4.0) * 2, atol=1e-12)
    assert float(path.noise(4.0, 9.0).var()) == pytest.approx(1, abs=0.02), "beyond the end it is drawn"


def test_two_steps_of_a_constant_x0_are_one_step_of_the_summed_noise():
    """Where the model says the same x0 at every level, any number of steps ends at the same sample."""
    x0, shape = source(9, (2, 3, 4))(), (2, 3, 4)

    def run(steps, noises):
        grid = CORE.grid(steps)
        state, sample = schedulers.start(CORE, grid), source(8, shape)()
        for i, noise in enumerate(noises):
            velocity = (sample - x0) / grid.sigmas[i]
            sample = schedulers.step(reference, state, sample, velocity, noise=noise.float())
        return sample

    draw = source(4, shape)
    fine = [draw() for _ in range(20)]
    few = coupled_noises(CORE, CORE.grid(20), CORE.grid(10), source(4, shape))
    assert (run(20, fine[:18]) - run(10, few[:9])).abs().max() < 2e-3
    assert (run(20, fine[:18]) - run(10, fine[:9])).abs().max() > 0.1


def test_other_samplers_have_no_path():
    for config in ({**SDE, "algorithm_type": "dpmsolver++"}, {"_class_name": "DDIMScheduler", "clip_sample": False}):
        core = schedulers.core_from_config(config)
        with pytest.raises(UnsupportedError, match="no noise path"):
            coupled_noises(core, core.grid(4), core.grid(2), source())
