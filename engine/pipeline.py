"""Prompt to video: the main path, top to bottom.

prompt ─ text encoder ─ context ┐
noise (seed) ────────── latents ┴─ denoise loop ─ VAE decode ─ frames
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any

import torch

from kinema import schedulers
from kinema.batching import Rows, forward_together
from kinema.checkpoints import ModelFolder
from kinema.components import Components, Path
from kinema.conditioning import Conditioning, condition, encode_video, read_media
from kinema.errors import CheckpointError, RequestError
from kinema.geometry import Geometry
from kinema.media.host_copy import to_host
from kinema.media.postprocess import check_library, postprocess
from kinema.memory import available_bytes, check_fits, experts, held_bytes, peak_bytes, predict
from kinema.models.wan import WanConfig
from kinema.ops import build_ops, plan_ops, target_for
from kinema.options import GenerationDefaults, LoadOptions
from kinema.progress import steps_bar
from kinema.prompts import encode_prompts
from kinema.request import GenerationRequest, RequestState, noise_generators
from kinema.request_checks import check_request
from kinema.schedulers import draw_noise
from kinema.stats import Stats
from kinema.vae.wan import WanVAEConfig
from kinema.video import VideoOutput

StepCallback = Callable[[RequestState, int, torch.Tensor, dict[str, torch.Tensor]], Mapping[str, torch.Tensor] | None]


class VideoPipeline:
    """A model folder, ready to generate. It holds parts and options; all of a request is in its RequestState."""

    def __init__(self, folder: ModelFolder, options: LoadOptions) -> None:
        self.folder = folder
        self.options = options
        target = target_for(options.device, options.precision)
        self.ops = build_ops(plan_ops(target, options.backend, options.quantize_attention))
        self.components = Components(folder, self.ops, options)
        self.cuda_graphs = options.cuda_graphs and self.ops.device.type == "cuda"
        self.experts = experts(folder)  # one, or Wan 2.2 A14B's high-noise and low-noise
        if folder.options.boundary_ratio is not None and len(self.experts) < 2:
            raise CheckpointError(
                f"{folder.path} has boundary_ratio {folder.options.boundary_ratio} and no "
                f"{'transformer' if 'transformer_2' in folder else 'transformer_2'}: a boundary is between two experts"
            )
        self.scheduler = schedulers.core_from_config(folder.component("scheduler").config)
        self.transformer_config = WanConfig.from_dict(folder.component(self.experts[0]).config)
        self.vae_config = WanVAEConfig.from_dict(folder.component("vae").config)
        self.geometry = Geometry.of(self.transformer_config, self.vae_config)
        self.defaults = GenerationDefaults.of(folder.index, self.vae_config.z_dim)

    @classmethod
    def from_pretrained(cls, model: Path, **options: Any) -> VideoPipeline:
        """Open a diffusers-format folder, or "sample" for the model that ships with kinema.

        options: those of `LoadOptions` (device, backend, precision, …). Parts load when a stage first needs them.
        """
        return cls(ModelFolder(model), _from_parameters(LoadOptions, options))

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        progress: bool | None = None,
        return_dict: bool = True,
        **parameters: Any,
    ) -> VideoOutput | tuple[Any]:
        """Generate. `parameters` are the fields of `GenerationRequest`: diffusers' names and meanings.

        callback_on_step_end(state, step, timestep, tensors) may return replacements for the tensors that it asked
        for, and stops the run by setting `state.interrupt`. progress: a bar over the steps, None: on a terminal.
        """
        state = self.prepare(_from_parameters(GenerationRequest, {"prompt": prompt, **parameters}))
        state.tensors(callback_on_step_end_tensor_inputs)  # refuses unknown names before the first step
        with steps_bar(state.num_steps, progress) as advance:
            while not state.done:
                step, timestep = state.step_index, state.timestep
                self.step([state])
                if callback_on_step_end is not None:
                    tensors = state.tensors(callback_on_step_end_tensor_inputs)
                    changed = callback_on_step_end(state, step, timestep, tensors)
                    state.replace_tensors({} if changed is None else changed)
                advance()
        output = self.finish(state)
        return output if return_dict else (output.frames,)

    @torch.no_grad()
    def prepare(self, request: GenerationRequest) -> RequestState:
        """Check the request against model and memory, encode its prompts and images, and draw its noise."""
        request = self.complete(request)
        shape = check_request(request, self.transformer_config, self.vae_config, self.folder.options)
        self._check_memory(request)
        stats = Stats(backends={choice.op: choice.backend for choice in self.ops.plan.choices})
        generators = noise_generators(request, stats)
        grid = self.scheduler.grid(request.num_inference_steps)
        begin = schedulers.begin_index(len(grid), request.strength) if request.strength is not None else 0
        schedule = schedulers.start(self.scheduler, grid, begin=begin, generator=generators)

        conditioning, clean = Conditioning(), None
        if request.image is not None or request.video is not None:
            with stats.stage("image", self.components.loading):
                conditioning = condition(self.components, request, self.transformer_config)
                clean = encode_video(self.components, request)
        guidance = self._guidance(request)
        with stats.stage("text", self.components.loading):
            text = encode_prompts(self.components, request, guided=guidance["transformer"] > 1)

        latents = request.latents if request.latents is not None else draw_noise(shape, generators)
        latents = latents.to(self.ops.device, torch.float32, copy=True)
        if clean is not None:
            keep, add = self.scheduler.noising(grid, begin)
            latents = keep * clean + add * latents
        return RequestState(request, latents, schedule, guidance, text, conditioning, stats)

    @torch.no_grad()
    def step(self, states: Sequence[RequestState]) -> None:
        """One denoising step of every request that is not done; those of like shape share a forward."""
        running: dict[str, list[RequestState]] = {}
        for state in states:
            if not state.done:
                running.setdefault(self._expert(state), []).append(state)
        for expert, group in running.items():
            with ExitStack() as stages:
                for state in group:
                    stages.enter_context(state.stats.stage("denoise", self.components.loading))
                transformer = self.components.transformer(expert)
                rows = [self._rows(state, expert) for state in group]
                if self.cuda_graphs and len(group) == 1:
                    predictions = [group[0].captured(transformer, rows[0])]
                else:
                    predictions = forward_together(transformer, rows)
                for state, prediction in zip(group, predictions, strict=True):
                    state.advance(self.ops, prediction, expert)
            if all(state.done or self._expert(state) != expert for state in group):
                self.components.release(expert)

    @torch.no_grad()
    def decode_chunks(self, state: RequestState) -> Iterator[torch.Tensor]:
        """The clip as it is decoded: [B, 3, t, H, W] in [−1, 1], chunk after chunk, in bounded memory."""
        state.forget_context()
        self.components.release(*self.experts)
        vae = self.components.vae("decoder")
        latents = vae.denormalize(state.conditioning.hold_first_frame(state.latents))
        try:
            yield from vae.decode_chunks(latents, tiling=state.request.tiling)
        finally:
            self.components.release("vae")

    def finish(self, state: RequestState) -> VideoOutput:
        """What `__call__` returns, from a request whose steps are done."""
        output_type, stats = state.request.output_type, state.stats
        if output_type == "latent":
            frames: Any = state.conditioning.hold_first_frame(state.latents)
        else:
            with stats.stage("decode", self.components.loading):
                chunks = self.decode_chunks(state)
                chunks = chunks if output_type == "pt" else to_host(chunks)  # "pt" stays where it was decoded
                frames = postprocess(torch.cat(list(chunks), dim=2), output_type)
        stats.steps, stats.peak_bytes = state.step_index, peak_bytes(self.ops.device)
        return VideoOutput(frames, self.defaults.fps, output_type, stats)

    def complete(self, request: GenerationRequest) -> GenerationRequest:
        """The request with this model's defaults where it says nothing, and its pictures and video read.

        A video gives its own length where none is asked for. RequestError if a file cannot be read, or if the clip does
        not fit into memory: a video is read only as far as it does.
        """
        check_library(request.output_type)
        native = {name: getattr(self.defaults, name) for name in _DEFAULTED if getattr(request, name) is None}
        if request.video is not None:
            native.pop("num_frames", None)
            native["strength"] = self.defaults.strength if request.strength is None else request.strength
        return read_media(replace(request, **native), self.geometry, self._check_memory)

    def _check_memory(self, request: GenerationRequest) -> None:
        prediction = predict(self.folder, request, self.ops.plan, self.options)
        check_fits(prediction, available_bytes(self.ops.device) + held_bytes(self.ops.device), self.options)

    def _expert(self, state: RequestState) -> str:
        boundary = self.folder.options.boundary_ratio
        if boundary is None:
            return self.experts[0]
        return self.experts[int(state.timestep < boundary * self.scheduler.config.num_train_timesteps)]

    def _guidance(self, request: GenerationRequest) -> dict[str, float]:
        assert request.guidance_scale is not None
        second = request.guidance_scale if request.guidance_scale_2 is None else request.guidance_scale_2
        return {"transformer": request.guidance_scale, "transformer_2": second}

    def _rows(self, state: RequestState, expert: str) -> Rows:
        """What the transformer is given for a request: conditional rows, then unconditional ones if they count."""
        latents = state.conditioning.model_input(state.latents)
        timesteps = state.conditioning.timesteps(state.timestep, latents, self.geometry.patch[0])
        context = state.context(expert, self.components.transformer(expert))
        repeats = context.rows // latents.shape[0]
        return Rows(
            latents.repeat(repeats, 1, 1, 1, 1), timesteps.repeat(repeats, *[1] * (timesteps.ndim - 1)), context
        )


_DEFAULTED = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "max_sequence_length")


def _from_parameters(cls: type[Any], parameters: Mapping[str, Any]) -> Any:
    known = [field.name for field in fields(cls)]
    unknown = [name for name in parameters if name not in known]
    if unknown:
        raise RequestError(f"unknown parameter {', '.join(unknown)}: wanted some of {', '.join(known)}")
    return cls(**parameters)
