"""What `kinema tune` found on this GPU: which candidate of a kernel's table is fastest for which calls.

A file for each GPU in the cache folder (cache_files.py), read once, at the first launch on that GPU. Where it is
missing, damaged or made with other kernels, the table's first candidate is used. Nothing here measures.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kinema.ops.common.cache_files import cache_folder, write_whole

FORMAT = 1
_KERNELS = Path(__file__).resolve().parents[1]
# sources that every kernel depends on; an op's own are its triton*.py
_SHARED = ("launch.py", "triton_device.py", "triton_numerics.py")


@dataclass(frozen=True)
class Choice:
    """candidate: its index in the table. config: its description. microseconds: of each; None: it did not run."""

    candidate: int
    config: str = ""
    microseconds: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Choices:
    """candidates: {key: index}. plans: what was made with them (launch.py), to be forgotten with them."""

    candidates: Mapping[str, int]
    plans: dict[object, Any] = field(default_factory=dict)


@lru_cache(maxsize=4096)  # every launch needs it, and a model has few shapes
def key(table: str, shape: tuple[int | str, ...]) -> str:
    """The table and the kind of call: sizes rounded up to powers of two, and words."""
    kind = [str(1 << (n - 1).bit_length() if n > 1 else n) if isinstance(n, int) else n for n in shape if n != ""]
    return f"{table}: {' '.join(kind)}"


def choices(device: torch.device) -> Choices:
    """What is in use on the GPU that `device` is."""
    return _choices(gpu_name(device))


def remember(device: torch.device, made: Mapping[str, Choice]) -> None:
    """Use these from now on, and add them to the file's choices for kernels that have not changed. Raises OSError."""
    gpu = gpu_name(device)
    known = {**read(gpu)[0], **made}
    ops = sorted({_op(name) for name in known})
    content = {
        "format": FORMAT,
        "gpu": gpu,
        "triton": _triton_version(),
        "kernels": {op: fingerprint(op) for op in ops},
        "choices": {
            name: {"candidate": c.candidate, "config": c.config, "microseconds": list(c.microseconds)}
            for name, c in sorted(known.items())
        },
    }
    write_whole(file(gpu), json.dumps(content, indent=1) + "\n")
    _choices.cache_clear()


def read(gpu: str) -> tuple[dict[str, Choice], str | None]:
    """The usable choices in a GPU's file, and what is wrong with it, if anything."""
    path = file(gpu)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError) as error:
        return {}, f"{path} cannot be read ({error})"
    try:
        content = json.loads(text)
        if (content["format"], content["gpu"]) != (FORMAT, gpu):
            return {}, f"{path} is of format {content['format']} for {content['gpu']}, wanted {FORMAT} for {gpu}"
        if content["triton"] != _triton_version():
            return {}, f"{path} was made with Triton {content['triton']}, this one is {_triton_version()}"
        found = {name: _choice(entry) for name, entry in content["choices"].items()}
        changed = {op for op in {_op(name) for name in found} if content["kernels"][op] != fingerprint(op)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return {}, f"{path} is damaged ({type(error).__name__}: {error})"
    if changed:
        found = {name: choice for name, choice in found.items() if _op(name) not in changed}
        return found, f"{path} was made of other kernels of {', '.join(sorted(changed))} than these"
    return found, None


def status(device: torch.device) -> str:
    """A sentence: how much is tuned for the GPU that `device` is, and what to do if nothing is."""
    gpu = gpu_name(device)
    found, wrong = read(gpu)
    if wrong is not None:
        return f"{wrong}; run `kinema tune` again"
    if not found:
        return f"default tiles: `kinema tune` finds the fastest on {gpu}"
    return f"{len(found)} kinds of calls tuned for {gpu}, in {file(gpu)}"


def file(gpu: str) -> Path:
    """The path of a GPU's choices."""
    return cache_folder() / "tuned" / f"{re.sub(r'[^A-Za-z0-9.]+', '-', gpu)}.json"


def gpu_name(device: torch.device) -> str:
    """The driver's name for the GPU; "interpreter" on a CPU."""
    return _gpu_name(device.index or 0) if device.type == "cuda" else "interpreter"


@lru_cache(maxsize=16)
def fingerprint(op: str) -> str:
    """A hash of the sources of an op's kernels and candidates."""
    sources = [*sorted((_KERNELS / op).glob("triton*.py")), *(_KERNELS / "common" / name for name in _SHARED)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


@lru_cache(maxsize=16)
def _choices(gpu: str) -> Choices:
    found, wrong = read(gpu)
    if wrong is not None:
        warnings.warn(f"{wrong}; kernels use their default tiles there: run `kinema tune` again", stacklevel=4)
    return Choices({name: choice.candidate for name, choice in found.items()})


@lru_cache(maxsize=16)
def _gpu_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return "not installed"
    return str(triton.__version__)


def _op(name: str) -> str:
    """linear of "linear/large: 32768 8192 2048"."""
    return name.partition(":")[0].partition("/")[0]


def _choice(entry: Mapping[str, Any]) -> Choice:
    number = entry["candidate"]
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"candidate {number!r}")
    return Choice(number, str(entry["config"]), tuple(entry["microseconds"]))
