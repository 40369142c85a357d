"""Pictures and videos at the door of the pipeline: what is taken of them, and when."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from kinema import GenerationRequest
from kinema.errors import KinemaWarning, RequestError
from kinema.media import inputs
from kinema.media.pixels import Pixels
from kinema.media.video import Video

CALL = {
    **{"prompt": "a red circle", "height": 32, "width": 48, "max_sequence_length": 24},
    **{"num_inference_steps": 2, "guidance_scale": 1.0, "seed": 0, "output_type": "latent", "progress": False},
}
RNG = np.random.default_rng(3)
CLIP = RNG.integers(0, 256, (11, 36, 52, 3), dtype=np.uint8)
PICTURE = Image.fromarray(CLIP[0])


def forms(tmp_path, clip: np.ndarray) -> dict:
    """The same clip in every form that keeps its bytes."""
    Video(clip).save(tmp_path / "in.webp")
    Video(clip).save(tmp_path / "in.npy")
    Video(clip).save(tmp_path / "in")
    return {
        "array": clip,
        "batch": clip[None],
        "tensor": torch.from_numpy(clip).permute(0, 3, 1, 2),
        "list": list(clip),
        "pictures": [Image.fromarray(frame) for frame in clip],
        "list of one list": [[Image.fromarray(frame) for frame in clip]],
        "tuple": tuple(torch.from_numpy(clip).permute(0, 3, 1, 2)),
        "video": Video(clip),
        "webp": tmp_path / "in.webp",
        "npy": str(tmp_path / "in.npy"),
        "folder": tmp_path / "in",
    }


def test_a_video_is_cut_to_a_clip_that_the_model_makes(models, tmp_path):
    pipe = models("t2v").ours

    def taken(video, num_frames=None) -> torch.Tensor:
        request = GenerationRequest(prompt="x", height=32, width=48, video=video, num_frames=num_frames)
        return pipe.complete(request).video.values(32, 48)

    expected = taken(CLIP[:9])
    assert expected.shape == (9, 3, 32, 48)
    for name, video in forms(tmp_path, CLIP).items():
        with pytest.warns(KinemaWarning, match="has 11 frames, and this model makes 9 or 13: its first 9 are taken"):
            assert torch.equal(taken(video), expected), name
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(taken(video, 9), expected), name
            assert torch.equal(taken(video, 5), expected[:5]), name
    assert torch.equal(pipe(**CALL, video=CLIP, num_frames=5).frames, pipe(**CALL, video=CLIP[:5]).frames)
    with pytest.warns(KinemaWarning):
        assert torch.equal(pipe(**CALL, video=CLIP).frames, pipe(**CALL, video=CLIP[:9]).frames)


@pytest.mark.parametrize("frames", range(1, 12))
def test_every_length_of_a_video(models, frames):
    pipe = models("t2v").ours
    request = GenerationRequest(prompt="x", height=32, width=48, video=CLIP[:frames])
    length = (frames - 1) // 4 * 4 + 1
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        completed = pipe.complete(request)
        again = pipe.complete(completed)
    assert completed.num_frames == completed.video.num_frames == length
    assert again.num_frames == length and again.video.num_frames == length
    assert len(said) == (length != frames), "once, not again when it is prepared"


def test_a_request_is_completed_once(models, tmp_path, monkeypatch):
    """The command line completes a request and then prepares it: files are read once, results are the same."""
    PICTURE.save(tmp_path / "first.png")
    Video(CLIP[:5]).save(tmp_path / "in.npy")
    opened = []
    open_video, load_image = inputs.open_video, inputs.load_image
    monkeypatch.setattr(inputs, "open_video", lambda path: opened.append(path) or open_video(path))
    monkeypatch.setattr("kinema.media.pixels.load_image", lambda image: opened.append(image) or load_image(image))
    for kind, media in (("t2v", {"video": tmp_path / "in.npy"}), ("ti2v", {"image": tmp_path / "first.png"})):
        call = {**CALL, "height": 32, "width": 64, **({} if kind == "t2v" else {"num_frames": 5})}
        del call["progress"]
        pipe = models(kind).ours
        opened.clear()
        completed = pipe.complete(GenerationRequest(**call, **media))
        latents = pipe.prepare(completed).latents
        assert len(opened) == 1
        assert torch.equal(latents, pipe.prepare(GenerationRequest(**call, **media)).latents)


@pytest.mark.parametrize(("limit", "num_frames", "most"), [(1, None, 0), (8, None, 8), (8, 9, 0), (9, 5, 5)])
def test_memory_is_checked_before_a_video_is_read(models, tmp_path, monkeypatch, limit, num_frames, most):
    """A video is read as far as it fits and no further, whatever the file says of its length."""
    pipe = models("t2v").ours
    Video(CLIP).save(tmp_path / "in.npy")
    read = []
    open_video = inputs.open_video

    def counted(path):
        for frame in open_video(path):
            read.append(1)
            yield frame

    def check(request, streamed):
        if request.num_frames >= limit:
            raise RequestError("too large")

    monkeypatch.setattr(inputs, "open_video", counted)
    monkeypatch.setattr(pipe, "_check_memory", check)
    request = GenerationRequest(prompt="x", height=32, width=48, video=tmp_path / "in.npy", num_frames=num_frames)
    if num_frames == 5:
        assert pipe.complete(request).num_frames == 5
    else:
        with pytest.raises(RequestError, match="too large"):
            pipe.complete(request)
    assert len(read) == most


def test_sizes_are_checked_before_a_video_is_read(models, monkeypatch):
    monkeypatch.setattr(inputs, "open_video", lambda path: pytest.fail("read"))
    for wrong, message in (({"height": 40}, "height 40"), ({"num_frames": 6}, "num_frames 6")):
        request = GenerationRequest(**{"prompt": "x", "height": 32, "width": 48, "video": "in.mp4", **wrong})
        with pytest.raises(RequestError, match=message):
            models("t2v").ours.complete(request)


def test_pixels_are_what_the_engine_sees(models):
    completed = models("ti2v").ours.complete(GenerationRequest(prompt="x", image=CLIP[0]))
    assert isinstance(completed.image, Pixels)
    assert isinstance(models("t2v").ours.complete(GenerationRequest(prompt="x", video=CLIP[:1])).video, Pixels)


@pytest.mark.parametrize("kind", ["i2v_experts", "i2v_first_last", "i2v_clip", "ti2v"])
def test_a_list_of_one_picture_is_that_picture(models, kind):
    pipe = models(kind).ours
    call = {**CALL, "num_frames": 5, "width": 64}
    last = {"last_image": Image.fromarray(CLIP[1])} if kind in ("i2v_experts", "i2v_first_last") else {}
    expected = pipe(**call, image=PICTURE, **last).frames
    as_lists = {"image": [PICTURE], **({"last_image": [last["last_image"]]} if last else {})}
    assert torch.equal(pipe(**call, **as_lists).frames, expected)
    arrays = {"image": [CLIP[0]], **({"last_image": CLIP[1][None]} if last else {})}
    assert torch.equal(pipe(**call, **arrays).frames, expected)
    unit = torch.from_numpy(CLIP[0]).permute(2, 0, 1) / 255
    floats = [
        pipe(**call, image=image, **last).frames
        for image in (unit, [unit], unit[None], [unit.numpy().transpose(1, 2, 0)])
    ]
    assert all(torch.equal(frames, floats[0]) for frames in floats)
    assert not torch.equal(floats[0], pipe(**call, image=Image.fromarray(CLIP[2]), **last).frames)


def test_a_list_of_one_picture_is_what_it_is_to_diffusers(models):
    """Its check of types knows no lists; behind it they are read as here."""
    from diffusers import WanImageToVideoPipeline

    model = models("i2v_experts")
    call = {**CALL, "num_frames": 5, "guidance_scale": 3.0, "output_type": "np", "last_image": [PICTURE]}
    del call["progress"], call["seed"]
    theirs = WanImageToVideoPipeline(**model.theirs.components, boundary_ratio=0.9)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(**call, image=PICTURE, generator=torch.Generator().manual_seed(5)).frames
    ours = model.ours(**call, image=[PICTURE], seed=5, progress=False).frames
    assert np.abs(expected - ours).max() <= 3e-5


def test_a_long_strip_is_refused_by_an_image_encoder(models):
    with pytest.raises(RequestError, match="2x50000, too long a strip"):
        models("i2v_clip").ours(**CALL, num_frames=5, image=Image.new("RGB", (2, 50000)))
