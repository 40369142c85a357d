"""How a model is loaded, and what it generates unless a request says otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from kinema.config import JsonObject, Range, from_config, origin
from kinema.errors import CheckpointError, RequestError, shown
from kinema.values import Check, check_fields, flag, whole, word


@dataclass(frozen=True)
class LoadOptions:
    """`from_pretrained`'s options.

    device: auto, cpu or cuda[:n]. backend: auto, or one that `kinema doctor` lists: reference, triton, torch, …
    precision: auto, fp32, bf16, fp16, fp8 or int8. variant: the middle name of weight files (fp16). keep_loaded: keep
    components in memory after their stage; without it the peak is the largest stage. threads: CPU threads of this
    pipeline's calls, at most the machine's cores, None for torch's number; pipelines with other numbers keep theirs.
    cuda_graphs: on a GPU, replay a request's forwards as one graph; it keeps the memory of a forward for itself.
    quantize_attention: None, or what the transformer's self-attention multiplies in: "int8" on a CPU, "fp8" on a GPU.
    Lossy; a backend that has no kernel for it is an error.
    """

    device: str = "auto"
    backend: str = "auto"
    precision: str = "auto"
    variant: str | None = None
    keep_loaded: bool = True
    threads: int | None = None
    cuda_graphs: bool = True
    quantize_attention: Literal["fp8", "int8"] | None = None

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS)


def _device(name: str, value: Any) -> str:
    """A torch.device by its name."""
    if not isinstance(value, str):
        import torch  # not above: the command line says what is wrong before it waits for torch

        value = str(value) if isinstance(value, torch.device) else value
    return word(name, value)


def _threads(name: str, value: Any) -> int:
    cores = os.cpu_count() or 1
    try:
        return whole(name, value, high=cores)
    except RequestError as error:
        raise RequestError(f"{error}, the cores of this machine") from None


_CHECKS: dict[str, Check] = {
    "device": _device,
    **dict.fromkeys(("backend", "precision", "variant", "quantize_attention"), word),
    **dict.fromkeys(("keep_loaded", "cuda_graphs"), flag),
    "threads": _threads,
}


@dataclass(frozen=True)
class GenerationDefaults:
    """A checkpoint's native clip: pixels, frames, frames per second, steps, guidance, prompt tokens, and how far
    video-to-video changes a video.
    """

    height: Annotated[int, Range(1, 100_000)] = 480
    width: Annotated[int, Range(1, 100_000)] = 832
    num_frames: Annotated[int, Range(1, 1_000_000)] = 81
    fps: Annotated[float, Range(0, 1000, open=True)] = 16.0
    num_inference_steps: Annotated[int, Range(1, 1000)] = 50
    guidance_scale: Annotated[float, Range(0, 1000)] = 5.0
    max_sequence_length: Annotated[int, Range(1, 512)] = 512
    strength: Annotated[float, Range(0, 1, open=True)] = 0.8

    @staticmethod
    def of(index: Mapping[str, Any], latent_channels: int) -> GenerationDefaults:
        """What model_index.json declares under "_kinema_defaults", over what the Wan family publishes.

        Wan 2.2 TI2V-5B, known by its 48 latent channels, is native at 704×1280, 121 frames and 24 fps.
        """
        native = GenerationDefaults()
        if latent_channels == 48:
            native = replace(native, height=704, width=1280, num_frames=121, fps=24.0)
        declared = index.get("_kinema_defaults", {})
        where = f"_kinema_defaults in {origin(index, 'model_index.json')}"
        if not isinstance(declared, Mapping):
            raise CheckpointError(f"{where} is {shown(declared)}: wanted an object of {', '.join(asdict(native))}")
        return from_config(GenerationDefaults, JsonObject({**asdict(native), **declared}, where))
