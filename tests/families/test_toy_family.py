"""The seam between the engine and its models: a family that only these files know does all that others do."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kinema
from kinema.cli.main import main
from kinema.errors import CheckpointError, RequestError
from kinema.families.registry import registered
from kinema.memory.predict import predict, weight_bytes

sys.path.insert(0, str(Path(__file__).parent))
from toy_family import PARTS, ToyFamily, write_toy

CALL = {"prompt": "red box moves", "seed": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def pipe(folder):
    with registered(ToyFamily()):
        yield kinema.VideoPipeline.from_pretrained(folder, device="cpu")


def request(**changes):
    return kinema.GenerationRequest(**{**CALL, **changes})


def test_it_is_less_than_250_lines():
    lines = sum(len((Path(__file__).parent / name).read_text().splitlines()) for name in ("toy_family.py",))
    assert lines < 250


def test_it_is_unknown_until_it_is_registered(folder):
    with pytest.raises(CheckpointError, match="of pipeline class 'ToyPipeline': kinema knows WanPipeline"):
        kinema.VideoPipeline.from_pretrained(folder)


def test_it_generates_what_its_prompt_says(pipe):
    frames = pipe(**CALL).frames
    assert frames.shape == (1, 3, 32, 48, 3) and np.isfinite(frames).all() and frames.std() > 0.05
    assert np.array_equal(pipe(**CALL).frames, frames)
    assert not np.array_equal(pipe(prompt="blue box", seed=1).frames, frames)
    assert not np.array_equal(pipe(**CALL, guidance_scale=1.0).frames, frames)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions_apply_to_it(folder, pipe, precision):
    with registered(ToyFamily()):
        other = kinema.VideoPipeline.from_pretrained(folder, device="cpu", precision=precision)
    distance = np.abs(other(**CALL).frames - pipe(**CALL).frames).mean()
    assert 0 < distance < 0.05
    assert sum(weight_bytes(other.model, other.ops.plan).values()) < sum(
        weight_bytes(pipe.model, pipe.ops.plan).values()
    )


def test_its_own_geometry_and_modes_are_checked(pipe):
    with pytest.raises(RequestError, match=r"height 24 \(nearest 16 or 32\)"):
        pipe(**CALL, height=24)
    with pytest.raises(RequestError, match="max_sequence_length is 17: this model reads up to 16"):
        pipe(**CALL, max_sequence_length=17)
    with pytest.raises(RequestError, match="text-to-video model"):
        pipe(**CALL, image=np.zeros((32, 48, 3), np.uint8))


def test_it_is_batched_and_shares_forwards(pipe):
    alone = [pipe(**{**CALL, "seed": seed}).frames for seed in (1, 2)]
    both = pipe(**{**CALL, "seed": [1, 2]}, num_videos_per_prompt=2).frames
    states = [pipe.prepare(request(seed=seed)) for seed in (1, 2)]
    calls = []
    transformer = pipe.components.transformer()
    forward = type(transformer).__call__

    def counted(self, latents, *rest, **named):
        calls.append(len(latents))
        return forward(self, latents, *rest, **named)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(transformer), "__call__", counted)
        while not all(state.done for state in states):
            pipe.step(states)
    assert calls == [4] * 4
    for i, frames in enumerate(alone):
        assert np.abs(both[i] - frames[0]).max() < 1e-4
        assert np.abs(pipe.finish(states[i]).frames - frames).max() < 1e-4


def test_it_is_interleaved_with_another_family(pipe):
    sample = kinema.VideoPipeline.from_pretrained("sample", device="cpu")
    clip = {"prompt": "a red circle", "num_frames": 5, "num_inference_steps": 3, "seed": 4}
    expected, theirs = pipe(**CALL).frames, sample(**clip).frames
    ours, other = pipe.prepare(request()), sample.prepare(kinema.GenerationRequest(**clip))
    while not (ours.done and other.done):
        pipe.step([ours])
        sample.step([other])
    assert np.array_equal(pipe.finish(ours).frames, expected)
    assert np.array_equal(sample.finish(other).frames, theirs)


def test_video_to_video_takes_its_encoder(pipe):
    video = np.random.default_rng(0).integers(0, 255, (3, 32, 48, 3), dtype=np.uint8)
    assert not np.array_equal(pipe(**CALL, video=video, strength=0.5).frames, pipe(**CALL).frames)


def test_it_is_inspected_and_its_memory_predicted(folder, pipe, capsys):
    assert main(["inspect", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parts"]["transformer"]["parameters"] == sum(
        torch.Size(shape).numel() for shape in PARTS["transformer"].tensors(pipe.transformer_config, ()).values()
    )
    assert report["clip"] == {"num_frames": 3, "height": 32, "width": 48, "videos": 1} and report["tokens"] == 18
    prediction = predict(pipe.model, pipe.complete(request()), pipe.ops.plan, pipe.options)
    assert set(prediction.stages) == {"text", "denoise", "decode"} and prediction.peak == report["predicted_peak_bytes"]
    assert prediction.parts["transformer"] == sum(
        4 * torch.Size(shape).numel() for shape in PARTS["transformer"].tensors(pipe.transformer_config, ()).values()
    )


def test_it_is_saved_chunk_by_chunk(pipe, tmp_path):
    state, seen = pipe.prepare(request(), streamed=True), []
    pipe.run(state, lambda step, timestep: seen.append((step, float(timestep))))
    pipe.write(state, tmp_path / "out.mp4", on_frames=seen.append)
    assert [step for step, _ in seen[:4]] == [0, 1, 2, 3] and seen[4:] == [1, 1, 1]
    from kinema.media.inputs import load_video

    assert load_video(tmp_path / "out.mp4").num_frames == 3
    with pytest.raises(RequestError, match="2 paths for 1 videos"):
        pipe.write(state, [tmp_path / "a.mp4", tmp_path / "b.mp4"])
    with pytest.raises(RequestError, match="has done 0 of 4 steps"):
        pipe.write(pipe.prepare(request()), tmp_path / "a.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    pipe(**CALL).videos[0].save(tmp_path / "again.npy")
    assert np.load(tmp_path / "again.npy").shape == (3, 32, 48, 3)


def test_its_parts_are_swapped_and_checked(folder, pipe):
    with registered(ToyFamily()):
        other = kinema.VideoPipeline.from_pretrained(folder, device="cpu")
    pipe.vae = other.vae
    with pytest.raises(RequestError, match="transformer is"):
        pipe.transformer = kinema.VideoPipeline.from_pretrained("sample", device="cpu").transformer
    with pytest.raises(RequestError, match="this model has no transformer_2: its parts are transformer"):
        pipe.transformer_2 = other.transformer
