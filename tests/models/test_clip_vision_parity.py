"""The CLIP vision encoder against transformers, on the same weights, and mistakes that must be noticed."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig as TheirConfig
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection

from kinema.checkpoints import load_weights
from kinema.checkpoints.component_files import ComponentFiles
from kinema.checkpoints.weights import Weights
from kinema.encoders import clip_vision as clip
from kinema.encoders.clip_vision import CLIPVisionConfig, CLIPVisionEncoder, tensor_shapes
from kinema.errors import CheckpointError, RequestError
from kinema.ops import build_ops, plan_ops, target_for

OPS = build_ops(plan_ops(target_for("cpu"), "reference"))  # weights that can be changed, and gradients
TOLERANCE = 1e-5

WAN = {
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 42,
    "patch_size": 14,
    "hidden_act": "gelu",
}
CONFIGS = {
    "wan": WAN,
    "quick_gelu": {**WAN, "hidden_act": "quick_gelu"},
    "odd": {
        **WAN,
        "hidden_size": 33,
        "num_attention_heads": 3,
        "intermediate_size": 50,
        "image_size": 20,
        "patch_size": 5,
    },
    "margin": {**WAN, "image_size": 30, "patch_size": 7, "layer_norm_eps": 1e-6},
    "one_layer": {**WAN, "num_hidden_layers": 1},
    "grey": {**WAN, "num_channels": 1},
}

# image_encoder/config.json of the published Wan 2.1 I2V folders
PUBLISHED = {
    "architectures": ["CLIPVisionModel"],
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 5120,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
    "torch_dtype": "float32",
    "transformers_version": "4.49.0",
}


def rescaled_model(config: dict) -> CLIPVisionModel:
    """A transformers model whose every sub-layer matters (plain initialisation hides mistakes)."""
    torch.manual_seed(0)
    model = CLIPVisionModel(TheirConfig(**config)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ("norm" in name or "layrnorm" in name) and name.endswith("weight"):
                p.uniform_(0.5, 1.5)
            elif "fc1.bias" in name:
                p.normal_(-1.5, 0.8)  # where the GELUs differ most
            elif name.endswith("bias") or "class_embedding" in name or "position_embedding" in name:
                p.normal_(0, 0.5)
            else:
                strong = 5.0 if "fc2" in name else 2.0 if "out_proj" in name else 1.5
                p.normal_(0, strong / p[0].numel() ** 0.5)
    return model


def ours_from(model: CLIPVisionModel, config: dict, **changes: object) -> CLIPVisionEncoder:
    return CLIPVisionEncoder(CLIPVisionConfig(**{**config, **changes}), Weights(model.state_dict()), OPS)


def images(config: dict, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    size = config["image_size"]
    return torch.randn(batch, config.get("num_channels", 3), size, size, generator=generator)


@torch.no_grad()
def reference_output(model, pixels):
    out = model(pixels, output_hidden_states=True)
    return out.last_hidden_state, out.hidden_states[-2]


@torch.no_grad()
def our_output(model, pixels):
    return model(pixels), model.penultimate(pixels)


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    assert got.shape == wanted.shape
    return float((got - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_equals_transformers(name, batch):
    model = rescaled_model(CONFIGS[name])
    pixels = images(CONFIGS[name], batch)
    ours = our_output(ours_from(model, CONFIGS[name]), pixels)
    for got, wanted in zip(ours, reference_output(model, pixels), strict=True):
        assert relative_error(got, wanted) <= TOLERANCE


@pytest.mark.parametrize("layer", range(WAN["num_hidden_layers"]))
def test_each_layer_equals_transformers(layer):
    model = rescaled_model(WAN)
    seen = {}
    handle = model.encoder.layers[layer].register_forward_hook(lambda _, args, out: seen.update(x=args[0], out=out))
    reference_output(model, images(WAN, 2))
    handle.remove()
    with torch.no_grad():
        assert relative_error(ours_from(model, WAN).layers[layer](seen["x"]), seen["out"]) <= TOLERANCE


def plant(ours: CLIPVisionEncoder, mistake: str) -> None:
    """Plant a mistake in an encoder of ours."""

    def replace(**functions):
        ops = dataclasses.replace(OPS, **functions)
        for part in [ours, ours.pre_norm, *ours.layers, *(x for b in ours.layers for x in (b.norm1, b.norm2, b.mlp))]:
            part.ops = ops

    if mistake == "quick_gelu":
        for layer in ours.layers:
            layer.mlp.activation = "quick_gelu"
    elif mistake == "tanh_gelu":
        for layer in ours.layers:
            layer.mlp.activation = "gelu_tanh"
    elif mistake == "eps":
        for norm in [ours.pre_norm, *(n for layer in ours.layers for n in (layer.norm1, layer.norm2))]:
            norm.eps = 1e-3
    elif mistake == "unscaled_attention":
        replace(attention=lambda q, kv, **kw: OPS.attention(q, kv, scale=1.0, **kw))
    elif mistake == "rms_norm":
        replace(norm_modulate=lambda x, **kw: OPS.norm_modulate(x, norm="rms", **kw))
    elif mistake == "no_residual":
        replace(linear=lambda x, weight, residual=None, **kw: OPS.linear(x, weight, **kw))
    elif mistake == "no_pre_norm":
        ours.pre_norm = lambda x: x
    elif mistake == "positions_shifted":
        ours.position = ours.position.roll(1, dims=0)
    elif mistake == "swapped_height_and_width":
        replace(patch_embed=lambda x, *args, **kw: OPS.patch_embed(x.transpose(3, 4), *args, **kw))
    elif mistake == "one_layer_less":
        ours.layers = ours.layers[:-1]
    else:
        raise AssertionError(mistake)


@pytest.mark.parametrize(
    "mistake",
    [
        "quick_gelu",
        "tanh_gelu",
        "eps",
        "unscaled_attention",
        "rms_norm",
        "no_residual",
        "no_pre_norm",
        "positions_shifted",
        "swapped_height_and_width",
        "one_layer_less",
    ],
)
def test_planted_mistakes_are_noticed(mistake):
    model = rescaled_model(WAN)
    ours = ours_from(model, WAN)
    pixels = images(WAN, 2)
    plant(ours, mistake)
    for got, wanted in zip(our_output(ours, pixels), reference_output(model, pixels), strict=True):
        assert relative_error(got, wanted) > 1e-4


def test_swapped_queries_and_keys_are_noticed():
    model = rescaled_model(WAN)
    pixels = images(WAN, 2)
    rename = {"q_proj": "k_proj", "k_proj": "q_proj"}
    state = {".".join(rename.get(p, p) for p in name.split(".")): t for name, t in model.state_dict().items()}
    swapped = CLIPVisionEncoder(CLIPVisionConfig(**WAN), Weights(state), OPS)
    assert relative_error(our_output(swapped, pixels)[0], reference_output(model, pixels)[0]) > 1e-4


@pytest.mark.parametrize("part", ["attention", "mlp", "position"])
def test_every_sublayer_matters(part):
    """Dropping a sub-layer changes the output by a fifth or more: otherwise parity proves nothing."""
    ours = ours_from(rescaled_model(WAN), WAN)
    pixels = images(WAN, 2)
    if part == "position":
        ours.position = torch.zeros_like(ours.position)
    else:
        for layer in ours.layers:
            weight = layer.out if part == "attention" else layer.mlp.down
            weight.weight.zero_()
            weight.bias.zero_()
    wanted, got = our_output(ours_from(rescaled_model(WAN), WAN), pixels)[0], our_output(ours, pixels)[0]
    assert float((got - wanted).norm() / wanted.norm()) >= 0.2


def test_gradients_equal_transformers():
    model = rescaled_model(WAN)
    pixels = images(WAN, 2)
    parameters = {name: t.detach().clone().requires_grad_() for name, t in model.state_dict().items()}
    out = model(pixels).last_hidden_state
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    (CLIPVisionEncoder(CLIPVisionConfig(**WAN), Weights(parameters), OPS)(pixels) * weight).sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:  # the last norm belongs to the pooled output
            # a key's bias shifts all logits of a query alike: its true gradient is 0
            scale = float(p.grad.abs().max()) if "k_proj.bias" not in name else 1.0
            assert float((parameters[name].grad - p.grad).abs().max()) <= 1e-4 * scale, name


def test_published_config():
    wanted = CLIPVisionConfig(1280, 5120, 32, 16, 3, 224, 14, "gelu", 1e-5)
    assert CLIPVisionConfig.from_dict(PUBLISHED) == wanted
    assert CLIPVisionConfig.from_dict(TheirConfig(**WAN).to_dict()) == CLIPVisionConfig(**WAN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act is 'silu', wanted 'gelu' or 'quick_gelu'"),
        ({"model_type": "siglip_vision_model"}, "siglip_vision_model"),
        ({"num_attention_heads": 7}, "does not split into 7"),
        ({"image_size": [224, 224]}, "wanted a whole number"),
        ({"attention_bias": False}, "does not know attention_bias"),
    ],
)
def test_configs_that_would_change_results_are_refused(change, message):
    with pytest.raises(CheckpointError, match=message):
        CLIPVisionConfig.from_dict({**PUBLISHED, **change})


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize("cls", [CLIPVisionModel, CLIPVisionModelWithProjection])
def test_folders_with_and_without_the_prefix(prefix, cls, tmp_path):
    """transformers wrote `vision_model.` before every name until version 5; some folders add a projection."""
    model = rescaled_model(WAN)
    tensors = {prefix + name: t for name, t in model.state_dict().items()}
    if cls is CLIPVisionModelWithProjection:
        tensors["visual_projection.weight"] = torch.ones(16, 48)
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(10)[None]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    files = ComponentFiles(tmp_path)
    config = CLIPVisionConfig(**WAN)
    weights = load_weights(files, tensor_shapes(config, files), ignored=clip.IGNORED_TENSORS)
    pixels = images(WAN, 1)
    got = our_output(CLIPVisionEncoder(config, weights, OPS), pixels)[1]
    assert relative_error(got, reference_output(model, pixels)[1]) <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_tensor_shapes_are_the_checkpoints(name):
    wanted = {k: tuple(v.shape) for k, v in CLIPVisionModel(TheirConfig(**CONFIGS[name])).state_dict().items()}
    assert tensor_shapes(CLIPVisionConfig(**CONFIGS[name])) == wanted


def test_an_image_of_another_size_is_refused():
    ours = ours_from(rescaled_model(WAN), WAN)
    with pytest.raises(RequestError, match=r"\(1, 3, 42, 43\): wanted \[B, 3, 42, 42\]"):
        ours(torch.zeros(1, 3, 42, 43))
