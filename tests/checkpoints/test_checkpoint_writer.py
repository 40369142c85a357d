"""Writing component folders: diffusers, transformers and safetensors read back exactly what was saved."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from kinema.checkpoints import ComponentFiles, SafetensorsFile, Shapes, save_component, save_model_index
from kinema.checkpoints.safetensors import DTYPES
from kinema.errors import OutputError
from kinema.families.registry import open_folder
from kinema.families.wan.family import FAMILY

DIFFUSERS = {"_class_name": "WanTransformer3DModel", "num_layers": 2}
TRANSFORMERS = {"architectures": ["UMT5EncoderModel"], "model_type": "umt5"}


def some_tensors(count: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {f"blocks.{i}.weight": torch.randn((i + 1, 5), generator=generator) for i in range(count)}


class Lazy(Mapping[str, torch.Tensor]):
    """Tensors that are made when they are looked up; counts how often."""

    def __init__(self, made: dict[str, torch.Tensor]) -> None:
        self.made = made
        self.asked: list[str] = []

    def shapes(self) -> Shapes:
        return {name: tuple(t.shape) for name, t in self.made.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return {name: t.dtype for name, t in self.made.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        self.asked.append(name)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.made)

    def __len__(self) -> int:
        return len(self.made)


def test_every_dtype_is_read_back_by_safetensors_and_by_us(tmp_path: Path) -> None:
    tensors = {
        f"{name}.{len(shape)}": (torch.randn(shape) * 3 > 0) if dtype == torch.bool else torch.randn(shape).to(dtype)
        for name, dtype in reversed(DTYPES.items())
        for shape in ((), (3,), (0, 2), (2, 5))
    }
    save_component(tmp_path, DIFFUSERS, tensors)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    theirs, ours = load_file(path), SafetensorsFile(path)
    assert set(theirs) == set(ours) == set(tensors)
    for name, tensor in tensors.items():
        for read in (theirs[name], ours[name]):
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape), name
            assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for name in ours:
        assert ours._entries[name].begin % ours.dtypes[name].itemsize == 0, "widest first: others can map it"
    assert json.loads((tmp_path / "config.json").read_text()) == DIFFUSERS
    assert sorted(os.listdir(tmp_path)) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_file_names_follow_the_library(tmp_path: Path) -> None:
    save_component(tmp_path, TRANSFORMERS, some_tensors())
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]


def test_dtype_converts_floats_only(tmp_path: Path) -> None:
    tensors = {"f32": torch.randn(3, 4), "f16": torch.randn(5).half(), "ids": torch.arange(4)}
    save_component(tmp_path, DIFFUSERS, tensors, dtype=torch.bfloat16)
    files = ComponentFiles(tmp_path)
    assert files.dtypes == {"ids": torch.int64, "f32": torch.bfloat16, "f16": torch.bfloat16}
    assert torch.equal(files["f32"], tensors["f32"].bfloat16())


def test_views_transposes_and_parameters(tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    tensors = {"t": base.t(), "slice": base[1:4, ::2], "parameter": torch.nn.Parameter(base), "tied": base}
    save_component(tmp_path, DIFFUSERS, tensors)
    files = ComponentFiles(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(files[name], tensor)


@pytest.mark.parametrize("limit", [1, 100, 300, 10**9])
def test_shards(tmp_path: Path, limit: int) -> None:
    tensors = some_tensors()
    save_component(tmp_path, DIFFUSERS, tensors, max_shard_bytes=limit)
    files = ComponentFiles(tmp_path)
    assert set(files) == set(tensors)
    assert all(torch.equal(files[name], tensor) for name, tensor in tensors.items())
    total = sum(t.nbytes for t in tensors.values())
    if limit > total:
        assert len(files.files) == 1
        return
    for file in files.files:
        assert file.nbytes <= limit or len(file) == 1
    names = sorted(file.path.name for file in files.files)
    count = len(names)
    assert names == [f"diffusion_pytorch_model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total


def test_a_second_save_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"someone else's")
    for limit in (100, None, 300, 100):
        tensors = some_tensors(5 if limit == 100 else 9)
        save_component(tmp_path, DIFFUSERS, tensors, max_shard_bytes=limit)
        assert set(ComponentFiles(tmp_path)) == set(tensors)
        stems = [name for name in os.listdir(tmp_path) if name.endswith(".safetensors") and "fp16" not in name]
        assert len(stems) == len(ComponentFiles(tmp_path).files)
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").exists()


def test_lazy_tensors_are_made_once_one_at_a_time(tmp_path: Path) -> None:
    lazy = Lazy(some_tensors())
    save_component(tmp_path, DIFFUSERS, lazy, max_shard_bytes=300)
    assert sorted(lazy.asked) == sorted(lazy.made)
    copied = ComponentFiles(tmp_path)
    save_component(tmp_path / "again", DIFFUSERS, copied, dtype=torch.float16)
    assert torch.equal(ComponentFiles(tmp_path / "again")["blocks.3.weight"], lazy.made["blocks.3.weight"].half())


def test_a_folder_can_be_rewritten_from_itself(tmp_path: Path) -> None:
    save_component(tmp_path, DIFFUSERS, some_tensors())
    save_component(tmp_path, DIFFUSERS, ComponentFiles(tmp_path), max_shard_bytes=100)
    assert all(torch.equal(ComponentFiles(tmp_path)[name], tensor) for name, tensor in some_tensors().items())


class FailsAtTheFifth(Lazy):
    def __init__(self, made: dict[str, torch.Tensor], error: BaseException) -> None:
        super().__init__(made)
        self.error = error

    def __getitem__(self, name: str) -> torch.Tensor:
        if len(self.asked) == 4:
            raise self.error
        return super().__getitem__(name)


@pytest.mark.parametrize("limit", [None, 200])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_no_partial_file_remains(tmp_path: Path, error: BaseException, limit: int | None) -> None:
    save_component(tmp_path, DIFFUSERS, {"old": torch.ones(3)})
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    expected = OutputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
        save_component(tmp_path, DIFFUSERS, FailsAtTheFifth(some_tensors(), error), max_shard_bytes=limit)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/below cannot be written"):
        save_component(tmp_path / "file/below", DIFFUSERS, some_tensors())
    with pytest.raises(OutputError, match=r"file cannot be written"):
        save_component(tmp_path / "file", DIFFUSERS, some_tensors())


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"x is torch\.complex64"):
        save_component(tmp_path, DIFFUSERS, {"x": torch.zeros(2, dtype=torch.complex64)})
    assert os.listdir(tmp_path) == []


class Lying(Lazy):
    def shapes(self) -> Shapes:
        return {**super().shapes(), "blocks.2.weight": (5, 3)}


def test_a_tensor_of_another_shape_than_was_planned(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"blocks\.2\.weight changed its shape while it was saved: \(5, 3\) to"):
        save_component(tmp_path, DIFFUSERS, Lying(some_tensors()))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [None, 2000])
def test_diffusers_loads_what_we_write(tmp_path: Path, limit: int | None) -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        ffn_dim=8,
        num_layers=2,
    )
    config = {"_class_name": "WanTransformer3DModel", **{k: v for k, v in model.config.items() if k[0] != "_"}}
    save_component(tmp_path, config, model.state_dict(), max_shard_bytes=limit)
    loaded, info = WanTransformer3DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.config.num_attention_heads == 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("limit", [None, 2000])
def test_transformers_loads_what_we_write(tmp_path: Path, limit: int | None) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    model = UMT5EncoderModel(UMT5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=8, num_layers=2, num_heads=2))
    tensors = {k: v for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"}  # tied to shared
    config = {"architectures": ["UMT5EncoderModel"], **model.config.to_dict()}
    save_component(tmp_path, config, tensors, max_shard_bytes=limit)
    loaded, info = UMT5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_model_index(tmp_path: Path) -> None:
    components = {"transformer": "WanTransformer3DModel", "vae": "AutoencoderKLWan", "transformer_2": None}
    scheduler = {"scheduler": "FlowMatchEulerDiscreteScheduler"}
    save_model_index(
        tmp_path, "WanPipeline", {**components, **scheduler}, FAMILY.format.slots, {"expand_timesteps": True}
    )
    for name in ("transformer", "vae", "scheduler"):
        (tmp_path / name).mkdir()
    model = open_folder(tmp_path)
    assert model.components == ("transformer", "vae", "scheduler")
    assert model.options.expand_timesteps
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer_2"] == [None, None]
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"]
    assert index["_class_name"] == "WanPipeline"
