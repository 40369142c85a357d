"""What a run is made on: the first line of its results."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import torch

import kinema
from kinema.bench.gpu_session import nvml
from kinema.bench.gpu_session.results import SCHEMA, Line
from kinema.bench.report import commit
from kinema.cli import doctor

PEERS = ("nvidia-cudnn-frontend", "sageattention", "diffusers")  # compared with by some questions, besides doctor's


def head(words: Sequence[str], of_commit: str | None, *, dry: bool) -> Line | None:
    """A "run" line; None where there is no GPU and `dry` does not ask for a CPU. Touches CUDA.

    words: the command line after `kinema`. of_commit: the commit of a copy without git.
    """
    if not (dry or torch.cuda.is_available()):
        return None
    made_of = of_commit or commit()
    return {
        "kind": "run",
        "schema": SCHEMA,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["kinema", *words]),
        "kinema": kinema.__version__,
        "commit": made_of.rstrip("+") if made_of is not None else None,
        "dirty": made_of is not None and made_of.endswith("+"),
        "dry": dry,
        **(_none() if dry else _gpu()),
        "machine": doctor.machine(),
        "libraries": {**doctor.libraries(), **_others()},
    }


def _none() -> dict[str, Any]:
    return {"chip": "none, a CPU stands in", "capability": None, "driver": None, "clocks": {}}


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    gpu = nvml.Gpu(str(properties.uuid))
    return {
        "chip": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": gpu.driver(),
        "clocks": {"now": gpu.clocks(), "most": gpu.limits()},
    }


def _others() -> dict[str, str]:
    found = {"CUDA": torch.version.cuda or "torch has none", "nvcc": _nvcc()}
    for name in PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _nvcc() -> str:
    path = shutil.which("nvcc")
    if path is None:
        return "not installed"
    said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.split()
    return next((word.removeprefix("V") for word in said if word.startswith("V")), "installed")
