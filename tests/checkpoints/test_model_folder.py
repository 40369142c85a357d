"""Pipeline folders: our own table decides what a folder may name, and every refusal is one clear line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kinema.checkpoints import Component
from kinema.checkpoints import open_component as open_component_folder
from kinema.checkpoints.model_folder import SAMPLE_FOLDER
from kinema.errors import CheckpointError
from kinema.families.registry import formats, open_folder
from kinema.families.wan.family import FAMILY, WanOptions

WAN_22: dict[str, Any] = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.35.0.dev0",
    "boundary_ratio": 0.875,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "image_encoder": [None, None],
    "safety_checker": [None, None],
}


def open_component(path: Any, name: str) -> Component:
    return open_component_folder(path, name, formats())


def pipeline(folder: Path, **changes: Any) -> Path:
    """A folder with an index and every component's config; `...` removes a key."""
    folder.mkdir(parents=True, exist_ok=True)
    index = {key: value for key, value in {**WAN_22, **changes}.items() if value is not ...}
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, slot in FAMILY.format.slots.items():
        value = index.get(name)
        if isinstance(value, list) and value != [None, None]:
            (folder / name).mkdir(exist_ok=True)
            key = {"_class_name": value[-1]} if slot.library == "diffusers" else {"architectures": [value[-1]]}
            config = {"tokenizer_class": "T5Tokenizer"} if name == "tokenizer" else key
            (folder / name / slot.config_file).write_text(json.dumps({**config, "setting": name}))
    return folder


def refused(message: str, path: Any) -> str:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_folder(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_pipeline(tmp_path: Path) -> None:
    model = open_folder(pipeline(tmp_path))
    assert model.pipeline_class == "WanPipeline"
    assert model.components == ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer", "scheduler")
    assert "image_encoder" not in model
    assert "vae" in model
    assert model.options == WanOptions(boundary_ratio=0.875, expand_timesteps=False)
    vae = model.component("vae")
    assert (vae.name, vae.class_name, vae.folder) == ("vae", "AutoencoderKLWan", tmp_path / "vae")
    assert vae.config == {"_class_name": "AutoencoderKLWan", "setting": "vae"}
    assert model.component("scheduler").config["setting"] == "scheduler"
    with pytest.raises(CheckpointError, match=r"has no image_encoder: it has transformer, transformer_2"):
        model.component("image_encoder")


def test_weights_are_looked_for_only_when_asked(tmp_path: Path) -> None:
    component = open_folder(pipeline(tmp_path)).component("vae")
    with pytest.raises(CheckpointError, match="has no weights"):
        component.files()
    save_file({"a": torch.ones(2)}, tmp_path / "vae/diffusion_pytorch_model.safetensors")
    assert list(component.files()) == ["a"]


@pytest.mark.parametrize("pipeline_class", FAMILY.format.pipelines)
def test_pipeline_classes(tmp_path: Path, pipeline_class: str) -> None:
    assert open_folder(pipeline(tmp_path, _class_name=pipeline_class)).pipeline_class == pipeline_class


def test_options_default_when_they_are_absent_or_null(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, boundary_ratio=None, expand_timesteps=...)
    assert open_folder(folder).options == WanOptions(None, False)
    folder = pipeline(tmp_path, boundary_ratio=..., expand_timesteps=True, transformer_2=[None, None])
    assert open_folder(folder).options == WanOptions(None, True)


def test_one_expert_is_enough(tmp_path: Path) -> None:
    assert "transformer" not in open_folder(pipeline(tmp_path, transformer=[None, None]))


def test_prompts_may_come_as_embeddings(tmp_path: Path) -> None:
    model = open_folder(pipeline(tmp_path, text_encoder=[None, None], tokenizer=[None, None]))
    assert "text_encoder" not in model


BAD_INDEX: dict[str, tuple[dict[str, Any], str]] = {
    "no class": ({"_class_name": ...}, "pipeline class None: kinema knows WanPipeline"),
    "unknown class": ({"_class_name": "FluxPipeline"}, "pipeline class 'FluxPipeline'"),
    "class is a list": ({"_class_name": ["WanPipeline"]}, r"pipeline class \['WanPipeline'\]"),
    "other transformer": (
        {"transformer": ["diffusers", "FluxTransformer2DModel"]},
        r"transformer is diffusers\.FluxTransformer2DModel, .* wanted diffusers\.WanTransformer3DModel",
    ),
    "T5 for UMT5": ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel.*UMT5EncoderModel"),
    "class of another slot": (
        {"vae": ["diffusers", "WanTransformer3DModel"]},
        "vae is diffusers.WanTransformer3DModel",
    ),
    "foreign library": ({"vae": ["os", "AutoencoderKLWan"]}, r"vae is os\.AutoencoderKLWan"),
    "local module": ({"transformer": ["my_code", "WanTransformer3DModel"]}, r"my_code\.WanTransformer3DModel"),
    "unknown component": ({"upscaler": ["diffusers", "X"]}, "component 'upscaler' .X., which kinema does not know"),
    "unknown option": ({"magic": 3}, r"model_index\.json: WanOptions does not know magic=3"),
    "one entry": ({"vae": ["diffusers"]}, r"vae is \['diffusers'\], wanted \[library, class\]"),
    "half null": ({"vae": ["diffusers", None]}, r"wanted \[library, class\]"),
    "number for a class": ({"vae": [1, 2]}, r"vae is \[1, 2\], wanted \[library, class\]"),
    "ratio above 1": ({"boundary_ratio": 875}, "boundary_ratio is 875, wanted a number of 0 to 1"),
    "ratio is text": ({"boundary_ratio": "0.9"}, "boundary_ratio is '0.9'"),
    "ratio is a truth value": ({"boundary_ratio": True}, "boundary_ratio is True"),
    "flag is a number": ({"expand_timesteps": 1}, "expand_timesteps is 1, wanted true or false"),
    "no vae": ({"vae": [None, None]}, "lacks vae"),
    "no scheduler, no transformer": (
        {"scheduler": ..., "transformer": [None, None], "transformer_2": ...},
        "lacks transformer, scheduler",
    ),
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_bad_index(tmp_path: Path, case: str) -> None:
    changes, message = BAD_INDEX[case]
    assert "model_index.json" in refused(message, pipeline(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "{", '{"_class_name": "WanPipeline", "_class_name": "WanPipeline"}', "[]"])
def test_index_that_is_not_an_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "model_index.json").write_text(text)
    assert "model_index.json" in refused("not valid JSON|2 times|JSON list", tmp_path)


def test_missing_component_folders_are_all_named(tmp_path: Path) -> None:
    folder = pipeline(tmp_path)
    (folder / "vae/config.json").unlink()
    (folder / "vae").rmdir()
    (folder / "text_encoder/config.json").unlink()
    (folder / "text_encoder").rmdir()
    refused("lacks the folders vae, text_encoder", folder)


def test_bad_component_config(tmp_path: Path) -> None:
    model = open_folder(pipeline(tmp_path))
    for text, message in (
        ("{", r"vae/config\.json is not valid JSON"),
        ("3", "JSON int, wanted an object"),
        ('{"_class_name": "AutoencoderKL"}', r"vae/config\.json is of class 'AutoencoderKL'.*wanted AutoencoderKLWan"),
    ):
        (tmp_path / "vae/config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            model.component("vae")
    (tmp_path / "vae/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"vae/config\.json is missing"):
        model.component("vae")
    (tmp_path / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    with pytest.raises(CheckpointError, match=r"class DDIMScheduler, model_index\.json says UniPCMultistepScheduler"):
        model.component("scheduler")


def test_a_tokenizer_needs_no_config(tmp_path: Path) -> None:
    model = open_folder(pipeline(tmp_path))
    (tmp_path / "tokenizer/tokenizer_config.json").unlink()
    assert model.component("tokenizer").config == {}


def test_paths_that_are_not_pipelines(tmp_path: Path) -> None:
    message = refused("downloads nothing", tmp_path / "absent")
    assert "local folders" in message
    refused("downloads nothing", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    refused("downloads nothing", "a\0b")
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    refused("is a file: wanted a folder", file)
    refused(r"has no model_index\.json; it holds model\.safetensors", tmp_path)
    refused(r"holds one component \(config\.json\).*the folder above it", pipeline(tmp_path / "p") / "vae")
    refused(r"holds one component \(scheduler_config\.json\)", tmp_path / "p/scheduler")


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may read everything
    refused("cannot be read: permission denied", pipeline(tmp_path))


def test_a_huge_index_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pipeline(tmp_path)
    with (folder / "model_index.json").open("ab") as file:
        file.truncate(20_000_001)
    refused(r"model_index\.json has more than 20000000 bytes", folder)


def test_the_sample_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline(tmp_path / "sample", boundary_ratio=0.25)
    assert open_folder("./sample").options.boundary_ratio == 0.25, "a path is never the packaged model"
    assert open_folder(Path("sample")).options.boundary_ratio == 0.25
    packaged = pipeline(tmp_path / "elsewhere", boundary_ratio=0.75)
    monkeypatch.setattr("kinema.checkpoints.model_folder.SAMPLE_FOLDER", packaged)
    assert open_folder("sample").options.boundary_ratio == 0.75
    monkeypatch.setattr("kinema.checkpoints.model_folder.SAMPLE_FOLDER", tmp_path / "nowhere")
    refused("the sample model is not in this installation", "sample")


def test_the_sample_folder_is_in_the_package() -> None:
    import kinema.sample

    assert Path(kinema.sample.__file__).resolve().parent / "model" == SAMPLE_FOLDER


def test_nothing_is_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    refused("evil_module", pipeline(tmp_path / "p", vae=["evil_module", "AutoencoderKLWan"]))
    assert "evil_module" not in sys.modules


def test_a_component_alone(tmp_path: Path) -> None:
    folder = pipeline(tmp_path)
    vae = open_component(folder / "vae", "vae")
    assert (vae.name, vae.class_name) == ("vae", "AutoencoderKLWan")
    assert open_component(str(folder / "text_encoder"), "text_encoder").class_name == "UMT5EncoderModel"
    assert open_component(folder / "scheduler", "scheduler").config["setting"] == "scheduler"
    (folder / "text_encoder/config.json").write_text('{"architectures": ["UMT5ForConditionalGeneration"]}')
    assert open_component(folder / "text_encoder", "text_encoder").class_name == "UMT5EncoderModel"
    assert open_folder(folder).component("text_encoder").class_name == "UMT5EncoderModel"


@pytest.mark.parametrize(
    ("where", "name", "message"),
    [
        (".", "vae", "is a whole pipeline: wanted its vae folder, such as .*vae"),
        ("vae", "transformer", "class 'AutoencoderKLWan', which kinema does not implement as transformer"),
        ("text_encoder", "vae", "class 'UMT5EncoderModel', which"),
        ("scheduler", "vae", r"not a vae folder: it has no config\.json; it holds scheduler_config\.json"),
        ("absent", "vae", "downloads nothing"),
        ("model_index.json", "vae", "is a file"),
    ],
)
def test_a_component_alone_refused(tmp_path: Path, where: str, name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_component(pipeline(tmp_path) / where, name)


def test_a_component_alone_without_a_class(tmp_path: Path) -> None:
    for text in ("{}", '{"architectures": []}', '{"architectures": "AutoencoderKLWan"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match="does not say its class"):
            open_component(tmp_path, "vae")


def test_what_diffusers_saves_is_taken(tmp_path: Path) -> None:
    """The names in the table are the ones that the libraries write."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

    vae = AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        ffn_dim=8,
        num_layers=1,
    )
    config = UMT5Config(vocab_size=110, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    WanPipeline(
        tokenizer=T5TokenizerFast(),
        text_encoder=UMT5EncoderModel(config),
        transformer=transformer,
        vae=vae,
        scheduler=UniPCMultistepScheduler(flow_shift=3.0),
        boundary_ratio=0.5,
    ).save_pretrained(tmp_path)
    model = open_folder(tmp_path)
    assert model.options == WanOptions(0.5, False)
    assert model.components == ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    for name, module in (("transformer", transformer), ("vae", vae)):
        found = model.component(name).files()
        assert found.shapes() == {key: tuple(value.shape) for key, value in module.state_dict().items()}
    for name in ("text_encoder", "tokenizer", "scheduler"):
        model.component(name)
