"""Runs as requests own them: guidance, batching at different steps, video-to-video, noise, buffers."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from kinema import schedulers
from kinema.errors import RequestError
from kinema.ops import build_ops, plan_ops, target_for
from kinema.ops.scheduler_step import reference

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
CORES: dict[str, dict[str, Any]] = {
    "euler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "euler-stochastic": {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
    "unipc": {"_class_name": "UniPCMultistepScheduler", **FLOW},
    "unipc-3": {"_class_name": "UniPCMultistepScheduler", **FLOW, "solver_order": 3},
    "dpm": {"_class_name": "DPMSolverMultistepScheduler", **FLOW},
    "dpm-sde-3": {
        "_class_name": "DPMSolverMultistepScheduler",
        **FLOW,
        "solver_order": 3,
        "algorithm_type": "sde-dpmsolver++",
    },
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"},
}
SHAPE = (2, 3, 4, 5)


def noise_of(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(sample: torch.Tensor, timestep: torch.Tensor, prompt: float) -> torch.Tensor:
    return torch.tanh(1.3 * sample.roll(1, -1) + prompt) + 0.001 * timestep


def started(name: str, steps: int, begin: int = 0, seed: int = 0) -> schedulers.SchedulerState:
    core = schedulers.core_from_config(CORES[name])
    generator = torch.Generator().manual_seed(seed)
    return schedulers.start(core, core.grid(steps), begin=begin, generator=generator)


@pytest.mark.parametrize("name", CORES)
def test_guidance_folds_into_the_coefficients(name: str) -> None:
    folded, explicit = started(name, 6), started(name, 6)
    a = b = noise_of(1)
    for guidance in (5.0, 1.0, 0.0, 2.5, 7.5, 3.0):  # it may change from step to step
        t = folded.timestep
        a = schedulers.step(reference, folded, a, model(a, t, 0.7), model(a, t, -0.4), guidance=guidance)
        cond, uncond = model(b, t, 0.7), model(b, t, -0.4)
        b = schedulers.step(reference, explicit, b, uncond + guidance * (cond - uncond))
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert folded.done


def test_guidance_without_an_unconditional_output_is_refused() -> None:
    state, x = started("unipc", 3), noise_of(0)
    with pytest.raises(RequestError, match="unconditional"):
        schedulers.step(reference, state, x, x, guidance=4.0)
    assert state.index == 0


def test_scale_one_does_not_read_the_unconditional_output() -> None:
    state, x = started("unipc", 3), noise_of(0)
    poison = torch.full_like(x, torch.nan)
    assert torch.isfinite(schedulers.step(reference, state, x, noise_of(1), poison)).all()


@pytest.mark.parametrize("name", CORES)
def test_runs_at_different_steps_share_a_launch(name: str) -> None:
    """Three runs of other lengths, batch sizes and guidance, two of them ahead: together equals alone."""
    plans = [(20, 1, 2.0, 0), (7, 2, 1.0, 3), (50, 3, 6.5, 11)]
    together = [started(name, steps, seed=i) for i, (steps, *_) in enumerate(plans)]
    alone = [started(name, steps, seed=i) for i, (steps, *_) in enumerate(plans)]
    xs = [noise_of(i, (batch, *SHAPE[1:])) for i, (_, batch, *_) in enumerate(plans)]
    ys = [x.clone() for x in xs]
    for i, (*_, lead) in enumerate(plans):
        for _ in range(lead):
            xs[i] = schedulers.step(reference, together[i], xs[i], model(xs[i], together[i].timestep, 0.5))
            ys[i] = schedulers.step(reference, alone[i], ys[i], model(ys[i], alone[i].timestep, 0.5))
    calls = []

    class Counting:
        @staticmethod
        def scheduler_step(*args: Any, **kwargs: Any) -> Any:
            calls.append(args)
            return reference.scheduler_step(*args, **kwargs)

    for _ in range(4):
        times = [state.timestep for state in together]
        conds = [model(x, t, 0.5) for x, t in zip(xs, times, strict=True)]
        unconds: list[torch.Tensor | None] = [model(x, t, -0.5) for x, t in zip(xs, times, strict=True)]
        unconds[1] = None
        guidance = [g for *_, g, _ in plans]
        for i, state in enumerate(alone):
            cond, uncond = model(ys[i], state.timestep, 0.5), model(ys[i], state.timestep, -0.5)
            ys[i] = schedulers.step(reference, state, ys[i], cond, uncond, guidance=guidance[i])
        xs = schedulers.step_batch(Counting, together, xs, conds, unconds, guidance=guidance)
    assert len(calls) == 4
    assert [state.index for state in together] == [4, 7, 15]
    for x, y in zip(xs, ys, strict=True):
        assert torch.equal(x, y)
    # and a run that was batched can go on alone, in its own buffers
    for state, samples in ((together[0], xs), (alone[0], ys)):
        for _ in range(3):
            samples[0] = schedulers.step(reference, state, samples[0], model(samples[0], state.timestep, 0.5))
    assert torch.equal(xs[0], ys[0])


def test_different_histories_cannot_share_a_launch() -> None:
    x = noise_of(0)
    with pytest.raises(RequestError, match="step them separately"):
        schedulers.step_batch(
            reference, [started("unipc", 4), started("dpm", 4)], [x, x], [x, x], [None, None], guidance=[1.0, 1.0]
        )


@pytest.mark.parametrize("begin", [0, 2])
@pytest.mark.parametrize("name", CORES)
def test_unwritten_history_is_never_read(name: str, begin: int) -> None:
    state = started(name, 8, begin)
    for done, table in enumerate(state.tables):
        at = 2
        for depth in state.core.delays:
            assert (table[:, at + min(done, depth) : at + depth] == 0).all()
            at += depth
    if state.core.delays:
        assert (state.tables[-2:, :, 2:] != 0).any(), "history is never used"


def test_history_buffers_are_reused_after_the_lines_are_full() -> None:
    state, x = started("unipc-3", 12), noise_of(0)
    pointers = []
    for _ in range(9):
        x = schedulers.step(reference, state, x, model(x, state.timestep, 0.2))
        pointers.append({entry.data_ptr() for line in state.history for entry in line if entry is not None})
    assert pointers[-1] == pointers[-2] == pointers[4]


def test_result_can_go_into_the_sample() -> None:
    a, b, x, y = started("unipc", 6), started("unipc", 6), noise_of(0), noise_of(0)
    for _ in range(6):
        output = model(x, a.timestep, 0.2)
        x = schedulers.step(reference, a, x, output)
        assert schedulers.step(reference, b, y, output, out=y) is y
        assert torch.equal(x, y)


def test_gradients_flow_through_a_run() -> None:
    state, first = started("unipc", 5), noise_of(0).requires_grad_()
    x, kept = first, []
    for _ in range(5):
        x = schedulers.step(reference, state, x, model(x, state.timestep, 0.2))
        kept += [(entry, entry.detach().clone()) for line in state.history for entry in line if entry is not None]
    assert all(torch.equal(entry, then) for entry, then in kept), "a tensor of the graph was overwritten"
    (gradient,) = torch.autograd.grad(x.square().sum(), first)
    assert gradient.abs().min() > 0


def test_bf16_terms_give_an_fp32_sample() -> None:
    state, x = started("unipc", 4), noise_of(0)
    following = schedulers.step(reference, state, x.bfloat16(), model(x, state.timestep, 0.0).bfloat16())
    assert following.dtype == torch.float32
    assert all(entry is None or entry.dtype == torch.float32 for line in state.history for entry in line)


def test_planned_ops_are_accepted() -> None:
    ops = build_ops(plan_ops(target_for("cpu"), "reference"))
    a, b, x = started("dpm", 3), started("dpm", 3), noise_of(0)
    assert torch.equal(schedulers.step(ops, a, x, x), schedulers.step(reference, b, x, x))


def test_a_finished_run_is_refused() -> None:
    state, x = started("euler", 1), noise_of(0)
    x = schedulers.step(reference, state, x, x)
    with pytest.raises(RequestError, match="done"):
        schedulers.step(reference, state, x, x)


def test_noise_is_drawn_as_diffusers_draws_it() -> None:
    draw = diffusers.utils.torch_utils.randn_tensor
    seeds = [torch.Generator().manual_seed(s) for s in (4, 5)], [torch.Generator().manual_seed(s) for s in (4, 5)]
    assert torch.equal(schedulers.draw_noise(SHAPE, seeds[0]), draw(SHAPE, seeds[1]))
    assert torch.equal(schedulers.draw_noise(SHAPE, seeds[0][:1]), draw(SHAPE, seeds[1][:1]))
    assert torch.equal(schedulers.draw_noise(SHAPE, seeds[0][1]), draw(SHAPE, seeds[1][1]))
    with pytest.raises(RequestError, match="3 generators"):
        schedulers.draw_noise(SHAPE, [torch.Generator()] * 3)


@pytest.mark.parametrize("steps", [4, 20, 50])
@pytest.mark.parametrize("strength", [0.3, 0.55, 0.999, 1.0])
def test_begin_index_is_that_of_get_timesteps(steps: int, strength: float) -> None:
    class Pipeline:
        class scheduler:
            order = 1

    timesteps, count = diffusers.WanVideoToVideoPipeline.get_timesteps(
        Pipeline(), steps, np.arange(steps), strength, "cpu"
    )
    assert schedulers.begin_index(steps, strength) == steps - count == timesteps[0]


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.04), (20, 0.0), (20, 1.01), (20, -0.1)])
def test_useless_strengths_are_refused(steps: int, strength: float) -> None:
    with pytest.raises(RequestError, match="strength"):
        schedulers.begin_index(steps, strength)


@pytest.mark.parametrize("begin", [1, 7, 18])
@pytest.mark.parametrize("name", CORES)
def test_video_to_video_agrees(name: str, begin: int) -> None:
    """add_noise at the begin index, then the rest of the run, against diffusers."""
    config = dict(CORES[name])
    theirs = getattr(diffusers, config.pop("_class_name"))(**config)
    theirs.set_timesteps(20)
    core = schedulers.core_from_config(CORES[name])
    grid, clean, noise = core.grid(20), torch.tanh(noise_of(8)), noise_of(9)
    ours = schedulers.add_noise(reference, core, grid, begin, clean, noise)
    at = theirs.timesteps[begin : begin + 1].repeat(len(clean))
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(begin)
    scale = getattr(theirs, "scale_noise", None)
    expected = scale(clean, at, noise) if scale else theirs.add_noise(clean, noise, at)
    assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()

    state = schedulers.start(core, grid, begin=begin, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    takes = {"generator": generator} if core.draws_noise() else {}
    for t in theirs.timesteps[begin:]:
        assert state.timestep == t
        ours = schedulers.step(reference, state, ours, model(ours, t, 0.1))
        expected = theirs.step(model(expected, t, 0.1), t, expected, **takes).prev_sample
        assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert state.done


def test_add_noise_takes_one_level_per_sample() -> None:
    core = schedulers.core_from_config(CORES["unipc"])
    grid, clean, noise = core.grid(10), noise_of(8), noise_of(9)
    mixed = schedulers.add_noise(reference, core, grid, [2, 7], clean, noise)
    for row, index in enumerate((2, 7)):
        assert torch.equal(mixed[row], schedulers.add_noise(reference, core, grid, index, clean, noise)[row])


@pytest.mark.parametrize("begin", [-1, 4])
def test_begin_outside_the_grid_is_refused(begin: int) -> None:
    with pytest.raises(RequestError, match="begin"):
        started("unipc", 4, begin)
    core = schedulers.core_from_config(CORES["unipc"])
    with pytest.raises(RequestError, match="outside the grid"):
        core.coefficients(core.grid(4), begin)


@pytest.mark.parametrize(("name", "eta"), [("unipc", 0.5), ("ddim", -0.5)])
def test_bad_eta_is_refused(name: str, eta: float) -> None:
    core = schedulers.core_from_config(CORES[name])
    with pytest.raises(RequestError, match="eta"):
        schedulers.start(core, core.grid(4), eta=eta)


@pytest.mark.parametrize("name", CORES)
def test_the_noise_can_be_left_out(name: str) -> None:
    """What is left is a deterministic sampler of the same class."""

    def run(core: schedulers.SchedulerCore, seed: int) -> torch.Tensor:
        state = schedulers.start(core, core.grid(8), generator=torch.Generator().manual_seed(seed))
        sample = noise_of(1)
        while not state.done:
            sample = schedulers.step(reference, state, sample, 0.5 * model(sample, torch.zeros(()), 0.3))
        return sample

    noisy = schedulers.core_from_config(CORES[name])
    plain = noisy.without_noise()
    assert type(plain) is type(noisy)
    assert torch.equal(run(plain, 0), run(plain, 1))
    stochastic = "sde" in name or "stochastic" in name
    assert torch.equal(run(noisy, 0), run(noisy, 1)) is not stochastic
    assert torch.equal(run(plain, 0), run(noisy, 0)) is not stochastic
