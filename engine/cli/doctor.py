"""kinema doctor: this machine, its libraries, and for each op which backend was chosen and why the others were not."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import kinema
from kinema.cli.load import add_attention_argument, add_target_arguments
from kinema.cli.output import emit, emit_json

if TYPE_CHECKING:
    from kinema.ops import Plan

LIBRARIES = (
    "torch", "triton", "flash-attn", "flash-attn-3", "flash-attn-4",
    "numpy", "safetensors", "tokenizers", "sentencepiece", "av", "pillow",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    add_attention_argument(add_target_arguments(parser))


def run(arguments: argparse.Namespace) -> int:
    from kinema.ops import plan_ops, target_for

    plan = plan_ops(target_for(arguments.device, arguments.precision), arguments.backend, arguments.quantize_attention)
    sections = {"machine": machine(), "libraries": libraries(), "target": target(plan)}
    sections["tuning"] = tuning(plan)
    if arguments.json:
        emit_json({"kinema": kinema.__version__, **sections, "ops": ops(plan)})
    else:
        lines = [f"kinema {kinema.__version__}, in {Path(kinema.__file__).parent}"]
        for title, facts in sections.items():
            lines += ["", title, *(f"  {name:16} {value}" for name, value in facts.items())]
        emit("\n".join([*lines, "", "ops", *_choices(plan)]))
    return 0


def machine() -> dict[str, str]:
    """System, processor, instruction sets of torch and of the native kernels, threads, memory and GPUs."""
    import torch

    from kinema.buffers.machine import available_bytes
    from kinema.memory.predict import gib
    from kinema.ops.common import native
    from kinema.ops.common.cores import usable_cores
    from kinema.ops.common.threads import thread_count

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": _cpuinfo("model name") or platform.processor() or "unknown",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "native kernels": native.described(),
        "threads": f"{thread_count()} on {usable_cores()} of {os.cpu_count()} cores",
        "memory": f"{gib(available_bytes())} available",
        "gpu": ", ".join(gpus) or "none that torch sees",
    }


def libraries() -> dict[str, str]:
    """Installed versions of what kinema can use."""
    from kinema.ops.attention.libraries import cudnn_version

    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    version = cudnn_version()
    found["cuDNN"] = f"{version // 10000}.{version // 100 % 100}.{version % 100}" if version else "torch has none"
    return found


def target(plan: Plan) -> dict[str, str]:
    """What a model would be loaded for."""
    quantized = {"attention": plan.quantize_attention} if plan.quantize_attention is not None else {}
    return {"device": str(plan.target.device), "precision": plan.target.precision.name, **quantized}


def tuning(plan: Plan) -> dict[str, str]:
    """Whether this GPU's fastest tiles are known, and how to find them."""
    from kinema.ops.common import tuned

    device = plan.target.device
    return {"kernels": tuned.status(device) if device.type == "cuda" else f"nothing to tune on a {device.type}"}


def ops(plan: Plan) -> list[dict[str, str | Mapping[str, str]]]:
    """For each op the chosen backend, its fallback, and {backend: reason} of the rejected ones."""
    report: list[dict[str, str | Mapping[str, str]]] = []
    for choice in plan.choices:
        rest = {"rest": choice.rest} if choice.rest is not None else {}
        report.append({"op": choice.op, "backend": choice.backend, **rest, "rejected": dict(choice.rejected)})
    return report


def _choices(plan: Plan) -> list[str]:
    lines = []
    for choice in plan.choices:
        lines.append(f"  {choice.op:16} {choice.backend}")
        if choice.rest is not None:
            lines.append(f"  {'':16}   other calls: {choice.rest}")
        lines += [f"  {'':16}   not {backend}: {reason}" for backend, reason in choice.rejected]
    return lines


def _cpuinfo(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
