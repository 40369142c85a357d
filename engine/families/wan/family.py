"""Wan as a family: which folders it reads, its parts, and what a folder can make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from kinema.checkpoints import FolderFormat, ModelFolder, Slot
from kinema.encoders import clip_vision, umt5
from kinema.encoders.clip_preprocess import ClipPreprocessor
from kinema.encoders.clip_vision import CLIPVisionConfig, CLIPVisionEncoder
from kinema.encoders.prompts import encode_prompts
from kinema.encoders.umt5 import UMT5Config, UMT5Encoder
from kinema.errors import CheckpointError
from kinema.families.base import Conditioning, Mode, Model, Part, PartFiles, Parts, Work, opened, slots_of
from kinema.families.geometry import Geometry
from kinema.families.wan import config as wan
from kinema.families.wan import layouts, memory
from kinema.families.wan.checks import check_images
from kinema.families.wan.conditioning import condition
from kinema.families.wan.config import WanConfig
from kinema.families.wan.diffusers_transformer import DiffusersTransformer
from kinema.families.wan.transformer import WanTransformer
from kinema.families.wan.vae import autoencoder
from kinema.families.wan.vae.autoencoder import WanVAE
from kinema.families.wan.vae.config import WanVAEConfig
from kinema.fields.config import Range
from kinema.ops import Ops, Plan
from kinema.request.defaults import GenerationDefaults
from kinema.request.generation import GenerationRequest
from kinema.text.tokenizer import Tokenizer

TRANSFORMERS = ("transformer", "transformer_2")
PIXEL_CHANNELS = 3
MAX_PROMPT_TOKENS = 512


@dataclass(frozen=True)
class WanOptions:
    """What model_index.json says besides its components.

    boundary_ratio: transformer denoises timesteps of at least this share of the training steps,
    transformer_2 the rest (Wan 2.2 A14B). expand_timesteps: timesteps are per token (Wan 2.2 TI2V-5B).
    """

    boundary_ratio: Annotated[float, Range(0, 1)] | None = None
    expand_timesteps: bool = False


def _tokenizer(files: PartFiles, ops: Ops) -> Tokenizer:
    text = files.beside.get("text_encoder")
    return Tokenizer.from_folder(files.component.folder, None if text is None else text.vocab_size)


def _half(tensor: str) -> Literal["encoder", "decoder"]:
    return "encoder" if tensor.startswith(("encoder.", "quant_conv.")) else "decoder"


_TRANSFORMER = Part(
    Slot("diffusers", ("WanTransformer3DModel",)),
    WanTransformer,
    lambda files, ops: WanTransformer(files.config, files.tensors, ops),
    WanConfig.from_dict,
    lambda config, found: wan.tensor_shapes(config),
    wan.IGNORED_TENSORS,
    facade=DiffusersTransformer,
)
PARTS: dict[str, Part] = {
    **dict.fromkeys(TRANSFORMERS, _TRANSFORMER),
    "vae": Part(
        Slot("diffusers", ("AutoencoderKLWan",)),
        WanVAE,
        lambda files, ops: WanVAE(files.config, files.tensors, ops),
        WanVAEConfig.from_dict,
        lambda config, found: autoencoder.tensor_shapes(config),
        half=_half,
    ),
    "text_encoder": Part(
        Slot("transformers", ("UMT5EncoderModel",), supersets=("UMT5Model", "UMT5ForConditionalGeneration")),
        UMT5Encoder,
        lambda files, ops: UMT5Encoder(files.config, files.tensors, ops),
        UMT5Config.from_dict,
        umt5.tensor_shapes,
        umt5.IGNORED_TENSORS,
    ),
    "tokenizer": Part(
        Slot(
            "transformers",
            ("T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"),
            "tokenizer_config.json",
            optional_config=True,  # some folders hold only the vocabulary
        ),
        Tokenizer,
        _tokenizer,
    ),
    "image_encoder": Part(
        Slot("transformers", ("CLIPVisionModel", "CLIPVisionModelWithProjection")),
        CLIPVisionEncoder,
        lambda files, ops: CLIPVisionEncoder(files.config, files.tensors, ops),
        CLIPVisionConfig.from_dict,
        clip_vision.tensor_shapes,
        clip_vision.IGNORED_TENSORS,
    ),
    "image_processor": Part(
        Slot(
            "transformers",
            ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"),
            "preprocessor_config.json",
        ),
        ClipPreprocessor,
        lambda files, ops: ClipPreprocessor.from_folder(files.component.folder),
    ),
}


class WanFamily:
    name = "wan"
    parts: Mapping[str, Part] = PARTS
    format = FolderFormat(
        ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
        slots_of(PARTS),
        (TRANSFORMERS, ("vae",), ("scheduler",)),
        WanOptions,
        layouts.repository(),
        layouts.original_folder,
        layouts.original_file,
        layouts.in_diffusers_format,
    )

    def open(self, folder: ModelFolder, variant: str | None) -> Model:
        return WanModel(folder, variant)


FAMILY = WanFamily()


class WanModel(Model):
    """Wan 2.1 T2V, I2V and FLF2V, 2.2 A14B of two experts, and 2.2 TI2V-5B."""

    parts = PARTS
    max_prompt_tokens = MAX_PROMPT_TOKENS

    def __init__(self, folder: ModelFolder, variant: str | None) -> None:
        self.folder, self.options = folder, folder.options
        self.configs = opened(folder, PARTS, variant)
        _check_fit(folder, self.configs)
        self.experts = tuple(name for name in TRANSFORMERS if name in folder)
        if self.options.boundary_ratio is not None and len(self.experts) < 2:
            raise CheckpointError(
                f"{folder.path} has boundary_ratio {self.options.boundary_ratio} and no "
                f"{'transformer' if 'transformer_2' in folder else 'transformer_2'}: a boundary is between two experts"
            )
        self.transformer: WanConfig = self.configs[self.experts[0]]
        self.vae: WanVAEConfig = self.configs["vae"]
        self.geometry = Geometry(
            self.vae.scale_factor_temporal, self.vae.scale_factor_spatial, self.transformer.patch_size
        )
        self.latent_channels, self.text_width = self.transformer.latent_channels, self.transformer.text_dim
        self.defaults = _published_defaults(self.vae.z_dim).declared_by(folder.index)
        self.modes = _modes(self.transformer, self.options)

    def check_media(self, request: GenerationRequest) -> None:
        check_images(request, self.transformer, expands=self.options.expand_timesteps)

    def expert(self, timestep: torch.Tensor, trained: int) -> str:
        ratio = self.options.boundary_ratio
        return self.experts[int(ratio is not None and bool(timestep < ratio * trained))]

    def encode_text(self, parts: Parts, request: GenerationRequest) -> tuple[torch.Tensor, torch.Tensor | None]:
        return encode_prompts(parts, request)

    def condition(self, parts: Parts, request: GenerationRequest) -> Conditioning:
        return condition(parts, request, self.transformer)

    def work(self, request: GenerationRequest, plan: Plan, *, streamed: bool, graphs: bool) -> dict[str, Work]:
        text = self.configs.get("text_encoder")
        return memory.work(self.transformer, self.vae, text, request, plan, streamed=streamed, graphs=graphs)


def _published_defaults(latent_channels: int) -> GenerationDefaults:
    """Wan 2.2 TI2V-5B, known by its 48 latent channels, is native at 704×1280, 121 frames and 24 fps."""
    if latent_channels == 48:
        return GenerationDefaults(height=704, width=1280, num_frames=121, fps=24.0)
    return GenerationDefaults()


def _modes(transformer: WanConfig, options: WanOptions) -> frozenset[Mode]:
    if transformer.pos_embed_seq_len is not None:
        return frozenset(("flf2v",))
    if transformer.in_channels != transformer.latent_channels:
        return frozenset(("i2v",) if transformer.image_dim is not None else ("i2v", "flf2v"))
    return frozenset(("t2v", "ti2v", "v2v") if options.expand_timesteps else ("t2v", "v2v"))


def _check_fit(folder: ModelFolder, configs: Mapping[str, Any]) -> None:
    """CheckpointError if the parts do not fit each other."""
    wrong = [misfit for name in TRANSFORMERS if name in configs for misfit in _misfits(name, configs)]
    if "image_processor" in folder:
        processor = ClipPreprocessor.from_dict(folder.component("image_processor").config)
        wrong += _image_misfits(processor, configs.get("image_encoder"))
    if wrong:
        raise CheckpointError(f"the parts of {folder.path} do not fit each other: {'; '.join(wrong)}")
    if "tokenizer" in folder:
        Tokenizer.check_folder(folder.component("tokenizer").folder)


def _misfits(name: str, configs: Mapping[str, Any]) -> Iterator[str]:
    """Where a transformer and the other parts disagree."""
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


def _image_misfits(processor: ClipPreprocessor, image: CLIPVisionConfig | None) -> list[str]:
    if image is None or not processor.do_center_crop or processor.crop == (image.image_size,) * 2:
        return []
    return [f"image_processor crops to {processor.crop}, image_encoder takes {image.image_size} pixels a side"]
