"""Parts load when a stage needs them, and leave with it where they are not to be kept."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import kinema
from kinema import GenerationRequest
from kinema.errors import CheckpointError, RequestError

CALL = {
    **{"prompt": "a red circle", "height": 32, "width": 48, "num_frames": 5, "max_sequence_length": 24, "seed": 3},
    **{"num_inference_steps": 5, "guidance_scale": 3.0},
}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))


def record(pipe, monkeypatch) -> list[tuple[str, ...]]:
    """What is loaded right after each load, in the order of loads."""
    seen = []
    load = pipe.components.part

    def recording(name):
        known = name in pipe.components.loaded
        part = load(name)
        if not known:
            seen.append(pipe.components.loaded)
        return part

    monkeypatch.setattr(pipe.components, "part", recording)
    return seen


STAGES = {
    "t2v": ({}, [("tokenizer",), ("text_encoder",), ("transformer",), ("vae",)]),
    "two_experts": (
        {},
        [("tokenizer",), ("text_encoder",), ("transformer",), ("transformer_2",), ("vae",)],
    ),
    "i2v_clip": (
        {"image": PICTURE},
        [
            *[("vae",), ("image_processor",), ("image_encoder",)],
            *[("tokenizer",), ("text_encoder",), ("transformer",), ("vae",)],
        ],
    ),
}


@pytest.mark.parametrize("kind", STAGES)
def test_only_the_running_stage_is_in_memory(models, kind, monkeypatch):
    changes, stages = STAGES[kind]
    kept = models(kind).ours
    pipe = models.fresh(kind, keep_loaded=False)
    assert pipe.components.loaded == ()
    seen = record(pipe, monkeypatch)
    out = pipe(**CALL, **changes)
    assert seen == stages
    assert pipe.components.loaded == ()
    assert np.array_equal(out.frames, kept(**CALL, **changes).frames)


def test_parts_are_loaded_once_and_kept(models, monkeypatch):
    pipe = models.fresh("t2v")
    assert pipe.components.loaded == ()
    seen = record(pipe, monkeypatch)
    state = pipe.prepare(GenerationRequest(**CALL))
    assert pipe.components.loaded == ("tokenizer", "text_encoder")
    pipe.step([state])
    assert pipe.components.loaded == ("tokenizer", "text_encoder", "transformer")
    first = pipe(**CALL).frames
    assert np.array_equal(first, pipe(**CALL).frames)
    assert len(seen) == 4


def test_given_embeddings_need_no_text_encoder(models, monkeypatch):
    pipe = models.fresh("t2v")
    embeds = torch.randn(1, 24, 24, generator=torch.Generator().manual_seed(0))
    pipe(**{**CALL, "prompt": None}, prompt_embeds=embeds, negative_prompt_embeds=-embeds)
    assert pipe.components.loaded == ("transformer", "vae")
    pipe = models.fresh("t2v")
    pipe(**{**CALL, "prompt": None, "guidance_scale": 1.0}, prompt_embeds=embeds, output_type="latent")
    assert pipe.components.loaded == ("transformer",)


def test_an_interrupted_run_holds_one_stage_too(models, monkeypatch):
    pipe = models.fresh("t2v", keep_loaded=False)
    seen = record(pipe, monkeypatch)

    def stop(state, step, timestep, tensors):
        state.interrupt = True

    pipe(**CALL, callback_on_step_end=stop)
    assert seen[-2:] == [("transformer",), ("vae",)] and pipe.components.loaded == ()


def test_decoding_that_is_given_up_releases_the_vae(models):
    pipe = models.fresh("t2v", keep_loaded=False)
    state = pipe.prepare(GenerationRequest(**CALL))
    while not state.done:
        pipe.step([state])
    chunks = pipe.decode_chunks(state)
    next(chunks)
    assert pipe.components.loaded == ("vae",)
    chunks.close()
    assert pipe.components.loaded == ()


def test_requests_may_interleave_without_keeping(models):
    pipe = models.fresh("two_experts", keep_loaded=False)
    requests = [GenerationRequest(**CALL), GenerationRequest(**{**CALL, "num_frames": 1, "num_inference_steps": 2})]
    states = [pipe.prepare(one) for one in requests]
    while not all(state.done for state in states):
        pipe.step(states)
    for request, state in zip(requests, states, strict=True):
        alone = models("two_experts").ours.prepare(request)
        while not alone.done:
            models("two_experts").ours.step([alone])
        assert torch.equal(state.latents, alone.latents)


def edited(models, tmp_path, kind, **index):
    folder = tmp_path / "model"
    shutil.copytree(models(kind).folder, folder)
    file = folder / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **index}))
    return folder


def test_defaults_come_from_the_folder(models, tmp_path):
    native = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2, "fps": 12.0}
    native |= {"max_sequence_length": 24, "guidance_scale": 1.0}
    pipe = kinema.VideoPipeline.from_pretrained(edited(models, tmp_path, "t2v", _kinema_defaults=native), device="cpu")
    out = pipe("a red circle", seed=0)
    assert out.frames.shape == (1, 5, 32, 48, 3) and out.fps == 12.0
    assert (out.stats.steps, out.stats.forwards) == (2, 2)
    assert pipe("a red circle", seed=0, num_frames=1).frames.shape == (1, 1, 32, 48, 3)


def test_wan_is_native_at_its_published_size(models):
    pipe = models("t2v").ours
    request = pipe.complete(GenerationRequest(prompt="a"))
    assert request.clip == (81, 480, 832)
    assert (request.num_inference_steps, request.guidance_scale, request.max_sequence_length) == (50, 5.0, 512)


@pytest.mark.parametrize(
    ("kind", "index", "message"),
    [
        ("t2v", {"boundary_ratio": 0.9}, "boundary_ratio 0.9 and no transformer_2"),
        ("t2v", {"_kinema_defaults": {"heigth": 32}}, "heigth"),
        ("t2v", {"text_encoder": [None, None]}, "has no text_encoder"),
        ("i2v_clip", {"image_encoder": [None, None]}, "has no image_encoder"),
    ],
)
def test_incomplete_folders_are_refused(models, tmp_path, kind, index, message):
    folder = edited(models, tmp_path, kind, **index)
    with pytest.raises(CheckpointError, match=message):
        kinema.VideoPipeline.from_pretrained(folder, device="cpu")(**CALL, image=PICTURE if kind != "t2v" else None)


def test_unknown_options_are_refused(models):
    with pytest.raises(RequestError, match=r"unknown parameter speed: wanted some of device, backend, precision"):
        models.fresh("t2v", speed="high")
