"""What would let a request fit that does not: each remedy is tried on the prediction before it is named."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import replace

from kinema.errors import UnsupportedError
from kinema.families.base import Model
from kinema.loading.options import LoadOptions
from kinema.ops import Plan
from kinema.ops.plan import at_precision
from kinema.request.generation import GenerationRequest
from kinema.vae.tiling import Tiling

Change = tuple[tuple[str, ...], GenerationRequest, Plan, LoadOptions]
Peak = Callable[[GenerationRequest, Plan, LoadOptions], int]  # predicted, in bytes
TILED, LOW_MEMORY = "--tiled (tiling=Tiling())", "--low-memory (keep_loaded=False)"
NARROWER = ("bf16", "int8")
NAMED = 3  # remedies that leave the clip as it is


def remedies(
    peak: Peak, model: Model, request: GenerationRequest, plan: Plan, options: LoadOptions, available: int
) -> list[tuple[str, int | None]]:
    """What makes it fit, and the bytes that it needs then; last a smaller clip, without."""
    enough: dict[frozenset[str], tuple[str, int | None]] = {}
    for flags, other, by, loaded in _changes(request, plan, options):
        more_than_needed = any(fewer <= set(flags) for fewer in enough)
        if not more_than_needed and (needed := peak(other, by, loaded)) <= available:
            enough[frozenset(flags)] = (" with ".join(flags), needed)
    smaller = _smaller(model, request, lambda other: peak(other, plan, options) <= available)
    return [*list(enough.values())[:NAMED], *([(smaller, None)] if smaller else [])]


def _changes(request: GenerationRequest, plan: Plan, options: LoadOptions) -> Iterator[Change]:
    """What keeps the clip as it is, the mildest first: (the flags, the request, the plan and the options with them)."""
    tiled, low = replace(request, tiling=request.tiling or Tiling()), replace(options, keep_loaded=False)
    yield (TILED,), tiled, plan, options
    yield (LOW_MEMORY,), request, plan, low
    yield (LOW_MEMORY, TILED), tiled, plan, low
    for precision in NARROWER if options.precision in ("auto", "fp32") else ():
        try:
            narrow = at_precision(plan, precision, options.backend)
        except UnsupportedError:
            continue
        yield (f"--precision {precision}",), request, narrow, replace(options, precision=precision)
        yield (f"--precision {precision}", LOW_MEMORY, TILED), tiled, narrow, replace(low, precision=precision)


def _smaller(model: Model, request: GenerationRequest, fits: Callable[[GenerationRequest], bool]) -> str:
    """The longest clip of its size that fits, or the largest of its shape; "" if there is none."""
    num_frames, height, width = request.clip
    step, shortest = model.geometry.frame_step, model.geometry.shortest
    clips = range(shortest, num_frames, step)
    at_most = bisect(clips, False, key=lambda count: not fits(replace(request, num_frames=count)))
    if at_most and clips[at_most - 1] > 1:
        return f"--num-frames {clips[at_most - 1]}"
    side = model.geometry.spatial * max(model.geometry.patch[1:])
    sizes = [tuple(max(side, share * n // 16 // side * side) for n in (height, width)) for share in range(1, 16)]
    at_most = bisect(sizes, False, key=lambda size: not fits(replace(request, height=size[0], width=size[1])))
    return "--height {} --width {}".format(*sizes[at_most - 1]) if at_most else ""
