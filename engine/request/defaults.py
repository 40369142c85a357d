"""What a model generates unless a request says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from kinema.errors import CheckpointError, shown
from kinema.fields.config import JsonObject, Range, from_config, origin


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

    def declared_by(self, index: Mapping[str, Any]) -> GenerationDefaults:
        """These, and over them what a model_index.json declares under "_kinema_defaults"."""
        declared = index.get("_kinema_defaults", {})
        where = f"_kinema_defaults in {origin(index, 'model_index.json')}"
        if not isinstance(declared, Mapping):
            raise CheckpointError(f"{where} is {shown(declared)}: wanted an object of {', '.join(asdict(self))}")
        return from_config(GenerationDefaults, JsonObject({**asdict(self), **declared}, where))
