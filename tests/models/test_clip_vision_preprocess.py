"""What is done to a picture before CLIP sees it, against transformers, to the last bit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kinema.encoders.clip_preprocess import ClipPreprocessor
from kinema.errors import CheckpointError, RequestError

# image_processor/preprocessor_config.json of the published Wan folders
PUBLISHED = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
CONFIGS = {
    "published": PUBLISHED,
    "small": {**PUBLISHED, "size": {"shortest_edge": 30}, "crop_size": {"height": 30, "width": 30}},
    "crop_beyond_the_image": {**PUBLISHED, "size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 28}},
    "odd_crop": {**PUBLISHED, "size": {"shortest_edge": 31}, "crop_size": {"height": 24, "width": 17}},
    "fixed_size": {**PUBLISHED, "size": {"height": 21, "width": 40}, "crop_size": {"height": 20, "width": 20}},
    "bilinear_no_crop": {**PUBLISHED, "size": {"shortest_edge": 19}, "resample": 2, "do_center_crop": False},
    "raw": {**PUBLISHED, "do_normalize": False, "do_rescale": False, "size": {"shortest_edge": 16}},
    "normalised_only": {**PUBLISHED, "do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 50, 40]},
    "no_resize": {**PUBLISHED, "do_resize": False, "crop_size": {"height": 50, "width": 40}},
}
SIZES = [(64, 64), (37, 91), (133, 58), (1, 5), (240, 239), (31, 30)]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width * 1000 + height)
    noise = random.integers(0, 256, (height, width, 4), dtype=np.uint8)
    ramp = np.linspace(0, 255, width, dtype=np.uint8)[None, :, None]
    image = Image.fromarray(np.where(noise > 128, noise, ramp).astype(np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_equal_transformers(name, size):
    config = CONFIGS[name]
    image = picture(*size)
    theirs = CLIPImageProcessorPil(**{k: v for k, v in config.items() if k != "image_processor_type"})
    wanted = theirs(image, return_tensors="pt").pixel_values
    got = ClipPreprocessor.from_dict(config)(image)
    if name == "raw":
        wanted = wanted.float()
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "YCbCr"])
def test_other_modes_equal_transformers(mode):
    image = picture(45, 70, mode)
    got = ClipPreprocessor.from_dict(CONFIGS["small"])(image)
    theirs = CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    assert torch.equal(got, theirs(image, return_tensors="pt").pixel_values)


def test_transparency_shows_white(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "see_through.png", transparency=1)
    image = Image.open(tmp_path / "see_through.png")
    assert image.mode == "P"
    raw = {**CONFIGS["raw"], "do_center_crop": False}
    assert (ClipPreprocessor.from_dict(raw)(image) == 255).all()


def test_first_and_last_frame_make_one_batch():
    images = [picture(64, 64), picture(37, 91)]
    processor = ClipPreprocessor.from_dict(PUBLISHED)
    assert torch.equal(processor(images), torch.cat([processor(image) for image in images]))


def test_images_of_unlike_sizes_without_a_crop_are_refused():
    processor = ClipPreprocessor.from_dict(CONFIGS["bilinear_no_crop"])
    with pytest.raises(RequestError, match="equally large"):
        processor([picture(64, 64), picture(37, 91)])


def test_a_mode_that_may_not_be_converted_is_refused():
    processor = ClipPreprocessor.from_dict({**PUBLISHED, "do_convert_rgb": False})
    with pytest.raises(RequestError, match="mode L"):
        processor(picture(9, 9, "L"))


def test_folder(tmp_path):
    CLIPImageProcessorPil(size={"shortest_edge": 30}).save_pretrained(tmp_path)
    assert ClipPreprocessor.from_folder(tmp_path).shortest_edge == 30
    # as transformers 4 wrote it for its fast class
    extra = {"data_format": "channels_first", "default_to_square": False, "device": None, "do_pad": None}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PUBLISHED, **extra}))
    assert ClipPreprocessor.from_folder(tmp_path) == ClipPreprocessor(rescale_factor=0.00392156862745098)
    assert ClipPreprocessor.from_dict({**PUBLISHED, "size": 224, "crop_size": 224}) == ClipPreprocessor()
    with pytest.raises(CheckpointError, match="missing"):
        ClipPreprocessor.from_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"longest_edge": 224}}, "wanted shortest_edge"),
        ({"crop_size": {"shortest_edge": 224}}, "wanted height and width"),
        ({"resample": 17}, "resample is 17, wanted 0 or 1 or 2 or 3 or 4 or 5"),
        ({"data_format": "channels_last"}, "channels_first"),
        ({"do_pad": True}, "does not know do_pad"),
    ],
)
def test_options_that_would_change_pixels_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        ClipPreprocessor.from_dict({**PUBLISHED, **change})
