"""Wan's original files and folders, which kinema does not read, and where the same model is in the diffusers format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinema.checkpoints.layouts import READS, config_of, fetch
from kinema.checkpoints.weights import Shapes

FOLDERS_OF = {
    "t2v-1.3B": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "t2v-14B": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "i2v-14B": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    "flf2v-14B": "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
    "t2v-A14B": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "i2v-A14B": "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    "ti2v-5B": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
}

# Wan's own repositories: weights of the VAE and the text encoder as pickles, the transformer's beside them
ORIGINAL_FILES = re.compile(r"Wan2\.\d_VAE\.pth|models_t5_umt5-xxl-enc-\w+\.pth|models_clip_open-clip.*\.pth")
EXPERT_FOLDERS = ("high_noise_model", "low_noise_model")
ORIGINAL_TENSOR = re.compile(r"(?:.*\.)?blocks\.0\.self_attn\.q\.weight")


def repository(kind: str = "", width: Any = 0, *, two: bool = False) -> str:
    """The repository in the diffusers format of a model of this kind and width, and how to fetch it."""
    size = {1536: "1.3B", 3072: "5B", 5120: "A14B" if two else "14B"}.get(width if isinstance(width, int) else 0)
    name = FOLDERS_OF.get(f"{kind}-{size}")
    if name is None:
        return f"one of {', '.join(FOLDERS_OF.values())} ({fetch(FOLDERS_OF['t2v-1.3B'])})"
    return f"{name} ({fetch(name)})"


def original_folder(folder: Path, names: Sequence[str]) -> str | None:
    """What a folder with these names in it is, if it is in Wan's original layout."""
    experts = [name for name in EXPERT_FOLDERS if name in names]
    config = config_of(folder / experts[0] if experts else folder)
    if experts or config.get("_class_name") == "WanModel" or any(ORIGINAL_FILES.fullmatch(name) for name in names):
        wanted = repository(str(config.get("model_type")), config.get("dim"), two=bool(experts))
        return f"it is in Wan's original layout: {READS}; get {wanted}"
    return None


def original_file(tensors: Shapes) -> str | None:
    """What a file of these tensors is, if it is Wan's original transformer."""
    query = next((shape for name, shape in tensors.items() if ORIGINAL_TENSOR.fullmatch(name)), None)
    if query is None:
        return None
    patch = next((shape for name, shape in tensors.items() if name.endswith("patch_embedding.weight")), ())
    image = any("img_emb" in name for name in tensors)
    kind = {36: "i2v", 48: "ti2v"}.get(patch[1] if len(patch) > 1 else 0, "t2v")
    two = kind == "i2v" and not image
    return f"it is a single file of Wan's transformer: {READS}; get {repository(kind, query[0], two=two)}"


def in_diffusers_format(name: str) -> str:
    """The repository in the diffusers format, given one that may be in the original layout."""
    original = name.startswith("Wan-AI/") and not name.lower().endswith("-diffusers")
    return f"{name}-Diffusers" if original else name
