"""What a first frame, a last frame or CLIP tokens add to the latents of a Wan model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kinema.families.base import Conditioning, Parts, VideoCoder
from kinema.families.wan.config import WanConfig
from kinema.request.generation import GenerationRequest


@dataclass(frozen=True)
class WanConditioning(Conditioning):
    """The image side of a request.

    channels: [B, Cc, T, h, w], concatenated to the latents (Wan I2V: 4 mask channels, then the encoded frames).
    first_frame: [B, C, 1, h, w], held clean at timestep 0 while the other frames are denoised (TI2V-5B).
    image: [I, L, Ci], CLIP tokens of the I given images (Wan 2.1 I2V).
    """

    plain = False
    channels: torch.Tensor | None = None
    first_frame: torch.Tensor | None = None
    image: torch.Tensor | None = None

    def image_rows(self, rows: int) -> torch.Tensor | None:
        """The CLIP tokens for `rows` rows of the transformer."""
        return None if self.image is None else self.image.repeat(rows, 1, 1)

    def levels(self, timesteps: torch.Tensor, frames: int) -> torch.Tensor:
        """The timesteps of all steps [n], or by frame of tokens [n, T'] if the first is clean."""
        if self.first_frame is None:
            return timesteps
        by_frame = timesteps.unsqueeze(1).repeat(1, frames)
        by_frame[:, 0] = 0
        return by_frame

    def hold(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents with the clean first frame put back."""
        if self.first_frame is None:
            return latents
        return torch.cat((self.first_frame.expand(latents.shape[0], -1, -1, -1, -1), latents[:, :, 1:]), dim=2)


def first_frame_latents(vae: VideoCoder, image: torch.Tensor) -> torch.Tensor:
    """image: [1, 3, H, W] in [−1, 1] → its normalised latent frame [1, C, 1, h, w]."""
    return vae.normalize(vae.encode(image.unsqueeze(2)).mode())


def frame_channels(
    vae: VideoCoder, image: torch.Tensor, last_image: torch.Tensor | None, num_frames: int, transformer: WanConfig
) -> torch.Tensor:
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
    per_latent = transformer.in_channels - 2 * transformer.latent_channels  # the mask has a channel for each frame
    # the first latent frame is one pixel frame, the others are `per_latent` of them
    mask = torch.cat((given[:1].expand(per_latent), given[1:])).view(-1, per_latent).T.to(latents.device)
    mask = mask[None, :, :, None, None].expand(1, -1, -1, *latents.shape[3:])
    return torch.cat((mask, latents), dim=1)


def condition(parts: Parts, request: GenerationRequest, transformer: WanConfig) -> Conditioning:
    """What the images of a checked request add to it."""
    if request.image is None:
        return Conditioning()
    num_frames, height, width = request.clip
    image = request.image.values(height, width)
    if transformer.in_channels == transformer.latent_channels:
        first_frame = first_frame_latents(parts.vae("encoder"), image)
        parts.release("vae")
        return WanConditioning(first_frame=first_frame)
    last = None if request.last_image is None else request.last_image.values(height, width)
    channels = frame_channels(parts.vae("encoder"), image, last, num_frames, transformer).repeat(
        request.samples, 1, 1, 1, 1
    )
    parts.release("vae")
    return WanConditioning(channels=channels, image=_clip_tokens(parts, request, transformer))


def _clip_tokens(parts: Parts, request: GenerationRequest, transformer: WanConfig) -> torch.Tensor | None:
    if transformer.image_dim is None or request.image_embeds is not None:
        return request.image_embeds
    images = [image.picture() for image in (request.image, request.last_image) if image is not None]
    tokens: torch.Tensor = parts.part("image_encoder").penultimate(parts.part("image_processor")(images))
    parts.release("image_encoder", "image_processor")
    return tokens
