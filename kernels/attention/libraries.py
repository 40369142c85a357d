"""Attention libraries: which are installed, where they run, and where they are faster than Triton.

The plan imports this, so a library is imported only once everything else allows it. README.md has the measurements.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kinema.ops.common import Implementation, Target
from kinema.ops.common.launch import INTERPRETER, architecture, is_hip
from kinema.ops.common.triton_target import OLDEST, quantize_unsupported

CUDNN, LATEST_CUDNN = 90000, 91900  # 9.0 is the first that SDPA uses, 9.19 the one measured on a B200
FLASH = "FlashAttention-"


@dataclass(frozen=True)
class Version:
    """A FlashAttention: its module and package; whole, cut: the functions to call without and with lengths."""

    number: int
    module: str
    package: str
    whole: str = "flash_attn_func"
    cut: str = "flash_attn_with_kvcache"

    @property
    def name(self) -> str:
        return f"{FLASH}{self.number}"

    def installed(self) -> bool:
        root, _, inner = self.module.partition(".")
        found = importlib.util.find_spec(root)
        if found is None:
            return False
        if not inner:
            return found.origin is not None  # FlashAttention-4 alone installs a folder without an __init__.py
        folders = {Path(at) / root for at in sys.path} | {Path(at) for at in found.submodule_search_locations or ()}
        return any((folder / inner / "__init__.py").is_file() for folder in folders)

    def longest_head(self, arch: int) -> int:
        """The largest head dim that it is used for."""
        return 128 if self.number == 4 and family(arch) != 90 else 256


VERSIONS = {
    2: Version(2, "flash_attn", "flash-attn"),
    3: Version(3, "flash_attn_interface", "flash-attn-3"),
    4: Version(4, "flash_attn.cute", "flash-attn-4", cut="flash_attn_varlen_func"),
}
# By the oldest architecture of a family: what runs there, the fastest first, and the evidence. Where speeds are equal,
# kinema's own kernel comes first: it has every pattern in one launch, and concatenates nothing.
FASTEST: dict[int, tuple[tuple[str, ...], str]] = {
    80: (
        ("Triton", FLASH + "2", "SDPA", FLASH + "4"),
        "all multiply by mma.sync and are assumed equal; cuDNN is no faster (huggingface/transformers#48163)",
    ),
    90: (
        (FLASH + "3", FLASH + "4", "cuDNN", "Triton", FLASH + "2", "SDPA"),
        "published TFLOP/s of an H100 are 621 by FlashAttention-3 (pytorch/benchmark#2391), about as many by cuDNN "
        "(Dao-AILab/flash-attention#1075), 477 by Triton, about 350 by FlashAttention-2 (arXiv 2407.08608)",
    ),
    100: (
        ("cuDNN 9.19", FLASH + "4", "cuDNN", "Triton", FLASH + "2", "SDPA"),
        "on a B200 cuDNN 9.19 is 1.24 to 1.98 times as fast as FlashAttention-4 (sgl-project/sglang#33655), which is "
        "2.7 times as fast as Triton (its paper), which is 1.6 times as fast as FlashAttention-2",
    ),
    120: (
        ("cuDNN", "Triton", FLASH + "2", "SDPA", FLASH + "4"),
        "at Wan's sizes cuDNN is 1.04 to 1.11 times as fast as FlashAttention-2 (sgl-project/sglang#36494), to which "
        "Triton is assumed equal",
    ),
}


def family(arch: int) -> int:
    """The oldest architecture whose kernels `arch` shares."""
    return max(known for known in FASTEST if known <= arch)


@lru_cache(maxsize=1)
def cudnn_version() -> int:
    """10000·major + 100·minor of torch's cuDNN, 0 if it has none."""
    cudnn: Any = torch.backends.cudnn  # its functions have no types
    return int(cudnn.version() or 0) if cudnn.is_available() else 0


def best_version(arch: int) -> Version | None:
    """The fastest FlashAttention that is installed and made for `arch`."""
    if arch < OLDEST:
        return None
    ranked = [int(name.removeprefix(FLASH)) for name in FASTEST[family(arch)][0] if name.startswith(FLASH)]
    return next((VERSIONS[number] for number in ranked if VERSIONS[number].installed()), None)


def sdpa_name(arch: int) -> str:
    """What torch's SDPA runs on `arch` when its fastest backend is preferred."""
    version = cudnn_version()
    if family(arch) == 80 or version < CUDNN:
        return "SDPA"  # FlashAttention-2
    return "cuDNN 9.19" if family(arch) == 100 and version >= LATEST_CUDNN else "cuDNN"


def flash_attn_unsupported(target: Target) -> list[str]:
    """Why no FlashAttention runs on `target`."""
    reasons = [] if any(v.installed() for v in VERSIONS.values()) else ["flash-attn is not installed"]
    arch = architecture(target.device)
    if target.device.type not in ("cuda", "meta") or arch == INTERPRETER:
        return [*reasons, f"needs a GPU; the device is {target.device.type}"]
    if is_hip():
        return [*reasons, "is used on NVIDIA GPUs only"]
    if arch < OLDEST:
        return [*reasons, f"needs compute capability 8.0, the GPU has {arch // 10}.{arch % 10}"]
    if target.precision.activations not in (torch.bfloat16, torch.float16):
        reasons.append(f"has no fp32, and in precision {target.precision.name} attention is fp32")
    if reasons:
        return reasons
    best = best_version(arch)
    if best is None:
        there = " and ".join(v.name for v in VERSIONS.values() if v.installed())
        return [f"{there} is not made for compute capability {arch // 10}.{arch % 10}"]
    failure = why_not_used(best)
    return [f"{best.package} is installed, but {failure}"] if failure else []


def flash_attn_not_preferred(target: Target) -> list[str]:
    """Why something else is chosen where both can run."""
    best = best_version(architecture(target.device))
    return _slower(best.name, target) if best is not None else []


def sdpa_not_preferred(target: Target) -> list[str]:
    arch = architecture(target.device)
    if target.device.type == "cpu" or arch == INTERPRETER:
        return ["on a CPU the reference makes the same calls"]
    if is_hip() or arch < OLDEST or target.precision.activations == torch.float32:
        known = "it is not measured on AMD GPUs" if is_hip() else "in fp32 it has neither cuDNN nor FlashAttention"
        return [f"Triton is preferred: {known}"] if _runs("Triton", target) else []
    return _slower(sdpa_name(arch), target)


def _slower(name: str, target: Target) -> list[str]:
    ranked, why = FASTEST[family(architecture(target.device))]
    faster = next((other for other in ranked[: ranked.index(name)] if _runs(other, target)), None)
    return [f"{name} would run; {faster} is preferred: {why}"] if faster is not None else []


def _runs(name: str, target: Target) -> bool:
    if name == "Triton":
        return not quantize_unsupported(target)
    arch = architecture(target.device)
    if name.startswith(FLASH):
        best = best_version(arch)
        return best is not None and best.name == name and not flash_attn_unsupported(target)
    return name == sdpa_name(arch)


@lru_cache(maxsize=8)
def why_not_used(version: Version) -> str:
    """Empty if the version can be used: a build for another torch counts as installed, but cannot be imported."""
    try:
        module = importlib.import_module(version.module)
    except Exception as error:  # whatever a library's import raises
        return f"its import fails: {type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
    missing = [name for name in (version.whole, version.cut) if not hasattr(module, name)]
    return f"it is another release: {version.module} has no {' and no '.join(missing)}" if missing else ""


FLASH_ATTN = Implementation(
    "flash-attn", "kinema.ops.attention.flash_attn", flash_attn_unsupported, flash_attn_not_preferred, partial=True
)
SDPA = Implementation("torch", "kinema.ops.attention.sdpa", not_preferred=sdpa_not_preferred, partial=True)
