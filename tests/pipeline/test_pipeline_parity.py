"""Whole pipelines against diffusers: the same random weights, the same noise, the same frames."""

import numpy as np
import pytest
import torch
from PIL import Image

# The contract is 1/255. Up to 8e-6 is measured, so a tighter bound notices smaller mistakes.
TOLERANCE = 3e-5

CLIP = {"height": 48, "width": 80, "num_frames": 9, "max_sequence_length": 24}
CALL = {"prompt": "a red circle moving left", "num_inference_steps": 4, "guidance_scale": 4.0, **CLIP}


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int, size: tuple[int, int] = (50, 70)) -> Image.Image:
    """Smooth random colours."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)


TEXT_TO_VIDEO = {
    "guided": {},
    "20_steps": {"num_inference_steps": 20},
    "unguided": {"guidance_scale": 1.0},
    "weak_guidance_is_none": {"guidance_scale": 0.5},
    "negative_prompt": {"negative_prompt": "blue square"},
    "prompts": {"prompt": ["a red circle", "a blue square moving up"]},
    "prompts_and_negatives": {
        **{"prompt": ["a red circle", "a blue square moving up"], "negative_prompt": ["down", "no green digit seven"]}
    },
    "two_videos_per_prompt": {"prompt": ["a red circle", "no"], "num_videos_per_prompt": 2, "num_frames": 5},
    "image": {"num_frames": 1},
    "odd_size": {"height": 80, "width": 16, "num_frames": 13},
    "latents": {"latents": randn(1, 4, 3, 6, 10), "seed": None},
    "embeds": {
        **{"prompt": None, "prompt_embeds": randn(2, 24, 24), "negative_prompt_embeds": randn(2, 24, 24, seed=2)},
        "num_frames": 5,
    },
    "embeds_and_negative_text": {
        **{"prompt": None, "prompt_embeds": randn(1, 24, 24), "negative_prompt": "blue square"},
    },
    "prompt_cut_short": {"prompt": "a red blue green circle moving left " * 6},
    "html_and_spaces": {"prompt": "  a &amp;lt; red\n\ncircle "},
}


@pytest.mark.parametrize("changes", TEXT_TO_VIDEO.values(), ids=TEXT_TO_VIDEO.keys())
def test_text_to_video(models, changes):
    call = {name: value for name, value in {**CALL, **changes}.items() if value is not None}
    assert models("t2v").distance(**call) <= TOLERANCE


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_schedulers(models, name, steps):
    import diffusers

    options = {
        "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
        "DPMSolverMultistepScheduler": {
            **{"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 2}
        },
    }
    model = models.with_scheduler("t2v", getattr(diffusers, name)(**options[name]))
    assert model.distance(**{**CALL, "num_inference_steps": steps, "num_frames": 5}) <= TOLERANCE


def test_a_list_of_generators_draws_each_sample_as_it_would_alone(models):
    model, prompts = models("t2v"), ["a red circle", "a blue square moving up"]

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (7, 8)]

    call = {**CALL, "prompt": prompts, "num_frames": 5}
    theirs = model.theirs(**call, generator=generators()).frames
    assert np.abs(theirs - model.ours(**call, generator=generators()).frames).max() <= TOLERANCE
    assert np.abs(theirs - model.ours(**call, seed=[7, 8]).frames).max() <= TOLERANCE
    alone = model.ours(**{**call, "prompt": prompts[1]}, seed=8).frames
    assert np.abs(theirs[1] - alone[0]).max() <= TOLERANCE


def test_a_seed_is_a_generator_of_that_seed(models):
    model = models("t2v")
    theirs = model.theirs(**CALL, generator=torch.Generator().manual_seed(123)).frames
    out = model.ours(**CALL, seed=123)
    assert np.abs(theirs - out.frames).max() <= TOLERANCE
    assert out.stats.seed == 123
    other = model.ours(**CALL, seed=124).frames
    assert np.abs(theirs - other).max() > 0.05


def test_unseeded_runs_report_a_seed_that_repeats_them_and_follow_torch(models):
    model = models("t2v")
    call = {**CALL, "num_inference_steps": 1, "num_frames": 1}
    torch.manual_seed(3)
    first, second = model.ours(**call), model.ours(**call)
    assert first.stats.seed != second.stats.seed
    assert np.array_equal(model.ours(**call, seed=second.stats.seed).frames, second.frames)
    torch.manual_seed(3)
    assert model.ours(**call).stats.seed == first.stats.seed


@pytest.mark.parametrize("output_type", ["np", "pt", "pil", "latent"])
def test_output_types(models, output_type):
    model = models("t2v")
    theirs, ours = model.frames(**{**CALL, "num_frames": 5, "num_videos_per_prompt": 2}, output_type=output_type)
    assert type(ours) is type(theirs)
    if output_type == "pil":
        assert [len(clip) for clip in ours] == [len(clip) for clip in theirs] == [5, 5]
        assert {(type(f), f.mode, f.size) for clip in ours for f in clip} == {(Image.Image, "RGB", (80, 48))}
        theirs, ours = (np.stack([np.stack(clip) for clip in frames]).astype(float) for frames in (theirs, ours))
        # a value that lies on the border between two bytes may fall on either side
        assert np.abs(theirs - ours).max() <= 1 and (theirs != ours).mean() < 1e-3
        return
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert float(abs(theirs - ours).max()) <= TOLERANCE
    if output_type != "np":
        assert not ours.is_inference() and not ours.requires_grad


def test_return_dict_false_is_a_tuple(models):
    model = models("t2v")
    call = {**CALL, "num_frames": 1, "num_inference_steps": 1}
    theirs = model.theirs(**call, generator=torch.Generator().manual_seed(0), return_dict=False)
    ours = model.ours(**call, seed=0, return_dict=False)
    assert isinstance(ours, tuple) and len(ours) == len(theirs) == 1
    assert np.abs(ours[0] - theirs[0]).max() <= TOLERANCE


TWO_EXPERTS = {
    "one_guidance": {},
    "two_guidances": {"guidance_scale_2": 2.0},
    "second_unguided": {"guidance_scale_2": 1.0},
    "second_between_0_and_1": {"guidance_scale_2": 0.5},
    "first_unguided": {"guidance_scale": 1.0, "guidance_scale_2": 3.0},
    "all_high_noise": {"num_inference_steps": 1},
}


@pytest.mark.parametrize("changes", TWO_EXPERTS.values(), ids=TWO_EXPERTS.keys())
def test_two_experts(models, changes):
    model = models("two_experts")
    assert model.distance(**{**CALL, "num_inference_steps": 5, **changes}) <= TOLERANCE


def test_two_experts_both_matter(models):
    """A yardstick of the test above: neither expert, nor where they change over, is without effect."""
    model = models("two_experts")
    latents = {}
    for boundary in (0.0, 0.9, 1.0):
        model.theirs.register_to_config(boundary_ratio=boundary)
        call = {**CALL, "num_inference_steps": 5, "output_type": "latent"}
        latents[boundary] = model.theirs(**call, generator=torch.Generator().manual_seed(5)).frames
    model.theirs.register_to_config(boundary_ratio=0.9)
    for other in (0.0, 1.0):
        assert float((latents[0.9] - latents[other]).std()) > 0.1


TI2V = {
    "text": {},
    "prompts": {"prompt": ["a red circle", "no"], "num_frames": 5},
    "image": {"num_frames": 1},
}


@pytest.mark.parametrize("changes", TI2V.values(), ids=TI2V.keys())
def test_ti2v_from_text(models, changes):
    assert models("ti2v").distance(**{**CALL, "height": 64, "width": 96, **changes}) <= TOLERANCE


@pytest.mark.parametrize("prompt", ["a red circle", ["a red circle", "blue square"]], ids=["one", "two"])
def test_ti2v_from_an_image(models, prompt):
    from diffusers import WanImageToVideoPipeline

    model = models("ti2v")
    theirs = WanImageToVideoPipeline(**model.theirs.components, expand_timesteps=True)
    theirs.set_progress_bar_config(disable=True)
    call = {**CALL, "prompt": prompt, "height": 64, "width": 96, "image": picture(1)}
    for output_type in ("np", "latent"):
        expected = theirs(**call, output_type=output_type, generator=torch.Generator().manual_seed(5)).frames
        ours = model.ours(**call, output_type=output_type, seed=5).frames
        assert float(abs(expected - ours).max()) <= TOLERANCE


IMAGE_TO_VIDEO = {
    "clip": ("i2v_clip", {}),
    "clip_prompts": ("i2v_clip", {"prompt": ["a red circle", "blue"], "num_frames": 5}),
    "clip_unguided": ("i2v_clip", {"guidance_scale": 1.0}),
    "first_last": ("i2v_first_last", {"last_image": picture(2, (64, 64))}),
    "first_last_prompts": ("i2v_first_last", {"last_image": picture(2), "prompt": ["a", "blue"], "num_frames": 5}),
    "experts": ("i2v_experts", {"num_inference_steps": 5, "guidance_scale_2": 2.0}),
    "experts_last": ("i2v_experts", {"num_inference_steps": 5, "last_image": picture(2)}),
    "experts_videos": ("i2v_experts", {"num_inference_steps": 5, "num_videos_per_prompt": 2, "num_frames": 5}),
}


@pytest.mark.parametrize(("kind", "changes"), IMAGE_TO_VIDEO.values(), ids=IMAGE_TO_VIDEO.keys())
def test_image_to_video(models, kind, changes):
    # diffusers takes the text to be 512 tokens where there are image tokens
    call = {**CALL, "max_sequence_length": 512, "image": picture(1), **changes}
    assert models(kind).distance(**call) <= TOLERANCE


@pytest.mark.parametrize("kind", ["i2v_clip", "i2v_first_last"])
def test_given_image_embeds_replace_the_image_encoder(models, kind):
    model = models(kind)
    call = {**CALL, "image": picture(1), "max_sequence_length": 512, "num_inference_steps": 2, "num_frames": 5}
    images = [picture(1)]
    if kind == "i2v_first_last":
        call["last_image"] = picture(2)
        images.append(picture(2))
    embeds = model.theirs.encode_image(images, torch.device("cpu"))
    encoded, given = model.ours(**call, seed=5).frames, model.ours(**call, image_embeds=embeds, seed=5).frames
    assert np.abs(encoded - given).max() <= TOLERANCE
    other = model.ours(**call, image_embeds=embeds.flip(-1), seed=5).frames
    assert np.abs(encoded - other).max() > 0.01


@pytest.mark.parametrize("form", ["file", "uint8", "float_array", "float_tensor", "signed_tensor"])
def test_an_image_may_come_in_any_form(models, form, tmp_path):
    model = models("i2v_clip")
    image = picture(1, (48, 80))  # of the clip's size: floats are resized otherwise than pictures
    array = np.asarray(image)
    image.save(tmp_path / "first.png")
    unit = torch.from_numpy(array.copy()).permute(2, 0, 1) / 255
    forms = {
        "file": tmp_path / "first.png",
        "uint8": array,
        "float_array": (array / 255).astype(np.float32),
        "float_tensor": unit,
        "signed_tensor": unit * 2 - 1,
    }
    call = {**CALL, "num_inference_steps": 1, "num_frames": 1, "seed": 5}
    expected = model.ours(**call, image=image).frames
    assert np.abs(expected - model.ours(**call, image=forms[form]).frames).max() <= TOLERANCE


@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("prompt", ["a red circle", ["a red circle", "blue square"]], ids=["one", "two"])
def test_video_to_video(models, strength, prompt):
    from diffusers import WanVideoToVideoPipeline

    model = models("t2v")
    parts = {name: part for name, part in model.theirs.components.items() if name != "transformer_2"}
    theirs = WanVideoToVideoPipeline(**parts)
    theirs.set_progress_bar_config(disable=True)
    video = [picture(seed) for seed in range(9)]
    call = {**CALL, "prompt": prompt, "num_inference_steps": 10, "strength": strength, "video": video}
    call.pop("num_frames")
    expected = theirs(**call, generator=torch.Generator().manual_seed(5)).frames
    out = model.ours(**call, seed=5)
    assert np.abs(expected - out.frames).max() <= TOLERANCE
    assert out.stats.steps == round(10 * strength)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["t2v", "two_experts", "ti2v", "i2v_clip"])
def test_a_gpu_makes_the_same_clip(models, kind):
    """The noise is drawn on the CPU, so a seed means the same; sums are taken in another order."""
    import kinema

    model = models(kind)
    call = {**CALL, "height": 64, "width": 96, "seed": 5, "image": picture(1) if kind == "i2v_clip" else None}
    on_gpu = kinema.VideoPipeline.from_pretrained(model.folder, device="cuda")
    assert np.abs(on_gpu(**call).frames - model.ours(**call).frames).max() <= 1 / 255
