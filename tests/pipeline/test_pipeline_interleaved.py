"""The loop belongs to others: prepare, step and decode_chunks of several requests at once."""

import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from kinema import GenerationRequest, VideoPipeline
from kinema.denoise import batching

# Rows that share a forward are rounded otherwise than alone; latents are of order 1, some reach 5.
TOLERANCE = 1e-5

SMALL = {"prompt": "a red circle", "height": 32, "width": 48, "num_frames": 5, "max_sequence_length": 24, "seed": 3}
LARGE = {**SMALL, "prompt": "blue square moving up", "height": 48, "width": 64, "num_frames": 9, "seed": 4}


def request(size: dict, **changes) -> GenerationRequest:
    return GenerationRequest(**{"num_inference_steps": 3, "guidance_scale": 3.0, **size, **changes})


def decode(pipe: VideoPipeline, state) -> torch.Tensor:
    return torch.cat(list(pipe.decode_chunks(state)), dim=2)


def alone(pipe: VideoPipeline, wanted: GenerationRequest) -> torch.Tensor:
    """Latents of a run that shares nothing."""
    state = pipe.prepare(wanted)
    while not state.done:
        pipe.step([state])
    return state.latents


@pytest.fixture
def forwards(monkeypatch):
    """Batch sizes of the transformer's calls, in order."""
    rows = []

    class Counting:
        def __init__(self, transformer):
            self.transformer = transformer
            self.patch_size = transformer.patch_size
            self.encode_context = transformer.encode_context

        def __call__(self, latents, *arguments, **named):
            rows.append(latents.shape[0])
            return self.transformer(latents, *arguments, **named)

    load = batching.forward_together
    monkeypatch.setattr(  # a replay is no call of it
        "kinema.denoise.step.forward_together",
        lambda transformer, parts, replayed: load(Counting(transformer), parts),
    )
    return rows


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"guidance_scale": 1.0}, [1, 1, 1]),
        ({"guidance_scale": 0.3}, [1, 1, 1]),
        ({"guidance_scale": 3.0}, [2, 2, 2]),
        ({"guidance_scale": 1.0, "prompt": ["a", "no"], "num_videos_per_prompt": 2}, [4, 4, 4]),
    ],
)
def test_one_forward_a_step_and_none_for_nothing(models, forwards, changes, rows):
    pipe = models("t2v").ours
    state = pipe.prepare(request(SMALL, **changes))
    while not state.done:
        pipe.step([state])
    assert forwards == rows
    assert state.stats.forwards == sum(rows) // state.latents.shape[0]


def test_an_unguided_second_expert_takes_one_row(models, forwards):
    pipe = models("two_experts").ours
    state = pipe.prepare(request(SMALL, num_inference_steps=5, guidance_scale_2=1.0))
    while not state.done:
        pipe.step([state])
    assert forwards == [2, 2, 1, 1, 1]


def test_requests_of_different_shapes_and_step_counts_do_not_touch(models, forwards):
    pipe = models("t2v").ours
    wanted = [request(SMALL), request(LARGE, num_inference_steps=5), request(LARGE, guidance_scale=1.0, num_frames=1)]
    expected = [alone(pipe, one) for one in wanted]
    forwards.clear()
    states = [pipe.prepare(one) for one in wanted]
    steps = 0
    while not all(state.done for state in states):
        pipe.step(states)
        steps += 1
    assert steps == 5 and [state.step_index for state in states] == [3, 5, 3]
    assert forwards == [2, 2, 1] * 3 + [2, 2]
    for state, latents in zip(states, expected, strict=True):
        assert torch.equal(state.latents, latents)


def test_requests_of_one_shape_share_a_forward_at_different_steps(models, forwards):
    pipe = models("t2v").ours
    wanted = [request(SMALL, num_inference_steps=4), request(SMALL, num_inference_steps=6, prompt="no", seed=8)]
    expected = [alone(pipe, one) for one in wanted]
    forwards.clear()
    first, second = pipe.prepare(wanted[0]), pipe.prepare(wanted[1])
    pipe.step([first])
    pipe.step([first])
    while not (first.done and second.done):
        pipe.step([first, second])
    assert forwards == [2, 2, 4, 4, 2, 2, 2, 2]
    for state, latents in zip((first, second), expected, strict=True):
        assert float((state.latents - latents).abs().max()) <= TOLERANCE


def test_shared_rows_that_are_split_keep_their_own_step(models, forwards, monkeypatch):
    pipe = models("t2v").ours
    wanted = [request(SMALL, num_inference_steps=4), request(SMALL, num_inference_steps=6, prompt="no", seed=8)]
    expected = [alone(pipe, one) for one in wanted]
    forwards.clear()
    monkeypatch.setattr(batching, "MAX_TOKENS_PER_FORWARD", 3 * 12)
    states = [pipe.prepare(one) for one in wanted]
    while not all(state.done for state in states):
        pipe.step(states)
    assert forwards == [3, 1] * 4 + [2, 2]
    for state, latents in zip(states, expected, strict=True):
        assert float((state.latents - latents).abs().max()) <= TOLERANCE


@pytest.mark.parametrize(
    "other",
    [{"prompt": "a red circle moving left slowly up down no"}, {"max_sequence_length": 32}],
    ids=["long", "more"],
)
def test_prompts_of_other_lengths_take_a_forward_of_their_own(models, forwards, other):
    pipe = models("t2v").ours
    wanted = [request(SMALL), request(SMALL, **other)]
    expected = [alone(pipe, one) for one in wanted]
    forwards.clear()
    states = [pipe.prepare(one) for one in wanted]
    while not all(state.done for state in states):
        pipe.step(states)
    assert forwards == [2, 2] * 3
    for state, latents in zip(states, expected, strict=True):
        assert torch.equal(state.latents, latents)
    assert not torch.equal(*expected)


def test_guided_and_unguided_requests_share_a_forward(models, forwards):
    pipe = models("t2v").ours
    wanted = [request(SMALL), request(SMALL, guidance_scale=1.0, seed=8)]
    expected = [alone(pipe, one) for one in wanted]
    forwards.clear()
    states = [pipe.prepare(one) for one in wanted]
    while not all(state.done for state in states):
        pipe.step(states)
    assert forwards == [3, 3, 3]
    for state, latents in zip(states, expected, strict=True):
        assert float((state.latents - latents).abs().max()) <= TOLERANCE


def test_states_at_different_experts_go_to_their_own(models, forwards):
    pipe = models("two_experts").ours
    wanted = [request(SMALL, num_inference_steps=5), request(SMALL, num_inference_steps=5, seed=8)]
    expected = [alone(pipe, one) for one in wanted]
    forwards.clear()
    states = [pipe.prepare(one) for one in wanted]
    pipe.step(states[:1])
    while not all(state.done for state in states):
        pipe.step(states)
    assert forwards == [2, 4, 2, 2, 4, 4, 2]
    for state, latents in zip(states, expected, strict=True):
        assert float((state.latents - latents).abs().max()) <= TOLERANCE


def test_rows_beyond_the_token_limit_are_split_with_the_same_result(models, forwards, monkeypatch):
    pipe = models("i2v_clip").ours
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    wanted = request(SMALL, prompt=["a red circle", "no"], num_videos_per_prompt=2, image=image)
    expected = alone(pipe, wanted)
    assert forwards == [8, 8, 8]
    forwards.clear()
    tokens = 2 * 2 * 3
    monkeypatch.setattr(batching, "MAX_TOKENS_PER_FORWARD", 3 * tokens + 5)
    assert float((alone(pipe, wanted) - expected).abs().max()) <= TOLERANCE
    assert forwards == [3, 3, 2] * 3
    forwards.clear()
    monkeypatch.setattr(batching, "MAX_TOKENS_PER_FORWARD", 1)
    assert float((alone(pipe, wanted) - expected).abs().max()) <= TOLERANCE
    assert forwards == [1] * 24


def test_decoding_and_stepping_alternate(models, monkeypatch):
    monkeypatch.setattr("kinema.families.wan.vae.decoder.CHUNK_BYTES", 0)  # a latent frame at a time, small as it is
    pipe = models("t2v").ours
    wanted = [request(SMALL, num_frames=13), request(LARGE, num_frames=13)]
    expected = [decode(pipe, finished(pipe, one)) for one in wanted]
    first, second = finished(pipe, wanted[0]), finished(pipe, wanted[1])
    third = pipe.prepare(request(LARGE))
    chunks: list[list[torch.Tensor]] = [[], []]
    for pair in zip(pipe.decode_chunks(first), pipe.decode_chunks(second), strict=True):
        for kept, chunk in zip(chunks, pair, strict=True):
            kept.append(chunk)
        if not third.done:
            pipe.step([third])
    assert [chunk.shape[2] for chunk in chunks[0]] == [1, 4, 4, 4]
    for parts, whole in zip(chunks, expected, strict=True):
        assert torch.equal(torch.cat(parts, dim=2), whole)
    assert torch.equal(third.latents, alone(pipe, request(LARGE)))


def finished(pipe: VideoPipeline, wanted: GenerationRequest):
    state = pipe.prepare(wanted)
    while not state.done:
        pipe.step([state])
    return state


def test_a_preview_in_the_middle_changes_nothing(models):
    pipe = models("t2v").ours
    state = pipe.prepare(request(SMALL))
    pipe.step([state])
    assert state._contexts is not None
    preview = decode(pipe, state)
    assert state._contexts is None, "while the VAE runs, the prompt's keys and values only take memory"
    while not state.done:
        pipe.step([state])
    assert torch.equal(state.latents, alone(pipe, request(SMALL)))
    assert float((decode(pipe, state) - preview).std()) > 0.01


def test_a_finished_state_is_left_alone(models, forwards):
    pipe = models("t2v").ours
    state = finished(pipe, request(SMALL))
    before, calls = state.latents.clone(), len(forwards)
    pipe.step([state])
    pipe.step([])
    assert len(forwards) == calls and torch.equal(state.latents, before)


def storages(state, tensors_of) -> set[int]:
    own = [state.latents, state.text, state.negative, state.conditioning, state.schedule.history, state._contexts]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_of(own) if tensor.numel()}


def test_states_share_no_memory(models, tensors_of):
    pipe = models("ti2v").ours
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8))
    latents = torch.randn(1, 4, 2, 4, 6)
    embeds = torch.randn(1, 24, 24)
    call = {"prompt": None, "height": 64, "width": 96, "seed": None, "image": image}
    wanted = request(SMALL, **call, latents=latents, prompt_embeds=embeds, negative_prompt_embeds=-embeds)
    states = [pipe.prepare(wanted) for _ in range(2)]
    for _ in range(2):
        first, second = (storages(state, tensors_of) for state in states)
        assert len(first) == len(second) >= 3 and not first & second
        assert not {latents.untyped_storage().data_ptr(), embeds.untyped_storage().data_ptr()} & (first | second)
        pipe.step(states)
    before = latents.clone()
    states[0].latents.zero_()
    assert torch.equal(latents, before) and float(states[1].latents.std()) > 0.1


@pytest.mark.parametrize("kind", ["t2v", "i2v_clip", "two_experts"])
def test_nothing_of_a_request_outlives_it(models, tensors_of, kind):
    pipe = models(kind).ours
    image = Image.new("RGB", (48, 32), (200, 30, 60)) if kind == "i2v_clip" else None
    # what the first runs leave for all to come: loaded parts, tables of positions, recorded forwards
    for _ in range(2):
        decode(pipe, finished(pipe, request(SMALL, image=image)))
    gc.collect()
    gc.freeze()  # what is there now is not looked at again
    try:
        state = pipe.prepare(request(SMALL, image=image))
        pipe.step([state])
        watched = [weakref.ref(state)]
        watched += [weakref.ref(tensor) for tensor in tensors_of([state.latents, state.text, state.schedule.history])]
        watched += [weakref.ref(tensor) for tensor in tensors_of([state._contexts, state.negative, state.conditioning])]
        assert len(watched) > 8
        while not state.done:
            pipe.step([state])
        chunks = pipe.decode_chunks(state)
        watched.append(weakref.ref(next(chunks)))
        del chunks, state
        gc.collect()
        assert all(ref() is None for ref in watched)
        assert [tensor.shape for tensor in gc.get_objects() if type(tensor) is torch.Tensor] == []
    finally:
        gc.unfreeze()


def test_requests_and_states_compare_by_identity(models):
    pipe = models("t2v").ours
    first, second = (pipe.prepare(request(SMALL, prompt_embeds=torch.ones(1, 24, 24), prompt=None)) for _ in range(2))
    assert [first, second].index(second) == 1
    assert first.request != second.request and len({first, second}) == 2
