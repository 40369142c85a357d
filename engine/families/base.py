"""Everything that generic code may ask of a model family: the seam between the engine and its models.

A `Family` reads model folders; a `Model` is a folder that it opened, still without weights; its parts are loaded by the
records of `Family.parts`. The defaults here are those of a text-to-video model; a family overrides what differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import torch

from kinema.checkpoints import Component, FolderFormat, ModelFolder, Slot, Tensors, Weights, load_weights
from kinema.errors import RequestError, warn
from kinema.families.geometry import Geometry
from kinema.ops import Ops, Plan
from kinema.ops.attention import BlockCausal
from kinema.ops.common import Rope
from kinema.request.defaults import GenerationDefaults
from kinema.request.generation import GenerationRequest
from kinema.request.tiling import Tiling
from kinema.schedulers import SchedulerCore

ContextT = TypeVar("ContextT", bound="Context")
Half = Literal["encoder", "decoder"]
Mode = Literal["t2v", "i2v", "flf2v", "ti2v", "v2v"]

# Rows that share a forward share the reading of the weights, but hold their activations at the same time;
# beyond this many tokens the first gains nothing and the second hurts.
MAX_TOKENS_PER_FORWARD = 16384

# Forwards that a CPU records (denoise/replay.py): with more tokens the host's part does not matter, and with more bytes
# a recording would hold what later stages want.
MAX_TOKENS_RECORDED = 2048
MAX_BYTES_RECORDED = 64 << 20


class Context(Protocol):
    """What a prompt (and image) is to a denoiser, computed once and read at every step."""

    @property
    def rows(self) -> int: ...

    @property
    def shape(self) -> Hashable:
        """What contexts must agree on to be concatenated."""
        ...

    def select(self: ContextT, rows: slice) -> ContextT: ...

    @staticmethod
    def concatenate(contexts: list[Any]) -> Any: ...


class Denoiser(Protocol):
    """The diffusion transformer, as batching, graphs and streams need it. patch_size: of tokens, in latents."""

    ops: Ops

    @property
    def patch_size(self) -> tuple[int, int, int]: ...

    def encode_context(self, text: torch.Tensor, image: torch.Tensor | None = None) -> Any:
        """text: [R, L, C]; image: [R, I, Ci], if the model reads any."""
        ...

    def rope(self, latents: torch.Tensor) -> Rope | None:
        """The rotary table for the tokens of latents, for a caller that keeps it; None: the model has none."""
        ...

    def __call__(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        context: Any,
        *,
        causal: BlockCausal | None = None,
        rope: Rope | None = None,
    ) -> torch.Tensor:
        """latents: [R, C, T, h, w]; timesteps: [R], or [R, G] by group of tokens. Returns [R, C', T, h, w] fp32."""
        ...

    def release(self) -> None:
        """Free what is kept between forwards."""
        ...


class Posterior(Protocol):
    def mode(self) -> torch.Tensor: ...


class VideoCoder(Protocol):
    """The VAE. Latents [B, C, T, h, w] are normalised for the denoiser, but not for `encode` and `decode`."""

    @property
    def device(self) -> torch.device: ...

    def pack(self, half: Half) -> None:
        """Pack the weights of one half, if not done yet."""
        ...

    def packed(self, half: Half) -> bool: ...

    def encode(self, video: torch.Tensor) -> Posterior:
        """video: [B, 3, T, H, W] in [−1, 1]."""
        ...

    def decode(self, latents: torch.Tensor, *, tiling: Tiling | None = None) -> torch.Tensor:
        """All frames at once."""
        ...

    def decode_chunks(self, latents: torch.Tensor, *, tiling: Tiling | None = None) -> Iterator[torch.Tensor]:
        """Frames [B, 3, t, H, W] in [−1, 1], one for the first latent frame and then as many as are made at once."""
        ...

    def normalize(self, latents: torch.Tensor) -> torch.Tensor: ...

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor: ...


class Parts(Protocol):
    """The parts of a model, loaded when they are first asked for."""

    ops: Ops

    def part(self, name: str) -> Any: ...

    def vae(self, half: Half) -> VideoCoder: ...

    def release(self, *names: str) -> None:
        """Release what a stage has finished with."""
        ...


@dataclass(frozen=True)
class PartFiles:
    """What a part is built from. beside: the configs of the model's other parts, as far as they are known."""

    component: Component
    config: Any
    weights: Weights | None
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> Weights:
        assert self.weights is not None, f"{self.component.name} has no weights"
        return self.weights


@dataclass(frozen=True)
class Part:
    """One part of a family's pipelines.

    kind: the class that `build` makes. read_config, tensors (if it has weights): read its config, and list the tensors
    that this calls for, given the names in its files. ignored: patterns of surplus tensors. half: which half a tensor
    belongs to, if the part is packed in halves. facade: what users are given instead of the part.
    """

    slot: Slot
    kind: type[Any]
    build: Callable[[PartFiles, Ops], Any]
    read_config: Callable[[Mapping[str, Any]], Any] | None = None
    tensors: Callable[[Any, Container[str]], Tensors] | None = None
    ignored: tuple[str, ...] = ()
    half: Callable[[str], Half] | None = None
    facade: type[Any] | None = None

    def open(self, component: Component, variant: str | None) -> PartFiles:
        """Check that every tensor is there and of the right shape; none is read yet."""
        if self.read_config is None or self.tensors is None:
            return PartFiles(component, None, None)
        config, files = self.read_config(component.config), component.files(variant)
        return PartFiles(component, config, load_weights(files, self.tensors(config, files), ignored=self.ignored))


@dataclass(frozen=True)
class Work:
    """Bytes that a stage holds at its peak, besides weights. lasting: those not freed while the stage runs.

    flops: of its matrix products and convolutions; of "denoise" those of one step. 0: nothing is said of its time.
    """

    peak: int
    lasting: int = 0
    flops: int = 0


class Conditioning:
    """What images add to the latents of a request. This base, for text alone, adds nothing."""

    plain = True
    channels: torch.Tensor | None = None  # [B, Cc, T, h, w], concatenated to the latents at every step

    def image_rows(self, rows: int) -> torch.Tensor | None:
        """The image's tokens for `rows` rows of the denoiser."""
        return None

    def levels(self, timesteps: torch.Tensor, frames: int) -> torch.Tensor:
        """The timesteps of all steps [n] as the denoiser is given them: [n], or [n, T'] by frame of tokens."""
        return timesteps

    def hold(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents with the given frames restored; called after every step."""
        return latents


class Model(ABC):
    """An opened model folder: its configs are read and fit each other, its weights are not loaded.

    experts: names of the transformers, in the order of use. modes: what it can generate from what. text_width,
    max_prompt_tokens: channels and tokens of prompt embeddings. declared: whether the folder says what it was made for.
    """

    folder: ModelFolder
    parts: Mapping[str, Part]
    configs: Mapping[str, Any]
    geometry: Geometry
    defaults: GenerationDefaults
    experts: tuple[str, ...] = ("transformer",)
    modes: frozenset[Mode] = frozenset(("t2v",))
    latent_channels: int
    text_width: int
    max_prompt_tokens: int = 512

    @property
    def declared(self) -> bool:
        return "_kinema_defaults" in self.folder.index

    def check(self, request: GenerationRequest, scheduler: SchedulerCore) -> tuple[int, int, int, int, int]:
        """The shape [B, C, T, h, w] of a completed request's latents. RequestError names what cannot be made."""
        t, h, w = self.geometry.latent_size(*request.clip)
        shape = (request.samples, self.latent_channels, t, h, w)
        if request.latents is not None and request.latents.shape != shape:
            raise RequestError(
                f"latents are {tuple(request.latents.shape)}: this request wants {shape} [B, C, T, h, w]"
            )
        if request.guidance_scale_2 is not None and len(self.experts) < 2:
            raise RequestError("guidance_scale_2 is for a model with two experts, this one has one: leave it out")
        if not request.guided and (request.guidance_scale_2 or 0) > 1:
            warn(
                f"guidance_scale_2 = {request.guidance_scale_2:g} is not applied: guidance_scale = "
                f"{request.guidance_scale:g} turns guidance off for both experts, as in diffusers",
                stacklevel=4,
            )
        trained = scheduler.config.num_train_timesteps
        if request.num_inference_steps is not None and request.num_inference_steps > trained:
            raise RequestError(
                f"num_inference_steps is {request.num_inference_steps}: {scheduler.class_name} has {trained} "
                "timesteps, and more steps would only repeat them"
            )
        if request.tiling is not None:
            request.tiling.check(self.geometry.spatial)
        self._check_text(request)
        self.check_media(request)
        return shape

    def check_media(self, request: GenerationRequest) -> None:
        """RequestError for images that this model does not take, or that it needs and are missing."""
        if request.image is not None:
            raise RequestError("this is a text-to-video model: image= needs an image-to-video checkpoint")

    def guidance(self, request: GenerationRequest) -> dict[str, float]:
        """The scale of classifier-free guidance for each expert."""
        return dict(zip(self.experts, request.guidance, strict=False))

    def expert(self, timestep: torch.Tensor, trained: int) -> str:
        """The name of the transformer for a timestep. trained: the number of training timesteps."""
        return self.experts[0]

    @abstractmethod
    def encode_text(self, parts: Parts, request: GenerationRequest) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The prompts and, with guidance, the negative prompts as [B, L, C] fp32, a row per sample."""

    def condition(self, parts: Parts, request: GenerationRequest) -> Conditioning:
        """What the images of a checked request add to it."""
        return Conditioning()

    @abstractmethod
    def work(self, request: GenerationRequest, plan: Plan, *, streamed: bool, graphs: bool) -> Mapping[str, Work]:
        """What each stage that a completed request has ("image", "text", "denoise", "decode") holds besides weights.

        streamed: frames are taken chunk by chunk. graphs: forwards are recorded, all rows of a request in one graph.
        """

    def tensors(self) -> Iterator[tuple[str, Part, Tensors]]:
        """Every part with weights, and its tensors."""
        for name in self.folder.components:
            part = self.parts.get(name)
            if part is not None and part.tensors is not None:
                yield name, part, part.tensors(self.configs[name], ())

    def _check_text(self, request: GenerationRequest) -> None:
        asked = request.max_sequence_length
        if asked is not None and asked > self.max_prompt_tokens:
            raise RequestError(
                f"max_sequence_length is {asked}: this model reads up to {self.max_prompt_tokens} tokens"
            )
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            embeds = getattr(request, name)
            if embeds is not None and (embeds.shape[0], embeds.shape[2]) != (request.prompts, self.text_width):
                raise RequestError(
                    f"{name} are {tuple(embeds.shape)}: wanted [{request.prompts}, L, {self.text_width}], "
                    "a row per prompt"
                )


class Family(Protocol):
    """A kind of model. format: what its folders may contain. parts: by slot, in the order of use."""

    name: str
    format: FolderFormat
    parts: Mapping[str, Part]

    def open(self, folder: ModelFolder, variant: str | None) -> Model:
        """Reads configs and headers, in milliseconds; CheckpointError for whatever would fail later."""
        ...


SCHEDULER = Slot(
    "diffusers",
    ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler"),
    "scheduler_config.json",
)


def opened(folder: ModelFolder, parts: Mapping[str, Part], variant: str | None) -> dict[str, Any]:
    """The configs of a folder's parts with weights, once all their tensors are known to be there."""
    folder.check_variant(variant)
    return {
        name: parts[name].open(folder.component(name), folder.variant(name, variant)).config
        for name in folder.components
        if name in parts and parts[name].tensors is not None
    }


def slots_of(parts: Mapping[str, Part]) -> dict[str, Slot]:
    """The slots of a family's folders: those of its parts, and the scheduler's."""
    return {**{name: part.slot for name, part in parts.items()}, "scheduler": SCHEDULER}
