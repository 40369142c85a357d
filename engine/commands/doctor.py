"""kinema doctor: this machine, its libraries, and per op what was chosen and why the others were not."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import kinema
from kinema.commands.load import add_load_arguments

LIBRARIES = ("torch", "triton", "flash-attn", "numpy", "safetensors", "tokenizers", "sentencepiece", "av", "pillow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_load_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from kinema.ops import plan_ops, target_for

    plan = plan_ops(target_for(arguments.device, arguments.precision), arguments.backend)
    report = {
        "kinema": kinema.__version__,
        "machine": machine(),
        "libraries": libraries(),
        "target": {"device": str(plan.target.device), "precision": plan.target.precision.name},
        "ops": [{"op": c.op, "backend": c.backend, "rejected": dict(c.rejected)} for c in plan.choices],
    }
    if arguments.json:
        print(json.dumps(report))
        return 0
    print(f"kinema {report['kinema']}")
    for title in ("machine", "libraries", "target"):
        print(f"\n{title}")
        for name, value in report[title].items():  # type: ignore[attr-defined]
            print(f"  {name:16} {value}")
    print("\nops")
    for choice in plan.choices:
        print(f"  {choice.op:16} {choice.backend}")
        for backend, reason in choice.rejected:
            print(f"  {'':16}   not {backend}: {reason}")
    return 0


def machine() -> dict[str, Any]:
    """Processor, instruction sets, threads, memory and GPU."""
    import torch

    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": _cpuinfo("model name") or platform.processor() or "unknown",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "memory": _memory(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    else:
        facts["gpu"] = "none that torch sees"
    return facts


def libraries() -> dict[str, str]:
    """Installed versions of what kinema can use."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _cpuinfo(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)


def _memory() -> str:
    from kinema.memory import available_bytes

    return f"{available_bytes() / 2**30:.1f} GiB available"
