"""Writes what was trained as a diffusers-format folder, with the record of its training beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kinema.checkpoints import save_component, save_json, save_model_index
from kinema.errors import OutputError
from kinema.families.wan.family import FAMILY
from kinema.families.wan.vae.autoencoder import WanVAEConfig
from kinema.sample.batches import PROMPT_TOKENS
from kinema.sample.captions import VOCABULARY
from kinema.sample.recipe import Recipe
from kinema.sample.tokenizer import MAX_TOKENS, build_tokenizer
from kinema.sample.train_vae import with_past_taps

RECORD = "training.json"

# What the scheduler does with the model's output, and Wan's own shift for small clips. Fresh noise in each step lets
# frames that disagree about where a slow subject is come to agree: a deterministic sampler keeps its first mistake.
SCHEDULER = {
    "_class_name": "DPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "algorithm_type": "sde-dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "final_sigmas_type": "zero",
    "timestep_spacing": "linspace",
}


def check_output(folder: Path, runs: Path) -> None:
    """OutputError unless `folder` can be replaced as a whole: it is missing, empty, or a model that training wrote."""
    if folder.resolve() in (runs.resolve(), *runs.resolve().parents):
        raise OutputError(
            f"cannot write {folder}: it holds the run's state, {runs}; give the model a folder of its own"
        )
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder) and not (folder / RECORD).is_file():
        raise OutputError(
            f"cannot write {folder}: what is there is no model that `kinema train-sample` wrote, and all of it would "
            "be replaced; give a new folder"
        )


def export_model(
    folder: Path,
    recipe: Recipe,
    vae_config: WanVAEConfig,
    vae: Mapping[str, torch.Tensor],
    dit: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
    *,
    words: tuple[str, ...] = VOCABULARY,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Replace `folder` by a whole pipeline that kinema and diffusers load; weights are stored in `dtype`.

    vae, dit: tensors as trained (the averages). record: what goes into training.json. words: the tokenizer's.
    """
    vae, dit = ({name: tensor.cpu() for name, tensor in tensors.items()} for tensors in (vae, dit))
    staged = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        _write(staged, recipe, vae_config, vae, dit, record, words, dtype)
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write(
    folder: Path,
    recipe: Recipe,
    vae_config: WanVAEConfig,
    vae: Mapping[str, torch.Tensor],
    dit: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
    words: tuple[str, ...],
    dtype: torch.dtype,
) -> None:
    native = {
        "height": recipe.size,
        "width": recipe.size,
        "num_frames": recipe.num_frames,
        "fps": recipe.fps,
        "num_inference_steps": 20,
        "guidance_scale": 3.0,
    }
    classes = {
        "transformer": "WanTransformer3DModel",
        "vae": "AutoencoderKLWan",
        "text_encoder": "UMT5EncoderModel",
        "tokenizer": "PreTrainedTokenizerFast",
        "scheduler": str(SCHEDULER["_class_name"]),
        "transformer_2": None,
    }
    options = {"_kinema_defaults": native, "boundary_ratio": None, "expand_timesteps": False}
    save_model_index(folder, "WanPipeline", classes, FAMILY.format.slots, options)
    transformer = {"_class_name": "WanTransformer3DModel", **asdict(recipe.transformer)}
    save_component(folder / "transformer", transformer, _below(dit, "transformer."), dtype=dtype)
    vae = with_past_taps(vae_config, dict(vae))
    save_component(folder / "vae", {"_class_name": "AutoencoderKLWan", **asdict(vae_config)}, vae, dtype=dtype)
    text = {"architectures": ["UMT5EncoderModel"], "model_type": "umt5", **asdict(recipe.text)}
    save_component(folder / "text_encoder", text, _below(dit, "text."), dtype=dtype)
    save_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    build_tokenizer(folder / "tokenizer", words, MAX_TOKENS if words == VOCABULARY else PROMPT_TOKENS)
    save_json(folder / RECORD, json.loads(json.dumps(dict(record))))


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
