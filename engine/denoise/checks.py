"""A warning before a run that goes beyond the training, and an error for NaN or infinity after it."""

from __future__ import annotations

import torch

from kinema.errors import KinemaError, warn
from kinema.request.defaults import GenerationDefaults
from kinema.request.generation import GenerationRequest


def warn_beyond_training(request: GenerationRequest, trained: GenerationDefaults, declared: bool) -> None:
    """Warn that the model was not trained for such a clip. declared: its folder says what it was trained for."""
    num_frames, height, width = request.clip
    problems = []
    if (height, width) != (trained.height, trained.width):
        problems.append(f"of {trained.width}x{trained.height} pixels, asked for {width}x{height}")
    if num_frames > trained.num_frames:
        problems.append(f"of at most {trained.num_frames} frames, asked for {num_frames}")
    if declared and problems:
        warn(f"this model was trained on clips {', '.join(problems)}: expect worse results", stacklevel=3)


def check_finite(result: torch.Tensor, what: str, precision: str) -> torch.Tensor:
    """`result` [B, ...] itself; KinemaError if it holds NaN or infinity. precision: the model's, for the advice."""
    if not bool(torch.isfinite(result.sum(dtype=torch.float64))):  # either makes the sum NaN or infinite, in one pass
        overflowed = f"the model overflowed in {precision} (try precision='fp32'), or " if precision != "fp32" else ""
        raise KinemaError(f"{what} hold NaN or infinity: {overflowed}the model's weights or its inputs hold them")
    return result
