"""What a first frame, a last frame or CLIP tokens add to the latents of a Wan model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from kinema.checkpoints import PipelineOptions
from kinema.components import Components
from kinema.errors import RequestError
from kinema.media.inputs import load_image
from kinema.media.preprocess import preprocess_image, preprocess_video
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
    given = torch.zeros(num_frames)
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


def condition(
    components: Components, request: GenerationRequest, transformer: WanConfig, options: PipelineOptions
) -> Conditioning:
    """What the request's images are to this model; RequestError where the two do not go together."""
    takes_channels = transformer.in_channels != transformer.latent_channels
    if request.image is None:
        if takes_channels:
            raise RequestError("this is an image-to-video model: give image=, or load a text-to-video model")
        return Conditioning()
    if not takes_channels and not options.expand_timesteps:
        raise RequestError("this is a text-to-video model: image= needs an image-to-video checkpoint (I2V, TI2V)")
    if request.last_image is not None and not takes_channels:
        raise RequestError("this model takes a first frame only: leave last_image out")
    num_frames, height, width = request.clip
    image = preprocess_image(request.image, height, width)
    last = preprocess_image(request.last_image, height, width) if request.last_image is not None else None
    vae = components.vae()
    if not takes_channels:
        return Conditioning(first_frame=first_frame_latents(vae, image))
    channels = frame_channels(vae, image, last, num_frames).repeat(request.samples, 1, 1, 1, 1)
    return Conditioning(channels=channels, image=_clip_tokens(components, request, transformer))


def _clip_tokens(components: Components, request: GenerationRequest, transformer: WanConfig) -> torch.Tensor | None:
    if transformer.image_dim is None:
        return None
    if transformer.pos_embed_seq_len is not None and request.last_image is None and request.image_embeds is None:
        raise RequestError("this model interpolates between two frames: give last_image= too")
    if request.image_embeds is not None:
        return request.image_embeds
    images = [load_image(image) for image in (request.image, request.last_image) if image is not None]
    tokens = components.image_encoder().penultimate(components.image_preprocessor()(images))
    components.release("image_encoder")
    return tokens


def encode_video(components: Components, request: GenerationRequest) -> torch.Tensor:
    """The request's video as normalised latents [1, C, T, h, w]."""
    _, height, width = request.clip
    vae = components.vae()
    return vae.normalize(vae.encode(preprocess_video(request.video, height, width)).mode())
