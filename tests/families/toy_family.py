"""A family of its own: blocks in another order, a VAE of two levels, a text encoder of words, its own geometry."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from kinema.checkpoints import FolderFormat, Slot, Stored, save_component, save_json, save_model_index
from kinema.encoders.prompts import encode_prompts
from kinema.families.base import Model, Part, Work, opened, slots_of
from kinema.families.geometry import Geometry
from kinema.families.layers import pack_linear, sinusoid
from kinema.fields.config import from_config
from kinema.ops.attention import KV
from kinema.request.defaults import GenerationDefaults
from kinema.text.tokenizer import Tokenizer

WORDS = ("<pad>", "</s>", "<unk>", "red", "blue", "box", "moves")


@dataclass(frozen=True)
class ToyConfig:
    width: int = 32
    heads: int = 2
    layers: int = 2
    channels: int = 4

    @staticmethod
    def from_dict(config):
        return from_config(ToyConfig, config)

    def transformer(self):
        shapes = {"patch.weight": Stored((self.width, self.channels, 1, 2, 2)), "patch.bias": Stored((self.width,))}
        shapes["out.weight"] = Stored((4 * self.channels, self.width), "wide")
        for i in range(self.layers):
            for name, rows in (("qkv", 3), ("proj", 1), ("up", 1), ("down", 1)):
                shapes[f"{i}.{name}.weight"] = Stored((rows * self.width, self.width), "planned")
        return shapes

    def vae(self):
        level = 16 * 3
        pairs = {"down1": (level, level), "down2": (self.channels, 4 * level), "up2": (4 * level, self.channels)}
        return {f"{name}.weight": Stored(shape, "exact") for name, shape in {**pairs, "up1": (level, level)}.items()}

    def words(self):
        return {"table": Stored((len(WORDS), self.width))}


@dataclass(frozen=True)
class ToyContext:
    text: torch.Tensor

    @property
    def rows(self):
        return len(self.text)

    @property
    def shape(self):
        return self.text.shape[1:]

    def select(self, rows):
        return ToyContext(self.text[rows])

    @staticmethod
    def concatenate(contexts):
        return ToyContext(torch.cat([context.text for context in contexts]))


class ToyTransformer:
    """The MLP comes first, and attention sees latents and words together."""

    patch_size = (1, 2, 2)

    def __init__(self, config, weights, ops):
        weights = weights.kept(config.transformer())
        self.config, self.ops = config, ops
        self.patch = ops.pack_patch_embed(weights["patch.weight"], weights["patch.bias"])
        names = ("qkv", "proj", "up", "down")
        self.blocks = [{n: pack_linear(weights, f"{i}.{n}", ops) for n in names} for i in range(config.layers)]
        self.out = pack_linear(weights, "out", ops)

    def encode_context(self, text, image=None):
        return ToyContext(text.to(self.ops.device, self.ops.dtype))

    def rope(self, latents):
        return None

    def release(self):
        pass

    def __call__(self, latents, timesteps, context, *, causal=None, rope=None):
        ops, grid = self.ops, (latents.shape[2], latents.shape[3] // 2, latents.shape[4] // 2)
        x = ops.patch_embed(latents.to(ops.dtype), self.patch) + sinusoid(timesteps, self.config.width)[:, None]
        for block in self.blocks:
            h = ops.linear(ops.norm_modulate(x, eps=1e-6), block["up"], activation="silu")
            x = ops.linear(h, block["down"], residual=x)
            both = torch.cat((ops.norm_modulate(x, eps=1e-6), context.text), dim=1)
            q, k, v = (ops.qk_norm_rope(t, self.config.heads) for t in ops.linear(both, block["qkv"]).chunk(3, dim=-1))
            (h,) = ops.attention(q[:, :, : x.shape[1]], KV(k, v))
            x = ops.linear(h, block["proj"], residual=x)
        return ops.unpatchify(ops.linear(x, self.out), grid, self.patch_size).float()


class ToyVAE:
    """4x4 pixels, then 2x2 of what these give; frames stay apart."""

    def __init__(self, config, weights, ops):
        self.config, self.ops, self.device = config, ops, ops.device
        self.levels = {name: weights[f"{name}.weight"].to(ops.device) for name in ("down1", "down2", "up2", "up1")}

    def pack(self, half):
        pass

    def packed(self, half):
        return True

    def encode(self, video):
        x = self._level("down1", pixel_unshuffle(video.transpose(1, 2), 4))
        x = self._level("down2", pixel_unshuffle(x, 2)).transpose(1, 2)
        return SimpleNamespace(mode=lambda: x)

    def decode(self, latents, *, tiling=None):
        x = pixel_shuffle(self._level("up2", latents.transpose(1, 2)), 2)
        return pixel_shuffle(self._level("up1", x), 4).transpose(1, 2).tanh()

    def decode_chunks(self, latents, *, tiling=None):
        return (self.decode(latents[:, :, i : i + 1]) for i in range(latents.shape[2]))

    def normalize(self, latents):
        return latents

    def denormalize(self, latents):
        return latents

    def _level(self, name, x):
        return torch.einsum("oc,btchw->btohw", self.levels[name], x)


class ToyText:
    def __init__(self, config, weights, ops):
        self.config, self.ops, self.table = config, ops, weights["table"].to(ops.device)

    def __call__(self, ids, mask):
        return self.table[ids.to(self.table.device)]


def _part(class_name, library, kind, tensors, **more):
    return Part(
        Slot(library, (class_name,)),
        kind,
        lambda files, ops: kind(files.config, files.tensors, ops),
        ToyConfig.from_dict,
        lambda config, found: tensors(config),
        **more,
    )


PARTS = {
    "transformer": _part("ToyTransformer3D", "diffusers", ToyTransformer, ToyConfig.transformer),
    "vae": _part(
        "ToyAutoencoder",
        "diffusers",
        ToyVAE,
        ToyConfig.vae,
        half=lambda name: "encoder" if "down" in name else "decoder",
    ),
    "text_encoder": _part("ToyWords", "transformers", ToyText, ToyConfig.words),
    "tokenizer": Part(
        Slot("transformers", ("PreTrainedTokenizerFast",), "tokenizer_config.json"),
        Tokenizer,
        lambda files, ops: Tokenizer.from_folder(files.component.folder, len(WORDS)),
    ),
}


@dataclass(frozen=True)
class ToyOptions:
    hum: bool = False


class ToyModel(Model):
    parts = PARTS
    max_prompt_tokens = 16

    def __init__(self, folder, variant):
        self.folder, self.configs = folder, opened(folder, PARTS, variant)
        config = self.configs["transformer"]
        self.geometry = Geometry(temporal=1, spatial=8, patch=(1, 2, 2))
        native = GenerationDefaults(32, 48, 3, 8.0, 4, 2.0, 8)
        self.defaults, self.latent_channels, self.text_width = native, config.channels, config.width

    def encode_text(self, parts, request):
        return encode_prompts(parts, request)

    def work(self, request, plan, *, streamed, graphs):
        frames, height, width = request.clip
        pixels = 12 * request.samples * frames * height * width
        return {"text": Work(2**20), "denoise": Work(pixels), "decode": Work((1 if streamed else 4) * pixels)}


class ToyFamily:
    name = "toy"
    parts = PARTS
    format = FolderFormat(("ToyPipeline",), slots_of(PARTS), (("transformer",), ("vae",), ("scheduler",)), ToyOptions)

    def open(self, folder, variant):
        return ToyModel(folder, variant)


def write_toy(folder: Path) -> Path:
    """A model folder with random weights."""
    config, generator = ToyConfig(), torch.Generator().manual_seed(0)
    for name, part in PARTS.items():
        if part.tensors is not None:
            shapes = part.tensors(config, ()).items()
            random = {name: torch.randn(shape, generator=generator, dtype=torch.float32) for name, shape in shapes}
            tensors = {name: tensor / tensor.shape[-1] ** 0.5 for name, tensor in random.items()}
            said = {"_class_name": part.slot.classes[0]} if part.slot.library == "diffusers" else {}
            save_component(folder / name, {**said, **asdict(config)}, tensors)
    vocabulary = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(WORDS)}, "unk_token": "<unk>"}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    template = {"single": [{"Sequence": {"id": "A", "type_id": 0}}, end], "pair": []}
    after = {
        "type": "TemplateProcessing",
        **template,
        "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
    }
    words = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": after,
    }
    save_json(folder / "tokenizer" / "tokenizer.json", {**words, "model": vocabulary})
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    save_json(folder / "tokenizer" / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **named})
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    save_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    classes = {name: part.slot.classes[0] for name, part in PARTS.items()}
    save_model_index(
        folder, "ToyPipeline", {**classes, "scheduler": scheduler["_class_name"]}, ToyFamily.format.slots, {"hum": True}
    )
    return folder
