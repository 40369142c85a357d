"""What is not a folder in the diffusers format is told apart, and what is said to get instead is right."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import kinema
from kinema.checkpoints import Component
from kinema.checkpoints import open_component as open_component_folder
from kinema.checkpoints.layouts import loras_in, other_layout
from kinema.checkpoints.model_folder import SAMPLE_FOLDER
from kinema.errors import CheckpointError, KinemaWarning
from kinema.families.registry import formats, open_folder
from kinema.families.wan.layouts import FOLDERS_OF

# config.json of Wan's own repositories: model_type, dim
ORIGINALS = {
    "t2v-1.3B": ("t2v", 1536, False),
    "t2v-14B": ("t2v", 5120, False),
    "i2v-14B": ("i2v", 5120, False),
    "flf2v-14B": ("flf2v", 5120, False),
    "ti2v-5B": ("ti2v", 3072, False),
    "t2v-A14B": ("t2v", 5120, True),
    "i2v-A14B": ("i2v", 5120, True),
}


def open_component(path: Any, name: str) -> Component:
    return open_component_folder(path, name, formats())


def said_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_folder(path)
    message = str(caught.value)
    assert str(path) in message and message.isprintable()
    return message


def original(folder: Path, kind: str, width: int, two: bool) -> Path:
    """A folder as Wan-AI/Wan2.x-… without -Diffusers has it."""
    folder.mkdir()
    (folder / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"PK\x03\x04")
    (folder / f"Wan2.{2 if two else 1}_VAE.pth").write_bytes(b"PK\x03\x04")
    for place in ("high_noise_model", "low_noise_model") if two else (".",):
        (folder / place).mkdir(exist_ok=True)
        config = {"_class_name": "WanModel", "model_type": kind, "dim": width, "in_dim": 16, "text_len": 512}
        (folder / place / "config.json").write_text(json.dumps(config))
        save_file({"head.modulation": torch.ones(1)}, folder / place / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_layout(tmp_path: Path, name: str) -> None:
    message = said_of(original(tmp_path / "Wan", *ORIGINALS[name]))
    assert "in Wan's original layout" in message
    assert f"get {FOLDERS_OF[name]} (`hf download {FOLDERS_OF[name]} --local-dir FOLDER`)" in message


@pytest.mark.parametrize(
    "change", [{"dim": "x"}, {"dim": [1]}, {"model_type": None}, {"model_type": "vace"}, {"dim": True}]
)
def test_an_original_of_an_unknown_kind(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = original(tmp_path / "Wan", "t2v", 1536, two=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    assert f"get one of {', '.join(FOLDERS_OF.values())}" in said_of(folder)
    (folder / "config.json").unlink()
    assert "original layout" in said_of(folder)


def test_an_original_folder_is_no_component_either(tmp_path: Path) -> None:
    folder = original(tmp_path / "Wan", "t2v", 5120, two=True)
    with pytest.raises(CheckpointError, match=r"Wan2\.2-T2V-A14B-Diffusers"):
        open_component(folder, "transformer")


def wan_file(path: Path, width: int, channels: int, *, image: bool = False, prefix: str = "") -> Path:
    tensors = {
        "patch_embedding.weight": torch.ones(width, channels, 1, 2, 2, dtype=torch.float8_e4m3fn),
        "blocks.0.self_attn.q.weight": torch.ones(width, 1),
        **({"img_emb.proj.0.weight": torch.ones(2)} if image else {}),
    }
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    ("name", "width", "channels", "image"),
    [
        *(("t2v-1.3B", 1536, 16, False), ("t2v-14B", 5120, 16, False), ("i2v-14B", 5120, 36, True)),
        *(("i2v-A14B", 5120, 36, False), ("ti2v-5B", 3072, 48, False)),
    ],
)
def test_a_single_file(tmp_path: Path, name: str, width: int, channels: int, image: bool, prefix: str) -> None:
    path = wan_file(tmp_path / "wan.safetensors", width, channels, image=image, prefix=prefix)
    for place in (path, tmp_path):
        message = said_of(place)
        assert "it is a single file of Wan's transformer: kinema reads folders in the diffusers format" in message
        assert f"get {FOLDERS_OF[name]} (" in message
    assert "is a file: wanted a folder" in said_of(path)
    assert "it holds wan.safetensors: " in said_of(tmp_path)


LORAS = {
    "peft": "transformer.blocks.0.attn1.to_q.lora_A.weight",
    "comfy": "diffusion_model.blocks.0.self_attn.q.lora_down.weight",
    "kohya": "lora_unet_blocks_0_self_attn_q.lora_up.weight",
    "old": "blocks.0.attn1.processor.to_q_lora.up.weight",
    "lokr": "blocks.0.self_attn.q.lokr_w1",
    "loha": "blocks.0.self_attn.q.hada_w1_a",
    "delta": "blocks.0.self_attn.q.diff",
    "delta of a bias": "blocks.0.self_attn.q.diff_b",
}


@pytest.mark.parametrize("dialect", LORAS)
def test_a_lora_as_the_model(tmp_path: Path, dialect: str) -> None:
    save_file({LORAS[dialect]: torch.ones(2)}, tmp_path / "style.safetensors")
    for place in (tmp_path / "style.safetensors", tmp_path):
        assert re.search("it is a LoRA: kinema does not load LoRAs; to use one, fuse it", said_of(place))


def test_names_of_lora_files_are_enough(tmp_path: Path) -> None:
    for name in ("pytorch_lora_weights.safetensors", "adapter_config.json"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text("{}")
        assert "it holds a LoRA" in said_of(folder)


def test_a_lora_beside_the_model_is_said_to_be_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SAMPLE_FOLDER, folder)
    save_file({"style\x1b[31m.lora_A.weight": torch.ones(2)}, folder / "style.safetensors")
    save_file({"other": torch.ones(2)}, folder / "other.safetensors")
    save_file({"a": torch.ones(2)}, folder / "transformer/pytorch_lora_weights.safetensors")
    assert loras_in(folder) == ["style.safetensors"]
    said = r"also holds style\.safetensors, transformer/pytorch_lora_weights\.safetensors, which is not used"
    with pytest.warns(KinemaWarning, match=said):
        kinema.VideoPipeline.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("wan.gguf", b"GGUF\x03\x00\x00\x00", "it is a GGUF file: .* quantises as it loads"),
        ("renamed.safetensors", b"GGUF\x03\x00\x00\x00", "it is a GGUF file"),
        ("wan.pth", b"PK\x03\x04", "it is a pickle, which can run code"),
        ("wan.ckpt", b"", "it is a pickle"),
        (
            "model_index.json",
            b"{}",
            "is a file: wanted a folder in the diffusers format, the one with model_index.json$",
        ),
        ("empty.safetensors", b"", "is a file: wanted a folder[^;]*$"),
    ],
)
def test_other_files(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search(said, said_of(tmp_path / name))


def test_weights_of_something_else(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.ones(3)}, tmp_path / "unet.safetensors")
    assert "it is a single file of weights" in said_of(tmp_path / "unet.safetensors")


def test_a_cache_of_the_hub(tmp_path: Path) -> None:
    for name in ("blobs", "refs", "snapshots"):
        (tmp_path / name).mkdir()
    assert "give the folder inside its snapshots" in said_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("Wan-AI/Wan2.1-T2V-1.3B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("someone/model", "someone/model"),
    ],
)
def test_the_name_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fetched: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="downloads nothing") as caught:
        open_folder(name)
    assert f"(`hf download {fetched} --local-dir FOLDER`)" in str(caught.value)


@pytest.mark.parametrize(
    "path", ["a; rm -rf x/b", "a/b c", "-x/../b", "$(id)/b", "a/b/c", "a\n/b", "x" * 5000, "../x", "a/`b`"]
)
def test_no_command_is_made_of_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder") as caught:
        open_folder(path)
    assert "hf download" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("path", [3, None, b"model", 1.5, ["model"], object()])
def test_what_is_no_path(path: Any) -> None:
    with pytest.raises(CheckpointError, match="wanted the path of a folder, or 'sample'"):
        open_folder(path)


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    os.symlink("loop", tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for path in ("y/" * 3000, "z" * 300, "a\0b", "\ud800", tmp_path / "loop", tmp_path / "pipe", "/dev/null"):
        with pytest.raises(CheckpointError, match=r"there is no folder|a pipe|a device"):
            open_folder(path)


def test_a_component_is_still_told_from_a_file(tmp_path: Path) -> None:
    shutil.copytree(SAMPLE_FOLDER / "transformer", tmp_path / "transformer")
    assert other_layout(tmp_path / "transformer", formats()) is None
    assert "holds one component (config.json)" in said_of(tmp_path / "transformer")
