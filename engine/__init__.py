"""kinema: an inference engine for text-to-video diffusion transformers.

    import kinema
    pipe = kinema.VideoPipeline.from_pretrained("sample")
    pipe("a red circle moving left", seed=0).videos[0].save("out.mp4")

Names are imported when they are first used: `import kinema` costs milliseconds and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kinema import schedulers
    from kinema.loading.components import load_text_encoder, load_transformer, load_vae
    from kinema.media.video import Video
    from kinema.pipeline import VideoPipeline
    from kinema.request.generation import GenerationRequest
    from kinema.request.output import VideoOutput

__all__ = [
    "GenerationRequest",
    "Video",
    "VideoOutput",
    "VideoPipeline",
    "__version__",
    "load_text_encoder",
    "load_transformer",
    "load_vae",
    "schedulers",
]

_HOME = {
    "GenerationRequest": "kinema.request.generation",
    "Video": "kinema.media.video",
    "VideoOutput": "kinema.request.output",
    "VideoPipeline": "kinema.pipeline",
    "load_text_encoder": "kinema.loading.components",
    "load_transformer": "kinema.loading.components",
    "load_vae": "kinema.loading.components",
}


def __getattr__(name: str) -> Any:
    if name == "schedulers":
        return import_module("kinema.schedulers")
    if name not in _HOME:
        raise AttributeError(f"module 'kinema' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
