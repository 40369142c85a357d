"""Tiny random Wan pipelines, as diffusers builds and saves them and as kinema opens them."""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

LATENTS = {"latents_mean": [0.1, 0.2, -0.1, 0.3], "latents_std": [1.0, 2.0, 0.5, 1.5]}
VAE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1, **LATENTS}
VAE_22 = {
    **VAE,
    **{"base_dim": 8, "decoder_base_dim": 12, "is_residual": True, "patch_size": 2},
    **{"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16},
}
DIT = {
    **{"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4},
    **{"text_dim": 24, "freq_dim": 32, "ffn_dim": 64, "num_layers": 2},
}
CLIP_WIDTH, CLIP_TOKENS = 16, 5
CONCAT = {**DIT, "in_channels": 12}  # noise, mask of 4 frames, encoded frames
CLIPPED = {**CONCAT, "image_dim": CLIP_WIDTH, "added_kv_proj_dim": 32}
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
WORDS = [
    *["a", "red", "blue", "green", "circle", "square", "digit", "seven"],
    *["moving", "left", "right", "up", "down", "slowly", "no"],
]

# kind: transformers, VAE, options of the pipeline, whether it has a CLIP image encoder
KINDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], bool]] = {
    "t2v": ([DIT], VAE, {}, False),
    "two_experts": ([DIT, DIT], VAE, {"boundary_ratio": 0.9}, False),
    "ti2v": ([DIT], VAE_22, {"expand_timesteps": True}, False),
    "i2v_clip": ([CLIPPED], VAE, {}, True),
    "i2v_first_last": ([{**CLIPPED, "pos_embed_seq_len": 2 * CLIP_TOKENS}], VAE, {}, True),
    "i2v_experts": ([CONCAT, CONCAT], VAE, {"boundary_ratio": 0.9}, False),
}


@dataclass
class Model:
    """One set of weights: `theirs` is a diffusers pipeline, `ours` a VideoPipeline of the same folder."""

    folder: Path
    theirs: Any
    ours: Any

    def frames(self, *, seed: int = 5, **call: Any) -> tuple[Any, Any]:
        """(theirs, ours) of one call, each with a generator of `seed`."""
        given = {name: call.pop(name) for name in ("latents", "generator") if name in call}
        if not given:
            given = {"generator": torch.Generator().manual_seed(seed)}
        theirs = self.theirs(**call, **given).frames
        if isinstance(given.get("generator"), torch.Generator):
            given["generator"].manual_seed(seed)
        return theirs, self.ours(**call, **given).frames

    def distance(self, **call: Any) -> float:
        """Largest difference of the frames of one call; asserts that the yardstick says something."""
        theirs, ours = self.frames(**call)
        assert isinstance(ours, type(theirs)) and ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert 0.02 < float(theirs.std()) < 0.5
        assert float(((theirs == 0) | (theirs == 1)).mean()) < 0.25, "too many frames at the clamp"
        return float(np.abs(theirs - ours).max())


def rescale(module: torch.nn.Module, seed: int) -> None:
    """Weights under which every sub-layer matters (plain initialisation hides mistakes)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(p: torch.Tensor, std: float, mean: float = 0.0) -> None:
        p.copy_(mean + std * torch.randn(p.shape, generator=generator))

    with torch.no_grad():
        for name, p in module.named_parameters():
            if "scale_shift_table" in name:
                normal(p, 0.5)
                if p.shape[1] == 6:
                    p[:, [2, 5]] += 1.0  # gates of order 1
            elif "norm" in name and name.endswith(("weight", "gamma")) and p.squeeze().ndim == 1:
                p.copy_(0.5 + torch.rand(p.shape, generator=generator))
            elif name.endswith("bias") or "pos_embed" in name:
                normal(p, 0.3)
            elif "relative_attention_bias" in name or ("embed" in name and "embedder" not in name and p.ndim == 2):
                normal(p, 1.0)
            elif "time_proj" in name:
                normal(p, 0.5 / math.sqrt(p.shape[1]))
            elif "proj_out" in name or "decoder.conv_out" in name:
                normal(p, 0.6 / math.sqrt(p[0].numel()))
            elif p.ndim > 1:
                normal(p, 1.2 / math.sqrt(p[0].numel()))


def build(kind: str, folder: Path) -> Any:
    """Write the folder of a tiny random model; returns its diffusers pipeline."""
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    transformers, vae, options, has_clip = KINDS[kind]
    parts: dict[str, Any] = {"vae": AutoencoderKLWan(**vae), "scheduler": UniPCMultistepScheduler(**UNIPC)}
    for name, config in zip(("transformer", "transformer_2"), transformers, strict=False):
        parts[name] = WanTransformer3DModel(**config)
    parts["text_encoder"] = UMT5EncoderModel(
        UMT5Config(vocab_size=40, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)
    )
    if has_clip:
        clip = {"hidden_size": CLIP_WIDTH, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
        parts["image_encoder"] = CLIPVisionModel(CLIPVisionConfig(**clip, image_size=28, patch_size=14))
    for i, module in enumerate(part for part in parts.values() if isinstance(part, torch.nn.Module)):
        rescale(module.eval(), seed=i)
    if has_clip:
        size = {"height": 28, "width": 28}
        parts["image_processor"] = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)

    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    parts["tokenizer"] = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    image_to_video = has_clip or transformers[0]["in_channels"] != 4
    pipeline = (WanImageToVideoPipeline if image_to_video else WanPipeline)(**parts, **options)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def open_on_cpu(folder: Path, **options: Any) -> Any:
    import kinema

    return kinema.VideoPipeline.from_pretrained(folder, device="cpu", **options)


class Models:
    """The models of `KINDS`, each built once per session."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._built: dict[str, Model] = {}

    def __call__(self, kind: str) -> Model:
        if kind not in self._built:
            folder = self._root / kind
            self._built[kind] = Model(folder, build(kind, folder), open_on_cpu(folder))
        return self._built[kind]

    def fresh(self, kind: str, **options: Any) -> Any:
        """A pipeline of our own that has loaded nothing yet."""
        return open_on_cpu(self(kind).folder, **options)

    def with_scheduler(self, kind: str, scheduler: Any) -> Model:
        """The same weights under another diffusers scheduler."""
        model = self(kind)
        folder = self._root / f"{kind}-{type(scheduler).__name__}"
        if not folder.exists():
            shutil.copytree(model.folder, folder, copy_function=os.link)
            (folder / "scheduler" / "scheduler_config.json").unlink()
            scheduler.save_pretrained(folder / "scheduler")
            index = folder / "model_index.json"
            text = index.read_text().replace("UniPCMultistepScheduler", type(scheduler).__name__)
            index.unlink()
            index.write_text(text)
        theirs = type(model.theirs)(**{**model.theirs.components, "scheduler": scheduler})
        theirs.set_progress_bar_config(disable=True)
        return Model(folder, theirs, open_on_cpu(folder))


@pytest.fixture(autouse=True)
def poisoned(poisoned_memory: None) -> None:
    """A buffer that is read before it is written is noticed, wherever it comes from."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[Any], list[torch.Tensor]]:
    """Every tensor that an object reaches through its own attributes and containers, each once."""

    def search(value: Any, seen: dict[int, Any]) -> list[torch.Tensor]:
        if id(value) in seen or isinstance(value, (str, int, float, type, torch.Generator)):
            return []
        seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, dict):
            inside = list(value.values())
        elif isinstance(value, (list, tuple)):
            inside = list(value)
        elif hasattr(value, "__dict__") and type(value).__module__.startswith("kinema"):
            inside = list(vars(value).values())
        else:
            return []
        return [tensor for one in inside for tensor in search(one, seen)]

    return lambda value: search(value, {})
