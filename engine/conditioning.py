"""What a first frame, a last frame or CLIP tokens add to the latents of a Wan model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from kinema.components import Components
from kinema.errors import RequestError
from kinema.media.inputs import ImageInput, load_image, picture_of
from kinema.media.preprocess import preprocess_image, preprocess_video
from kinema.models.wan import WanConfig
from kinema.vae.wan import WanVAE
from kinema.video import Video

if TYPE_CHECKING:
    from kinema.request import GenerationRequest


@dataclass(frozen=True)
class Conditioning:
    """The image side of a request; all None for text-to-video.

    channels: [B, Cc, T, h, w], concatenated to the latents (Wan I2V: 4 mask channels, then the encoded frames).
    first_frame: [B, C, 1, h, w], held clean at timestep 0 while the other frames are denoised (TI2V-5B).
    image: [I, L, Ci], CLIP tokens of the I given images (Wan 2.1 I2V).
    """

    channels: torch.Tensor | None = None
    first_frame: torch.Tensor | None = None
    image: torch.Tensor | None = None

    def image_rows(self, rows: int) -> torch.Tensor | None:
        """The CLIP tokens for `rows` rows of the transformer."""
        return None if self.image is None else self.image.repeat(rows, 1, 1)

    def model_input(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, T, h, w] as the transformer wants them."""
        latents = self.hold_first_frame(latents)
        return latents if self.channels is None else torch.cat((latents, self.channels), dim=1)

    def timesteps(self, timestep: torch.Tensor, latents: torch.Tensor, temporal_patch: int) -> torch.Tensor:
        """One 0-dim timestep for all samples [B], or per frame of tokens [B, T'] if the first is clean."""
        batch, _, frames = latents.shape[:3]
        if self.first_frame is None:
            return timestep.expand(batch)
        by_frame = timestep.repeat(frames // temporal_patch)
        by_frame[0] = 0
        return by_frame.expand(batch, -1)

    def hold_first_frame(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents with the clean first frame put back."""
        if self.first_frame is None:
            return latents
        return torch.cat((self.first_frame.expand(latents.shape[0], -1, -1, -1, -1), latents[:, :, 1:]), dim=2)


def first_frame_latents(vae: WanVAE, image: torch.Tensor) -> torch.Tensor:
    """image: [1, 3, H, W] in [−1, 1] → its normalised latent frame [1, C, 1, h, w]."""
    return vae.normalize(vae.encode(image.unsqueeze(2)).mode())


def frame_channels(vae: WanVAE, image: torch.Tensor, last_image: torch.Tensor | None, num_frames: int) -> torch.Tensor:
    """The channels that Wan I2V concatenates: which frames are given, then all frames encoded, grey where not.

    image, last_image: [1, 3, H, W] in [−1, 1]. Returns [1, ft + C, T, h, w] with ft the VAE's frames per latent frame.
    """
    given = image.new_zeros(num_frames)
    given[0] = 1
    frames = image.new_zeros(1, 3, num_frames, *image.shape[2:])
    frames[:, :, 0] = image
    if last_image is not None:
        given[-1] = 1
        frames[:, :, -1] = last_image
    latents = vae.normalize(vae.encode(frames).mode())
    per_latent = vae.config.scale_factor_temporal
    # the first latent frame is one pixel frame, the others are `per_latent` of them
    mask = torch.cat((given[:1].expand(per_latent), given[1:])).view(-1, per_latent).T.to(latents.device)
    mask = mask[None, :, :, None, None].expand(1, -1, -1, *latents.shape[3:])
    return torch.cat((mask, latents), dim=1)


def condition(components: Components, request: GenerationRequest, transformer: WanConfig) -> Conditioning:
    """What the images of a checked request are to this model."""
    if request.image is None:
        return Conditioning()
    num_frames, height, width = request.clip
    image = _one(preprocess_image(request.image, height, width), "image")
    if transformer.in_channels == transformer.latent_channels:
        first_frame = first_frame_latents(components.vae("encoder"), image)
        components.release("vae")
        return Conditioning(first_frame=first_frame)
    last = None
    if request.last_image is not None:
        last = _one(preprocess_image(request.last_image, height, width), "last_image")
    channels = frame_channels(components.vae("encoder"), image, last, num_frames).repeat(request.samples, 1, 1, 1, 1)
    components.release("vae")
    return Conditioning(channels=channels, image=_clip_tokens(components, request, transformer))


def _clip_tokens(components: Components, request: GenerationRequest, transformer: WanConfig) -> torch.Tensor | None:
    if transformer.image_dim is None or request.image_embeds is not None:
        return request.image_embeds
    images = [as_picture(image) for image in (request.image, request.last_image) if image is not None]
    tokens = components.image_encoder().penultimate(components.image_preprocessor()(images))
    components.release("image_encoder", "image_processor")
    return tokens


def as_picture(image: ImageInput) -> Image.Image:
    """An image in any form as the 8-bit picture that CLIP was trained on; floats are 0..1, or -1..1 if some are < 0."""
    loaded = load_image(image)
    if isinstance(loaded, Image.Image):
        return loaded
    unit = loaded[0].float()
    if float(unit.min()) < 0:
        unit = unit / 2 + 0.5
    return picture_of(unit.mul(255).round().to(torch.uint8))


def video_length(video: Any) -> int:
    """Frames of a video in any form that `preprocess_video` takes, files apart."""
    if isinstance(video, Video):
        return video.num_frames
    if not isinstance(video, (list, tuple, np.ndarray, torch.Tensor)):
        raise RequestError(f"a video must be a path, a Video, frames, an array or a tensor, got {type(video).__name__}")
    if len(video) == 0:
        raise RequestError("the video has no frames")
    is_batch = getattr(video, "ndim", 4) == 5 or isinstance(video[0], (list, tuple))
    return len(video[0] if is_batch else video)


def encode_video(components: Components, request: GenerationRequest) -> torch.Tensor | None:
    """The request's video, if it has one, as normalised latents [1, C, T, h, w]."""
    if request.video is None:
        return None
    _, height, width = request.clip
    frames = _one(preprocess_video(request.video, height, width), "video")
    vae = components.vae("encoder")
    latents = vae.normalize(vae.encode(frames).mode())
    components.release("vae")
    return latents


def _one(batch: torch.Tensor, name: str) -> torch.Tensor:
    if len(batch) != 1:
        raise RequestError(f"{name} holds {len(batch)} of them: wanted one, every sample of a request starts from it")
    return batch
