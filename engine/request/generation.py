"""What is asked: the parameters of a generation, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kinema.errors import RequestError, shown
from kinema.fields.values import Check, check_fields, floats, generators, number, prompts, whole
from kinema.media.postprocess import OUTPUT_TYPES
from kinema.request.caching import CacheConfig, cache_configs
from kinema.request.tiling import Tiling
from kinema.schedulers.core import MAX_STEPS


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """A generation call's parameters; names and meanings are diffusers'. None means the model's default.

    prompt, negative_prompt: a string or a list of strings. height, width: pixels. num_frames: frames.
    guidance_scale: 1 or less runs without guidance, one forward a step. guidance_scale_2: the second expert's.
    seed: draws the noise on the CPU in fp32, so that it means the same everywhere; a list gives one per sample; None or
    -1: a new seed.
    generator: torch.Generator or a list of them, instead of a seed. latents: [B, C, T, h, w], given noise.
    prompt_embeds, negative_prompt_embeds: [prompts, L, C]; their lengths may differ.
    image, last_image: first (and last) frame, anything `kinema.media.inputs` reads, or a list of one. image_embeds:
    [I, L, C], CLIP tokens of these I images. video, strength: video-to-video; num_frames takes that many of its first
    frames, None all that make a clip. tiling: decode in spatial tiles, for less memory. cache: which steps need not be
    computed (kinema.caches): a step cache, a GuidanceEndConfig, or one of each; None computes all.
    """

    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_scale_2: float | None = None
    num_videos_per_prompt: int = 1
    seed: int | list[int] | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    latents: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    image: Any = None
    last_image: Any = None
    video: Any = None
    strength: float | None = None
    max_sequence_length: int | None = None
    output_type: str = "np"
    tiling: Tiling | None = None
    cache: CacheConfig | Sequence[CacheConfig] | None = None

    def __post_init__(self) -> None:
        """Refuse what no model could do; `Model.check` does the same for what a model cannot do."""
        check_fields(self, _CHECKS)
        self._either("prompt", "prompt_embeds", needed=True)
        self._either("negative_prompt", "negative_prompt_embeds")
        self._either("image", "video")
        self._either("latents", "video")
        self._either("seed", "generator")
        self._needs("last_image", "image")
        self._needs("image_embeds", "image")
        self._needs("strength", "video")
        if isinstance(self.negative_prompt, list) and len(self.negative_prompt) != self.prompts:
            raise RequestError(
                f"{len(self.negative_prompt)} negative prompts for {self.prompts} prompts: give one, or as many"
            )
        for name in ("seed", "generator"):
            given = getattr(self, name)
            if isinstance(given, list) and len(given) != self.samples:
                raise RequestError(f"{len(given)} {name}s for {self.samples} samples: give one, or one per sample")

    def _either(self, one: str, other: str, *, needed: bool = False) -> None:
        given = [name for name in (one, other) if getattr(self, name) is not None]
        if len(given) == 2:
            raise RequestError(f"both {one} and {other} were given: give one of them")
        if needed and not given:
            raise RequestError(f"neither {one} nor {other} was given: give one of them")

    def _needs(self, one: str, other: str) -> None:
        if getattr(self, one) is not None and getattr(self, other) is None:
            raise RequestError(f"{one} was given without {other}: give {other} too, or leave {one} out")

    @property
    def clip(self) -> tuple[int, int, int]:
        """(num_frames, height, width) of a completed request."""
        assert self.num_frames is not None and self.height is not None and self.width is not None
        return self.num_frames, self.height, self.width

    @property
    def guidance(self) -> tuple[float, float]:
        """The first and the second expert's scale, of a completed request."""
        assert self.guidance_scale is not None
        return self.guidance_scale, self.guidance_scale if self.guidance_scale_2 is None else self.guidance_scale_2

    @property
    def guided(self) -> bool:
        """Whether guidance is on, so that there are negative prompts."""
        return self.guidance_scale is not None and self.guidance_scale > 1

    @property
    def caches(self) -> tuple[CacheConfig, ...]:
        return self.cache if isinstance(self.cache, tuple) else ()  # what the check of it returned

    @property
    def prompts(self) -> int:
        """Number of prompts (or rows of prompt_embeds)."""
        if self.prompt is None:
            assert self.prompt_embeds is not None
            return int(self.prompt_embeds.shape[0])
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    @property
    def samples(self) -> int:
        """Number of videos: B of the latents."""
        return self.prompts * self.num_videos_per_prompt

    @property
    def pixels(self) -> int:
        """Of all frames of all samples, once the request is complete."""
        assert self.num_frames is not None and self.height is not None and self.width is not None
        return self.samples * self.num_frames * self.height * self.width


def _seeds(name: str, value: Any) -> int | list[int] | None:
    one = partial(whole, name, low=0, high=2**63 - 1)
    if isinstance(value, list):
        return [one(seed) for seed in value]
    return None if type(value) is int and value == -1 else one(value)


def _strength(name: str, value: Any) -> float:
    strength = number(name, value)
    if not 0.0 < strength <= 1.0:
        raise RequestError(f"{name} is {strength}: wanted more than 0 and at most 1")
    return strength


def _output_type(name: str, value: Any) -> str:
    if not isinstance(value, str) or value not in OUTPUT_TYPES:
        raise RequestError(f"{name} is {shown(value)}: wanted one of {', '.join(OUTPUT_TYPES)}")
    return value


def _tiling(name: str, value: Any) -> Tiling:
    if not isinstance(value, Tiling):
        raise RequestError(f"{name} is {shown(value)}: wanted a kinema.vae.tiling.Tiling")
    return value


def _media(name: str, value: Any) -> Any:
    """Not checked here: `kinema.media.inputs` reads pictures and videos, or refuses them."""
    return value


_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("prompt", "negative_prompt"), prompts),
    **dict.fromkeys(("height", "width", "num_frames", "num_videos_per_prompt", "max_sequence_length"), whole),
    "num_inference_steps": partial(whole, high=MAX_STEPS),
    **dict.fromkeys(("guidance_scale", "guidance_scale_2"), number),
    "seed": _seeds,
    "generator": generators,
    "latents": partial(floats, wanted="[B, C, T, h, w]"),
    **dict.fromkeys(("prompt_embeds", "negative_prompt_embeds", "image_embeds"), partial(floats, wanted="[B, L, C]")),
    **dict.fromkeys(("image", "last_image", "video"), _media),
    "strength": _strength,
    "output_type": _output_type,
    "tiling": _tiling,
    "cache": cache_configs,
}


def noise_generators(request: GenerationRequest) -> tuple[list[torch.Generator], int | None]:
    """The generators that draw a request's noise, and the first one's seed where it is known.

    Without a seed one is drawn from torch's global generator, so that `torch.manual_seed` decides unseeded runs too.
    """
    if request.generator is not None:
        return (request.generator if isinstance(request.generator, list) else [request.generator]), None
    seeds = request.seed if isinstance(request.seed, list) else [request.seed]
    drawn = [
        seed if seed is not None else int(torch.randint(2**32, (), dtype=torch.int64, device="cpu")) for seed in seeds
    ]
    return [torch.Generator("cpu").manual_seed(seed) for seed in drawn], drawn[0]
