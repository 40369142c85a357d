"""Recognises what is given instead of a pipeline folder: original layouts, single files, LoRAs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kinema.checkpoints.component_files import PICKLE_SUFFIXES
from kinema.checkpoints.folder_format import FolderFormat
from kinema.checkpoints.json_object import read_object
from kinema.checkpoints.opening import is_file, names_in, open_file
from kinema.checkpoints.safetensors import SafetensorsFile
from kinema.checkpoints.weights import Shapes
from kinema.errors import CheckpointError, listed

READS = "kinema reads folders in the diffusers format"
LORA_TENSOR = re.compile(
    r"lora_(?:A|B|up|down|unet|linear_layer)|lora\.(?:up|down)|hada_w|lokr_w|dora_scale|\.diff(?:_b)?$"
)
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
MAX_PEEKS = 20


def fetch(repository: str) -> str:
    """How to get a repository."""
    return f"`hf download {repository} --local-dir FOLDER`"


def other_layout(path: Path, formats: Sequence[FolderFormat]) -> str | None:
    """What a file, or a folder without a model_index.json, is and what to do about it; None if unknown."""
    return _file(path, formats) if is_file(path) else _folder(path, formats)


def loras_in(folder: Path) -> list[str]:
    """Names of the LoRA files in a folder."""
    return [name for name in _safetensors(folder) if name in LORA_FILES or _is_lora(_tensors(folder / name))]


def loras_among(folder: Path, parts: Iterable[str]) -> list[str]:
    """LoRA files of the usual names that lie in the folders of parts."""
    return [f"{part}/{name}" for part in parts for name in LORA_FILES if is_file(folder / part / name)]


def _folder(folder: Path, formats: Sequence[FolderFormat]) -> str | None:
    names = names_in(folder)
    original = [known for each in formats if (known := each.original_folder(folder, names))]
    if original:
        return original[0]
    if "snapshots" in names and "blobs" in names:
        return "it is a cache folder of the Hub: give the folder inside its snapshots"
    if "adapter_config.json" in names or any(name in LORA_FILES for name in names):
        return f"it holds a LoRA: {_about_lora()}"
    if config_of(folder):
        return None  # one component
    for name in [name for name in names if name.endswith((".safetensors", ".gguf"))][:MAX_PEEKS]:
        known = _file(folder / name, formats)
        if known is not None:
            return f"it holds {name}: {known}"
    return None


def _file(path: Path, formats: Sequence[FolderFormat]) -> str | None:
    example = formats[0].examples
    if path.name.endswith(PICKLE_SUFFIXES):
        return f"it is a pickle, which can run code when it is read: {READS}, with safetensors; get {example}"
    if _begins_with(path, b"GGUF"):
        return f"it is a GGUF file: {READS}, and quantises as it loads (precision int8 or fp8); get {example}"
    tensors = _tensors(path)
    if _is_lora(tensors):
        return f"it is a LoRA: {_about_lora()}"
    original = [known for each in formats if (known := each.original_file(tensors))]
    if original:
        return original[0]
    if tensors:
        return f"it is a single file of weights: {READS}, with a config for every part; get for example {example}"
    return None


def _about_lora() -> str:
    return (
        "kinema does not load LoRAs; to use one, fuse it into its model with diffusers (load_lora_weights, fuse_lora, "
        "unload_lora_weights, save_pretrained) and give the folder that this writes"
    )


def lora_notice(folder: Path, names: Iterable[str]) -> str:
    """The warning about LoRAs that lie beside a model's parts."""
    return f"{folder} also holds {listed(names, most=5)}, which is not used: {_about_lora()}"


def _is_lora(tensors: Shapes) -> bool:
    return any(LORA_TENSOR.search(name) for name in tensors)


def _safetensors(folder: Path) -> list[str]:
    return [name for name in names_in(folder) if name.endswith(".safetensors")][:MAX_PEEKS]


def _tensors(path: Path) -> Shapes:
    """Names and shapes of a safetensors file; empty for any other."""
    try:
        return SafetensorsFile(path).shapes()
    except CheckpointError:
        return {}


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        file = open_file(path)
    except CheckpointError:
        return False
    try:
        return os.pread(file, len(magic), 0) == magic
    except OSError:
        return False
    finally:
        os.close(file)


def config_of(folder: Path) -> dict[str, Any]:
    """A folder's config.json, empty if it has none that can be read."""
    try:
        return read_object(folder / "config.json")
    except CheckpointError:
        return {}
