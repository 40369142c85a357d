"""The parts alone, as other stacks load them: diffusers' and transformers' call signatures and results."""

import inspect

import pytest
import torch
from PIL import Image

import kinema
from kinema.errors import CheckpointError, RequestError, UnsupportedError

TOLERANCE = 1e-5  # of the largest value; the contract is 1e-4


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert float(theirs.std()) > 0.05
    return float((ours - theirs).abs().max()) <= TOLERANCE * float(theirs.abs().max())


@pytest.fixture(scope="module")
def transformer(models):
    model = models("t2v")
    return kinema.load_transformer(model.folder / "transformer", device="cpu"), model.theirs.transformer


INPUTS = (randn(2, 4, 3, 6, 10), torch.tensor([900, 37]), randn(2, 9, 24, seed=1))


def test_the_transformer_takes_what_the_diffusers_class_takes(transformer):
    ours, theirs = transformer
    parameters = inspect.signature(type(theirs).forward).parameters
    assert list(inspect.signature(type(ours).__call__).parameters) == list(parameters)
    assert (ours.dtype, ours.device) == (torch.float32, torch.device("cpu"))
    for name in ("patch_size", "in_channels", "out_channels", "image_dim", "num_layers", "text_dim"):
        assert getattr(ours.config, name) == getattr(theirs.config, name)


def test_the_transformer_returns_what_return_dict_says(transformer):
    ours, theirs = transformer
    with torch.no_grad():
        expected = theirs(*INPUTS, None, True).sample
        assert close(ours(*INPUTS), expected)
        assert close(ours(*INPUTS, None, True).sample, expected)
        assert close(ours(*INPUTS, return_dict=True)[0], expected)
        for result in (ours(*INPUTS, return_dict=False), ours(*INPUTS, None, False, {})):
            assert type(result) is tuple and len(result) == 1 and close(result[0], expected)
    hidden_states, timestep, text = INPUTS
    named = ours(encoder_hidden_states=text, timestep=timestep, hidden_states=hidden_states, attention_kwargs=None)
    assert close(named, expected) and not named.is_inference() and not named.requires_grad


def test_the_transformer_attends_in_int8_where_it_is_told_to(models, transformer):
    """A little off, and not equal; in fp8, which no CPU multiplies in, it does not load."""
    folder, (ours, _) = models("t2v").folder / "transformer", transformer
    exact = ours(*INPUTS)
    rounded = kinema.load_transformer(folder, device="cpu", backend="reference", quantize_attention="int8")(*INPUTS)
    assert 1e-5 < float((rounded - exact).abs().max() / exact.abs().max()) < 2e-2
    with pytest.raises(UnsupportedError, match=r"quantize_attention='fp8': .*not in fp8.*wanted"):
        kinema.load_transformer(folder, device="cpu", quantize_attention="fp8")


def test_the_transformer_keeps_the_dtype_of_its_input(transformer):
    ours, _ = transformer
    hidden_states, timestep, text = INPUTS
    exact = ours(*INPUTS)
    half = ours(hidden_states.bfloat16(), timestep, text.bfloat16())
    assert half.dtype == torch.bfloat16
    assert float((half.float() - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_timesteps_per_token(transformer):
    ours, theirs = transformer
    hidden_states, _, text = INPUTS
    timestep = torch.randint(0, 1000, (2, 3 * 3 * 5), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert close(ours(hidden_states, timestep, text), theirs(hidden_states, timestep, text).sample)


@pytest.mark.parametrize(("kind", "images"), [("i2v_clip", 1), ("i2v_first_last", 2)])
def test_image_tokens(models, kind, images):
    model = models(kind)
    ours, theirs = kinema.load_transformer(model.folder / "transformer", device="cpu"), model.theirs.transformer
    # diffusers takes the text to be 512 tokens where there are image tokens
    inputs = (randn(2, 12, 2, 4, 6), torch.tensor([900, 37]), randn(2, 512, 24), randn(2 * images, 5, 16))
    with torch.no_grad():
        expected = theirs(*inputs).sample
    assert close(ours(*inputs), expected)
    assert not close(ours(*inputs[:3], encoder_hidden_states_image=torch.zeros_like(inputs[3])), expected)


REFUSED = {
    "channels": ({"hidden_states": randn(2, 5, 3, 6, 10)}, r"\(2, 5, 3, 6, 10\): wanted \[B, 4, T, H, W\]"),
    "rank": ({"hidden_states": randn(2, 4, 6, 10)}, r"\(2, 4, 6, 10\): wanted \[B, 4, T, H, W\]"),
    "size": ({"hidden_states": randn(2, 4, 3, 6, 9)}, r"divisible by \(1, 2, 2\)"),
    "timestep": ({"timestep": torch.tensor([1])}, r"timestep is \(1,\): wanted \[2\], or \[2, 45\]"),
    "tokens": ({"timestep": torch.ones(2, 44)}, r"timestep is \(2, 44\): wanted \[2\], or \[2, 45\]"),
    "text": ({"encoder_hidden_states": randn(2, 9, 23)}, r"\(2, 9, 23\): wanted \[2, L, 24\]"),
    "text_rows": ({"encoder_hidden_states": randn(1, 9, 24)}, r"\(1, 9, 24\): wanted \[2, L, 24\]"),
    "image": ({"encoder_hidden_states_image": randn(2, 5, 16)}, "takes no image"),
    "attention_kwargs": ({"attention_kwargs": {"scale": 0.5}}, r"\{'scale': 0.5\} are not supported"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_inputs_that_do_not_fit_are_refused(transformer, changes, message):
    named = dict(zip(("hidden_states", "timestep", "encoder_hidden_states"), INPUTS, strict=True))
    with pytest.raises(RequestError, match=message):
        transformer[0](**{**named, **changes})


def test_an_image_transformer_needs_its_image(models):
    ours = kinema.load_transformer(models("i2v_first_last").folder / "transformer", device="cpu")
    inputs = (randn(2, 12, 2, 4, 6), torch.tensor([900, 37]), randn(2, 9, 24))
    with pytest.raises(RequestError, match=r"needs \[2, L, 16\]"):
        ours(*inputs)
    with pytest.raises(RequestError, match=r"\(2, 5, 16\): wanted \[4, L, 16\]"):
        ours(*inputs, randn(2, 5, 16))


@pytest.mark.parametrize("kind", ["t2v", "two_experts", "i2v_clip"])
def test_diffusers_own_pipeline_runs_on_our_transformer(models, kind):
    model = models(kind)
    parts = dict(model.theirs.components)
    for name in ("transformer", "transformer_2"):
        if parts[name] is not None:
            parts[name] = kinema.load_transformer(model.folder / name, device="cpu")
    theirs = type(model.theirs)(**parts, boundary_ratio=model.theirs.config.boundary_ratio)
    theirs.set_progress_bar_config(disable=True)
    call = {"prompt": "a red circle", "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 5}
    if kind == "i2v_clip":
        call["image"] = Image.radial_gradient("L").resize((48, 32)).convert("RGB")

    def run(pipeline):
        return pipeline(**call, output_type="latent", generator=torch.Generator().manual_seed(0)).frames

    assert close(run(theirs), run(model.theirs))


@pytest.mark.parametrize("kind", ["t2v", "ti2v"])
def test_the_vae_encodes_and_decodes(models, kind):
    model = models(kind)
    ours, theirs = kinema.load_vae(model.folder / "vae", device="cpu"), model.theirs.vae
    latents = randn(1, 4, 3, 4, 6)
    with torch.no_grad():
        expected = theirs.decode(latents).sample
        assert close(ours.decode(latents), expected)
        assert close(ours.encode(expected).mode(), theirs.encode(expected).latent_dist.mode())


def test_the_text_encoder_gives_the_last_hidden_state(models):
    model = models("t2v")
    ours, theirs = kinema.load_text_encoder(model.folder / "text_encoder", device="cpu"), model.theirs.text_encoder
    ids = torch.randint(0, 40, (2, 11), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 11, dtype=torch.int64)
    mask[1, 6:] = 0
    with torch.no_grad():
        expected = theirs(ids, mask).last_hidden_state
    real = mask.bool()
    assert close(ours(ids, mask)[real], expected[real])


@pytest.mark.parametrize("load", [kinema.load_transformer, kinema.load_vae, kinema.load_text_encoder])
def test_a_part_is_not_a_pipeline_nor_another_part(models, load):
    folder = models("t2v").folder
    with pytest.raises(CheckpointError, match="is a whole pipeline: wanted its"):
        load(folder, device="cpu")
    with pytest.raises(CheckpointError):
        load(folder / "scheduler", device="cpu")
