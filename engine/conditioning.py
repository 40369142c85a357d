"""What a first frame, a last frame or CLIP tokens add to the latents of a Wan model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from kinema.components import Components
from kinema.errors import warn
from kinema.geometry import Geometry
from kinema.media.pixels import read_image, read_video
from kinema.models.wan import WanConfig
from kinema.vae.wan import WanVAE

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


def read_media(
    request: GenerationRequest, geometry: Geometry, fits: Callable[[GenerationRequest], object]
) -> GenerationRequest:
    """The request with its pictures and its video read: as `Pixels`, and nothing else sees a file.

    Everything but the length is known; a video whose length nobody asks for gives it, cut to one that the model can
    make, with a warning. fits: raises if such a request is too much; a video is read no further than that.
    """
    if request.image is not None:
        request = replace(request, image=read_image(request.image))
    if request.last_image is not None:
        request = replace(request, last_image=read_image(request.last_image, "last_image"))
    if request.video is None:
        return request
    assert request.height is not None and request.width is not None
    geometry.latent_size(request.num_frames or geometry.longest(1), request.height, request.width)
    video = read_video(
        *(request.video, request.height, request.width, request.num_frames),
        fits=lambda num_frames: fits(replace(request, num_frames=num_frames)),
    )
    frames = video.num_frames
    length = min(frames, geometry.longest(frames))
    if length < frames:
        warn(
            f"the video has {frames} frames, and this model makes {length} or {length + geometry.frame_step}: "
            f"its first {length} are taken",
            stacklevel=3,
        )
    return replace(request, video=video.first(length), num_frames=length)


def condition(components: Components, request: GenerationRequest, transformer: WanConfig) -> Conditioning:
    """What the images of a checked request are to this model."""
    if request.image is None:
        return Conditioning()
    num_frames, height, width = request.clip
    image = request.image.values(height, width)
    if transformer.in_channels == transformer.latent_channels:
        first_frame = first_frame_latents(components.vae("encoder"), image)
        components.release("vae")
        return Conditioning(first_frame=first_frame)
    last = None if request.last_image is None else request.last_image.values(height, width)
    channels = frame_channels(components.vae("encoder"), image, last, num_frames).repeat(request.samples, 1, 1, 1, 1)
    components.release("vae")
    return Conditioning(channels=channels, image=_clip_tokens(components, request, transformer))


def _clip_tokens(components: Components, request: GenerationRequest, transformer: WanConfig) -> torch.Tensor | None:
    if transformer.image_dim is None or request.image_embeds is not None:
        return request.image_embeds
    images = [image.picture() for image in (request.image, request.last_image) if image is not None]
    tokens = components.image_encoder().penultimate(components.image_preprocessor()(images))
    components.release("image_encoder", "image_processor")
    return tokens


def encode_video(components: Components, request: GenerationRequest) -> torch.Tensor | None:
    """The request's video, if it has one, as normalised latents [1, C, T, h, w]."""
    if request.video is None:
        return None
    _, height, width = request.clip
    frames = request.video.values(height, width).transpose(0, 1).unsqueeze(0).contiguous()
    vae = components.vae("encoder")
    latents = vae.normalize(vae.encode(frames).mode())
    components.release("vae")
    return latents
