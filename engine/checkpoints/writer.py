"""Writing component folders that diffusers and transformers load, one tensor in memory at a time.

Files get their final names only when they are complete: a run that dies leaves no folder that loads in part.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import torch

from kinema.checkpoints.component_files import DIFFUSERS_STEM, TRANSFORMERS_STEM, weight_names
from kinema.checkpoints.folder_format import Slot
from kinema.checkpoints.model_folder import MODEL_INDEX
from kinema.checkpoints.safetensors import DTYPES, LENGTH_BYTES
from kinema.checkpoints.weights import Shapes
from kinema.errors import OutputError

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@runtime_checkable
class LazyTensors(Protocol):
    """A mapping that knows shapes and dtypes without making its tensors, such as `ComponentFiles`."""

    def shapes(self) -> Shapes: ...

    @property
    def dtypes(self) -> dict[str, torch.dtype]: ...


@dataclass(frozen=True)
class _Plan:
    """One tensor that will be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def save_component(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
) -> None:
    """Write config.json and the weights, in several files with an index if they exceed `max_shard_bytes`.

    tensors: looked up one by one, twice if they are not `LazyTensors` (for the shape, then for the data).
    dtype: what floating-point tensors are stored in; None keeps each as it is. File names are diffusers' for a
    config with `_class_name`, else transformers'. Weights that the folder held before are replaced. Raises
    OutputError; no partial file remains.
    """
    folder = Path(folder)
    stem = DIFFUSERS_STEM if "_class_name" in config else TRANSFORMERS_STEM
    shards = _shards(_plan(tensors, dtype), max_shard_bytes)
    single, index = weight_names(stem)
    names = [single] if len(shards) == 1 else [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in _from1(shards)]
    with _writing(folder, names) as paths:
        for path, shard in zip(paths, shards, strict=True):
            with path.open("wb") as file:
                _write_tensors(file, shard, tensors)
    with _output_errors(folder):
        for old in folder.glob(f"{stem}*.safetensors*"):
            if old.name not in names and _is_ours(old.name, stem):
                old.unlink()
    if len(shards) > 1:
        weight_map = {plan.name: name for name, shard in zip(names, shards, strict=True) for plan in shard}
        total = sum(plan.nbytes for shard in shards for plan in shard)
        save_json(folder / index, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    save_json(folder / "config.json", config)


def save_model_index(
    folder: str | os.PathLike[str],
    pipeline_class: str,
    components: Mapping[str, str | None],
    slots: Mapping[str, Slot],
    options: Mapping[str, Any] | None = None,
) -> None:
    """Write model_index.json. components: {name: class, or None for one that is absent}."""
    entries = {name: [slots[name].library, cls] if cls else [None, None] for name, cls in components.items()}
    save_json(
        Path(folder) / MODEL_INDEX, {"_class_name": pipeline_class, **(options or {}), **dict(sorted(entries.items()))}
    )


def save_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a config file; raises OutputError."""
    with _writing(path.parent, [path.name]) as (partial,):
        partial.write_text(json.dumps(dict(value), indent=2) + "\n", encoding="utf-8")


def _plan(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> list[_Plan]:
    if isinstance(tensors, LazyTensors):
        dtypes = tensors.dtypes
        found = [_Plan(name, dtypes[name], shape) for name, shape in tensors.shapes().items()]
    else:
        found = [_Plan(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    plans = [
        _Plan(plan.name, dtype if dtype is not None and plan.dtype.is_floating_point else plan.dtype, plan.shape)
        for plan in found
    ]
    for plan in plans:
        if plan.dtype not in _NAMES:
            raise OutputError(f"{plan.name} is {plan.dtype}: safetensors files hold {', '.join(map(str, _NAMES))}")
    return plans


def _shards(plans: Sequence[_Plan], max_bytes: int | None) -> list[list[_Plan]]:
    """Split in the given order; a tensor that exceeds the limit by itself gets a file of its own."""
    shards: list[list[_Plan]] = [[]]
    filled = 0
    for plan in plans:
        if max_bytes is not None and shards[-1] and filled + plan.nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(plan)
        filled += plan.nbytes
    return shards


def _write_tensors(file: BinaryIO, plans: Sequence[_Plan], tensors: Mapping[str, torch.Tensor]) -> None:
    # widest dtypes first: every tensor then lies at a multiple of its item size, and can be used where it lies
    plans = sorted(plans, key=lambda plan: -plan.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for plan in plans:
        offsets = [position, position + plan.nbytes]
        header[plan.name] = {"dtype": _NAMES[plan.dtype], "shape": list(plan.shape), "data_offsets": offsets}
        position += plan.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % LENGTH_BYTES)
    file.write(len(encoded).to_bytes(LENGTH_BYTES, "little"))
    file.write(encoded)
    for plan in plans:
        tensor = tensors[plan.name].detach()
        if tuple(tensor.shape) != plan.shape:
            raise OutputError(
                f"{plan.name} changed its shape while it was saved: {plan.shape} to {tuple(tensor.shape)}"
            )
        flat = tensor.to("cpu", plan.dtype).contiguous().reshape(-1)
        if flat.numel():
            file.write(flat.view(torch.uint8).numpy().data)


def _from1(items: Sequence[object]) -> range:
    return range(1, len(items) + 1)


def _is_ours(name: str, stem: str) -> bool:
    """Whether an earlier save of the same component may have left this file (and it is not someone's variant)."""
    middle = name.removeprefix(stem).removesuffix(".index.json").removesuffix(".safetensors")
    count = middle.removeprefix("-").split("-of-")
    return middle == "" or (len(count) == 2 and all(part.isdigit() for part in count))


@contextmanager
def _writing(folder: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Paths to write to; they get `names` when the block ends, or are removed if it fails."""
    partial = [folder / f".{name}.{os.getpid()}.partial" for name in names]
    try:
        with _output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            yield partial
            for path, name in zip(partial, names, strict=True):
                path.replace(folder / name)
    finally:
        for path in partial:
            with suppress(OSError):
                path.unlink()


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
