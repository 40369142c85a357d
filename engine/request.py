"""What is asked (GenerationRequest), and all that belongs to one request while it runs (RequestState)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from kinema import schedulers
from kinema.conditioning import Conditioning
from kinema.cuda_graph import CapturedForward
from kinema.errors import RequestError
from kinema.schedulers import SchedulerState
from kinema.stats import Stats
from kinema.vae.tiling import Tiling

if TYPE_CHECKING:
    from kinema.models.wan import Context, WanTransformer
    from kinema.ops import Ops

OUTPUT_TYPES = ("np", "pt", "pil", "latent")
_COUNTS = ("height", "width", "num_frames", "num_inference_steps", "num_videos_per_prompt", "max_sequence_length")
_EMBEDDINGS = ("prompt_embeds", "negative_prompt_embeds", "image_embeds")


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """A generation call's parameters; names and meanings are diffusers'. None means the model's default.

    prompt, negative_prompt: a text or a list of texts. height, width: pixels. num_frames: frames.
    guidance_scale: 1 or less runs without guidance, one forward a step. guidance_scale_2: the second expert's.
    seed: draws the noise on the CPU in fp32, so that it means the same everywhere; a list gives one per sample.
    generator: torch.Generator or a list of them, instead of a seed. latents: [B, C, T, h, w], given noise.
    prompt_embeds, negative_prompt_embeds: [prompts, L, C]; a text beside them is encoded to their length.
    image, last_image: first (and last) frame, anything `kinema.media.inputs` reads. image_embeds: [I, L, C], CLIP
    tokens of these I images. video, strength: video-to-video. tiling: decode in spatial tiles, for less memory.
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

    def __post_init__(self) -> None:
        """Refuse what no model could do; `check_request` does the same for what this model cannot do."""
        self._either("prompt", "prompt_embeds", needed=True)
        self._either("negative_prompt", "negative_prompt_embeds")
        self._either("image", "video")
        self._either("latents", "video")
        self._either("seed", "generator")
        self._needs("last_image", "image")
        self._needs("image_embeds", "image")
        self._needs("strength", "video")
        self._check_texts()
        self._check_numbers()
        for name in _EMBEDDINGS:
            embeds = getattr(self, name)
            if embeds is not None and not (isinstance(embeds, torch.Tensor) and embeds.ndim == 3):
                raise RequestError(f"{name} is {_kind(embeds)}: wanted a tensor [B, L, C]")
        if self.latents is not None and not isinstance(self.latents, torch.Tensor):
            raise RequestError(f"latents is {_kind(self.latents)}: wanted a tensor [B, C, T, h, w]")
        if self.output_type not in OUTPUT_TYPES:
            raise RequestError(f"output_type is {self.output_type!r}: wanted one of {', '.join(OUTPUT_TYPES)}")
        if self.tiling is not None and not isinstance(self.tiling, Tiling):
            raise RequestError(f"tiling is {self.tiling!r}: wanted a kinema.vae.tiling.Tiling")
        self._check_noise_source()

    def _check_texts(self) -> None:
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            if text is not None and not (
                isinstance(text, str) or (isinstance(text, list) and text and all(isinstance(t, str) for t in text))
            ):
                raise RequestError(f"{name} is {text!r}: wanted a text or a list of texts")
        if isinstance(self.negative_prompt, list) and len(self.negative_prompt) != self.prompts:
            raise RequestError(
                f"{len(self.negative_prompt)} negative prompts for {self.prompts} prompts: give one, or as many"
            )

    def _check_numbers(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise RequestError(f"{name} is {value!r}: wanted a whole number of at least 1")
        for name in ("guidance_scale", "guidance_scale_2", "strength"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
                raise RequestError(f"{name} is {value!r}: wanted a number")
        if self.strength is not None and not 0.0 < self.strength <= 1.0:
            raise RequestError(f"strength is {self.strength}: wanted more than 0 and at most 1")

    def _check_noise_source(self) -> None:
        for name, kind in (("seed", int), ("generator", torch.Generator)):
            given = getattr(self, name)
            if isinstance(given, list) and len(given) != self.samples:
                raise RequestError(f"{len(given)} {name}s for {self.samples} samples: give one, or one per sample")
            for one in given if isinstance(given, list) else [given] if given is not None else []:
                if isinstance(one, bool) or not isinstance(one, kind):
                    raise RequestError(f"{name} is {one!r}: wanted a {'whole number' if kind is int else 'generator'}")
                if isinstance(one, int) and not 0 <= one < 2**63:
                    raise RequestError(f"seed is {one}: wanted 0 to 2^63 − 1")

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


@dataclass(eq=False)
class RequestState:
    """Everything of one request: nothing of it lives on a model, so requests can be interleaved at will.

    latents: [B, C, T, h, w] fp32. text: [R, L, C] prompt embeddings, R = B, or 2·B with the unconditional rows
    after the conditional ones. guidance: scale per expert. A callback may set `interrupt` to end the loop early.
    """

    request: GenerationRequest
    latents: torch.Tensor
    schedule: SchedulerState
    guidance: dict[str, float]
    text: torch.Tensor
    conditioning: Conditioning
    stats: Stats
    interrupt: bool = False
    captured: CapturedForward = field(default_factory=CapturedForward)
    _context: tuple[str, Context] | None = None

    @property
    def step_index(self) -> int:
        """Steps done so far."""
        return self.schedule.index - self.schedule.begin

    @property
    def num_steps(self) -> int:
        return len(self.schedule.timesteps)

    @property
    def timestep(self) -> torch.Tensor:
        """What the next step feeds the transformer, 0-dim."""
        return self.schedule.timestep

    @property
    def done(self) -> bool:
        return self.interrupt or self.schedule.done

    def context(self, expert: str, transformer: WanTransformer) -> Context:
        """The prompt's keys and values for `expert`, computed when it is first used.

        Unconditional rows are left out where this expert's guidance is 1: one forward, not two.
        """
        if self._context is None or self._context[0] != expert:
            samples = self.latents.shape[0]
            text = self.text if self.guidance[expert] != 1.0 else self.text[:samples]
            self._context = (expert, transformer.encode_context(text, self.conditioning.image_rows(text.shape[0])))
        return self._context[1]

    def advance(self, ops: Ops, prediction: torch.Tensor, expert: str) -> None:
        """Guide and take one scheduler step. prediction: [R, C, T, h, w] for the rows of `context`."""
        samples = self.latents.shape[0]
        cond, uncond = prediction[:samples], prediction[samples:] if prediction.shape[0] > samples else None
        guidance = self.guidance[expert] if uncond is not None else 1.0
        self.latents = schedulers.step(ops, self.schedule, self.latents, cond, uncond, guidance=guidance)
        self.stats.forwards += 1 if uncond is None else 2

    def forget_context(self) -> None:
        """Free the prompt's keys and values, and the graph that reads them; another step would compute them again."""
        self._context = None
        self.captured.forget()

    def tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors that a step callback asked for: latents, prompt_embeds, negative_prompt_embeds."""
        samples = self.latents.shape[0]
        offered = {"latents": self.latents, "prompt_embeds": self.text[:samples]}
        if self.text.shape[0] > samples:
            offered["negative_prompt_embeds"] = self.text[samples:]
        unknown = [name for name in names if name not in offered]
        if unknown:
            raise RequestError(f"callback_on_step_end_tensor_inputs {unknown}: this request has {sorted(offered)}")
        return {name: offered[name] for name in names}

    def replace_tensors(self, changed: Mapping[str, torch.Tensor]) -> None:
        """Take over what a callback returned; new embeddings make a new context."""
        if not isinstance(changed, Mapping):
            raise RequestError(f"a callback returned {_kind(changed)}: wanted a dict of tensors, or None")
        current = self.tensors(list(changed))
        for name, tensor in changed.items():
            if not isinstance(tensor, torch.Tensor) or tensor.shape != current[name].shape:
                raise RequestError(
                    f"a callback returned for {name} {_kind(tensor)}: wanted a tensor of shape "
                    f"{tuple(current[name].shape)}"
                )
        self.latents = changed.get("latents", self.latents).to(self.latents)
        if "prompt_embeds" in changed or "negative_prompt_embeds" in changed:
            both = {**self.tensors(["prompt_embeds"]), **changed}
            rows = [both["prompt_embeds"]]
            if self.text.shape[0] > self.latents.shape[0]:
                rows.append(both.get("negative_prompt_embeds", self.text[self.latents.shape[0] :]))
            self.text = torch.cat(rows).to(self.text)
            self.forget_context()


def noise_generators(request: GenerationRequest, stats: Stats) -> list[torch.Generator]:
    """The generators that a request's noise comes from, on the CPU; a seed is drawn if none was given."""
    if request.generator is not None:
        return [request.generator] if isinstance(request.generator, torch.Generator) else request.generator
    seeds = request.seed if isinstance(request.seed, list) else [request.seed]
    # from torch's own generator: `torch.manual_seed` then settles unseeded runs too
    drawn = [
        seed if seed is not None else int(torch.randint(2**32, (), dtype=torch.int64, device="cpu")) for seed in seeds
    ]
    stats.seed = drawn[0]
    return [torch.Generator().manual_seed(seed) for seed in drawn]


def _kind(value: object) -> str:
    """A value for a message: its type and, if it has one, its shape."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
