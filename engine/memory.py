"""Predicts the peak memory of a request before it starts, and reads what there is and was used."""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from kinema.checkpoints import ModelFolder, Shapes
from kinema.errors import RequestError
from kinema.models import wan
from kinema.models.wan import WanConfig
from kinema.ops.common import Precision
from kinema.options import LoadOptions
from kinema.request import GenerationRequest
from kinema.text import umt5
from kinema.text.umt5 import UMT5Config
from kinema.vae import wan as wan_vae
from kinema.vae.decoder import UpStageSpec
from kinema.vae.wan import WanVAEConfig

# Tensors of a feature map's size that a residual block of the VAE holds at once: its input, the normed
# and padded copies, the convolution's own buffer, its output and the shortcut.
VAE_LIVE_MAPS = 6
# What the process holds before any model: Python, torch and its kernels.
PROCESS_BYTES = 400 * 2**20


@dataclass(frozen=True)
class Prediction:
    """Bytes per stage, weights included. `parts` are the weights alone, per component."""

    parts: dict[str, int]
    stages: dict[str, int]

    @property
    def peak(self) -> int:
        return max(self.stages.values())

    @property
    def largest_stage(self) -> str:
        return max(self.stages, key=lambda stage: self.stages[stage])


def predict(folder: ModelFolder, request: GenerationRequest, precision: Precision, options: LoadOptions) -> Prediction:
    """Peak bytes of a completed request (every size known), stage by stage."""
    parts = weight_bytes(folder, precision)
    num_frames, height, width = request.clip
    transformer = WanConfig.from_dict(folder.component(experts(folder)[0]).config)
    vae = WanVAEConfig.from_dict(folder.component("vae").config)
    latent = (
        (num_frames - 1) // vae.scale_factor_temporal + 1,
        height // vae.scale_factor_spatial,
        width // vae.scale_factor_spatial,
    )
    guided = request.guidance_scale is None or request.guidance_scale > 1
    work = {
        "denoise": _denoise_bytes(transformer, latent, request.samples * (1 + guided)),
        "decode": _decode_bytes(vae, latent, request.samples) + _frames_bytes(request),
    }
    used = {"text": ("text_encoder",), "denoise": experts(folder), "decode": ("vae",)}
    if "text_encoder" in parts and request.prompt is not None:
        work["text"] = 64 * 2**20
    kept = sum(parts.values())
    stages = {
        stage: PROCESS_BYTES + bytes_ + (kept if options.keep_loaded else max(parts.get(n, 0) for n in used[stage]))
        for stage, bytes_ in work.items()
    }
    return Prediction(parts, stages)


def experts(folder: ModelFolder) -> tuple[str, ...]:
    """The transformers of a folder, in order of use."""
    return tuple(name for name in ("transformer", "transformer_2") if name in folder)


def component_shapes(folder: ModelFolder) -> dict[str, Shapes]:
    """The tensors that each component's config calls for."""
    shapes = {name: wan.tensor_shapes(WanConfig.from_dict(folder.component(name).config)) for name in experts(folder)}
    shapes["vae"] = wan_vae.tensor_shapes(WanVAEConfig.from_dict(folder.component("vae").config))
    if "text_encoder" in folder:
        shapes["text_encoder"] = umt5.tensor_shapes(UMT5Config.from_dict(folder.component("text_encoder").config))
    return shapes


def weight_bytes(folder: ModelFolder, precision: Precision) -> dict[str, int]:
    """Resident bytes of each component's weights: matrices as `precision` stores them, the rest in fp32.

    A text encoder's embedding table stays in its file, and the VAE is always fp32.
    """
    found = {}
    for name, shapes in component_shapes(folder).items():
        stored = 4 if name == "vae" else precision.weights.itemsize
        found[name] = sum(
            math.prod(shape) * (stored if len(shape) == 2 else 4)
            for tensor, shape in shapes.items()
            if not _stays_mapped(tensor)
        )
    return found


def _stays_mapped(tensor: str) -> bool:
    return tensor in ("shared.weight", "encoder.embed_tokens.weight")


def _denoise_bytes(config: WanConfig, latent: tuple[int, int, int], rows: int) -> int:
    """Activations of one block, at its widest in the MLP or around attention, and the prompt's keys and values."""
    from kinema.batching import MAX_TOKENS_PER_FORWARD

    tokens = math.prod(n // p for n, p in zip(latent, config.patch_size, strict=True))
    together = min(rows, max(1, MAX_TOKENS_PER_FORWARD // tokens))
    widest = max(2 * config.dim + 2 * config.ffn_dim, 9 * config.dim)
    context = 2 * config.num_layers * rows * 128 * config.dim
    latents = 12 * rows * config.latent_channels * math.prod(latent)
    return 4 * (together * tokens * widest + context + latents)


def _decode_bytes(config: WanVAEConfig, latent: tuple[int, int, int], batch: int) -> int:
    """The largest feature maps of one latent frame, and the past frames that every convolution keeps."""
    _, height, width = latent
    frames, area, past, largest = 1, height * width, 0, 0
    for stage in UpStageSpec.all(config):
        pixels = area * frames
        past += (2 * len(stage.blocks) + 1) * 2 * stage.hidden * area
        largest = max(largest, VAE_LIVE_MAPS * stage.hidden * pixels)
        if stage.doubling is not None:
            frames *= 2 if stage.temporal else 1
            area *= 4
            # the map before the upsampler's convolution has the new size and the old channels
            largest = max(largest, (2 * stage.hidden + 2 * stage.out) * area * frames)
    return 4 * batch * (past + largest)


def _frames_bytes(request: GenerationRequest) -> int:
    """The clip in fp32, while it is put together and converted."""
    num_frames, height, width = request.clip
    return 3 * 4 * request.samples * num_frames * height * width * 3


def check_fits(prediction: Prediction, available: int) -> None:
    """RequestError if a request cannot fit, with what would make it smaller."""
    if prediction.peak > available:
        raise RequestError(
            f"this needs about {gib(prediction.peak)} in its {prediction.largest_stage} stage, {gib(available)} are "
            "available: use a smaller size or fewer frames, --low-memory (keep_loaded=False), --tiled, or a lower "
            "precision"
        )


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def available_bytes(device: torch.device | None = None) -> int:
    """Memory that this process could still get: of the GPU, or of the machine within its control group's limit."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").exists() and (group / "memory.max").read_text().strip() != "max":
        used = int((group / "memory.current").read_text())
        limits.append(int((group / "memory.max").read_text()) - used)
    return min(limits) if limits else sys.maxsize


def held_bytes(device: torch.device) -> int:
    """What this process holds now, on the device that it runs on."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else 0


def peak_bytes(device: torch.device) -> int:
    """The most that this process has held so far: on the GPU if that is where it runs."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
