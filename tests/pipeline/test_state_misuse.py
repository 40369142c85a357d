"""States that are handed to what they do not belong to, or twice, are refused and stay as they were."""

from dataclasses import replace

import pytest
import torch

from kinema.errors import RequestError
from kinema.request import GenerationRequest

CALL = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2, "seed": 1}


def test_a_state_is_stepped_once(models):
    pipe = models("t2v").ours
    state = pipe.prepare(GenerationRequest("a red circle", **CALL))
    before = state.latents.clone()
    with pytest.raises(RequestError, match="given twice"):
        pipe.step([state, state])
    assert state.step_index == 0 and torch.equal(state.latents, before)


def test_a_state_belongs_to_its_pipeline(models):
    pipe, other = models("t2v").ours, models.fresh("t2v")
    state = other.prepare(GenerationRequest("a red circle", **CALL))
    with pytest.raises(RequestError, match="another pipeline"):
        pipe.step([state])
    assert state.step_index == 0
    other.run(state)
    with pytest.raises(RequestError, match="another pipeline"):
        pipe.finish(state)
    other.finish(state)


def test_every_video_has_a_file_of_its_own(models, tmp_path):
    pipe = models("t2v").ours
    state = pipe.prepare(GenerationRequest("a red circle", **CALL, num_videos_per_prompt=2))
    pipe.run(state)
    with pytest.raises(RequestError, match="given twice"):
        pipe.write(state, [tmp_path / "a.npy", tmp_path / "b" / ".." / "a.npy"])
    assert list(tmp_path.iterdir()) == []


def test_a_function_of_ones_own_runs_whatever_is_loaded(models):
    pipe = models.fresh("t2v")
    wanted = pipe("a red circle", **CALL).frames
    calls = dict.fromkeys(("linear", "attention", "qk_norm_rope", "conv3d", "patch_embed", "scheduler_step"), 0)

    def counting(name, function):
        def call(*given, **options):
            calls[name] += 1
            return function(*given, **options)

        return call

    pipe.ops = replace(pipe.ops, **{name: counting(name, getattr(pipe.ops, name)) for name in calls})
    assert pipe.components.loaded == ()
    assert (pipe("a red circle", **CALL).frames == wanted).all()
    assert all(calls.values()), calls
    with pytest.raises(RequestError, match="wanted a Ops"):
        pipe.ops = None


def test_functions_that_no_part_holds_leave_the_parts(models):
    pipe = models.fresh("t2v")
    pipe("a red circle", **CALL)
    before, calls = pipe.components.loaded, []
    step = pipe.ops.scheduler_step
    pipe.ops = replace(pipe.ops, scheduler_step=lambda *given, **options: calls.append(1) or step(*given, **options))
    assert pipe.components.loaded == before
    pipe("a red circle", **CALL)
    assert len(calls) == CALL["num_inference_steps"]


@torch.no_grad()
def test_a_transformer_that_is_exchanged_reads_the_prompt_anew(models):
    other = models.fresh("t2v").components.transformer()
    for block in other.blocks:
        block.cross_norm_k.weight.mul_(1.5)

    def first_step(*, late):
        pipe = models.fresh("t2v")
        state = pipe.prepare(GenerationRequest("a red circle", **CALL))
        if late:
            state.contexts("transformer", pipe.components.transformer())
        pipe.transformer = other
        pipe.step([state])
        return state.latents

    assert torch.equal(first_step(late=True), first_step(late=False))


def test_a_text_that_is_exchanged_is_read(models):
    pipe = models("t2v").ours
    blue = pipe.prepare(GenerationRequest("a blue square", **CALL)).text

    def first_step(*, late):
        state = pipe.prepare(GenerationRequest("a red circle", **CALL))
        if late:
            state.contexts("transformer", pipe.components.transformer())
        state.text = blue
        pipe.step([state])
        return state.latents

    assert torch.equal(first_step(late=True), first_step(late=False))
