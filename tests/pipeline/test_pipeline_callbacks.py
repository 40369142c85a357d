"""Callbacks after each step: what they see, what they may change, how they stop a run."""

import numpy as np
import pytest
import torch

from kinema import GenerationRequest
from kinema.errors import RequestError

CALL = {
    **{"prompt": "a red circle", "height": 32, "width": 48, "num_frames": 5, "max_sequence_length": 24},
    **{"num_inference_steps": 4, "guidance_scale": 3.0},
}
NAMES = ["latents", "prompt_embeds", "negative_prompt_embeds"]
TOLERANCE = 1e-5


def both(models, ours, theirs, **changes):
    """(theirs, ours) frames of one call, each with its own callback."""
    model = models("t2v")
    call = {**CALL, "callback_on_step_end_tensor_inputs": NAMES, **changes}
    expected = model.theirs(**call, generator=torch.Generator().manual_seed(3), callback_on_step_end=theirs).frames
    return expected, model.ours(**call, seed=3, callback_on_step_end=ours).frames


def test_callbacks_see_what_those_of_diffusers_see(models):
    seen = {"theirs": [], "ours": []}

    def watch(name, result):
        def callback(owner, step, timestep, tensors):
            copies = {key: tensor.clone() for key, tensor in tensors.items()}
            seen[name].append((step, timestep, copies))
            return result

        return callback

    both(models, watch("ours", None), watch("theirs", {}), prompt=["a red circle", "no"])
    assert len(seen["ours"]) == len(seen["theirs"]) == 4
    for (step, timestep, tensors), (their_step, their_timestep, their_tensors) in zip(*seen.values(), strict=True):
        assert step == their_step and float(timestep) == float(their_timestep)
        assert type(step) is int and timestep.shape == () and timestep.dtype == their_timestep.dtype
        assert list(tensors) == list(their_tensors)
        for name in NAMES:
            assert tensors[name].shape == their_tensors[name].shape
            assert float((tensors[name] - their_tensors[name]).abs().max()) <= TOLERANCE


def test_a_callback_replaces_latents_and_embeddings(models):
    other = torch.randn(1, 24, 24, generator=torch.Generator().manual_seed(1))

    def change(owner, step, timestep, tensors):
        if step == 0:
            return {"latents": tensors["latents"] * 0.9 + 0.1}
        if step == 1:
            return {"prompt_embeds": other}
        if step == 2:
            return {"negative_prompt_embeds": -other}
        return {}

    expected, ours = both(models, change, change)
    assert np.abs(expected - ours).max() <= TOLERANCE
    plain = models("t2v").ours(**CALL, seed=3).frames
    assert np.abs(plain - ours).max() > 0.1


def test_a_callback_may_write_into_the_latents(models):
    def halve(owner, step, timestep, tensors):
        tensors["latents"].mul_(0.5)
        return {}

    expected, ours = both(models, halve, halve)
    assert np.abs(expected - ours).max() <= TOLERANCE


@pytest.mark.parametrize("last", [0, 2])
def test_an_interrupted_run_decodes_what_it_has(models, last):
    calls = []

    def theirs(owner, step, timestep, tensors):
        owner._interrupt = step == last
        return {}

    def ours(state, step, timestep, tensors):
        calls.append(step)
        state.interrupt = step == last

    expected, frames = both(models, ours, theirs)
    assert calls == list(range(last + 1))
    assert np.abs(expected - frames).max() <= TOLERANCE


def test_statistics_count_the_steps_that_ran(models):
    def stop(state, step, timestep, tensors):
        state.interrupt = step == 1

    pipe = models.fresh("t2v")
    first, second = (pipe(**CALL, callback_on_step_end=stop).stats for _ in range(2))
    assert (first.steps, first.forwards) == (second.steps, second.forwards) == (2, 4)
    assert set(first.seconds) == {"load", "text", "denoise", "decode"}
    assert list(second.seconds) == ["text", "denoise", "decode"] and second.peak_bytes > 2**20


@pytest.mark.parametrize("error", [RuntimeError("no more"), KeyboardInterrupt()])
def test_what_a_callback_raises_arrives_and_the_pipeline_lives_on(models, error):
    pipe = models("t2v").ours
    before = pipe(**CALL, seed=3).frames

    def fail(state, step, timestep, tensors):
        if step == 1:
            raise error

    with pytest.raises(type(error)):
        pipe(**CALL, seed=3, callback_on_step_end=fail)
    assert np.array_equal(pipe(**CALL, seed=3).frames, before)


@pytest.mark.parametrize("names", [["noise_pred"], ["latents", "image_embeds"]])
def test_unknown_tensors_are_refused_before_the_first_step(models, monkeypatch, names):
    def never(*arguments):
        raise AssertionError("a step was taken")

    pipe = models("t2v").ours
    monkeypatch.setattr(pipe, "step", never)
    with pytest.raises(RequestError, match=rf"{names[-1]}.*this request has.*negative_prompt_embeds.*prompt_embeds"):
        pipe(**CALL, callback_on_step_end=never, callback_on_step_end_tensor_inputs=names)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"latents": torch.zeros(1, 4, 2, 4, 7)}, r"latents a tensor of shape \(1, 4, 2, 4, 7\): .* \(1, 4, 2, 4, 6\)"),
        ({"prompt_embeds": torch.zeros(2, 24, 24)}, r"prompt_embeds a tensor of shape \(2, 24, 24\): .* \(1, 24, 24\)"),
        ({"timestep": torch.zeros(())}, "timestep.*this request has"),
        ({"latents": None}, "latents a NoneType: wanted a tensor of shape"),
        ("stop", "a callback returned a str: wanted a dict of tensors, or None"),
    ],
)
def test_what_a_callback_returns_is_checked(models, result, message):
    with pytest.raises(RequestError, match=message):
        models("t2v").ours(**CALL, callback_on_step_end=lambda *arguments: result)


def test_embeddings_change_for_the_expert_that_runs(models):
    """A context belongs to an expert and to embeddings: a change of either makes a new one."""
    other = torch.randn(1, 24, 24, generator=torch.Generator().manual_seed(1))

    def change(owner, step, timestep, tensors):
        return {"prompt_embeds": other} if step in (1, 3) else {}

    model = models("two_experts")
    call = {**CALL, "num_inference_steps": 6, "callback_on_step_end": change}
    expected = model.theirs(**call, generator=torch.Generator().manual_seed(3)).frames
    assert np.abs(expected - model.ours(**call, seed=3).frames).max() <= TOLERANCE


@pytest.mark.parametrize("kind", ["t2v", "two_experts"])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_guidance_is_turned_off_as_in_diffusers(models, kind, scale):
    """For all experts, from the next step on, and half of the rows go."""

    def turn_off(owner, step, timestep, tensors):
        if step == 1:
            owner._guidance_scale = scale
        return {}

    model = models(kind)
    call = {**CALL, "num_inference_steps": 6, "callback_on_step_end": turn_off}
    expected = model.theirs(**call, generator=torch.Generator().manual_seed(3)).frames
    output = model.ours(**call, seed=3)
    assert np.abs(expected - output.frames).max() <= TOLERANCE
    assert output.stats.forwards == 2 * 2 + 4
    assert np.abs(model.ours(**{**call, "callback_on_step_end": None}, seed=3).frames - expected).max() > 0.01


def test_guidance_takes_another_value_from_the_next_step_on(models):
    pipe = models("t2v").ours
    state = pipe.prepare(GenerationRequest(**CALL, seed=3))
    state.guidance_scale = np.float32(6.0)
    while not state.done:
        pipe.step([state])
    assert np.array_equal(pipe.finish(state).frames, pipe(**{**CALL, "guidance_scale": 6.0}, seed=3).frames)
    assert state.guidance_scale == state._guidance_scale == 6.0 and state.do_classifier_free_guidance


def test_the_second_expert_has_a_guidance_of_its_own(models):
    pipe = models("two_experts").ours
    state = pipe.prepare(GenerationRequest(**{**CALL, "num_inference_steps": 6}, seed=3))
    state._guidance_scale_2 = 1.5
    while not state.done:
        pipe.step([state])
    expected = pipe(**{**CALL, "num_inference_steps": 6}, guidance_scale_2=1.5, seed=3).frames
    assert np.array_equal(pipe.finish(state).frames, expected)
    with pytest.raises(RequestError, match="two experts"):
        models("t2v").ours.prepare(GenerationRequest(**CALL)).guidance_scale_2 = 2.0


def test_guidance_comes_back_but_not_from_nowhere(models):
    pipe, scales = models("t2v").ours, {0: 1.0, 1: 1.0, 2: 3.0}

    def change(state, step, timestep, tensors):
        state.guidance_scale = scales.get(step, 3.0)

    assert pipe(**CALL, callback_on_step_end=change).stats.forwards == 2 + 1 + 1 + 2
    with pytest.raises(RequestError, match="guidance_scale = 3: this request was prepared without guidance"):
        pipe(**{**CALL, "guidance_scale": 1.0}, callback_on_step_end=change)
    for wrong in (None, "3", float("nan"), True):
        with pytest.raises(RequestError, match="guidance_scale is"):
            pipe.prepare(GenerationRequest(**CALL)).guidance_scale = wrong


def test_a_callback_object_of_diffusers(models):
    """It names the tensors that it wants, and changes guidance and embeddings."""
    from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback

    for callback in (
        SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1),
        MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.5)]),
    ):
        expected, frames = both(models, callback, callback)
        assert np.abs(expected - frames).max() <= TOLERANCE


@pytest.mark.parametrize("returned", [True, False], ids=["returned", "not returned"])
@pytest.mark.parametrize("name", ["prompt_embeds", "negative_prompt_embeds"])
def test_what_is_written_into_embeddings_counts(models, name, returned):
    def edit(owner, step, timestep, tensors):
        if step == 1:
            tensors[name][:, :4].add_(0.7)
        return dict(tensors) if returned else {}

    expected, ours = both(models, edit, edit)
    assert np.abs(expected - ours).max() <= TOLERANCE
    assert np.abs(expected - models("t2v").ours(**CALL, seed=3).frames).max() > 0.01


def test_what_is_written_past_torch_counts_too(models):
    """By numpy, say, of which a tensor's version knows nothing."""

    def edit(owner, step, timestep, tensors):
        if step == 0:
            tensors["prompt_embeds"].numpy()[:] *= 0.5
            tensors["latents"].numpy()[:] *= 0.9
        return {}

    expected, ours = both(models, edit, edit)
    assert np.abs(expected - ours).max() <= TOLERANCE


def test_embeddings_that_come_back_as_they_were_cost_nothing(models, monkeypatch):
    pipe, encoded = models("t2v").ours, []
    transformer = pipe.components.transformer()
    encode = transformer.encode_context
    monkeypatch.setattr(transformer, "encode_context", lambda *given: encoded.append(1) or encode(*given))
    pipe(**CALL, callback_on_step_end=lambda *given: given[3], callback_on_step_end_tensor_inputs=NAMES)
    assert len(encoded) == 1


UNKNOWN = {
    "_interupt": "RequestState has no '_interupt'",
    "vae": "RequestState has no 'vae': a callback is given the state of its request: use the pipeline",
    "scheduler": "use the pipeline that was called",
    "strength": "RequestState has no 'strength'",
}


@pytest.mark.parametrize(("name", "message"), UNKNOWN.items())
def test_attributes_that_a_request_does_not_have_are_refused(models, name, message):
    pipe = models("t2v").ours

    def change(state, step, timestep, tensors):
        assert not hasattr(state, name)
        setattr(state, name, True)

    with pytest.raises(AttributeError, match=message) as refused:
        pipe(**CALL, callback_on_step_end=change)
    assert isinstance(refused.value, RequestError)


def test_what_a_callback_reads_of_a_pipeline_is_there(models):
    seen = []

    def look(state, step, timestep, tensors):
        seen.append((state.num_timesteps, state._guidance_scale, state.interrupt, state._interrupt))

    models("t2v").ours(**CALL, callback_on_step_end=look)
    assert seen == [(4, 3.0, False, False)] * 4


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((1, 4, 2, 4, 6), float("nan")),
        torch.ones(1, 4, 2, 4, 6, device="meta"),
        torch.ones(1, 4, 2, 4, 6, dtype=torch.int64),
        torch.ones(1, 4, 2, 4, 6, dtype=torch.complex64),
    ],
    ids=["nan", "meta", "int", "complex"],
)
def test_latents_that_a_callback_returns_are_numbers(models, tensor):
    with pytest.raises(RequestError, match="latents"):
        models("t2v").ours(**CALL, callback_on_step_end=lambda *given: {"latents": tensor})
