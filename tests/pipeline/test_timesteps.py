"""What is known of all steps before the first (timesteps, coefficients, experts): the bits of each step alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from kinema.checkpoints import Weights
from kinema.denoise.timesteps import Timesteps
from kinema.families.wan import config as wan
from kinema.families.wan.transformer import WanTransformer
from kinema.ops import build_ops, plan_ops, target_for
from kinema.ops.common import native
from kinema.request import GenerationRequest

CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4, "seed": 1}

needs_native = pytest.mark.skipif(not native.instruction_sets(), reason="the native kernels are not built")


def transformer_of(config, backend):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float32) * 0.1
        for name, shape in wan.tensor_shapes(config).items()
    }
    return WanTransformer(config, Weights(tensors), build_ops(plan_ops(target_for("cpu"), backend)))


@needs_native
@pytest.mark.parametrize("isa", native.instruction_sets())
@torch.no_grad()
def test_timesteps_embedded_together_are_those_embedded_alone(models, isa):
    """For every count of rows that a kernel's blocks may be cut at."""
    with native.forced(isa):
        denoiser = transformer_of(models("t2v").ours.transformer_config, "cpu")
        for count in (1, 2, 3, 5, 8, 17, 50):
            levels = torch.linspace(999.0, 3.0, count, dtype=torch.float32)
            schedule = Timesteps(levels, torch.device("cpu"))
            for step in range(count):
                for rows in (1, 2, 3):
                    alone = denoiser.modulations(levels[step].expand(rows))
                    for found, wanted in zip(schedule.embedded(denoiser, step), alone, strict=True):
                        assert float(wanted.std()) > 0.01
                        assert torch.equal(found.expand_as(wanted), wanted), (count, step, rows)


@needs_native
@torch.no_grad()
def test_groups_of_tokens_have_their_own_timesteps(models):
    denoiser = transformer_of(models("t2v").ours.transformer_config, "cpu")
    levels = torch.tensor([[0, 999, 999], [0, 750, 750], [0, 3, 750]])
    schedule = Timesteps(levels, torch.device("cpu"))
    for step, row in enumerate(levels):
        assert torch.equal(schedule.of(step, 2), row.expand(2, 3))
        alone = denoiser.modulations(row.unsqueeze(0))
        for found, wanted in zip(schedule.embedded(denoiser, step), alone, strict=True):
            assert found.shape == wanted.shape and torch.equal(found, wanted)


@torch.no_grad()
def test_each_denoiser_has_its_own_and_they_are_embedded_once(models):
    config = models("t2v").ours.transformer_config
    one, other = transformer_of(config, "reference"), transformer_of(config, "reference")
    other.table.add_(1.0)
    calls, embed = [], WanTransformer.modulations

    class Counting(WanTransformer):
        def modulations(self, timesteps):
            calls.append(timesteps.shape)
            return embed(self, timesteps)

    one.__class__ = other.__class__ = Counting
    schedule = Timesteps(torch.tensor([900.0, 500.0, 100.0]), torch.device("cpu"))
    for step in range(3):
        for denoiser in (one, other):
            schedule.embedded(denoiser, step)
    assert calls == [(1, 3)] * 2
    assert not torch.equal(schedule.embedded(one, 1)[1], schedule.embedded(other, 1)[1])
    del one, denoiser
    assert len(schedule._embedded) == 1, "a denoiser that is released is not kept by a request's timesteps"


@needs_native
@pytest.mark.parametrize("kind", ["t2v", "two_experts", "ti2v", "i2v_clip", "i2v_first_last", "i2v_experts"])
def test_every_kind_of_model_replays_the_same_bits(models, kind):
    """Alone, and two requests together whose schedules, guidance and images differ."""
    recorded, eager = models.fresh(kind), models.fresh(kind, replay=False)
    size = (64, 96) if kind == "ti2v" else (32, 48)
    noise = np.random.default_rng(0)
    given = {**CALL, "height": size[0], "width": size[1]}
    pictures = [Image.fromarray(noise.integers(0, 255, (*size, 3), dtype=np.uint8)) for _ in range(2)]
    calls = []
    for seed, steps in ((1, 6), (2, 5)):
        call = {**given, "seed": seed, "num_inference_steps": steps, "guidance_scale": 2.0 + seed}
        if "i2v" in kind:
            call["image"] = pictures[seed - 1]
        if kind == "i2v_first_last":
            call["last_image"] = pictures[2 - seed]
        calls.append(call)
    wanted = [alone(eager, call) for call in calls]
    assert all(torch.equal(alone(recorded, call), latents) for call, latents in zip(calls, wanted, strict=True))
    states = [recorded.prepare(GenerationRequest("a red circle", **call)) for call in calls]
    while not all(state.done for state in states):
        recorded.step(states)
    assert all(torch.equal(state.latents, latents) for state, latents in zip(states, wanted, strict=True))
    assert not torch.equal(*wanted)


def alone(pipe, call):
    state = pipe.prepare(GenerationRequest("a red circle", **call))
    pipe.run(state)
    return state.latents


def test_requests_in_a_step_share_one_scheduler_step(models):
    pipe = models.fresh("t2v")
    counts, real = [], pipe.ops.scheduler_step

    def counting(terms, coefficients, *, out=None):
        counts.append(len(terms[0]))
        return real(terms, coefficients, out=out)

    pipe.ops = replace(pipe.ops, scheduler_step=counting)
    calls = [{**CALL, "seed": seed} for seed in range(3)]
    states = [pipe.prepare(GenerationRequest("a red circle", **call)) for call in calls]
    odd = pipe.prepare(GenerationRequest("a red circle", **{**CALL, "width": 48}))
    pipe.step([*states, odd])
    assert sorted(counts) == [1, 3]
    pipe.step([states[0]])
    states[1].guidance_scale = 1.5
    counts.clear()
    pipe.step([*states, odd])
    assert sorted(counts) == [1, 3], "runs at different steps with different guidance, too"


@needs_native
def test_the_host_waits_for_nothing_and_computes_no_embedding_in_a_step(models):
    """On a GPU each of these would be a launch, a copy, or a wait."""
    pipe, seen = models.fresh("t2v"), []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func.is_view:
                seen.append(func._schema.name.removeprefix("aten::"))
            return func(*args, **(kwargs or {}))

    state = pipe.prepare(GenerationRequest("a red circle", **{**CALL, "num_inference_steps": 6}))
    for _ in range(3):
        pipe.step([state])
    with torch.no_grad(), Seeing():
        pipe.step([state])
    assert set(seen) <= {"copy_", "clone", "detach", "empty", "empty_like"}, sorted(seen)
    assert seen.count("copy_") == 4, "latents and two embeddings; latents twice, for two rows"
    assert {"_local_scalar_dense", "_to_copy", "mm", "addmm", "silu", "cos", "cat"}.isdisjoint(seen)


def test_experts_are_chosen_before_the_first_step(models):
    pipe, asked = models.fresh("two_experts"), []
    choose = pipe.model.expert
    pipe.model.expert = lambda *given: asked.append(given) or choose(*given)
    state = pipe.prepare(GenerationRequest("a red circle", **{**CALL, "num_inference_steps": 6}))
    assert len(asked) == 6
    seen = []
    while not state.done:
        seen.append((state.expert, bool(state.timestep >= 900)))
        pipe.step([state])
    assert len(asked) == 6
    assert {expert for expert, _ in seen} == {"transformer", "transformer_2"}
    assert all((expert == "transformer") == first for expert, first in seen)
