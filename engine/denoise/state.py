"""All that belongs to one request while it runs: what prepare, step and decode_chunks hand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch

from kinema.caches import Cache, Decision, Run
from kinema.denoise.batching import Rows
from kinema.denoise.timesteps import Timesteps
from kinema.errors import RequestError, shown
from kinema.families.base import Conditioning, Context, Denoiser, Model
from kinema.fields.diffusers_names import DiffusersNames, lacks
from kinema.fields.values import floats, kind, number
from kinema.ops import Ops
from kinema.ops.common.interrupts import StopFlag
from kinema.request.generation import GenerationRequest
from kinema.request.stats import Stats
from kinema.schedulers import SchedulerState

_TENSORS = {"latents": "[B, C, T, h, w]", "text": "[B, L, C]", "negative": "[B, L, C]"}
_OFFERED = {"latents": "latents", "prompt_embeds": "text", "negative_prompt_embeds": "negative"}  # to callbacks


@dataclass(eq=False, repr=False)
class RequestState(DiffusersNames):
    """Everything of one request: nothing of it lives on a model, so requests can be interleaved at will.

    latents: [B, C, T, h, w] fp32. text, negative: prompt embeddings [B, L, C], None without guidance.
    guidance: scale per expert, in their order. stop: ends native work of this request; see `interrupt`. cache: what it
    holds from step to step, if it was asked to.

    A callback is given this where diffusers gives the pipeline: it has the attributes that callbacks change there
    (`_interrupt`, `_guidance_scale`), and refuses others.
    """

    request: GenerationRequest
    model: Model
    latents: torch.Tensor
    schedule: SchedulerState
    guidance: dict[str, float]
    text: torch.Tensor
    negative: torch.Tensor | None
    conditioning: Conditioning
    stats: Stats
    stop: StopFlag = field(default_factory=StopFlag)
    cache: Cache | None = None
    _contexts: tuple[tuple[object, ...], list[Context]] | None = None
    _timesteps: Timesteps | None = None
    _experts: list[str] = field(default_factory=list)
    _interrupted: bool = False
    _halfway: bool = False

    _instead = dict.fromkeys(
        (
            *("vae", "transformer", "transformer_2", "scheduler", "text_encoder", "tokenizer", "components"),
            *("image_encoder", "image_processor", "device", "dtype", "to", "set_progress_bar_config"),
        ),
        "a callback is given the state of its request: use the pipeline that was called",
    )

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dataclass_fields__ and not hasattr(type(self), name):
            raise lacks(RequestState, name)
        if name in _TENSORS and hasattr(self, "conditioning"):
            self._take(name, self._fitting(name, value))
        else:
            object.__setattr__(self, name, value)

    def __post_init__(self) -> None:
        self._take("latents", self.latents)  # now that conditioning is set
        trained = self.schedule.core.config.num_train_timesteps
        self._experts = [self.model.expert(timestep, trained) for timestep in self.schedule.timesteps]

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.latents.shape))
        return f"RequestState(latents {shape}, {self.step_index} of {self.num_steps} steps done)"

    def _fitting(self, name: str, value: Any) -> Any:
        """What is assigned to a tensor of the request, checked, in fp32 and on its device.

        Texts may have another length, as in a request, and the clip of a finished run may have been continued.
        """
        if value is getattr(self, name) or (name == "negative" and value is None):
            return value
        like, length = (self.latents, 2 if self.schedule.done else None) if name == "latents" else (self.text, 1)
        given = floats(name, value, _TENSORS[name])
        wanted = [given.shape[axis] if axis == length else size for axis, size in enumerate(like.shape)]
        if list(given.shape) != wanted:
            raise RequestError(f"{name} is {kind(given)}: wanted {tuple(wanted)} {_TENSORS[name]}")
        return given.detach().to(like)

    def _take(self, name: str, value: torch.Tensor | None) -> None:
        """Store a tensor that is known to fit."""
        if name == "latents" and value is not None:
            value = self.conditioning.hold(value)  # whoever changes them
        elif value is not getattr(self, name):
            self.forget_context()
        if self.cache is not None and not self._halfway and value is not getattr(self, name):
            self.cache.forget()
        object.__setattr__(self, name, value)

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
    def expert(self) -> str:
        """The transformer that the next step is for."""
        return self._experts[self.step_index]

    @property
    def done(self) -> bool:
        return self.interrupt or self.schedule.done

    @property
    def interrupt(self) -> bool:
        """Whether the run is to end. Any thread may set it; a step in progress is abandoned within a fraction of a
        second, and the request stays as it was before that step.

        Its frames can still be decoded; set it once more to end that too.
        """
        return self._interrupted or self.stop.is_set

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        if value:
            self.stop.set()
        else:
            self._interrupted = False
            self.stop.clear()

    def heed_interrupt(self) -> None:
        """Remember the interruption and clear the flag, so that the next stage can do native work."""
        if self.stop.is_set:
            self._interrupted = True
            self.stop.clear()

    @property
    def guidance_scale(self) -> float:
        """The first expert's. Setting it sets all experts', from the next step on; 1 or less turns guidance off."""
        return next(iter(self.guidance.values()))

    @guidance_scale.setter
    def guidance_scale(self, value: float) -> None:
        scale = number("guidance_scale", value)
        if scale > 1 and self.negative is None:
            raise RequestError(
                f"guidance_scale = {scale:g}: this request was prepared without guidance, so it has no negative "
                "embeddings; begin with a guidance_scale above 1 and lower it where guidance is to be off"
            )
        self.guidance = dict.fromkeys(self.guidance, scale)

    @property
    def guidance_scale_2(self) -> float:
        """The second expert's alone."""
        return list(self.guidance.values())[-1]

    @guidance_scale_2.setter
    def guidance_scale_2(self, value: float) -> None:
        if len(self.guidance) < 2:
            raise RequestError("guidance_scale_2 is for a model with two experts, this one has one: leave it out")
        self.guidance = {**self.guidance, list(self.guidance)[-1]: number("guidance_scale_2", value)}

    @property
    def guided(self) -> bool:
        return self.negative is not None and self.guidance_scale > 1

    # the names by which callbacks that were written for diffusers read and change a run
    _interrupt = interrupt
    _guidance_scale = guidance_scale
    _guidance_scale_2 = guidance_scale_2
    do_classifier_free_guidance = guided
    num_timesteps = num_steps

    def plan(self) -> Decision:
        """What the next step needs of the transformer."""
        return Run() if self.cache is None else self.cache.plan(self.step_index, self.latents, self.expert)

    def rows(self, transformer: Denoiser, expert: str, *, guided: bool = True) -> list[Rows]:
        """What the transformer is given for the next step, for each of `contexts`."""
        if self._timesteps is None:
            frames = self.latents.shape[2] // transformer.patch_size[0]
            levels = self.conditioning.levels(self.schedule.timesteps, frames)
            self._timesteps = Timesteps(levels, self.latents.device)
        step, channels = self.step_index, self.conditioning.channels
        timesteps = self._timesteps.of(step, len(self.latents))
        return [
            Rows(self.latents, timesteps, context, channels, self._timesteps, step)
            for context in self.contexts(expert, transformer, guided=guided)
        ]

    def contexts(self, expert: str, transformer: Denoiser, *, guided: bool = True) -> list[Context]:
        """The prompts' keys and values for `expert`, computed when they are first used.

        One context of the conditional rows [B] followed by the unconditional ones [B], or two where the negative
        embeddings have another length. Unconditional rows are left out where guidance is 1: one forward, not two.
        """
        texts = [self.text]
        if guided and self.guided and self.guidance[expert] != 1.0 and self.negative is not None:
            texts.append(self.negative)
        key = (ref(transformer), expert, len(texts))  # weak: an expert that is released is not kept by its prompts
        if self._contexts is None or self._contexts[0] != key:
            self.forget_context()
            if len({text.shape[1] for text in texts}) == 1:
                texts = [torch.cat(texts)]
            rows = [self.conditioning.image_rows(text.shape[0]) for text in texts]
            encoded = [transformer.encode_context(*given) for given in zip(texts, rows, strict=True)]
            self._contexts = (key, encoded)
        return self._contexts[1]

    def cached(self, ops: Ops, branches: Sequence[torch.Tensor], expert: str) -> list[torch.Tensor]:
        """The branches, which the cache takes note of, or the output that it holds where there are none."""
        assert self.cache is not None
        self._halfway = True
        exact = 2 if self.guided and self.guidance[expert] != 1.0 else 1
        self.cache.use.row_forwards += len(branches) * self.latents.shape[0]
        self.cache.use.exact += exact * self.latents.shape[0]
        if not branches:
            return [self.cache.held(ops, self.step_index, self.latents)]
        cond, *uncond = branches
        guidance = self.guidance[expert] if uncond else 1.0
        self.cache.settle(ops, self.step_index, expert, self.latents, cond, uncond[0] if uncond else None, guidance)
        return [cond, *uncond]

    def begin_update(self) -> None:
        """A scheduler step begins: a signal may end it when latents and history are of different steps."""
        self._halfway = True

    def end_update(self, latents: torch.Tensor, forwards: int) -> None:
        """It is done, after that many forwards."""
        self._take("latents", latents)
        self._halfway = False
        self.stats.forwards += forwards

    def check_done(self) -> None:
        """RequestError if steps are left, unless the run was interrupted."""
        if not self.done:
            raise RequestError(
                f"the request has done {self.step_index} of {self.num_steps} steps: call step([state]) until "
                "state.done, or set state.interrupt to take it as it is"
            )

    def check_model(self, model: Model) -> None:
        """RequestError if another pipeline prepared it: its prompts were encoded by that one's weights."""
        if self.model is not model:
            raise RequestError(
                f"this request was prepared by another pipeline, of {self.model.folder.path}: hand it to that one"
            )

    def check_whole(self) -> None:
        """RequestError if a step was ended in the middle."""
        if self._halfway:
            raise RequestError("this request was stopped in the middle of a step: prepare it anew")

    def measured(self, stats: Stats | None = None) -> Stats:
        """The request's figures, or these of a branch of them, with what is known only at the end."""
        stats = self.stats if stats is None else stats
        stats.complete(self.step_index, interrupted=not self.schedule.done)
        return stats

    def forget_context(self) -> None:
        """Free the prompt's keys and values; another step would compute them again."""
        self._contexts = None

    def tensors(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """The tensors that a step callback asked for: latents, prompt_embeds, negative_prompt_embeds."""
        return {name: getattr(self, _OFFERED[name]) for name in names}

    def replace_tensors(self, changed: Mapping[str, torch.Tensor]) -> None:
        """Take over what a callback returned; new embeddings make a new context."""
        offered = [name for name, attribute in _OFFERED.items() if getattr(self, attribute) is not None]
        for name, tensor in changed.items():
            if name not in offered:
                raise RequestError(f"a callback returned {shown(name)}: this request has {', '.join(offered)}")
            current = getattr(self, _OFFERED[name])
            if not isinstance(tensor, torch.Tensor) or tensor.shape != current.shape:
                raise RequestError(
                    f"a callback returned for {name} {kind(tensor)}: wanted a tensor of shape {tuple(current.shape)}"
                )
            if tensor is not current:
                floats(name, tensor, _TENSORS[_OFFERED[name]])
        for name, tensor in changed.items():
            current, new = getattr(self, _OFFERED[name]), tensor.detach().to(getattr(self, _OFFERED[name]))
            if name == "latents" or not torch.equal(new, current):
                self._take(_OFFERED[name], new)
