"""kinema tune: find this GPU's fastest tiles for the kernels, once, and keep them for all later runs."""

from __future__ import annotations

import argparse
from itertools import islice
from typing import TYPE_CHECKING, Any

from kinema.cli.load import MODEL_HELP, add_load_arguments, load_options
from kinema.cli.output import emit, emit_json
from kinema.errors import RequestError, UnsupportedError

if TYPE_CHECKING:
    from kinema.ops.cases import Case
    from kinema.ops.common import Op, Target
    from kinema.ops.tuner import Outcome, Tuner

# about as long as the prompts that people write
PROMPT = (
    "A red fox runs through a snowy forest at dawn, low sunlight between the trees, its breath visible in the cold "
    "air, powder snow flying from its paws; the camera follows it from the side, close to the ground, in slow motion"
)
CLIP = ("height", "width", "num_frames", "num_videos_per_prompt", "guidance_scale", "image")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-m",
        "--model",
        help=f"tune what a generation with this model calls: {MODEL_HELP} (default: calls of usual sizes)",
    )
    parser.add_argument("--again", action="store_true", help="measure again what is already tuned")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    clip = parser.add_argument_group("the clip of --model (default: what it was made for)")
    clip.add_argument("--height", type=int, metavar="PIXELS", help="height of a frame")
    clip.add_argument("--width", type=int, metavar="PIXELS", help="width of a frame")
    clip.add_argument("--num-frames", type=int, metavar="N", help="length in frames; 1 makes an image")
    clip.add_argument("--num-videos", type=int, dest="num_videos_per_prompt", metavar="N", help="videos at once")
    clip.add_argument("--guidance-scale", type=float, metavar="G", help="1 halves the rows of a forward")
    clip.add_argument("--image", metavar="FILE", help="the first frame (image-to-video models need one)")
    add_load_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    asked = [name for name in CLIP if getattr(arguments, name) is not None]
    if arguments.model is None and asked:
        raise RequestError(
            f"{', '.join(asked)} given without a model: add --model, or leave it out for the usual sizes"
        )
    from kinema.ops import target_for
    from kinema.ops.common import tuned
    from kinema.ops.tuner import GpuTimer, Tuner

    target = target_for(arguments.device, arguments.precision)
    check_gpu(target)
    ops = tunable_ops(target)
    gpu = tuned.gpu_name(target.device)
    known = tuned.read(gpu)[0]
    report = (lambda outcome: None) if arguments.json else (lambda outcome: emit(as_text(outcome)))
    tuner = Tuner(target.device, GpuTimer(target.device), known=() if arguments.again else list(known), report=report)
    passed = production(tuner, ops, target) if arguments.model is None else generation(tuner, arguments)

    faster = sum(bool(outcome.choice) for outcome in tuner.outcomes)
    path = str(tuned.file(gpu))
    if arguments.json:
        outcomes = [as_json(outcome) for outcome in tuner.outcomes]
        emit_json({"gpu": gpu, "path": path, "outcomes": outcomes, "passed_over": passed})
    else:
        lines = [f"{name}: out of memory, passed over" for name in passed]
        if tuner.outcomes:
            lines.append(f"{len(tuner.outcomes)} kinds of calls, {faster} faster than with the default tiles; {path}")
        elif known:
            lines.append(f"nothing new: {len(known)} kinds of calls are tuned in {path}; --again measures them again")
        else:
            lines.append(f"nothing to tune: on {gpu} none of these calls has a choice of tiles")
        emit("\n".join(lines))
    return 0


def check_gpu(target: Target) -> None:
    if target.device.type != "cuda":
        raise UnsupportedError(
            f"the device is {target.device.type}, and tiles are tuned on a GPU: run kinema tune on the machine "
            "whose GPU generates (kinema doctor says what torch sees)"
        )


def tunable_ops(target: Target) -> list[Op]:
    """The ops whose Triton kernels have candidates and run on `target`. Raises UnsupportedError if there are none."""
    from kinema.ops import OPS
    from kinema.ops.tables import tables, triton_of

    reasons: dict[str, None] = {}
    found = []
    for op in OPS:
        implementation = triton_of(op)
        if implementation is None:
            continue
        unsupported = implementation.unsupported(target)
        reasons |= dict.fromkeys(unsupported)
        if not unsupported and any(name.partition("/")[0] == op.name for name in tables()):
            found.append(op)
    if not found:
        raise UnsupportedError(f"no Triton kernel runs here, so there is nothing to tune: {'; '.join(reasons)}")
    return found


def production(tuner: Tuner, ops: list[Op], target: Target) -> list[str]:
    """Tune for the production cases, the most common first. Returns the names of those that do not fit in memory."""
    import torch

    from kinema.ops.calls import Inputs
    from kinema.ops.cases import all_cases
    from kinema.ops.tables import triton_of

    passed = []
    for op in ops:
        implementation = triton_of(op)
        assert implementation is not None
        functions = implementation.load()
        for case in all_cases():
            # a VAE is fp32 in every precision
            if case.op != op.name or not (target.precision.name in case.precisions or op.name == "conv3d"):
                continue
            if kinds(case, functions, target) <= tuner.known:
                continue
            try:
                with torch.inference_mode():
                    tuner.call(case.prepare(functions, target, Inputs(target.device)))
            except torch.OutOfMemoryError:
                passed.append(f"{case.op} {case.name}")
    return passed


def kinds(case: Case, functions: Any, target: Target) -> set[str]:
    """The kinds of calls with candidates that a case makes on the target; nothing runs and nothing is allocated."""
    import torch

    from kinema.ops.calls import Inputs
    from kinema.ops.common import Target
    from kinema.ops.common.launch import architecture, is_hip, recording, watching

    meta = torch.device("meta")
    with recording(architecture(target.device), hip=is_hip()), watching() as visits:
        case.prepare(functions, Target(meta, target.precision), Inputs(meta))()
    return {visit.key for visit in visits}


def generation(tuner: Tuner, arguments: argparse.Namespace) -> list[str]:
    """Tune for what a generation calls: its texts, one step, and the decoder's first two chunks, which differ."""
    from kinema.media.inputs import load_image
    from kinema.pipeline import VideoPipeline
    from kinema.request.generation import GenerationRequest

    pipe = VideoPipeline.from_pretrained(arguments.model, **{**load_options(arguments), "cuda_graphs": False})
    pipe.ops = tuner.watch(pipe.ops)
    given = {name: value for name in CLIP if (value := getattr(arguments, name)) is not None}
    if "image" in given:
        given["image"] = load_image(given["image"])
    state = pipe.prepare(GenerationRequest(prompt=PROMPT, seed=0, **given))
    pipe.step([state])
    for _ in islice(pipe.decode_chunks(state), 2):
        pass
    return []


def as_text(outcome: Outcome) -> str:
    """A line, and one more for each candidate that failed."""
    default = outcome.seconds[0]
    line = f"{outcome.key:48}"
    if outcome.choice is None:
        line += " no candidate ran"
    else:
        best = outcome.seconds[outcome.choice]
        assert best is not None
        line += f" {1e6 * best:10.1f} µs"
        line += f" {1 - best / default:6.1%} less" if outcome.choice and default else " by default "
        line += f"  {outcome.candidates[outcome.choice]}"
    failed = (f"    not {outcome.candidates[number]}: {why}" for number, why in outcome.failures.items())
    return "\n".join([line, *failed])


def as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "key": outcome.key,
        "choice": outcome.choice,
        "candidates": [str(config) for config in outcome.candidates],
        "seconds": outcome.seconds,
        "failures": {str(number): why for number, why in outcome.failures.items()},
    }
