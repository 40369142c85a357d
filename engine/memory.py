"""Predicts the peak memory of a request, and refuses what cannot fit before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kinema.activation_memory import (
    decode_bytes,
    denoise_bytes,
    encode_bytes,
    encoder_bytes,
    frames_bytes,
    native_denoise_bytes,
    text_bytes,
)
from kinema.checkpoints import ModelFolder, Shapes
from kinema.errors import RequestError
from kinema.image import clip
from kinema.image.clip import CLIPVisionConfig
from kinema.machine_memory import available_bytes, held_bytes, peak_bytes
from kinema.models import wan
from kinema.models.wan import WanConfig
from kinema.ops import Plan
from kinema.ops.common import Precision
from kinema.ops.conv3d.cpu import packed_bytes
from kinema.options import LoadOptions
from kinema.request import GenerationRequest
from kinema.text import umt5
from kinema.text.umt5 import UMT5Config
from kinema.vae import wan as wan_vae
from kinema.vae.decoder import latents_at_once
from kinema.vae.wan import WanVAEConfig

__all__ = [
    "Prediction",
    "available_bytes",
    "check_fits",
    "component_shapes",
    "experts",
    "gib",
    "held_bytes",
    "peak_bytes",
    "predict",
    "weight_bytes",
]

# What the process holds before any model: Python, torch and its kernels (245 MiB measured with torch 2.13 for CPUs).
PROCESS_BYTES = 256 * 2**20
# Holes between the weights of a loaded model (2 to 8 % measured).
WEIGHT_HOLES = 0.05
# Freed blocks that malloc keeps: up to what a stage used, but blocks of more than 32 MiB always go back.
KEPT_FREE_BYTES = 160 * 2**20


@dataclass(frozen=True)
class Work:
    """Bytes of a stage at its peak, beside weights. `lasting`: of it, what is not freed while the stage runs."""

    peak: int
    lasting: int = 0

    @property
    def kept_free(self) -> int:
        return min(self.peak - self.lasting, KEPT_FREE_BYTES)


@dataclass(frozen=True)
class Prediction:
    """Bytes per stage, weights included. `parts` are the weights alone, of what the request needs."""

    parts: dict[str, int]
    stages: dict[str, int]

    @property
    def peak(self) -> int:
        return max(self.stages.values())

    @property
    def largest_stage(self) -> str:
        return max(self.stages, key=lambda stage: self.stages[stage])


def predict(
    folder: ModelFolder, request: GenerationRequest, plan: Plan, options: LoadOptions, *, streamed: bool = False
) -> Prediction:
    """Peak bytes of a completed request (every size known), stage by stage.

    streamed: frames are taken from `decode_chunks` and gone before the next chunk, instead of kept to the end.
    """
    parts = weight_bytes(folder, plan.target.precision, winograd=plan.backend("conv3d") == "cpu")
    resident = {
        "image": ("vae.encoder", "image_encoder"),
        "text": ("text_encoder",),
        "denoise": experts(folder),
        "decode": ("vae.decoder",),
    }
    stages = {}
    stage_work = _stage_work(folder, request, plan, options, streamed=streamed)
    if "image" not in stage_work:
        del parts["vae.encoder"]  # it is packed when it is first used
    for stage, work in stage_work.items():
        held = [parts[name] for name in (parts if options.keep_loaded else resident[stage]) if name in parts]
        # without keep_loaded the parts of a stage come one after the other
        weights = sum(held) if options.keep_loaded else max(held, default=0)
        stages[stage] = PROCESS_BYTES + int((1 + WEIGHT_HOLES) * weights) + work.peak + work.kept_free
    return Prediction(parts, stages)


def _stage_work(
    folder: ModelFolder, request: GenerationRequest, plan: Plan, options: LoadOptions, *, streamed: bool
) -> dict[str, Work]:
    """What each stage of the request holds beside weights."""
    precision, native = plan.target.precision, plan.backend("conv3d").startswith("cpu")
    num_frames, height, width = request.clip
    transformer = WanConfig.from_dict(folder.component(experts(folder)[0]).config)
    vae = WanVAEConfig.from_dict(folder.component("vae").config)
    latent = (
        (num_frames - 1) // vae.scale_factor_temporal + 1,
        height // vae.scale_factor_spatial,
        width // vae.scale_factor_spatial,
    )
    tokens, rows = _text_tokens(request), request.samples * (1 + request.guided)
    pixels = frames_bytes(num_frames, height, width)
    work = {}
    if request.image is not None or request.video is not None:
        # a TI2V model encodes the image alone, an I2V model a whole clip that begins with it
        only_first = request.image is not None and transformer.in_channels == transformer.latent_channels
        encoded = 1 if only_first else num_frames
        work["image"] = Work(encode_bytes(vae, height, width, encoded) + 2 * frames_bytes(encoded, height, width))
    if request.prompt is not None and "text_encoder" in folder:
        config = UMT5Config.from_dict(folder.component("text_encoder").config)
        work["text"] = Work(text_bytes(config, precision, request.prompts * (1 + request.guided), tokens))
    if plan.backend("linear") == "cpu":
        work["denoise"] = Work(*native_denoise_bytes(transformer, latent, rows, tokens))
    else:
        # one captured forward has all rows, of both guidance halves, whatever their number
        captured = options.cuda_graphs and plan.target.device.type == "cuda"
        work["denoise"] = Work(denoise_bytes(transformer, precision, latent, rows, tokens, together=captured))
    if request.output_type != "latent":
        together = max(1, min(latent[0] - 1, latents_at_once(vae, request.samples, *latent[1:])))
        maps = decode_bytes(
            vae,
            latent[1],
            latent[2],
            request.samples,
            request.tiling,
            together=together,
            image=latent[0] == 1,
            native=native,
        )
        if streamed:  # a chunk as it was decoded, three steps of it on its way to bytes, and what an encoder holds
            chunk = frames_bytes(min(num_frames, together * vae.scale_factor_temporal), height, width)
            work["decode"] = Work(maps + request.samples * (4 * chunk + encoder_bytes(num_frames, height, width)))
        else:  # the finished clip, an intermediate and the result
            clips = request.samples * pixels
            work["decode"] = Work(max(maps + clips, 3 * clips))
    return work


def _text_tokens(request: GenerationRequest) -> int:
    """Tokens that the transformer reads at most: a tokenizer makes no more of a text than it has letters, and one."""
    given = [int(e.shape[1]) for e in (request.prompt_embeds, request.negative_prompt_embeds) if e is not None]
    texts = [request.prompt or "", request.negative_prompt or ""]
    longest = max(len(text) for texts_ in texts for text in ([texts_] if isinstance(texts_, str) else texts_))
    return max([*given, min(longest + 9, request.max_sequence_length or longest + 9)])


def experts(folder: ModelFolder) -> tuple[str, ...]:
    """The transformers of a folder, in order of use."""
    return tuple(name for name in ("transformer", "transformer_2") if name in folder)


def component_shapes(folder: ModelFolder) -> dict[str, Shapes]:
    """The tensors that each component's config calls for."""
    shapes = {name: wan.tensor_shapes(WanConfig.from_dict(folder.component(name).config)) for name in experts(folder)}
    shapes["vae"] = wan_vae.tensor_shapes(WanVAEConfig.from_dict(folder.component("vae").config))
    if "text_encoder" in folder:
        shapes["text_encoder"] = umt5.tensor_shapes(UMT5Config.from_dict(folder.component("text_encoder").config))
    if "image_encoder" in folder:
        shapes["image_encoder"] = clip.tensor_shapes(
            CLIPVisionConfig.from_dict(folder.component("image_encoder").config)
        )
    return shapes


def weight_bytes(folder: ModelFolder, precision: Precision, *, winograd: bool = False) -> dict[str, int]:
    """Resident bytes of each component's weights, and of each half of the VAE.

    winograd: the native CPU kernels pack the VAE's convolutions, which grow.
    Matrices as `precision` stores them, the rest in fp32. The time embedder and the VAE are always fp32, what is around
    a transformer's blocks is never in 8 bits, and a text encoder's embedding table stays in its file.
    """
    width = precision.weights.itemsize
    found: dict[str, int] = {}
    for name, shapes in component_shapes(folder).items():
        for tensor, shape in shapes.items():
            part = name if name != "vae" else f"vae.{_half(tensor)}"
            size = 4 * math.prod(shape)
            if name != "vae" and len(shape) == 2 and not _is_exact(tensor):
                if width > 1:
                    size = width * math.prod(shape)
                elif tensor.startswith(WIDE):
                    size = precision.activations.itemsize * math.prod(shape)
                else:
                    size = math.prod(shape) + 4 * shape[0]  # and a scale per row
            elif name == "vae" and winograd and len(shape) > 3:
                size = packed_bytes(shape)
            elif _stays_in_file(tensor):
                size = 0
            found[part] = found.get(part, 0) + size
    return found


def _half(tensor: str) -> str:
    return "encoder" if tensor.startswith(("encoder.", "quant_conv.")) else "decoder"


WIDE = ("condition_embedder.text_embedder", "condition_embedder.image_embedder", "proj_out")


def _is_exact(tensor: str) -> bool:
    exact = ("condition_embedder.time", "embeddings.")
    return tensor.startswith(exact) or "relative_attention_bias" in tensor or _stays_in_file(tensor)


def _stays_in_file(tensor: str) -> bool:
    return tensor in (umt5.SHARED_EMBEDDING, umt5.OWN_EMBEDDING)


def check_fits(prediction: Prediction, available: int, options: LoadOptions) -> None:
    """RequestError if a request cannot fit, with what would make it smaller."""
    if prediction.peak <= available:
        return
    remedies = ["a smaller size or fewer frames"]
    if options.keep_loaded:
        remedies.append("--low-memory (keep_loaded=False)")
    if options.precision in ("auto", "fp32"):
        remedies.append("--precision bf16")
    raise RequestError(
        f"this needs about {gib(prediction.peak)} in its {prediction.largest_stage} stage, {gib(available)} are "
        f"available: use {', or '.join(remedies)}"
    )


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
