"""NaN and infinity are an error whatever the output, and never a black video; embeddings of other lengths, too."""

import numpy as np
import pytest
import torch

from kinema.errors import KinemaError

CALL = {
    **{"prompt": "a red circle", "height": 32, "width": 48, "num_frames": 5, "max_sequence_length": 24},
    **{"num_inference_steps": 2, "guidance_scale": 3.0},
}
TOLERANCE = 1e-5


def spoil(part, value):
    """A weight of a loaded part."""
    if part == "transformer":
        return lambda pipe: pipe.components.transformer().table.view(-1)[3:4].fill_(value)
    if part == "vae":
        return lambda pipe: pipe.components.vae("decoder")._mean.view(-1)[1:2].fill_(value)
    return lambda pipe: pipe.components.part("text_encoder").final_norm.view(-1)[2:3].fill_(value)


NAN, INFINITE = float("nan"), float("inf")
OUTPUTS = ("np", "pt", "pil", "latent")
SPOILED = [
    *[(part, value, kind) for part in ("transformer", "text_encoder") for value in (NAN, INFINITE) for kind in OUTPUTS],
    *[("vae", NAN, kind) for kind in OUTPUTS[:3]],  # latents do not go through it, and infinity is clamped to white
]


@pytest.mark.parametrize(("part", "value", "output_type"), SPOILED)
def test_weights_that_are_no_numbers(models, part, value, output_type):
    pipe = models.fresh("t2v")
    spoil(part, value)(pipe)
    with pytest.raises(KinemaError, match=r"hold NaN or infinity: the model's weights or its inputs hold them$"):
        pipe(**CALL, output_type=output_type)


@pytest.mark.parametrize("output_type", ["np", "latent"])
def test_latents_that_a_callback_spoils(models, output_type):
    def spoil(state, step, timestep, tensors):
        tensors["latents"].view(-1)[5] = float("nan")

    with pytest.raises(KinemaError, match="the latents hold NaN"):
        models("t2v").ours(**CALL, callback_on_step_end=spoil, output_type=output_type)


def test_a_decoder_that_overflows(models, monkeypatch):
    pipe = models.fresh("t2v")
    vae = pipe.components.vae("decoder")

    def chunks(latents, *, tiling=None):
        frames = torch.zeros(1, 3, 5, 32, 48)
        frames[0, 1, 4, -1, -1] = float("nan")
        yield frames[:, :, :1]
        yield frames[:, :, 1:]

    monkeypatch.setattr(vae, "decode_chunks", chunks)
    with pytest.raises(KinemaError, match="the decoded frames hold NaN"):
        pipe(**CALL)


def embeds(length, seed):
    return torch.randn(1, length, 24, generator=torch.Generator().manual_seed(seed))


LENGTHS = {
    "a text beside embeddings": {"prompt": None, "prompt_embeds": embeds(9, 1), "negative_prompt": "blue square no"},
    "no text beside embeddings": {"prompt": None, "prompt_embeds": embeds(9, 1)},
    "embeddings beside a text": {"negative_prompt_embeds": embeds(11, 2)},
    "embeddings of two lengths": {
        **{"prompt": None, "prompt_embeds": embeds(9, 1), "negative_prompt_embeds": embeds(14, 2)}
    },
    "embeddings of one length": {
        **{"prompt": None, "prompt_embeds": embeds(9, 1), "negative_prompt_embeds": embeds(9, 2)}
    },
    "several videos": {
        **{"prompt": None, "prompt_embeds": embeds(9, 1), "negative_prompt": "no", "num_videos_per_prompt": 2}
    },
}


@pytest.mark.parametrize("kind", ["t2v", "two_experts"])
@pytest.mark.parametrize("given", LENGTHS.values(), ids=LENGTHS.keys())
def test_prompts_and_negatives_keep_their_lengths_as_in_diffusers(models, kind, given):
    """Wan attends to the padding too, so that a text is encoded to max_sequence_length whatever is beside it."""
    model, call = models(kind), {**CALL, "num_inference_steps": 4, **given}
    expected = model.theirs(**call, generator=torch.Generator().manual_seed(3)).frames
    output = model.ours(**call, generator=torch.Generator().manual_seed(3))
    assert np.abs(expected - output.frames).max() <= TOLERANCE
    assert output.stats.forwards == 8
