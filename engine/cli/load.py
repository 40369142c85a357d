"""The options by which every verb loads a model: those of `LoadOptions`, with its defaults."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from kinema.loading.options import LoadOptions

if TYPE_CHECKING:
    from kinema.pipeline import VideoPipeline

MODEL_HELP = "a folder in the diffusers format, or 'sample', the small model that ships with kinema"


def add_target_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The device and the backend that run the ops, and their precision."""
    default = LoadOptions()
    group = parser.add_argument_group("running the model")
    group.add_argument("--device", default=default.device, help="auto, cpu or cuda[:n] (%(default)s)")
    group.add_argument(
        "--backend",
        default=default.backend,
        help="auto, or what `kinema doctor` lists: reference, triton, torch, … (%(default)s)",
    )
    group.add_argument(
        "--precision", default=default.precision, help="auto (fp32), fp32, bf16, fp16, fp8 or int8 (%(default)s)"
    )
    return group


def add_attention_argument(group: argparse._ArgumentGroup) -> None:
    """The type of the transformer's self-attention products."""
    group.add_argument(
        "--quantize-attention",
        metavar="KIND",
        help="self-attention in int8 (on a CPU) or fp8 (on a GPU): faster and less exact (default: neither)",
    )


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    group = add_target_arguments(parser)
    add_attention_argument(group)
    group.add_argument("--variant", metavar="NAME", help="middle name of the weight files, such as fp16")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    group.add_argument(
        "--no-replay", action="store_true", help="make every call of every forward instead of replaying recorded ones"
    )
    group.add_argument(
        "--no-cuda-graphs", action="store_true", help="launch every kernel by itself instead of replaying forwards"
    )
    group.add_argument(
        "--low-memory", action="store_true", help="hold one stage's parts at a time: the peak is the largest of them"
    )


def add_scheduler_arguments(parser: argparse.ArgumentParser) -> None:
    """A scheduler other than the model's own."""
    group = parser.add_argument_group("scheduler (default: the model's own)")
    group.add_argument(
        "--scheduler", metavar="NAME|FILE", help="unipc, euler, dpm++, or a scheduler_config.json to read it from"
    )
    group.add_argument(
        "--flow-shift",
        type=float,
        metavar="F",
        help="larger spends more steps at high noise, smaller more on details; such as 3 or 5",
    )
    group.add_argument(
        "--noise-max-step",
        type=float,
        metavar="H",
        help="a stochastic scheduler's steps that are longer than this in log(alpha / sigma) add no noise: better "
        "where steps are few; such as 0.45",
    )


def choose_scheduler(pipe: VideoPipeline, arguments: argparse.Namespace) -> None:
    """Give the pipeline the scheduler that the options name. KinemaError if there is none, or it does not fit."""
    from kinema import schedulers

    asked = arguments.scheduler
    if asked is not None:
        is_file = asked.endswith(".json") or os.path.exists(asked)
        known = asked.lower() in schedulers.NAMES
        own = pipe.scheduler.core
        pipe.scheduler = schedulers.from_pretrained(asked) if is_file and not known else schedulers.named(asked, own)
    if arguments.flow_shift is not None:
        pipe.scheduler = schedulers.with_flow_shift(pipe.scheduler.core, arguments.flow_shift)
    if arguments.noise_max_step is not None:
        pipe.scheduler = schedulers.with_noise_max_step(pipe.scheduler.core, arguments.noise_max_step)


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `VideoPipeline.from_pretrained`."""
    return {
        "device": arguments.device,
        "backend": arguments.backend,
        "precision": arguments.precision,
        "variant": arguments.variant,
        "threads": arguments.threads,
        "keep_loaded": not arguments.low_memory,
        "cuda_graphs": not arguments.no_cuda_graphs,
        "replay": not arguments.no_replay,
        "quantize_attention": arguments.quantize_attention,
    }


def open_to_measure(arguments: argparse.Namespace, **changes: Any) -> VideoPipeline:
    """Open a model to benchmark. Its parts also run outside the pipeline, so --threads holds for the process."""
    import torch

    from kinema.pipeline import VideoPipeline

    pipe = VideoPipeline.from_pretrained(arguments.model, **{**load_options(arguments), **changes})
    if pipe.options.threads is not None:
        torch.set_num_threads(pipe.options.threads)
    return pipe


def load_words(arguments: argparse.Namespace) -> list[str]:
    """The same options as words of another process's command line."""
    names = ("device", "backend", "precision", "variant", "threads", "quantize_attention")
    given = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in names}
    words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
    switches = {
        "--no-replay": arguments.no_replay,
        "--no-cuda-graphs": arguments.no_cuda_graphs,
        "--low-memory": arguments.low_memory,
    }
    return words + [switch for switch, on in switches.items() if on]
