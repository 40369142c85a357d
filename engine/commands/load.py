"""The options by which every verb loads a model."""

from __future__ import annotations

import argparse
from typing import Any


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument("--backend", default="auto", help="auto, reference, cpu, triton or cuda (%(default)s)")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16, fp16, fp8 or int8 (%(default)s)")
    parser.add_argument("--variant", help="middle name of the weight files, such as fp16")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument(
        "--low-memory", action="store_true", help="hold one stage's components at a time: the peak is the largest"
    )


def load_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `VideoPipeline.from_pretrained`."""
    return {
        "device": arguments.device,
        "backend": arguments.backend,
        "precision": arguments.precision,
        "variant": arguments.variant,
        "threads": arguments.threads,
        "keep_loaded": not arguments.low_memory,
    }
