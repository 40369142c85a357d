"""A way to generate, as one row of `bench fidelity`: a pipeline, what it is asked for, and which noise it is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kinema.bench.clip_figures import Track
from kinema.bench.noise_path import coupled_noises
from kinema.media.postprocess import to_uint8
from kinema.request.generation import GenerationRequest, noise_generators
from kinema.schedulers import draw_noise

if TYPE_CHECKING:
    from kinema.bench.prompt_sets import Asked
    from kinema.denoise.state import RequestState
    from kinema.pipeline import OnStep, VideoPipeline
    from kinema.request.stats import Stats

EXACT, FLOOR = "exact", "noise floor"  # kinds of variants that are not judged, but judged by


@dataclass(frozen=True)
class Variant:
    """request: fields of `GenerationRequest` but prompt and seed. path_of: the run of how many steps decides the noise,
    None: this one's own seed does."""

    name: str
    kind: str
    pipe: VideoPipeline
    request: dict[str, Any] = field(default_factory=dict)
    path_of: int | None = None

    def settings(self) -> dict[str, Any]:
        """All that decides a clip beside its prompt and seed and the model's files."""
        core = self.pipe.components.scheduler.core
        return {
            "request": self.request,
            "path_of": self.path_of,
            "load": asdict(self.pipe.options),
            "ops": {choice.op: choice.backend for choice in self.pipe.ops.plan.choices},
            "scheduler": [core.class_name, repr(core.config)],
        }


def generate(variant: Variant, clips: Sequence[Asked]) -> tuple[list[Track], Stats]:
    """Each clip from its own prompt and seed, all in one batch; and what it cost."""
    pipe = variant.pipe
    given = {**variant.request, "prompt": [clip.prompt for clip in clips], "seed": [clip.seed for clip in clips]}
    state = pipe.prepare(GenerationRequest(**given), streamed=True)
    latents: list[torch.Tensor] = []
    recoupled = _recoupling(variant, state) if variant.path_of is not None else None

    def on_step(step: int, timestep: torch.Tensor) -> None:
        if recoupled is not None:
            recoupled(step, timestep)
        latents.append(state.latents.float().cpu())

    pipe.run(state, on_step)
    with state.stats.stage("decode", pipe.components.loading):
        frames = np.concatenate([to_uint8(chunk) for chunk in pipe.decode_chunks(state)], axis=1)
    steps = torch.stack(latents, dim=1).numpy()
    return [Track(*pair) for pair in zip(frames, steps, strict=True)], state.measured()


def cost(variant: Variant, clip: Asked) -> Stats:
    """Of one generation of one clip, decoded and not written."""
    state = variant.pipe.prepare(GenerationRequest(**{**variant.request, "prompt": clip.prompt, "seed": clip.seed}))
    variant.pipe.run(state)
    with state.stats.stage("decode", variant.pipe.components.loading):
        for chunk in variant.pipe.decode_chunks(state):
            to_uint8(chunk)
    return state.measured()


def batches(clips: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(clips), size):
        yield list(clips[start : start + size])


def _recoupling(variant: Variant, state: RequestState) -> OnStep:
    """Called after each step: exchanges the noise that the step has added for that of the longer run's path.

    A step is linear in its noise, and a sampler with such a path remembers none of it.
    """
    assert variant.path_of is not None
    core, grid = state.schedule.core, state.schedule.grid
    twins, _ = noise_generators(state.request)  # draw what the state's own generators have drawn and will draw

    def draw() -> torch.Tensor:
        return draw_noise(state.latents.shape, twins)

    draw()  # the first latents
    own: list[torch.Tensor] = []

    def remembered() -> torch.Tensor:
        own.append(draw())
        return own[-1]

    path = coupled_noises(core, core.grid(variant.path_of), grid, remembered)

    def exchange(step: int, timestep: torch.Tensor) -> None:
        if step < len(path):
            spread = float(core.coefficients(grid, step)[0, -1])
            state.latents = state.latents + spread * (path[step] - own[step]).to(state.latents)

    return exchange


def with_steps(exact: Variant, steps: int, *, path_of: int | None = None) -> Variant:
    """The exact run with fewer steps: under its own noise, or under that of the run of `path_of` steps."""
    name = f"{exact.name}, {steps} steps" + (", the same noise" if path_of is not None else "")
    request = {**exact.request, "num_inference_steps": steps}
    return replace(exact, name=name, kind="fewer steps", request=request, path_of=path_of)
