"""Continuing a clip: the past stays, the new frame sees it and nothing else, and the seed decides everything."""

import pytest
import torch

from kinema import schedulers
from kinema.errors import RequestError
from kinema.ops.attention import BlockCausal
from kinema.request.generation import GenerationRequest
from kinema.stream.continuation import extend

CALL = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 3, "guidance_scale": 3.0}


def finished(pipe, seed=1, **changes):
    state = pipe.prepare(GenerationRequest("a red circle", seed=seed, **{**CALL, **changes}))
    while not state.done:
        pipe.step([state])
    return state


def test_the_past_stays_and_the_seed_decides(models):
    pipe = models("t2v").ours
    states = [finished(pipe, seed) for seed in (1, 1, 2)]
    before = states[0].latents.clone()
    for state in states:
        extend(pipe, state, 5, window=3)
    assert states[0].latents.shape == (*before.shape[:2], 5, *before.shape[3:])
    assert torch.equal(states[0].latents[:, :, :2], before)
    assert torch.equal(states[0].latents, states[1].latents)
    new = states[0].latents[:, :, 2:]
    assert new.isfinite().all() and not torch.allclose(new[:, :, 0], new[:, :, 1])
    assert not torch.allclose(new, states[2].latents[:, :, 2:])
    assert pipe.finish(states[0]).frames.shape[1] == 17


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_it_is_the_loop_written_out(models, guidance):
    """Against the transformer called frame by frame, each sample and each guidance half by itself."""
    pipe = models("t2v").ours
    state = finished(pipe, guidance_scale=guidance)
    past = state.latents.clone()
    generator = state.schedule.generator[0]
    resume = generator.get_state()
    extend(pipe, state, 3, window=3)

    again = torch.Generator()
    again.set_state(resume)
    sample = torch.randn(1, *past.shape[1:2], 1, *past.shape[3:], generator=again)
    transformer = pipe.components.transformer("transformer")
    halves = [transformer.encode_context(text) for text in (state.text, state.negative) if text is not None]
    run = schedulers.start(pipe.scheduler.core, pipe.scheduler.core.grid(3))
    while not run.done:
        levels = torch.tensor([[0.0, 0.0, float(run.timestep)]])
        tokens = past.shape[3] * past.shape[4] // 4
        clip = torch.cat((past, sample), dim=2)
        outputs = [transformer(clip, levels, half, causal=BlockCausal(tokens))[:, :, -1:] for half in halves]
        guided = outputs[0] if len(outputs) == 1 else outputs[1] + guidance * (outputs[0] - outputs[1])
        sample = schedulers.step(pipe.ops, run, sample, guided)
    assert torch.allclose(state.latents[:, :, 2:], sample, atol=1e-5)


def test_only_the_window_is_seen(models):
    pipe = models("t2v").ours
    states = [finished(pipe, num_frames=9) for _ in range(3)]
    states[1].latents[:, :, 0] += 1.0  # outside of a window of 3
    states[2].latents[:, :, 1] += 1.0
    for state in states:
        extend(pipe, state, 4, window=3)
    last = [state.latents[:, :, -1] for state in states]
    assert torch.equal(last[0], last[1])
    assert not torch.allclose(last[0], last[2], atol=1e-3)


def test_what_cannot_go_on_is_refused(models):
    pipe = models("t2v").ours
    state = pipe.prepare(GenerationRequest("a red circle", seed=1, **CALL))
    with pytest.raises(RequestError, match="0 of 3 steps"):
        extend(pipe, state, 5)
    with pytest.raises(RequestError, match="window is 1"):
        extend(pipe, finished(pipe), 5, window=1)
    experts = models("two_experts").ours
    with pytest.raises(RequestError, match="one expert"):
        extend(experts, finished(experts), 5)
