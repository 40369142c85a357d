"""What each part of a model folder is read as, and whether the parts fit each other; no weights are read here."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kinema.checkpoints import Component, ModelFolder, Shapes, Weights, load_weights
from kinema.checkpoints.layouts import lora_notice, loras_among, loras_in
from kinema.errors import CheckpointError, warn
from kinema.image import clip
from kinema.image.clip import CLIPVisionConfig
from kinema.image.preprocess import ClipPreprocessor
from kinema.models import wan
from kinema.models.wan import WanConfig
from kinema.text import umt5
from kinema.text.tokenizer import Tokenizer
from kinema.text.umt5 import UMT5Config
from kinema.vae import wan as wan_vae
from kinema.vae.wan import WanVAEConfig

TRANSFORMERS = ("transformer", "transformer_2")
PIXEL_CHANNELS = 3


@dataclass(frozen=True)
class Part:
    """A part with weights. tensors: what its config calls for, given the names that its files hold."""

    read_config: Callable[[Mapping[str, Any]], Any]
    tensors: Callable[[Any, Container[str]], Shapes]
    ignored: tuple[str, ...] = ()


_TRANSFORMER = Part(WanConfig.from_dict, lambda config, found: wan.tensor_shapes(config), wan.IGNORED_TENSORS)
PARTS = {
    "transformer": _TRANSFORMER,
    "transformer_2": _TRANSFORMER,
    "vae": Part(WanVAEConfig.from_dict, lambda config, found: wan_vae.tensor_shapes(config)),
    "text_encoder": Part(UMT5Config.from_dict, umt5.tensor_shapes, umt5.IGNORED_TENSORS),
    "image_encoder": Part(CLIPVisionConfig.from_dict, clip.tensor_shapes, clip.IGNORED_TENSORS),
}


def open_part(component: Component, variant: str | None) -> tuple[Any, Weights]:
    """A part's config and weights: every tensor is known to be there, of the right shape, and none has been read."""
    part = PARTS[component.name]
    config, files = part.read_config(component.config), component.files(variant)
    return config, load_weights(files, part.tensors(config, files), ignored=part.ignored)


def check_parts(folder: ModelFolder, variant: str | None) -> None:
    """CheckpointError for whatever can be known to fail later: from configs and headers, in milliseconds."""
    folder.check_variant(variant)
    configs = {
        name: open_part(folder.component(name), folder.variant(name, variant))[0]
        for name in folder.components
        if name in PARTS
    }
    wrong = [misfit for name in TRANSFORMERS if name in configs for misfit in _misfits(name, configs)]
    if "image_processor" in folder:
        processor = ClipPreprocessor.from_dict(folder.component("image_processor").config)
        wrong += _of_pictures(processor, configs.get("image_encoder"))
    if wrong:
        raise CheckpointError(f"the parts of {folder.path} do not fit each other: {'; '.join(wrong)}")
    if "tokenizer" in folder:
        Tokenizer.check_folder(folder.component("tokenizer").folder)
    loras = [*loras_in(folder.path), *loras_among(folder.path, folder.components)]
    if loras:
        warn(lora_notice(folder.path, loras), stacklevel=4)


def _misfits(name: str, configs: Mapping[str, Any]) -> Iterator[str]:
    """What a transformer wants of the other parts and they do not give."""
    transformer: WanConfig = configs[name]
    vae: WanVAEConfig = configs["vae"]
    text: UMT5Config | None = configs.get("text_encoder")
    image: CLIPVisionConfig | None = configs.get("image_encoder")
    latent = transformer.latent_channels
    if latent != vae.z_dim:
        yield f"{name} makes latents of {latent} channels, vae takes {vae.z_dim}"
    conditioned = 2 * latent + vae.scale_factor_temporal
    if transformer.in_channels not in (latent, conditioned):
        yield f"{name} takes {transformer.in_channels} channels: wanted {latent}, or with an image {conditioned}"
    if vae.pixel_channels != PIXEL_CHANNELS:
        yield f"vae makes pictures of {vae.pixel_channels} channels: wanted {PIXEL_CHANNELS}"
    if text is not None and transformer.text_dim != text.d_model:
        yield f"{name} reads text of {transformer.text_dim} channels, text_encoder makes {text.d_model}"
    if image is not None and transformer.image_dim is not None:
        if transformer.image_dim != image.hidden_size:
            yield f"{name} reads images of {transformer.image_dim} channels, image_encoder makes {image.hidden_size}"
        tokens = 2 * (1 + image.patches)  # a first and a last frame
        if transformer.pos_embed_seq_len not in (None, tokens):
            yield f"{name} has places for {transformer.pos_embed_seq_len} image tokens, image_encoder makes {tokens}"
    first: WanConfig = configs.get("transformer", transformer)
    for key in ("in_channels", "latent_channels", "patch_size", "text_dim", "image_dim"):
        if getattr(transformer, key) != getattr(first, key):
            yield f"transformer has {key} {getattr(first, key)}, {name} {getattr(transformer, key)}"


def _of_pictures(processor: ClipPreprocessor, image: CLIPVisionConfig | None) -> list[str]:
    if image is None or not processor.do_center_crop or processor.crop == (image.image_size,) * 2:
        return []
    return [f"image_processor crops to {processor.crop}, image_encoder takes {image.image_size} pixels a side"]
