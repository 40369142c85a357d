"""Predicts the peak memory of a request, and refuses one that does not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kinema.errors import RequestError
from kinema.families.base import MAX_BYTES_RECORDED, MAX_TOKENS_RECORDED, Model, Work
from kinema.loading.options import LoadOptions
from kinema.memory.remedies import remedies
from kinema.ops import Plan
from kinema.ops.plan import stored_bytes
from kinema.request.generation import GenerationRequest

# What the process holds before any model: Python, torch and its kernels (245 MiB measured with torch 2.13 for CPUs).
PROCESS_BYTES = 256 * 2**20
# Holes between the weights of a loaded model (2 to 8 % measured).
WEIGHT_HOLES = 0.05
# Freed blocks that malloc keeps: up to what a stage used, but blocks of more than 32 MiB always go back.
KEPT_FREE_BYTES = 160 * 2**20


@dataclass(frozen=True)
class Prediction:
    """Bytes per stage, weights included. `parts` are the weights alone, of what the request needs."""

    parts: dict[str, int]
    stages: dict[str, int]

    @property
    def peak(self) -> int:
        return max(self.stages.values())

    @property
    def largest_stage(self) -> str:
        return max(self.stages, key=lambda stage: self.stages[stage])


def predict(
    model: Model, request: GenerationRequest, plan: Plan, options: LoadOptions, *, streamed: bool = False
) -> Prediction:
    """Peak bytes of a completed request (every size known), stage by stage.

    streamed: frames are taken from `decode_chunks` and gone before the next chunk, instead of kept to the end.
    """
    parts = weight_bytes(model, plan)
    resident = {
        "image": ("vae.encoder", "image_encoder"),
        "text": ("text_encoder",),
        "denoise": model.experts,
        "decode": ("vae.decoder",),
    }
    graphs = options.cuda_graphs and plan.target.device.type == "cuda"
    stage_work = model.work(request, plan, streamed=streamed, graphs=graphs)
    if "image" not in stage_work:
        parts.pop("vae.encoder", None)  # it is packed when it is first used
    stages, recorded = {}, _recorded_bytes(stage_work["denoise"], plan, options)
    for stage, work in stage_work.items():
        held = [parts[name] for name in (parts if options.keep_loaded else resident[stage]) if name in parts]
        # without keep_loaded the parts of a stage come one after the other
        weights = sum(held) if options.keep_loaded else max(held, default=0)
        kept_free = min(work.peak - work.lasting, KEPT_FREE_BYTES)
        stages[stage] = PROCESS_BYTES + int((1 + WEIGHT_HOLES) * weights) + work.peak + kept_free
        stages[stage] += recorded + _cached_bytes(model, request) if stage in ("denoise", "decode") else 0
    return Prediction(parts, stages)


def check_fits(
    model: Model,
    request: GenerationRequest,
    plan: Plan,
    options: LoadOptions,
    available: int,
    *,
    streamed: bool = False,
) -> Prediction:
    """The prediction of a completed request, or RequestError if it cannot fit, with what would be enough."""
    prediction = predict(model, request, plan, options, streamed=streamed)
    if prediction.peak > available:

        def peak(request: GenerationRequest, plan: Plan, options: LoadOptions) -> int:
            return predict(model, request, plan, options, streamed=streamed).peak

        found = remedies(peak, model, request, plan, options, available)
        enough = [what if needed is None else f"{what} ({gib(needed)})" for what, needed in found]
        hopeless = "nothing that kinema has makes it fit" if options.keep_loaded else "only a smaller model would fit"
        advice = f"enough would be {', or '.join(enough)}" if enough else hopeless
        raise RequestError(
            f"this needs about {gib(prediction.peak)} in its {prediction.largest_stage} stage, {gib(available)} are "
            f"available: {advice}"
        )
    return prediction


def weight_bytes(model: Model, plan: Plan) -> dict[str, int]:
    """Resident bytes of each part's weights, and of each half of one that is packed in halves."""
    found: dict[str, int] = {}
    for name, part, tensors in model.tensors():
        for tensor, shape in tensors.items():
            kept = name if part.half is None else f"{name}.{part.half(tensor)}"
            found[kept] = found.get(kept, 0) + stored_bytes(plan, shape, shape.storage)
    return found


def _recorded_bytes(work: Work, plan: Plan, options: LoadOptions) -> int:
    """Of the recording of a small forward on a CPU, which stays: about what the forward takes (denoise/replay.py)."""
    if not options.replay or plan.backend("linear") != "cpu" or work.tokens > MAX_TOKENS_RECORDED:
        return 0
    return min(work.peak, MAX_BYTES_RECORDED)


def _cached_bytes(model: Model, request: GenerationRequest) -> int:
    """What the request's caches hold (kinema.caches)."""
    num_frames, height, width = request.clip  # of any length: a video is read as far as it fits
    spatial = model.geometry.spatial
    latent = ((num_frames - 1) // model.geometry.temporal + 1, height // spatial, width // spatial)
    values = request.samples * model.latent_channels * math.prod(latent)
    return 4 * values * sum(config.latents_held for config in request.caches)


def gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
