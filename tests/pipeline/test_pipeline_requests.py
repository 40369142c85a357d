"""What a request may not ask for: each refusal says what was got and what was wanted, before anything loads."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from kinema import GenerationRequest
from kinema.errors import KinemaWarning, RequestError
from kinema.vae.tiling import Tiling

CALL = {
    **{"prompt": "a", "height": 32, "width": 48, "num_frames": 5, "max_sequence_length": 24},
    **{"num_inference_steps": 2, "seed": 0},
}
PICTURE = Image.new("RGB", (48, 32))
FRAMES = [PICTURE] * 5
VIDEO = {"video": FRAMES, "num_frames": None}


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


# (changes of CALL, parts of the message in this order); no model is needed to refuse these
ANY_MODEL = {
    "no_prompt": ({"prompt": None}, ["neither prompt nor prompt_embeds", "give one"]),
    "two_prompts": ({"prompt_embeds": zeros(1, 24, 24)}, ["both prompt and prompt_embeds", "give one"]),
    "two_negatives": (
        {"negative_prompt": "b", "negative_prompt_embeds": zeros(1, 24, 24)},
        ["both negative_prompt and negative_prompt_embeds"],
    ),
    "image_and_video": ({**VIDEO, "image": PICTURE}, ["both image and video"]),
    "latents_and_video": ({**VIDEO, "latents": zeros(1, 4, 2, 4, 6)}, ["both latents and video"]),
    "seed_and_generator": ({"generator": torch.Generator()}, ["both seed and generator"]),
    "last_image_alone": ({"last_image": PICTURE}, ["last_image was given without image"]),
    "image_embeds_alone": ({"image_embeds": zeros(1, 5, 16)}, ["image_embeds was given without image"]),
    "strength_alone": ({"strength": 0.5}, ["strength was given without video"]),
    "prompt_type": ({"prompt": 3}, ["prompt is 3", "a string or a list of strings"]),
    "prompt_list": ({"prompt": ["a", None]}, ["prompt is ['a', None]", "a string or a list of strings"]),
    "prompt_empty_list": ({"prompt": []}, ["prompt is []", "a string or a list of strings"]),
    "negative_count": ({"negative_prompt": ["b", "c"]}, ["2 negative prompts for 1 prompts"]),
    "prompt_embeds_type": (
        {"prompt": None, "prompt_embeds": [1.0]},
        ["prompt_embeds is a list", "wanted a tensor [B, L, C]"],
    ),
    "prompt_embeds_rank": (
        {"prompt": None, "prompt_embeds": zeros(24, 24)},
        ["prompt_embeds is a tensor of shape (24, 24)", "[B, L, C]"],
    ),
    "latents_type": ({"latents": np.zeros((1, 4, 2, 4, 6))}, ["latents is a ndarray", "a tensor [B, C, T, h, w]"]),
    "height_zero": ({"height": 0}, ["height is 0", "at least 1"]),
    "height_float": ({"height": 32.0}, ["height is 32.0", "whole number"]),
    "frames_bool": ({"num_frames": True}, ["num_frames is True", "whole number"]),
    "steps": ({"num_inference_steps": 0}, ["num_inference_steps is 0", "at least 1"]),
    "videos": ({"num_videos_per_prompt": -1}, ["num_videos_per_prompt is -1", "at least 1"]),
    "guidance_text": ({"guidance_scale": "4"}, ["guidance_scale is '4'", "a number"]),
    "guidance_nan": ({"guidance_scale": float("nan")}, ["guidance_scale is nan", "a number"]),
    "strength_zero": ({**VIDEO, "strength": 0.0}, ["strength is 0.0", "more than 0 and at most 1"]),
    "strength_large": ({**VIDEO, "strength": 1.5}, ["strength is 1.5", "more than 0 and at most 1"]),
    "output_type": ({"output_type": "mp4"}, ["output_type is 'mp4'", "np, pt, pil, latent"]),
    "seed_negative": ({"seed": -2}, ["seed is -2", "whole number of at least 0"]),
    "seed_text": ({"seed": "0"}, ["seed is '0'", "whole number"]),
    "seed_count": ({"seed": [1, 2]}, ["2 seeds for 1 samples", "one per sample"]),
    "generator_type": ({"seed": None, "generator": 5}, ["generator is 5", "a generator"]),
    "generator_count": (
        {"seed": None, "generator": [torch.Generator()], "num_videos_per_prompt": 2},
        ["1 generators for 2 samples"],
    ),
    "tiling": ({"tiling": True}, ["tiling is True", "Tiling"]),
}


# (kind of model, changes, parts of the message); sizes of latents and pixels depend on the model
THIS_MODEL = {
    "height": ("t2v", {"height": 40}, ["height 40", "32 or 48"]),
    "height_small": ("t2v", {"height": 8}, ["height 8", "nearest 16)"]),
    "both_sizes": ("t2v", {"height": 40, "width": 50}, ["height 40 (nearest 32 or 48)", "width 50 (nearest 48 or 64)"]),
    "height_ti2v": ("ti2v", {"height": 48, "width": 64}, ["height 48", "32 or 64"]),
    "num_frames": ("t2v", {"num_frames": 16}, ["num_frames 16", "13 or 17"]),
    "num_frames_2": ("t2v", {"num_frames": 2}, ["num_frames 2", "1 or 5"]),
    "video_shorter": ("t2v", {"video": FRAMES, "num_frames": 9}, ["num_frames is 9, the video has 5", "ask for fewer"]),
    "video_frames": ("t2v", {"video": FRAMES, "num_frames": 4}, ["num_frames 4", "1 or 5"]),
    "video_height": ("t2v", {**VIDEO, "height": 40}, ["height 40", "32 or 48"]),
    "video_type": ("t2v", {"video": 3, "num_frames": None}, ["a video must be", "got int"]),
    "video_empty": ("t2v", {"video": [], "num_frames": None}, ["the video has no frames"]),
    "strength_no_step": ("t2v", {**VIDEO, "strength": 0.3}, ["strength=0.3 of 2 steps", "at least 0.5"]),
    "latents": ("t2v", {"latents": zeros(1, 4, 2, 4, 7)}, ["(1, 4, 2, 4, 7)", "wants (1, 4, 2, 4, 6)"]),
    "latents_batch": ("t2v", {"prompt": ["a", "b"], "latents": zeros(1, 4, 2, 4, 6)}, ["wants (2, 4, 2, 4, 6)"]),
    "text_dim": (
        "t2v",
        {"prompt": None, "prompt_embeds": zeros(1, 24, 32)},
        ["prompt_embeds are (1, 24, 32)", "[1, L, 24]"],
    ),
    "text_rows": (
        "t2v",
        {"prompt": ["a", "b"], "negative_prompt_embeds": zeros(1, 24, 24)},
        ["negative_prompt_embeds are (1, 24, 24)", "[2, L, 24]"],
    ),
    "second_guidance": ("t2v", {"guidance_scale_2": 3.0}, ["guidance_scale_2", "two experts", "leave it out"]),
    "image_for_text": ("t2v", {"image": PICTURE}, ["text-to-video model", "I2V, TI2V"]),
    "text_for_image": ("i2v_clip", {}, ["image-to-video model", "give image="]),
    "video_for_image": ("i2v_clip", VIDEO, ["image-to-video model", "give image="]),
    "last_for_ti2v": (
        "ti2v",
        {"height": 64, "image": PICTURE, "last_image": PICTURE, "width": 64},
        ["first frame only"],
    ),
    "last_for_clip": ("i2v_clip", {"image": PICTURE, "last_image": PICTURE}, ["first frame only", "leave last_image"]),
    "no_last": ("i2v_first_last", {"image": PICTURE}, ["between two frames", "give last_image="]),
    "embeds_no_clip": (
        "i2v_experts",
        {"image": PICTURE, "image_embeds": zeros(1, 5, 16)},
        ["no CLIP tokens", "leave image_embeds"],
    ),
    "embeds_width": (
        "i2v_clip",
        {"image": PICTURE, "image_embeds": zeros(1, 5, 17)},
        ["image_embeds are (1, 5, 17)", "[1, L, 16]"],
    ),
    "embeds_images": (
        "i2v_first_last",
        {"image": PICTURE, "last_image": PICTURE, "image_embeds": zeros(1, 5, 16)},
        ["image_embeds are (1, 5, 16)", "[2, 5, 16]"],
    ),
    "tiling": ("t2v", {"tiling": Tiling(36, 32, 16, 16)}, ["tile sizes and strides must be multiples of 8"]),
    "image_type": ("i2v_experts", {"image": 3}, ["an image must be", "got int"]),
    "image_missing": ("i2v_experts", {"image": "/nowhere/first.png"}, ["/nowhere/first.png", "no such file"]),
    "images": ("i2v_experts", {"image": [PICTURE, PICTURE]}, ["image holds 2", "wanted one"]),
    "last_images": ("i2v_experts", {"image": PICTURE, "last_image": [PICTURE] * 2}, ["last_image holds 2"]),
    "videos": ("t2v", {**VIDEO, "video": [FRAMES, FRAMES]}, ["video holds 2", "wanted one"]),
    "image_none": ("i2v_experts", {"image": []}, ["image holds 0", "wanted one"]),
    "image_nan": ("i2v_experts", {"image": torch.full((3, 32, 48), float("nan"))}, ["NaN or infinite", "0..1"]),
    "last_image_infinite": (
        "i2v_experts",
        {"image": PICTURE, "last_image": np.full((32, 48, 3), np.inf, np.float32)},
        ["NaN or infinite", "0..1"],
    ),
    "video_nan": ("t2v", {**VIDEO, "video": torch.full((5, 3, 32, 48), float("nan"))}, ["NaN or infinite", "0..1"]),
    "video_range": ("t2v", {**VIDEO, "video": torch.full((5, 3, 32, 48), 255.0)}, ["0..1", "divide by 255"]),
}


def refusal(parts: list[str]) -> str:
    return ".*".join(re.escape(part) for part in parts)


@pytest.mark.parametrize(("changes", "parts"), ANY_MODEL.values(), ids=ANY_MODEL.keys())
def test_no_model_could(changes, parts):
    with pytest.raises(RequestError, match=refusal(parts)) as refused:
        GenerationRequest(**{**CALL, **changes})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("kind", "changes", "parts"), THIS_MODEL.values(), ids=THIS_MODEL.keys())
def test_this_model_cannot(models, kind, changes, parts):
    pipe = models.fresh(kind)
    with pytest.raises(RequestError, match=refusal(parts)) as refused:
        pipe(**{**CALL, **changes})
    assert "\n" not in str(refused.value)
    assert pipe.components.loaded == ()


def test_unknown_parameters_are_named_with_the_known_ones(models):
    with pytest.raises(RequestError, match=r"unknown parameter steps, sed: wanted some of prompt, negative_prompt, "):
        models("t2v").ours(**CALL, steps=4, sed=1)


def test_every_size_that_is_named_as_nearest_is_accepted(models):
    for kind in ("t2v", "ti2v"):
        geometry = models(kind).ours.geometry
        for frames, height, width in ((2, 50, 50), (7, 100, 33), (80, 481, 832), (4, 5, 5)):
            with pytest.raises(RequestError) as refused:
                geometry.latent_size(frames, height, width)
            message = str(refused.value)
            named = dict(re.findall(r"(\w+) \d+ \(nearest ([^)]+)\)", message))
            sizes = {name: [int(n) for n in text.split(" or ")] for name, text in named.items()}
            asked = {"num_frames": frames, "height": height, "width": width}
            for name, near in sizes.items():
                assert max(abs(n - asked[name]) for n in near) < 64
            first, last = ({**asked, **{n: s[end] for n, s in sizes.items()}} for end in (0, -1))
            geometry.latent_size(**first)
            geometry.latent_size(**last)


def test_what_is_off_the_native_path_is_accepted():
    """Limits are not drawn tighter than they are."""
    GenerationRequest(prompt="", seed=2**63 - 1, guidance_scale=0, num_inference_steps=1)
    GenerationRequest(prompt=["a", "b"], negative_prompt=["", "c"], num_videos_per_prompt=2, seed=[1, 2, 3, 4])
    GenerationRequest(prompt="a", video=FRAMES, strength=1)
    GenerationRequest(prompt_embeds=zeros(3, 1, 8), negative_prompt="x")


@pytest.mark.parametrize(
    ("kind", "modes"),
    [
        ("t2v", {"t2v", "v2v"}),
        ("two_experts", {"t2v", "v2v"}),
        ("ti2v", {"t2v", "ti2v", "v2v"}),
        ("i2v_clip", {"i2v"}),
        ("i2v_first_last", {"flf2v"}),
        ("i2v_experts", {"i2v", "flf2v"}),
    ],
)
def test_a_model_says_what_it_makes_and_makes_that(models, kind, modes):
    """Each mode is what the request's pictures make it, and a model takes the pictures of its own modes alone."""
    pipe = models(kind).ours
    assert pipe.model.modes == modes
    asked = {
        "t2v": {},
        "i2v": {"image": PICTURE},
        "ti2v": {"image": PICTURE},
        "flf2v": {"image": PICTURE, "last_image": PICTURE},
        "v2v": {"video": FRAMES, "strength": 0.5},
    }
    size = {"height": 32, "width": 64} if kind == "ti2v" else {}
    core = pipe.components.scheduler.core
    for mode, pictures in asked.items():
        request = pipe.complete(GenerationRequest(**{**CALL, **size, **pictures}))
        if mode in modes or (mode in ("i2v", "ti2v") and modes & {"i2v", "ti2v"}):
            pipe.model.check(request, core)
        else:
            with pytest.raises(RequestError):
                pipe.model.check(request, core)


def test_guidance_of_the_second_expert_alone_is_not_applied_and_said(models):
    pipe = models("two_experts").ours
    plain = pipe(**CALL, guidance_scale=1.0).frames
    with pytest.warns(KinemaWarning, match="guidance_scale_2 = 4 is not applied: guidance_scale = 1 turns"):
        warned = pipe(**CALL, guidance_scale=1.0, guidance_scale_2=4.0).frames
    assert np.array_equal(warned, plain)
