"""variant="fp16" where all, some or none of the parts have it: as diffusers decides, and said where nothing has it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kinema
from kinema.checkpoints import ComponentFiles
from kinema.checkpoints.component_files import variants
from kinema.checkpoints.model_folder import SAMPLE_FOLDER
from kinema.errors import CheckpointError
from kinema.families.registry import open_folder

STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
CALL: dict[str, Any] = {
    **{"prompt": "a red circle", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "seed": 0},
    **{"max_sequence_length": 16, "progress": False},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLE_FOLDER, tmp_path / "model")
    return tmp_path / "model"


def file_of(model: Path, part: str, variant: str | None = None) -> Path:
    return model / part / f"{STEMS[part]}{f'.{variant}' if variant else ''}.safetensors"


def make_variant(model: Path, part: str, variant: str = "fp16", *, keep: bool = False) -> None:
    save_file({k: v.half() for k, v in load_file(file_of(model, part)).items()}, file_of(model, part, variant))
    if not keep:
        file_of(model, part).unlink()


def opened(model: Path, variant: str | None) -> Any:
    return kinema.VideoPipeline.from_pretrained(model, device="cpu", variant=variant)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "parts", [("transformer",), ("vae",), ("text_encoder",), ("vae", "text_encoder"), tuple(STEMS)], ids="-".join
)
def test_parts_without_the_variant_give_their_plain_files(model: Path, parts: tuple[str, ...], keep: bool) -> None:
    from diffusers.pipelines.pipeline_loading_utils import _identify_model_variants

    for part in parts:
        make_variant(model, part, keep=keep)
    folder = open_folder(model)
    chosen = {part for part in STEMS if folder.variant(part, "fp16") == "fp16"}
    assert chosen == set(parts) == set(_identify_model_variants(str(model), "fp16", folder.index))
    pipe = opened(model, "fp16")
    assert np.isfinite(pipe(**CALL).frames).all()
    for part in STEMS:
        dtypes = folder.component(part).files(folder.variant(part, "fp16")).dtypes
        assert set(dtypes.values()) == {torch.float16} or part not in parts


def test_the_variant_is_what_is_loaded(model: Path) -> None:
    make_variant(model, "transformer", keep=True)
    tensors = load_file(file_of(model, "transformer"))
    save_file({k: v * 0 for k, v in tensors.items()}, file_of(model, "transformer"))
    wanted = opened(SAMPLE_FOLDER, None)(**CALL).frames
    assert np.abs(opened(model, "fp16")(**CALL).frames - wanted).max() < 0.05
    assert np.abs(opened(model, None)(**CALL).frames - wanted).max() > 0.2


def test_a_variant_that_no_part_has(model: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no part of .* the variant 'fp16': leave the variant out"):
        opened(model, "fp16")
    make_variant(model, "vae", "bf16", keep=True)
    make_variant(model, "transformer", "fp8", keep=True)
    with pytest.raises(CheckpointError, match=r"the variant 'fp16': pass the variant 'bf16' or 'fp8', or none$"):
        opened(model, "fp16")
    for part in [part for part in STEMS if file_of(model, part).exists()]:
        make_variant(model, part, "bf16")
    with pytest.raises(CheckpointError, match=r"has no weights: .* pass the variant 'bf16'"):
        opened(model, None)
    opened(model, "bf16")


def test_a_part_that_has_neither(model: Path) -> None:
    make_variant(model, "transformer", "fp16")
    make_variant(model, "vae", "bf16")
    with pytest.raises(CheckpointError, match=r"vae has no weights: looked for .*; pass the variant 'bf16'$"):
        opened(model, "fp16")


def test_a_part_alone_has_the_variant_or_not(model: Path) -> None:
    make_variant(model, "vae", "bf16")
    kinema.load_vae(model / "vae", device="cpu", variant="bf16")
    with pytest.raises(CheckpointError, match=r"pass the variant 'bf16'$"):
        kinema.load_vae(model / "vae", device="cpu", variant="fp16")
    with pytest.raises(CheckpointError, match="leave the variant out"):
        kinema.load_transformer(model / "transformer", device="cpu", variant="fp16")


def test_names_of_variants(tmp_path: Path) -> None:
    for name in (
        *("model.safetensors", "model.fp16.safetensors", "model.safetensors.index.bf16.json", "model.bf16-1.json"),
        *("diffusion_pytorch_model.fp8.safetensors", "other.x.safetensors", "model.a.b.safetensors"),
    ):
        (tmp_path / name).touch()
    assert variants(tmp_path) == {"", "fp16", "bf16", "fp8"}


@pytest.mark.parametrize("variant", ["../fp16", "a/b", ".", "\\x"])
def test_a_variant_is_part_of_a_name(model: Path, variant: str) -> None:
    with pytest.raises(CheckpointError, match="is not part of a file name"):
        opened(model, variant)
    with pytest.raises(CheckpointError, match="is not part of a file name"):
        ComponentFiles(model / "vae", variant)


def test_a_long_variant_is_one_that_is_not_there(model: Path) -> None:
    with pytest.raises(CheckpointError, match="no part of"):
        opened(model, "x" * 300)
