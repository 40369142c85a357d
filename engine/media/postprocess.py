"""From the decoder's values in [-1, 1] to frames, bit for bit as diffusers' VideoProcessor does it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from kinema.errors import KinemaError, RequestError
from kinema.media.libraries import needed

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


def postprocess(video: torch.Tensor, output_type: str) -> Any:
    """What diffusers' `postprocess_video` gives for a decoded video [B, 3, T, H, W] in [-1, 1].

    np: float32 [B, T, H, W, 3] in 0..1. pt: [B, T, 3, H, W] in 0..1, dtype and device of `video`.
    pil: a list of B lists of T RGB pictures. latent: `video` itself, whatever it is.
    """
    if output_type == "latent":
        return video
    if output_type == "pt":
        return _unit_range(video).contiguous()
    if output_type == "np":
        return _unit_range(video).permute(0, 1, 3, 4, 2).float().cpu().contiguous().numpy()
    if output_type == "pil":
        check_library(output_type)
        from PIL import Image

        return [[Image.fromarray(frame) for frame in frames] for frames in to_uint8(video)]
    raise RequestError(f"output_type {output_type!r} is not known: wanted one of {', '.join(OUTPUT_TYPES)}")


def check_library(output_type: str) -> None:
    """UnsupportedError if the library that makes such an output is not installed."""
    if output_type == "pil":
        with needed("PIL", "output_type='pil'"):
            import PIL.Image  # noqa: F401


def to_uint8(video: torch.Tensor) -> npt.NDArray[np.uint8]:
    """[B, 3, T, H, W] in [-1, 1] as uint8 [B, T, H, W, 3], rounded half to even as diffusers rounds for PIL."""
    unit = _unit_range(video).permute(0, 1, 3, 4, 2).float()
    return unit_to_uint8(unit.contiguous())


def unit_to_uint8(values: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Values in 0..1 of any shape as uint8. NaN, which has no colour, is an error and not a black pixel."""
    scaled = (values * 255).round_()
    if bool(scaled.isnan().any()):
        raise KinemaError(
            "the decoded video holds NaN: the model overflowed (below fp32; precision='fp32' cures that), or its "
            "weights, or given latents or prompt embeddings, hold NaN"
        )
    return cast("npt.NDArray[np.uint8]", scaled.to(torch.uint8).cpu().numpy())


def _unit_range(video: torch.Tensor) -> torch.Tensor:
    """[B, 3, T, H, W] in [-1, 1] to [B, T, 3, H, W] in [0, 1], in the dtype of `video`."""
    if video.ndim != 5 or video.shape[1] != 3:
        raise RequestError(f"a decoded video must be [B, 3, T, H, W], got {list(video.shape)}")
    return (video.permute(0, 2, 1, 3, 4) * 0.5 + 0.5).clamp(0, 1)
