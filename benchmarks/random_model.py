"""Writes a pipeline folder of a published size with random weights, for runs at real size without a download.

    python -m kinema.bench.random_model FOLDER --preset wan2.1-t2v-1.3b --dtype bf16

Weights are scaled so that activations stay of order 1 and every sub-layer matters: such a model's output is noise, but
every number of it can be compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import torch

from kinema.bench.published_configs import CLIP_PREPROCESSOR, PRESETS, Config, Published
from kinema.checkpoints import Shapes, save_component, save_json, save_model_index
from kinema.errors import KinemaError, RequestError
from kinema.families.base import slots_of
from kinema.families.wan.family import PARTS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD_BYTES = 5_000_000_000
TEXT_LAYERS = 2


class RandomTensors(Mapping[str, torch.Tensor]):
    """Tensors that are drawn on access, each from its own seed."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype, seed: int, *, d_kv: int = 1) -> None:
        self._shapes = shapes
        self._dtype = dtype
        self._seed = seed
        self._d_kv = d_kv

    def shapes(self) -> Shapes:
        return self._shapes

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        return dict.fromkeys(self._shapes, self._dtype)

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        digest = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        tensor = torch.empty(shape, dtype=self._dtype, device="cpu")
        if is_norm(name, shape):
            return tensor.uniform_(0.5, 1.5, generator=generator)
        return tensor.normal_(0.0, standard_deviation(name, shape, self._d_kv), generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def is_norm(name: str, shape: Sequence[int]) -> bool:
    """A norm's weight: every one-dimensional `weight`, and the VAE's `gamma` of [C, 1, 1(, 1)]."""
    return name.endswith(".gamma") or (name.endswith(".weight") and len(shape) == 1)


def standard_deviation(name: str, shape: Sequence[int], d_kv: int = 1) -> float:
    """Of any weight but a norm's: biases and tables 0.5, matrices and convolutions 1/sqrt(fan-in).

    T5 does not scale its attention by 1/sqrt(d_kv), so its queries carry that factor.
    """
    if name in ("shared.weight", "encoder.embed_tokens.weight"):
        return 1.0
    if not name.endswith(".weight") or name.endswith(("relative_attention_bias.weight", "position_embedding.weight")):
        return 0.5
    fan_in = prod(shape[1:])
    if name.endswith("SelfAttention.q.weight"):
        fan_in *= d_kv
    return float(fan_in**-0.5)


def transformer_shapes(config: Config) -> Shapes:
    from kinema.families.wan.config import WanConfig, tensor_shapes

    return tensor_shapes(WanConfig.from_dict(config))


def vae_shapes(config: Config) -> Shapes:
    from kinema.families.wan.vae.autoencoder import WanVAEConfig, tensor_shapes

    return tensor_shapes(WanVAEConfig.from_dict(config))


def text_encoder_shapes(config: Config) -> Shapes:
    from kinema.encoders.umt5 import UMT5Config, tensor_shapes

    return tensor_shapes(UMT5Config.from_dict(config))


def image_encoder_shapes(config: Config) -> Shapes:
    """With the projection head, which published folders contain and the pipeline does not use."""
    from kinema.encoders.clip_vision import PREFIX, CLIPVisionConfig, tensor_shapes

    published = (f"{PREFIX}.embeddings.class_embedding",)
    head = {"visual_projection.weight": (config["projection_dim"], config["hidden_size"])}
    return tensor_shapes(CLIPVisionConfig.from_dict(config), published) | head


def write_random_model(
    folder: str | os.PathLike[str],
    preset: str | Published,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    layers: int | None = None,
    text_layers: int | None = TEXT_LAYERS,
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the folder, one tensor in memory at a time, and return its path.

    layers: of the transformer, instead of the published number; text_layers: of the text encoder (None: the
    published 24, which is 11 GB in bf16). The VAE is fp32 as published. Every part is a function of the seed alone.
    """
    published = _preset(preset)
    folder = Path(folder)
    transformer = published.transformer if layers is None else {**published.transformer, "num_layers": layers}
    text = published.text_encoder if text_layers is None else {**published.text_encoder, "num_layers": text_layers}

    def save(name: str, config: Config, shapes: Shapes, stored: torch.dtype) -> None:
        part_seed = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little")
        tensors = RandomTensors(shapes, stored, part_seed, d_kv=config.get("d_kv", 1))
        size = sum(prod(shape) for shape in shapes.values()) * stored.itemsize
        progress(f"{folder / name}: {len(shapes)} tensors, {size / 1e9:.2f} GB")
        save_component(folder / name, config, tensors, max_shard_bytes=SHARD_BYTES)

    experts = ["transformer", "transformer_2"][: published.experts]
    for name in experts:
        save(name, transformer, transformer_shapes(transformer), dtype)
    save("vae", published.vae, vae_shapes(published.vae), torch.float32)
    save("text_encoder", text, text_encoder_shapes(text), dtype)
    write_tokenizer(folder / "tokenizer")
    save_json(folder / "scheduler" / "scheduler_config.json", published.scheduler)
    components: dict[str, str | None] = {
        **dict.fromkeys(experts, transformer["_class_name"]),
        "vae": published.vae["_class_name"],
        "text_encoder": "UMT5EncoderModel",
        "tokenizer": "PreTrainedTokenizerFast",
        "scheduler": published.scheduler["_class_name"],
    }
    if published.image_encoder is not None:
        save("image_encoder", published.image_encoder, image_encoder_shapes(published.image_encoder), dtype)
        save_json(folder / "image_processor" / "preprocessor_config.json", CLIP_PREPROCESSOR)
        components |= {"image_encoder": "CLIPVisionModel", "image_processor": "CLIPImageProcessor"}
    elif published.pipeline_class == "WanImageToVideoPipeline":
        components |= {"image_encoder": None, "image_processor": None}
    components.setdefault("transformer_2", None)
    save_model_index(folder, published.pipeline_class, components, slots_of(PARTS), published.options)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer with T5's special tokens that splits text into characters, falling back to bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = ("<pad>", "</s>", "<unk>")
    pieces = [(token, 0.0) for token in special]
    pieces += [("▁", -2.0), *((chr(code), -4.0) for code in range(0x21, 0x7F))]
    pieces += [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    save_json(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
    names = dict(zip(("pad_token", "eos_token", "unk_token"), special, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "padding_side": "right", **names}
    save_json(folder / "tokenizer_config.json", config)
    save_json(folder / "special_tokens_map.json", names)


def _preset(preset: str | Published) -> Published:
    if isinstance(preset, Published):
        return preset
    if preset not in PRESETS:
        raise RequestError(f"preset {preset!r} is not known: wanted one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a Wan pipeline folder of a published size, random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=list(PRESETS), default="wan2.1-t2v-1.3b")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16", help="of all parts but the VAE (bf16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="transformer layers, instead of the published number")
    parser.add_argument("--text-layers", type=int, default=TEXT_LAYERS, help=f"UMT5 layers ({TEXT_LAYERS})")
    given = parser.parse_args(arguments)
    try:
        write_random_model(
            given.folder,
            given.preset,
            dtype=DTYPES[given.dtype],
            seed=given.seed,
            layers=given.layers,
            text_layers=given.text_layers,
            progress=lambda line: print(line, file=sys.stderr),
        )
    except KinemaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
