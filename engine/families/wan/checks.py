"""Which images a Wan model takes; the others are refused before any of its parts is loaded."""

from __future__ import annotations

from kinema.errors import RequestError
from kinema.families.wan.config import WanConfig
from kinema.request.generation import GenerationRequest


def check_images(request: GenerationRequest, transformer: WanConfig, *, expands: bool) -> None:
    """expands: timesteps may differ from frame to frame, so that the first can be held clean."""
    takes_channels = transformer.in_channels != transformer.latent_channels
    if request.image is None:
        if takes_channels:
            raise RequestError("this is an image-to-video model: give image=, or load a text-to-video model")
        return
    if not takes_channels and not expands:
        raise RequestError("this is a text-to-video model: image= needs an image-to-video checkpoint (I2V, TI2V)")
    between_two = transformer.pos_embed_seq_len is not None
    if between_two and request.last_image is None:
        raise RequestError("this model interpolates between two frames: give last_image= too")
    first_only = not takes_channels or (transformer.image_dim is not None and not between_two)
    if first_only and request.last_image is not None:
        raise RequestError("this model takes a first frame only: leave last_image out")
    if request.image_embeds is None:
        return
    if transformer.image_dim is None:
        raise RequestError("this model reads no CLIP tokens: leave image_embeds out")
    images, length, width = request.image_embeds.shape
    wanted = 1 + (request.last_image is not None)
    tokens = length if transformer.pos_embed_seq_len is None else transformer.pos_embed_seq_len // 2
    if (images, length, width) != (wanted, tokens, transformer.image_dim):
        raise RequestError(
            f"image_embeds are {(images, length, width)}: wanted [{wanted}, "
            f"{tokens if between_two else 'L'}, {transformer.image_dim}], one row per image"
        )
