"""The random-weight folders: published sizes, loadable by diffusers and by us, of useful magnitude."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kinema.bench.published_configs import PRESETS, UMT5_XXL, VAE_21, Published, transformer, unipc
from kinema.bench.random_model import (
    RandomTensors,
    image_encoder_shapes,
    main,
    text_encoder_shapes,
    transformer_shapes,
    vae_shapes,
    write_random_model,
    write_tokenizer,
)
from kinema.checkpoints import load_weights
from kinema.errors import RequestError
from kinema.families.registry import open_folder
from kinema.text.tokenizer import Tokenizer

TINY = Published(
    "WanPipeline",
    transformer(
        attention_head_dim=12,
        ffn_dim=40,
        freq_dim=16,
        in_channels=4,
        num_attention_heads=2,
        num_layers=3,
        out_channels=4,
        text_dim=32,
    ),
    {**VAE_21, "base_dim": 6, "z_dim": 4, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 1.5, 0.5]},
    unipc(3.0),
    {**UMT5_XXL, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 48, "vocab_size": 512},
    experts=2,
    options={"boundary_ratio": 0.875},
)


def state_shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("tiny"), TINY, seed=3)


@pytest.mark.parametrize("preset", PRESETS)
def test_published_sizes_are_diffusers_sizes(preset: str) -> None:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    published = PRESETS[preset]
    two_layers: dict[str, Any] = {**published.transformer, "num_layers": 2}
    with torch.device("meta"):
        assert state_shapes(WanTransformer3DModel.from_config(two_layers)) == transformer_shapes(two_layers)
        assert state_shapes(AutoencoderKLWan.from_config(published.vae)) == vae_shapes(published.vae)


def test_encoder_sizes_are_transformers_sizes() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, UMT5Config, UMT5EncoderModel

    clip = PRESETS["wan2.1-i2v-14b"].image_encoder
    assert clip is not None
    text = {**UMT5_XXL, "num_layers": 2}
    with torch.device("meta"):
        umt5 = state_shapes(UMT5EncoderModel(UMT5Config(**text)))
        vision = state_shapes(CLIPVisionModelWithProjection(CLIPVisionConfig(**clip)))
    umt5.pop("encoder.embed_tokens.weight")  # tied to shared.weight
    assert umt5 == text_encoder_shapes(text)
    assert {name: shape for name, shape in vision.items() if "position_ids" not in name} == image_encoder_shapes(clip)


@pytest.mark.parametrize(
    ("preset", "billions"),
    [("wan2.1-t2v-1.3b", 1.419), ("wan2.1-t2v-14b", 14.289), ("wan2.1-i2v-14b", 16.4), ("wan2.2-ti2v-5b", 5.0)],
)
def test_parameter_counts(preset: str, billions: float) -> None:
    count = sum(torch.Size(shape).numel() for shape in transformer_shapes(PRESETS[preset].transformer).values())
    assert count / 1e9 == pytest.approx(billions, rel=0.003)


def test_every_part_passes_our_own_checks(folder: Path) -> None:
    model = open_folder(folder)
    assert model.pipeline_class == "WanPipeline"
    assert model.options.boundary_ratio == 0.875
    shapes = {
        "transformer": transformer_shapes(TINY.transformer),
        "transformer_2": transformer_shapes(TINY.transformer),
        "vae": vae_shapes(TINY.vae),
        "text_encoder": text_encoder_shapes({**TINY.text_encoder, "num_layers": 2}),
    }
    for name, expected in shapes.items():
        load_weights(model.component(name), expected)
    first, second = (model.component(name).files() for name in ("transformer", "transformer_2"))
    assert not torch.equal(first["proj_out.weight"], second["proj_out.weight"]), "the experts differ"


def test_diffusers_runs_the_folder_and_nothing_is_silent(folder: Path) -> None:
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    scales = {}

    def measure(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", output)
            scales.setdefault(name, float(getattr(out, "sample", out).std()))

        return hook

    for name in ("text_encoder", "transformer", "transformer_2"):
        getattr(pipe, name).register_forward_hook(measure(name))
    for i, block in enumerate(pipe.transformer.blocks):
        block.register_forward_hook(measure(f"block {i}"))
    pipe.vae.decoder.register_forward_hook(measure("decoder"))
    generator = torch.Generator().manual_seed(0)
    size = {"height": 32, "width": 48, "num_frames": 5}
    frames = pipe(
        "a red circle", num_inference_steps=4, max_sequence_length=16, generator=generator, output_type="np", **size
    ).frames
    assert frames.shape == (1, 5, 32, 48, 3)
    assert frames.std() > 0.05
    assert len(scales) == 7
    for name, scale in scales.items():
        assert 0.1 < scale < 8, f"{name}: {scale}"


def test_the_seed_decides_everything(tmp_path: Path, folder: Path) -> None:
    def files(path: Path) -> dict[str, bytes]:
        return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}

    assert files(write_random_model(tmp_path / "same", TINY, seed=3)) == files(folder)
    other = files(write_random_model(tmp_path / "other", TINY, seed=4))
    assert {name for name, data in files(folder).items() if other[name] != data} == {
        f"{part}.safetensors"
        for part in (
            "transformer/diffusion_pytorch_model",
            "transformer_2/diffusion_pytorch_model",
            "vae/diffusion_pytorch_model",
            "text_encoder/model",
        )
    }


def test_layers_and_dtype(tmp_path: Path, folder: Path) -> None:
    write_random_model(tmp_path, TINY, seed=3, dtype=torch.bfloat16, layers=1, text_layers=1)
    model = open_folder(tmp_path)
    assert model.component("transformer").config["num_layers"] == 1
    assert model.component("text_encoder").config["num_layers"] == 1
    for name, dtype in (("transformer", torch.bfloat16), ("text_encoder", torch.bfloat16), ("vae", torch.float32)):
        assert set(model.component(name).files().dtypes.values()) == {dtype}
    names = set(model.component("transformer").files())
    assert "blocks.0.ffn.net.2.bias" in names
    assert "blocks.1.ffn.net.2.bias" not in names


def test_weights_follow_their_kind() -> None:
    shapes = {
        **transformer_shapes({**TINY.transformer, "num_attention_heads": 20}),
        **vae_shapes(TINY.vae),
        **text_encoder_shapes({**TINY.text_encoder, "d_model": 320}),
    }
    tensors = RandomTensors(shapes, torch.float32, seed=0, d_kv=8)
    width = 240
    for name, std in {
        "blocks.1.scale_shift_table": 0.5,
        "blocks.1.attn1.to_q.bias": 0.5,
        "blocks.1.attn1.to_q.weight": width**-0.5,
        "blocks.1.ffn.net.2.weight": 40**-0.5,
        "encoder.block.0.layer.0.SelfAttention.q.weight": (320 * 8) ** -0.5,
        "encoder.block.0.layer.0.SelfAttention.k.weight": 320**-0.5,
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 0.5,
        "shared.weight": 1.0,
        "decoder.mid_block.resnets.0.conv1.weight": (24 * 27) ** -0.5,
    }.items():
        assert float(tensors[name].std()) == pytest.approx(std, rel=0.15), name
    for name in ("blocks.1.attn1.norm_q.weight", "decoder.norm_out.gamma", "encoder.final_layer_norm.weight"):
        assert tensors[name].min() >= 0.5
        assert tensors[name].max() <= 1.5
        assert tensors[name].std() > 0.1


@pytest.mark.parametrize("text", ["a red circle moving left", "", "  two  spaces ", "naïve 漢字 🙂", "</s> inside"])
def test_tokenizer(tmp_path: Path, text: str) -> None:
    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
    expected = theirs([text], padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    ids, mask = Tokenizer.from_folder(tmp_path)([text], 64)
    assert torch.equal(ids, expected.input_ids)
    assert torch.equal(mask, expected.attention_mask)
    assert 2 not in ids, "letters and bytes spell every text"
    assert int(ids[0, int(mask.sum()) - 1]) == 1


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "wan2.1-t2v-1.3b", TINY)
    assert main([str(tmp_path / "m"), "--layers", "1", "--text-layers", "1", "--dtype", "fp16", "--seed", "9"]) == 0
    assert open_folder(tmp_path / "m").component("transformer").files().dtypes["proj_out.bias"] == torch.float16
    assert "transformer: " in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(RequestError, match=r"preset 'wan3' is not known: wanted one of wan2\.1-t2v-1\.3b"):
        write_random_model(tmp_path, "wan3")
