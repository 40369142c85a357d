"""What else may stand where a pipeline folder was wanted: Wan's original layout, single files, LoRAs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kinema.checkpoints.component_files import PICKLE_SUFFIXES
from kinema.checkpoints.json_object import read_object
from kinema.checkpoints.opening import is_file, names_in, open_file
from kinema.checkpoints.safetensors import SafetensorsFile
from kinema.errors import CheckpointError, listed

READS = "kinema reads folders in the diffusers format"
FOLDERS_OF = {
    "t2v-1.3B": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "t2v-14B": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "i2v-14B": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    "flf2v-14B": "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
    "t2v-A14B": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "i2v-A14B": "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    "ti2v-5B": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
}
ANY_FOLDER = FOLDERS_OF["t2v-1.3B"]

# Wan's own repositories: weights of the VAE and the text encoder as pickles, the transformer's beside them
ORIGINAL_FILES = re.compile(r"Wan2\.\d_VAE\.pth|models_t5_umt5-xxl-enc-\w+\.pth|models_clip_open-clip.*\.pth")
EXPERT_FOLDERS = ("high_noise_model", "low_noise_model")
ORIGINAL_TENSOR = re.compile(r"(?:.*\.)?blocks\.0\.self_attn\.q\.weight")
LORA_TENSOR = re.compile(
    r"lora_(?:A|B|up|down|unet|linear_layer)|lora\.(?:up|down)|hada_w|lokr_w|dora_scale|\.diff(?:_b)?$"
)
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
MAX_PEEKS = 20


def fetch(repository: str) -> str:
    """How to get a repository."""
    return f"`hf download {repository} --local-dir FOLDER`"


def other_layout(path: Path) -> str | None:
    """What a file, or a folder without a model_index.json, is and what to do; None if it is not known."""
    return _file(path) if is_file(path) else _folder(path)


def loras_in(folder: Path) -> list[str]:
    """Names of the LoRA files in a folder."""
    return [name for name in _safetensors(folder) if name in LORA_FILES or _is_lora(_tensors(folder / name))]


def loras_among(folder: Path, parts: Iterable[str]) -> list[str]:
    """LoRA files of the usual names that lie in the folders of parts."""
    return [f"{part}/{name}" for part in parts for name in LORA_FILES if is_file(folder / part / name)]


def _folder(folder: Path) -> str | None:
    names = names_in(folder)
    experts = [name for name in EXPERT_FOLDERS if name in names]
    config = _config(folder / experts[0] if experts else folder)
    if experts or config.get("_class_name") == "WanModel" or any(ORIGINAL_FILES.fullmatch(name) for name in names):
        return (
            f"it is in Wan's original layout: {READS}; get "
            f"{_repository(str(config.get('model_type')), config.get('dim'), two=bool(experts))}"
        )
    if "snapshots" in names and "blobs" in names:
        return "it is a cache folder of the Hub: give the folder inside its snapshots"
    if "adapter_config.json" in names or any(name in LORA_FILES for name in names):
        return f"it holds a LoRA: {_about_lora()}"
    if config:
        return None  # one component
    for name in [name for name in names if name.endswith((".safetensors", ".gguf"))][:MAX_PEEKS]:
        known = _file(folder / name)
        if known is not None:
            return f"it holds {name}: {known}"
    return None


def _file(path: Path) -> str | None:
    if path.name.endswith(PICKLE_SUFFIXES):
        return f"it is a pickle, which can run code when it is read: {READS}, of safetensors; get {_repository()}"
    if _begins_with(path, b"GGUF"):
        return f"it is a GGUF file: {READS}, and quantises as it loads (precision int8 or fp8); get {_repository()}"
    tensors = _tensors(path)
    if _is_lora(tensors):
        return f"it is a LoRA: {_about_lora()}"
    query = next((shape for name, shape in tensors.items() if ORIGINAL_TENSOR.fullmatch(name)), None)
    if query is not None:
        patch = next((shape for name, shape in tensors.items() if name.endswith("patch_embedding.weight")), ())
        image = any("img_emb" in name for name in tensors)
        kind = {36: "i2v", 48: "ti2v"}.get(patch[1] if len(patch) > 1 else 0, "t2v")
        two = kind == "i2v" and not image
        return f"it is a single file of Wan's transformer: {READS}; get {_repository(kind, query[0], two=two)}"
    if tensors:
        return f"it is a single file of weights: {READS}, with a config for every part; get for example {_repository()}"
    return None


def _repository(kind: str = "", width: Any = 0, *, two: bool = False) -> str:
    """The repository in the diffusers format of a model of this kind and width, and how to fetch it."""
    size = {1536: "1.3B", 3072: "5B", 5120: "A14B" if two else "14B"}.get(width if isinstance(width, int) else 0)
    name = FOLDERS_OF.get(f"{kind}-{size}")
    if name is None:
        return f"one of {', '.join(FOLDERS_OF.values())} ({fetch(ANY_FOLDER)})"
    return f"{name} ({fetch(name)})"


def _about_lora() -> str:
    return (
        "kinema does not load LoRAs; to use one, fuse it into its model with diffusers (load_lora_weights, fuse_lora, "
        "unload_lora_weights, save_pretrained) and give the folder that this writes"
    )


def lora_notice(folder: Path, names: Iterable[str]) -> str:
    """What to say of LoRAs that lie beside a model's parts."""
    return f"{folder} also holds {listed(names, most=5)}, which is not used: {_about_lora()}"


def _is_lora(tensors: dict[str, tuple[int, ...]]) -> bool:
    return any(LORA_TENSOR.search(name) for name in tensors)


def _safetensors(folder: Path) -> list[str]:
    return [name for name in names_in(folder) if name.endswith(".safetensors")][:MAX_PEEKS]


def _tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file; none of any other."""
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


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / "config.json")
    except CheckpointError:
        return {}
