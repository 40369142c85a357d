"""Prompt to video: the main path, top to bottom.

prompt ─ text encoder ─ context ┐
noise (seed) ────────── latents ┴─ denoise loop ─ VAE decode ─ frames
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from kinema import schedulers
from kinema.buffers.machine import obtainable_bytes
from kinema.caches import Cache
from kinema.checkpoints import ModelFolder
from kinema.denoise.callbacks import StepCallback, call_back, check_callback
from kinema.denoise.checks import check_finite, warn_beyond_training
from kinema.denoise.replay import Recordings
from kinema.denoise.start import starting_latents
from kinema.denoise.state import RequestState
from kinema.denoise.step import step_together
from kinema.errors import RequestError
from kinema.estimate.duration import RequestTime
from kinema.families.base import Model
from kinema.families.geometry import Geometry
from kinema.families.registry import open_folder, open_model
from kinema.fields.values import flag, function, named_path, of_kind
from kinema.loading import parameters
from kinema.loading.components import Components, Path, ops_for
from kinema.loading.diffusers_pipeline import DiffusersPipeline
from kinema.loading.options import LoadOptions
from kinema.media.formats import frame_rate
from kinema.media.host_copy import to_host
from kinema.media.postprocess import check_library, postprocess
from kinema.media.writer import write_clips
from kinema.memory.predict import check_fits
from kinema.ops import Ops
from kinema.ops.common.interrupts import StopFlag
from kinema.ops.running import each_within, running
from kinema.request.defaults import GenerationDefaults
from kinema.request.generation import GenerationRequest, noise_generators
from kinema.request.media import read_media
from kinema.request.output import VideoOutput
from kinema.request.progress import steps_bar
from kinema.request.stats import Stats

OnStep = Callable[[int, torch.Tensor], object]


class VideoPipeline(DiffusersPipeline):
    """A model folder, ready to generate. It holds parts and options; all of a request is in its RequestState."""

    folder: ModelFolder
    options: LoadOptions
    model: Model
    recordings: Recordings | None
    geometry: Geometry
    defaults: GenerationDefaults
    transformer_config: Any

    def __init__(self, folder: ModelFolder, options: LoadOptions) -> None:
        self.folder = folder
        self.options = options
        self.model = open_model(folder, options.variant)
        self.components = Components(self.model, ops_for(options), options)
        replays = options.replay and (options.cuda_graphs or self.ops.device.type != "cuda")
        self.recordings = Recordings() if replays else None
        self.bar: dict[str, Any] = {}  # set by `set_progress_bar_config`
        self.geometry, self.defaults = self.model.geometry, self.model.defaults
        self.transformer_config = self.model.configs[self.model.experts[0]]

    @property
    def ops(self) -> Ops:
        """What everything here is computed by; `pipe.ops = dataclasses.replace(pipe.ops, …)` exchanges functions."""
        return self.components.ops

    @ops.setter
    def ops(self, ops: Ops) -> None:
        self.components.use(of_kind("ops", ops, Ops))

    @classmethod
    def from_pretrained(cls, model: Path, **options: Any) -> VideoPipeline:
        """Open a diffusers-format folder, or "sample" for the model that ships with kinema.

        options: fields of `LoadOptions` (device, backend, precision, …), and parts that kinema loaded, to use instead
        of the folder's (vae=, scheduler=, …). Parts load when a stage first needs them.
        """
        load, parts = parameters.loading(options)
        pipe = cls(open_folder(model), load)
        for name, part in parts.items():
            setattr(pipe, name, part)
        return pipe

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        progress: bool | None = None,
        return_dict: bool = True,
        **given: Any,
    ) -> VideoOutput | tuple[Any]:
        """Generate. given: fields of `GenerationRequest`, with diffusers' names and meanings.

        callback_on_step_end(state, step, timestep, tensors) may return replacements for the tensors that it asked
        for, and stops the run by setting `state.interrupt`. progress: whether to show a bar of the steps; None: on a
        terminal.
        """
        parameters.calling(progress, return_dict)
        request = self.complete(parameters.request({"prompt": prompt, **given}))
        names = check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, guided=request.guided)
        state = self.prepare(request)
        with steps_bar(state.num_steps, **{**self.bar, **({} if progress is None else {"show": progress})}) as advance:

            def on_step(step: int, timestep: torch.Tensor) -> None:
                if callback_on_step_end is not None and state.step_index > step:
                    call_back(callback_on_step_end, state, step, timestep, names)
                advance()

            self.run(state, on_step)
        output = self.finish(state)
        return output if return_dict else (output.frames,)

    def prepare(
        self, request: GenerationRequest, *, streamed: bool = False, stop: StopFlag | None = None
    ) -> RequestState:
        """Check the request against model and memory, encode its prompts and images, and draw its noise.

        streamed: the frames will be taken from `decode_chunks` one chunk at a time, which needs less memory. stop: the
        state's flag; if another thread sets it meanwhile, this raises Interrupted.
        """
        stop = StopFlag() if stop is None else of_kind("stop", stop, StopFlag)
        request = self.complete(request, streamed=streamed)
        core = self.components.scheduler.core
        shape = self.model.check(request, core)
        self._check_memory(request, streamed)
        warn_beyond_training(request, self.defaults, self.model.declared)
        stats = Stats.of(self.ops)
        generators, stats.seed = noise_generators(request)
        grid = core.grid(request.num_inference_steps)
        schedule = schedulers.start(core, grid, strength=request.strength, generator=generators)

        with self._running("the request", request, stop):
            seen = request.image is not None or request.video is not None
            with stats.stage("image", self.components.loading) if seen else nullcontext():
                conditioning = self.model.condition(self.components, request)
                latents = starting_latents(self.components, request, shape, generators, schedule)
            with stats.stage("text", self.components.loading):
                text, negative = self.model.encode_text(self.components, request)
        cache = None if request.cache is None else Cache.of(request.cache, core, grid, schedule.begin)
        stats.cache = None if cache is None else cache.use
        guidance = dict(zip(self.model.experts, request.guidance, strict=False))
        return RequestState(
            request, self.model, latents, schedule, guidance, text, negative, conditioning, stats, stop, cache
        )

    def run(self, state: RequestState, on_step: OnStep | None = None) -> None:
        """Take the remaining steps. on_step(number of steps done before, timestep) is called after each."""
        of_kind("state", state, RequestState)
        if on_step is not None:
            function("on_step", on_step)
        while not state.done:
            step, timestep = state.step_index, state.timestep
            self.step([state])
            if on_step is not None:
                on_step(step, timestep)

    def step(self, states: Sequence[RequestState]) -> None:
        """One denoising step of every request that is not done; those of like shape share a forward.

        A request whose `interrupt` is set meanwhile stays as it was before this step; the others take it.
        """
        step_together(self.components, self.ops, states, threads=self.options.threads, recordings=self.recordings)

    def decode_chunks(self, state: RequestState) -> Iterator[torch.Tensor]:
        """The clip as it is decoded: [B, 3, t, H, W] in [−1, 1], chunk after chunk, in bounded memory.

        An interrupted request can be decoded too; a second interruption raises Interrupted.
        """
        of_kind("state", state, RequestState).check_whole()
        state.check_model(self.model)
        state.heed_interrupt()
        return each_within(lambda: self._running("decoding", state.request, state.stop), self._decode(state))

    def _decode(self, state: RequestState) -> Generator[torch.Tensor]:
        state.forget_context()
        if self.recordings is not None:
            self.recordings.release_large()
        self.components.release(*self.model.experts)
        with self.components.using("vae"):
            vae = self.components.vae("decoder")
            latents = self._finite(state.latents, "the latents")
            yield from vae.decode_chunks(vae.denormalize(latents), tiling=state.request.tiling)

    def finish(self, state: RequestState) -> VideoOutput:
        """What `__call__` returns, from a request whose steps are done or that was interrupted (`stats` says so)."""
        of_kind("state", state, RequestState).check_done()
        output_type, stats = state.request.output_type, state.stats.branch()
        if output_type == "latent":
            frames: Any = self._finite(state.latents, "the latents")
        else:
            with stats.stage("decode", self.components.loading):
                chunks = self.decode_chunks(state)
                chunks = chunks if output_type == "pt" else to_host(chunks)  # "pt" stays where it was decoded
                parts = list(chunks)
                with self._running("decoding", state.request):
                    whole = torch.cat(parts, dim=2)
                    frames = postprocess(self._finite(whole, "the decoded frames"), output_type)
        return VideoOutput(frames, self.defaults.fps, output_type, state.measured(stats))

    def write(
        self,
        state: RequestState,
        paths: Path | Sequence[Path],
        *,
        fps: float | None = None,
        on_frames: Callable[[int], object] | None = None,
    ) -> Stats:
        """Decode into files, one per sample, chunk by chunk and so in bounded memory. Returns what the run cost.

        fps: the model's by default. on_frames(number of frames) is called after each chunk. RequestError if the request
        is not done, or if there is not one path per sample.
        """
        of_kind("state", state, RequestState).check_done()
        files = [named_path("a path", path) for path in (paths if isinstance(paths, (list, tuple)) else [paths])]
        rate = self.defaults.fps if fps is None else frame_rate(fps)
        if on_frames is not None:
            function("on_frames", on_frames)
        if len(files) != state.request.samples:
            raise RequestError(f"{len(files)} paths for {state.request.samples} videos: give one for each")
        if len({os.path.abspath(file) for file in files}) < len(files):
            raise RequestError("a path is given twice: give each video a file of its own")
        stats = state.stats.branch()
        with stats.stage("decode and write", self.components.loading):
            write_clips(self.decode_chunks(state), files, rate, on_frames)
        return state.measured(stats)

    def complete(self, request: GenerationRequest, *, streamed: bool = False) -> GenerationRequest:
        """The request with this model's defaults filled in, and its pictures and video read.

        Where num_frames is not given, a video's own length is. RequestError if a file cannot be read, or if the clip
        does not fit into memory: a video is read only as far as it fits.
        """
        of_kind("request", request, GenerationRequest)
        flag("streamed", streamed)
        check_library(request.output_type)
        native = {name: getattr(self.defaults, name) for name in _DEFAULTED if getattr(request, name) is None}
        if request.video is not None:
            native.pop("num_frames", None)
            native["strength"] = self.defaults.strength if request.strength is None else request.strength
        fits = partial(self._check_memory, streamed=streamed)
        return read_media(replace(request, **native), self.geometry, fits)

    def expected_time(self, request: GenerationRequest) -> RequestTime:
        """What a completed request will take: `.estimate()`, and `.remember(stats)` for later ones."""
        return RequestTime(self.model, self.ops, self.options, request, self.components.scheduler.core)

    def _finite(self, result: torch.Tensor, what: str) -> torch.Tensor:
        return check_finite(result, what, self.ops.plan.target.precision.name)

    def _check_memory(self, request: GenerationRequest, streamed: bool) -> None:
        available = obtainable_bytes(self.ops.device)
        check_fits(self.model, request, self.ops.plan, self.options, available, streamed=streamed)

    def _running(self, what: str, request: GenerationRequest, *flags: StopFlag) -> AbstractContextManager[None]:
        return running(what, self.options.threads, *flags, ops=self.ops, pixels=request.pixels)


_DEFAULTED = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "max_sequence_length")
