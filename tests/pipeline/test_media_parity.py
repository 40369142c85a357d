"""Pixels in and out are diffusers' own, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.utils import load_image as diffusers_load_image
from diffusers.video_processor import VideoProcessor
from PIL import Image

from kinema.errors import KinemaError, RequestError
from kinema.media.inputs import load_image
from kinema.media.postprocess import postprocess, to_uint8
from kinema.media.preprocess import preprocess_image, preprocess_video
from kinema.media.video import Video

THEIRS = VideoProcessor(vae_scale_factor=8)
RNG = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def decoded(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Wider than [-1, 1], so that clamping matters, and with exact halves of a level."""
    video = 1.5 * torch.randn(2, 3, 5, 9, 14, generator=torch.Generator().manual_seed(1))
    video[0, :, 0, :5] = torch.linspace(-1, 1, 2 * 255 + 1)[:210].reshape(3, 5, 14)
    return video.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output_type", ["np", "pt", "pil"])
def test_postprocess(output_type, dtype):
    video = decoded(dtype)
    ours, theirs = postprocess(video, output_type), THEIRS.postprocess_video(video, output_type)
    assert type(ours) is type(theirs)
    if output_type == "pil":
        assert [len(clip) for clip in ours] == [len(clip) for clip in theirs] == [5, 5]
        assert isinstance(ours[0][0], Image.Image) and ours[0][0].mode == "RGB"
        ours, theirs = (np.array([[np.asarray(p) for p in clip] for clip in v]) for v in (ours, theirs))
        assert np.array_equal(to_uint8(video), theirs)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert bool((ours == theirs).all())


def test_postprocess_of_latents_and_of_nonsense():
    latents = torch.randn(1, 16, 2, 3, 3)
    assert postprocess(latents, "latent") is latents
    with pytest.raises(RequestError, match="wanted one of np, pt, pil, latent"):
        postprocess(decoded(), "numpy")
    with pytest.raises(RequestError, match=r"must be \[B, 3, T, H, W\]"):
        postprocess(latents, "np")
    with pytest.raises(KinemaError, match="NaN"):
        to_uint8(decoded() * float("nan"))


@pytest.mark.parametrize("size", [(32, 48), (40, 24), (21 * 8, 13 * 8)])
@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(pixels(37, 53, 3)),
        pixels(32, 48, 3).astype(np.float32) / 255,
        pixels(1, 19, 30, 3).astype(np.float64) / 255,
        torch.from_numpy(pixels(3, 37, 53)).float() / 255,
        (torch.from_numpy(pixels(1, 3, 37, 53)).float() / 255).half(),
        torch.from_numpy(pixels(1, 3, 37, 53)).float() / 127.5 - 1,
    ],
    ids=["pil", "np", "np4d float64", "pt", "pt4d half", "pt in -1..1"],
)
@pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor")
def test_preprocess_image(image, size):
    ours = preprocess_image(image, *size)
    theirs = THEIRS.preprocess(image, height=size[0], width=size[1]).to(torch.float32)
    assert ours.shape == theirs.shape == (1, 3, *size)
    assert ours.dtype == torch.float32 and torch.equal(ours, theirs)
    assert ours.min() < -0.9 and ours.max() > 0.9


def test_uint8_arrays_are_pictures(tmp_path):
    array = pixels(37, 53, 3)
    Image.fromarray(array).save(tmp_path / "in.png")
    expected = preprocess_image(Image.fromarray(array), 32, 48)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for same in (array, array[None], tensor, tensor[None], tmp_path / "in.png", str(tmp_path / "in.png"), [array]):
        assert torch.equal(preprocess_image(same, 32, 48), expected)
    two = preprocess_image(np.stack([array, 255 - array]), 32, 48)
    assert two.shape == (2, 3, 32, 48) and torch.equal(two[:1], expected)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "1"])
def test_other_modes_become_rgb_before_they_are_resized(mode):
    picture = Image.fromarray(pixels(37, 53, 3)).convert(mode)
    theirs = THEIRS.preprocess(picture.convert("RGB"), 32, 48)
    assert torch.equal(preprocess_image(picture, 32, 48), theirs)
    assert torch.equal(preprocess_video([picture], 32, 48)[:, :, 0], theirs)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
    picture = Image.fromarray(np.arange(6 * 10 * 3, dtype=np.uint8).reshape(6, 10, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "in.png", exif=exif)
    ours, theirs = load_image(tmp_path / "in.png"), diffusers_load_image(str(tmp_path / "in.png"))
    assert ours.size == theirs.size == ((6, 10) if orientation > 4 else (10, 6))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("size", [(32, 48), (40, 24)])
@pytest.mark.parametrize(
    "video",
    [
        [Image.fromarray(pixels(37, 53, 3)) for _ in range(5)],
        pixels(5, 37, 53, 3).astype(np.float32) / 255,
        torch.from_numpy(pixels(5, 3, 37, 53)).float() / 255,
        [pixels(37, 53, 3).astype(np.float32) / 255 for _ in range(5)],
        [torch.from_numpy(pixels(3, 37, 53)).float() / 255 for _ in range(5)],
        pixels(2, 5, 37, 53, 3).astype(np.float32) / 255,
        torch.from_numpy(pixels(2, 5, 3, 37, 53)).float() / 255,
        [[Image.fromarray(pixels(37, 53, 3)) for _ in range(5)] for _ in range(2)],
    ],
    ids=["pil", "np", "pt", "list of np", "list of pt", "np5d", "pt5d", "list of lists"],
)
def test_preprocess_video(video, size):
    ours = preprocess_video(video, *size)
    theirs = THEIRS.preprocess_video(video, height=size[0], width=size[1])
    assert ours.shape == theirs.shape and ours.shape[1:] == (3, 5, *size)
    assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_files_videos_and_uint8_arrays_are_lists_of_pictures(tmp_path):
    clip = pixels(5, 37, 53, 3)
    Video(clip).save(tmp_path / "in.webp")
    expected = THEIRS.preprocess_video([Image.fromarray(frame) for frame in clip], 32, 48)
    for same in (tmp_path / "in.webp", Video(clip), clip, list(clip), torch.from_numpy(clip).permute(0, 3, 1, 2)):
        assert torch.equal(preprocess_video(same, 32, 48), expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (pixels(8, 8, 3).astype(np.float32), "must lie in 0..1"),
        (torch.full((3, 8, 8), float("nan")), "NaN"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8 .* or floats .* got torch.int64"),
        (pixels(8, 8, 4), r"an array \[H, W, 3\], got \[8, 8, 4\]"),
        (torch.rand(4, 8, 8), r"a tensor \[3, H, W\]"),
        (np.random.rand(8, 8), r"got \[8, 8\]"),
        (17, "got int"),
        ([], "empty"),
    ],
)
def test_bad_images(image, message):
    with pytest.raises(RequestError, match=message):
        preprocess_image(image, 8, 8)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([], "no frames"),
        (17, "got int"),
        (["a.png"], "got str"),
        (pixels(8, 8, 3), r"got \[8, 8, 3\]"),
        ([pixels(8, 8, 3), pixels(9, 8, 3)], "one type and shape"),
        ([Image.new("RGB", (8, 8)), pixels(8, 8, 3)], "all pictures"),
        ([pixels(2, 8, 8, 3), pixels(3, 8, 8, 3)], r"one length, got \[2, 3\]"),
        (255 * np.random.rand(2, 8, 8, 3), "must lie in 0..1"),
    ],
)
def test_bad_videos(video, message):
    with pytest.raises(RequestError, match=message):
        preprocess_video(video, 8, 8)
