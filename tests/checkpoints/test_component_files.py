"""Component folders: single files, shards with an index, variants, and everything an index may not do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints.component_files import ComponentFiles, conversion_command, is_plain_name
from kinema.errors import CheckpointError

SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
PARTS = ("diffusion_pytorch_model-00001-of-00002.safetensors", "diffusion_pytorch_model-00002-of-00002.safetensors")


def tensors(*names: str, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: scale * torch.arange(1.0, 4.0 + len(name)) for name in names}


def write_index(folder: Path, weight_map: Any, name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def sharded(folder: Path, **weight_map: str) -> Path:
    """Two shards that hold a, bb and ccc, under an index that says `weight_map`."""
    save_file(tensors("a", "bb"), folder / PARTS[0])
    save_file(tensors("ccc"), folder / PARTS[1])
    write_index(folder, weight_map or {"a": PARTS[0], "bb": PARTS[0], "ccc": PARTS[1]})
    return folder


def refused(folder: Path, message: str, variant: str | None = None) -> str:
    with pytest.raises(CheckpointError, match=message) as caught:
        ComponentFiles(folder, variant)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [SINGLE, "model.safetensors"])
def test_single_file(tmp_path: Path, name: str) -> None:
    save_file(tensors("a", "bb"), tmp_path / name)
    files = ComponentFiles(tmp_path)
    assert files.shapes() == {"a": (4,), "bb": (5,)}
    assert files.dtypes == {"a": torch.float32, "bb": torch.float32}
    assert files.nbytes == 36
    assert "a" in files
    assert "ccc" not in files
    for name in files:
        assert torch.equal(files[name], tensors(name)[name])
        assert torch.equal(files.table(name).rows(torch.tensor([2, 0])), tensors(name)[name][[2, 0]])


def test_shards_are_one_mapping(tmp_path: Path) -> None:
    files = ComponentFiles(sharded(tmp_path))
    assert files.shapes() == {"a": (4,), "bb": (5,), "ccc": (6,)}
    assert len(files.files) == 2
    assert files.nbytes == 60
    for name in ("a", "bb", "ccc"):
        assert torch.equal(files[name], tensors(name)[name])
        assert torch.equal(files.table(name).rows(torch.tensor([2, 0])), tensors(name)[name][[2, 0]])


def test_variant(tmp_path: Path) -> None:
    save_file(tensors("a"), tmp_path / SINGLE)
    save_file(tensors("a", scale=2), tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(ComponentFiles(tmp_path)["a"], tensors("a")["a"])
    assert torch.equal(ComponentFiles(tmp_path, "fp16")["a"], 2 * tensors("a")["a"])
    message = refused(tmp_path, "has no weights", "bf16")
    assert "diffusion_pytorch_model.bf16.safetensors" in message
    refused(tmp_path, "is not part of a file name", "../fp16")


def test_variant_with_shards(tmp_path: Path) -> None:
    save_file(tensors("a"), tmp_path / "model.fp16-00001-of-00001.safetensors")
    write_index(tmp_path, {"a": "model.fp16-00001-of-00001.safetensors"}, "model.safetensors.index.fp16.json")
    assert list(ComponentFiles(tmp_path, "fp16")) == ["a"]
    assert "pass the variant" in refused(tmp_path, "has no weights")


def test_single_and_index_follow_the_library_that_owns_the_name(tmp_path: Path) -> None:
    """diffusers prefers the index, transformers the single file; the two yardsticks below prove it."""
    from diffusers.models.modeling_utils import ModelMixin
    from transformers.modeling_utils import _get_resolved_checkpoint_files

    diffusers_folder, transformers_folder = tmp_path / "d", tmp_path / "t"
    for folder, stem in ((diffusers_folder, "diffusion_pytorch_model"), (transformers_folder, "model")):
        folder.mkdir()
        save_file(tensors("a", scale=1), folder / f"{stem}.safetensors")
        save_file(tensors("a", scale=2), folder / f"{stem}-00001-of-00001.safetensors")
        write_index(folder, {"a": f"{stem}-00001-of-00001.safetensors"}, f"{stem}.safetensors.index.json")
    assert torch.equal(ComponentFiles(diffusers_folder)["a"], 2 * tensors("a")["a"])
    assert torch.equal(ComponentFiles(transformers_folder)["a"], tensors("a")["a"])

    from diffusers.configuration_utils import ConfigMixin, register_to_config

    class Tiny(ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.zeros(4))

    (diffusers_folder / "config.json").write_text('{"_class_name": "Tiny"}')
    assert torch.equal(Tiny.from_pretrained(diffusers_folder).a.data, 2 * tensors("a")["a"])
    chosen, _ = _get_resolved_checkpoint_files(str(transformers_folder), None, None, None, None, False)
    assert [Path(name).name for name in chosen] == ["model.safetensors"]


def test_two_kinds_of_weights_are_ambiguous(tmp_path: Path) -> None:
    save_file(tensors("a"), tmp_path / SINGLE)
    save_file(tensors("a"), tmp_path / "model.safetensors")
    refused(tmp_path, "ambiguous")


PATH_TRICKS = [
    "../x.safetensors",
    "..",
    ".",
    "",
    "/etc/passwd",
    "/tmp/x.safetensors",
    "a/b.safetensors",
    "..\\x.safetensors",
    "a\\b.safetensors",
    "C:x.safetensors",
    "x.safetensors\0.txt",
    "x.bin",
    "x.safetensors/../../y.safetensors",
    None,
    3,
    ["x.safetensors"],
]


@pytest.mark.parametrize("name", PATH_TRICKS)
def test_an_index_cannot_name_a_path(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "component"
    (folder / "a").mkdir(parents=True)
    for place in (tmp_path / "x.safetensors", folder / "a/b.safetensors", folder / "x.safetensors", folder / "x.bin"):
        save_file(tensors("t"), place)  # the file is there: it is its name that is refused
    write_index(folder, {"t": name})
    message = refused(folder, "without a path")
    assert repr(name) in message
    assert "tensor 't'" in message


@pytest.mark.parametrize("name", ["x.safetensors", "..x.safetensors", "x..safetensors", "ключ.safetensors"])
def test_plain_names_are_taken(tmp_path: Path, name: str) -> None:
    assert is_plain_name(name)
    save_file(tensors("t"), tmp_path / name)
    write_index(tmp_path, {"t": name})
    assert list(ComponentFiles(tmp_path)) == ["t"]


def test_links_as_a_hub_cache_makes_them(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/0/transformer"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    sharded(blobs)
    for name in (*PARTS, INDEX):
        os.symlink(f"../../../blobs/{name}", snapshot / name)
    assert set(ComponentFiles(snapshot)) == {"a", "bb", "ccc"}


def test_dangling_link(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / PARTS[1]).unlink()
    os.symlink("nowhere", tmp_path / PARTS[1])
    assert PARTS[1] in refused(tmp_path, "names files that are missing")


def test_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / PARTS[0]).unlink()
    assert PARTS[0] in refused(tmp_path, "names files that are missing.*download them again")


def test_tensor_in_the_wrong_shard(tmp_path: Path) -> None:
    sharded(tmp_path, a=PARTS[0], bb=PARTS[1], ccc=PARTS[1])
    message = refused(tmp_path, f"bb should be in {PARTS[1]} and is in {PARTS[0]}")
    assert "(1 tensors)" in message


def test_tensor_in_no_shard(tmp_path: Path) -> None:
    sharded(tmp_path, a=PARTS[0], bb=PARTS[0], ccc=PARTS[1], dddd=PARTS[1], eeeee=PARTS[0])
    message = refused(tmp_path, f"dddd should be in {PARTS[1]} and is nowhere")
    assert "eeeee" in message
    assert "(2 tensors)" in message


def test_tensor_that_the_index_does_not_know(tmp_path: Path) -> None:
    sharded(tmp_path, a=PARTS[0], ccc=PARTS[1])
    refused(tmp_path, f"bb in {PARTS[0]} is not in the index")


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    save_file(tensors("ccc", "a"), tmp_path / PARTS[1])
    refused(tmp_path, f"a is in both {PARTS[0]} and {PARTS[1]}")


def test_damaged_shard_is_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    whole = (tmp_path / PARTS[1]).read_bytes()
    (tmp_path / PARTS[1]).write_bytes(whole[:-1])
    refused(tmp_path, f"{PARTS[1]} is truncated")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "JSON list, wanted an object"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": ["a"]}', "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "key 'a' 2 times"),
    ],
)
def test_bad_index(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / INDEX).write_text(text)
    assert INDEX in refused(tmp_path, message)


def test_nothing_there(tmp_path: Path) -> None:
    message = refused(tmp_path, "has no weights")
    for name in (SINGLE, INDEX, "model.safetensors", "model.safetensors.index.json"):
        assert name in message
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, r"it holds config\.json")
    refused(tmp_path / "absent", "cannot be listed: No such file")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "x.pt", "x.pth", "x.ckpt"])
def test_pickle_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
    message = refused(tmp_path, "pickle files .*safetensors only.*in an environment that you trust")
    assert name in message
    assert "torch.load" in message
    assert not Path("pwned").exists()


def test_pickle_beside_safetensors_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    save_file(tensors("a"), tmp_path / SINGLE)
    assert list(ComponentFiles(tmp_path)) == ["a"]


def test_pickle_beside_another_variant(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    save_file(tensors("a"), tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    refused(tmp_path, "pass the variant")


def test_the_conversion_command_works(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    torch.save({"a": shared, "tied": shared}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": shared.t()}, tmp_path / "pytorch_model-00002-of-00002.bin")
    (tmp_path / "training_args.bin").write_bytes(b"junk")
    found = re.search(r"run `(.*)`", refused(tmp_path, "pickle"))
    assert found is not None
    command = found[1].replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    files = ComponentFiles(tmp_path)
    assert torch.equal(files["b"], shared.t())
    assert torch.equal(files["tied"], shared)


def test_the_conversion_command_carries_no_shell_code() -> None:
    command = conversion_command(['$(touch pwned)".bin', "`id`.bin"])
    assert "pwned" not in command
    assert "id" not in command.replace("environment", "").split("import")[0]
    assert "FILE.bin" in command
