"""Opening a pipeline: what would fail later fails there, from configs and headers alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kinema
from kinema.checkpoints import SafetensorsFile
from kinema.checkpoints.model_folder import SAMPLE_FOLDER
from kinema.errors import CheckpointError
from kinema.families import registry
from kinema.families.registry import open_folder
from kinema.families.wan.family import PARTS

CALL: dict[str, Any] = {
    **{"prompt": "a red circle", "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "seed": 0},
    **{"max_sequence_length": 16, "progress": False},
}
FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(SAMPLE_FOLDER, tmp_path / "model")
    return tmp_path / "model"


def open_model(folder: Path, **options: Any) -> Any:
    return kinema.VideoPipeline.from_pretrained(folder, device="cpu", **options)


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def drop(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(sorted(tensors)[0])


def rename(tensors: dict[str, torch.Tensor]) -> None:
    for name in sorted(tensors):
        tensors[name.replace("weight", "w")] = tensors.pop(name)


def widen(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = torch.cat((tensors[name], tensors[name]))


def quantise(tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].to(torch.int8)


SPOILED = {
    drop: r"does not match its config\.json \(1 tensors\): missing",
    rename: r"does not match its config\.json .*missing.*surplus",
    widen: r"does not match its config\.json \(1 tensors\): mis-shaped .*: got",
    quantise: "holds integers where weights should be",
}


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("spoil", SPOILED)
def test_weights_that_do_not_fit_are_noticed_when_a_model_is_opened(model: Path, part: str, spoil: Any) -> None:
    rewrite(model / part / FILES[part], spoil)
    with pytest.raises(CheckpointError, match=rf"{part} {SPOILED[spoil]}"):
        open_model(model)


def gone(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_device(file: Path) -> None:
    file.unlink()
    os.symlink("/dev/zero", file)


def a_loop(file: Path) -> None:
    file.unlink()
    os.symlink(file.name, file)


def dangling(file: Path) -> None:
    file.unlink()
    os.symlink("nowhere", file)


@pytest.mark.parametrize("file", [*(f"{part}/{name}" for part, name in FILES.items()), "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("spoil", [gone, cut_short, emptied, a_folder, a_pipe, a_device, a_loop, dangling])
def test_files_that_are_not_what_they_were(model: Path, file: str, spoil: Callable[[Path], None]) -> None:
    spoil(model / file)
    with pytest.raises(CheckpointError, match=file.split("/")[0]):
        pipe = open_model(model)
        assert file.startswith("tokenizer") and spoil in (cut_short, emptied), "the others are noticed at once"
        pipe(**CALL)


CONFIGS = [
    *("model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json"),
    *("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"),
]


@pytest.mark.parametrize("file", CONFIGS)
@pytest.mark.parametrize("spoil", [cut_short, emptied, a_folder, a_pipe, a_device, a_loop])
def test_configs_that_are_not_what_they_were(model: Path, file: str, spoil: Callable[[Path], None]) -> None:
    spoil(model / file)
    optional = file.startswith("tokenizer") and spoil not in (cut_short, emptied)
    try:
        open_model(model)(**CALL)
    except CheckpointError as error:
        assert Path(file).name in str(error)
    else:
        assert optional, "a tokenizer may be its vocabulary alone"


def test_nothing_but_headers_is_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(file: SafetensorsFile, buffer: memoryview, offset: int) -> None:
        raise AssertionError(f"{len(buffer)} bytes of {file.path} were read")

    monkeypatch.setattr(SafetensorsFile, "_read_into", read)
    registry.open_model(open_folder(model))
    with pytest.raises(AssertionError, match="were read"):
        open_model(model)(**CALL)


def test_every_part_with_weights_is_listed(model: Path) -> None:
    held = {file.parent.name for file in model.rglob("*.safetensors")}
    assert held == {name for name, part in PARTS.items() if part.tensors} & set(open_folder(model).components)


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("transformer/config.json", {"num_layers": 999}, r"missing blocks\.6\..*; and \d+ more"),
        (
            "transformer/config.json",
            {"num_layers": 10**9},
            "num_layers is 1000000000, wanted a whole number",
        ),
        ("transformer/config.json", {"ffn_dim": 10**7}, r"mis-shaped blocks\.0\.ffn.*wanted \(10000000, 192\)"),
        ("text_encoder/config.json", {"vocab_size": 10**7}, r"mis-shaped shared\.weight: got \(82, 96\)"),
        ("vae/config.json", {"num_res_blocks": 64}, r"missing .*encoder\.down_blocks"),
        ("vae/config.json", {"base_dim": 10**4}, "mis-shaped"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}, "num_train_timesteps is 1000000000000"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1] * 7}, "trained_betas has 7 entries, wanted 1000"),
    ],
)
def test_configs_that_call_for_more_than_there_is(model: Path, file: str, changes: dict[str, Any], said: str) -> None:
    edit(model / file, **changes)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_model(model)
    assert len(str(caught.value)) < 4100


def shrunk_text_encoder(model: Path) -> None:
    """Another text encoder, whole in itself, of other widths."""
    width = 48
    config = json.loads((model / "text_encoder/config.json").read_text()) | {"d_model": width}
    from kinema.encoders.umt5 import UMT5Config, tensor_shapes

    shapes = tensor_shapes(UMT5Config.from_dict(config))
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, model / "text_encoder/model.safetensors")
    edit(model / "text_encoder/config.json", d_model=width)


def other_vae(model: Path) -> None:
    from kinema.families.wan.vae.autoencoder import WanVAEConfig, tensor_shapes

    config = json.loads((model / "vae/config.json").read_text())
    config |= {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
    shapes = tensor_shapes(WanVAEConfig.from_dict(config))
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, model / "vae" / FILES["vae"])
    (model / "vae/config.json").write_text(json.dumps(config))


def more_channels(model: Path) -> None:
    rewrite(
        model / "transformer" / FILES["transformer"],
        lambda t: t.update({"patch_embedding.weight": t["patch_embedding.weight"].repeat(1, 2, 1, 1, 1)}),
    )
    edit(model / "transformer/config.json", in_channels=32)


def another_expert(model: Path) -> None:
    shutil.copytree(model / "transformer", model / "transformer_2")
    more_channels(model)
    (model / "transformer").rename(model / "wide")
    (model / "transformer_2").rename(model / "transformer")
    (model / "wide").rename(model / "transformer_2")
    edit(model / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"], boundary_ratio=0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shrunk_text_encoder, "transformer reads text of 96 channels, text_encoder makes 48"),
        (other_vae, "transformer makes latents of 16 channels, vae takes 4"),
        (more_channels, "transformer takes 32 channels: wanted 16, or with an image 36"),
        (another_expert, "transformer has in_channels 16, transformer_2 32"),
    ],
)
def test_parts_that_do_not_fit_each_other(model: Path, change: Callable[[Path], None], said: str) -> None:
    change(model)
    with pytest.raises(CheckpointError, match=f"do not fit each other: .*{said}"):
        open_model(model)


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("keep_loaded", [True, False])
def test_a_file_that_shrinks_after_loading_is_an_error_and_no_signal(model: Path, part: str, keep_loaded: bool) -> None:
    pipe = open_model(model, keep_loaded=keep_loaded)
    first = pipe(**CALL).frames
    os.truncate(model / part / FILES[part], 4096)
    if keep_loaded and part != "text_encoder":
        assert np.array_equal(pipe(**CALL).frames, first), "it is in memory"
        return
    with pytest.raises(CheckpointError, match=f"{part}.*(became shorter after it was opened|is truncated)"):
        pipe(**{**CALL, "prompt": "a green square moving up"})


@pytest.mark.parametrize("part", FILES)
def test_a_model_that_is_swapped_while_it_is_open_is_noticed(model: Path, part: str) -> None:
    """What is loaded later is what was opened, or an error: not the config of one model and the weights of another."""
    pipe = open_model(model)
    widths = {"transformer": "ffn_dim", "vae": "num_res_blocks", "text_encoder": "d_ff"}
    edit(model / part / "config.json", **{widths[part]: 7})
    frames = pipe(**CALL).frames
    assert np.isfinite(frames).all()
    rewrite(model / part / FILES[part], widen)
    fresh = {"transformer": "transformer", "vae": "vae", "text_encoder": "text_encoder"}[part]
    pipe.components._loaded.pop(fresh)
    with pytest.raises(CheckpointError, match="mis-shaped"):
        pipe(**CALL)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_widths_load(model: Path, backend: str, dtype: torch.dtype) -> None:
    for part, name in FILES.items():
        rewrite(model / part / name, lambda t: t.update({key: value.to(dtype) for key, value in t.items()}))
    same = dtype == torch.float64
    got = open_model(model, backend=backend)(**CALL).frames
    wanted = open_model(SAMPLE_FOLDER, backend=backend)(**CALL).frames
    assert np.abs(got - wanted).max() <= (0 if same else 0.2)


def test_configs_are_read_once(model: Path) -> None:
    folder = open_folder(model)
    first = folder.component("vae")
    edit(model / "vae/config.json", z_dim=3)
    assert folder.component("vae") is first
