"""The groups of cases. A case spoils one thing, then does what a user would do with it.

Each group is a function (random, base, scratch) -> finished output or None; what it raises is judged by the worker.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fuzz_base import CLIP, PROMPT, Base
from fuzz_mutations import dumped, odd_value, spoilt_bytes, spoilt_json

import kinema
from kinema.errors import RequestError
from kinema.loading import parameters
from kinema.media.inputs import load_image, load_video
from kinema.request.generation import GenerationRequest

Group = Callable[[Random, Base, Path], Any]
PARTS = ("transformer", "vae", "text_encoder")


def generate(folder: Path, **more: Any) -> Any:
    """One step of a small clip with the model in `folder`, and what it wrote."""
    return kinema.VideoPipeline.from_pretrained(folder, device="cpu")(PROMPT, **{**CLIP, **more})


def replace(file: Path, data: bytes) -> None:
    file.unlink(missing_ok=True)  # a link to the original
    file.write_bytes(data)


def checkpoints(random: Random, base: Base, scratch: Path) -> Any:
    """Weight files: their bytes, their headers, their numbers, and what lies in their place."""
    model = base.copy(base.t2v, scratch / "model")
    folder = model / random.choice(PARTS)
    (file,) = folder.glob("*.safetensors")
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    kind = random.randrange(10)
    if kind < 3:
        replace(file, spoilt_bytes(data, random, front=header))
    elif kind < 6:
        entries = spoilt_json(json.loads(data[8:header]), random)
        encoded = dumped(entries)
        replace(file, len(encoded).to_bytes(8, "little") + encoded + data[header:])
    elif kind == 6:
        _numbers(file, data, header, random)
    elif kind == 7:
        _in_its_place(file, random)
    elif kind == 8:
        _shards(file, random)
    else:
        name = random.choice(("config.json", "extra.safetensors", file.name + ".bak", "x" * 255))
        replace(folder / name, random.choice((b"", b"{}", data[:100], b"version https://git-lfs")))
    return generate(model)


def _numbers(file: Path, data: bytes, header: int, random: Random) -> None:
    """Another dtype of the same numbers, or numbers that no model has."""
    from safetensors.torch import load, save

    tensors = load(data)
    chosen = random.sample(sorted(tensors), k=min(len(tensors), random.choice((1, 3, len(tensors)))))
    how = random.choice(("F64", "F16", "BF16", "nan", "inf", "huge", "zero", "int"))
    for name in chosen:
        tensor = tensors[name]
        if how in ("F64", "F16", "BF16"):
            dtype = {"F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}[how]
            tensors[name] = tensor.to(dtype)
        elif how == "int":
            tensors[name] = tensor.to(torch.int32)
        else:
            value = {"nan": float("nan"), "inf": float("inf"), "huge": 3e38, "zero": 0.0}[how]
            tensors[name] = tensor.clone().fill_(value)
    replace(file, save(tensors))


def _in_its_place(file: Path, random: Random) -> None:
    file.unlink()
    kind = random.randrange(7)
    if kind == 0:
        os.mkfifo(file)
    elif kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to(file)
    elif kind == 3:
        file.symlink_to("/dev/zero")
    elif kind == 4:
        file.touch()
    elif kind == 5:
        file.with_suffix(".bin").write_bytes(b"\x80\x04pickle")


def _shards(file: Path, random: Random) -> None:
    """An index over the one file, spoilt."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
    stem = file.name.removesuffix(".safetensors")
    shard = file.with_name(f"{stem}-00001-of-00001.safetensors")
    file.rename(shard)
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard.name)}
    spoilt = spoilt_json(index, random)
    if random.random() < 0.3:
        other = random.choice(("y" * 300 + ".safetensors", "../x.safetensors", "a\nb.safetensors", ".safetensors"))
        spoilt = {"weight_map": {**index["weight_map"], random.choice(names): other}}  # type: ignore[dict-item]
    replace(file.with_name(f"{stem}.safetensors.index.json"), dumped(spoilt))


def configs(random: Random, base: Base, scratch: Path) -> Any:
    """config.json of every part, scheduler_config.json and model_index.json."""
    model = base.copy(base.t2v, scratch / "model")
    names = [f"{part}/config.json" for part in PARTS]
    file = model / random.choice([*names, *names, "scheduler/scheduler_config.json", "model_index.json"])
    value = json.loads(file.read_bytes())
    kind = random.randrange(12)
    if kind < 8:  # a key of the part with another value
        for _ in range(random.choice((1, 1, 2))):
            value[random.choice(list(value))] = odd_value(random)
        replace(file, dumped(value))
    elif kind < 11:
        replace(file, dumped(spoilt_json(value, random)))
    else:
        replace(file, spoilt_bytes(file.read_bytes(), random))
    return generate(model)


NORMALIZERS: tuple[Any, ...] = (
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Precompiled", "precompiled_charsmap": None},
    {"type": "Replace", "pattern": {"Regex": "(([a-z])+.)+[A-Z]([a-z])+$"}, "content": "x"},
    {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": "["}, "content": "b"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000},
    {"type": "Replace", "pattern": {"String": ""}, "content": "ab"},
    {"type": "Prepend", "prepend": "▁" * 100_000},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40},
    *({"type": name} for name in ("NFKC", "Lowercase", "Strip", "StripAccents", "ByteLevel", "Nmt", "Unknown")),
)
PRE_TOKENIZERS: tuple[Any, ...] = (
    {"type": "Metaspace", "replacement": "▁▁", "prepend_scheme": "always"},
    {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    *({"type": name} for name in ("WhitespaceSplit", "Whitespace", "BertPreTokenizer", "Digits", "Punctuation")),
)
TEXTS = ("", "a red circle", "a" * 3000, "x" * 40 + "! a red circle", "\u0000", "é" * 100, "ａｂｃ ﷽" * 20, "🦊" * 50)


def tokenizers(random: Random, base: Base, scratch: Path) -> Any:
    """tokenizer.json and the files beside it, and texts that a spoilt one meets."""
    model = base.copy(base.t2v, scratch / "model")
    folder = model / "tokenizer"
    file = folder / random.choice(("tokenizer.json",) * 8 + ("tokenizer_config.json", "special_tokens_map.json"))
    value = json.loads(file.read_bytes())
    kind = random.randrange(10)
    if kind < 3 and file.name == "tokenizer.json":
        value["normalizer"] = random.choice(NORMALIZERS)
        replace(file, dumped(value))
    elif kind == 3 and file.name == "tokenizer.json":
        value["pre_tokenizer"] = random.choice(PRE_TOKENIZERS)
        replace(file, dumped(value))
    elif kind == 4 and file.name == "tokenizer.json":
        key = random.choice(("post_processor", "decoder", "added_tokens", "model", "truncation", "padding", "version"))
        value[key] = odd_value(random)
        replace(file, dumped(value))
    elif kind < 9:
        replace(file, dumped(spoilt_json(value, random)))
    else:
        replace(file, spoilt_bytes(file.read_bytes(), random))
    pipe = kinema.VideoPipeline.from_pretrained(model, device="cpu")
    return pipe(random.choice(TEXTS), **CLIP)


def media(random: Random, base: Base, scratch: Path) -> Any:
    """Pictures and videos as files: read alone, and as image= and video=."""
    chosen = random.choice(sorted(p for p in base.media.iterdir()))
    place = scratch / chosen.name
    if chosen.is_dir():
        shutil.copytree(chosen, place)
        inside = random.choice(sorted(place.iterdir()))
        inside.write_bytes(spoilt_bytes(inside.read_bytes(), random, front=64))
    elif random.random() < 0.03:
        os.mkfifo(place)
    elif random.random() < 0.1:  # another format's suffix
        place = place.with_suffix(random.choice((".png", ".mp4", ".npy", ".gif", ".txt", ".webp")))
        place.write_bytes(chosen.read_bytes())
    else:
        data = spoilt_bytes(chosen.read_bytes(), random, front=200)
        if random.random() < 0.1:
            data += random.choice(sorted(p for p in base.media.iterdir() if p.is_file())).read_bytes()
        place.write_bytes(data)
    way = random.randrange(4)
    if way == 0:
        load_image(place)
        return None
    if way == 1:
        load_video(place, max_frames=random.choice((None, 1, 4)))
        return None
    if way == 2:
        return generate(base.i2v, image=str(place))
    asked = {key: value for key, value in CLIP.items() if key != "num_frames"}
    pipe = kinema.VideoPipeline.from_pretrained(base.t2v, device="cpu")
    return pipe(PROMPT, **{**asked, "num_inference_steps": 2}, video=str(place))


FIELDS = tuple(GenerationRequest.__dataclass_fields__)
LIKELY: dict[str, tuple[Any, ...]] = {
    "prompt": ("", "red", ["red", "blue"], ["red", 3], [], "x" * 10**6, "\ud800", "a\x00b"),
    "negative_prompt": ("", "blue", ["blue"], [None]),
    "height": (16, 32, 33, 10**6), "width": (16, 32, 31, 10**9), "num_frames": (1, 5, 6, 9, 10**7 + 1),
    "num_inference_steps": (1, 2, 3, 1000, 10**6), "guidance_scale": (0, 1, 1.0, 5, np.float32(3), -1, 10**400),
    "num_videos_per_prompt": (1, 2, 10**6), "seed": (0, 1, [1, 2], 2**63, np.int64(3), -1, np.uint8(4)),
    "output_type": ("np", "pt", "pil", "latent", "mp4"), "strength": (0.1, 0.5, 1.0, 0.0, 2.0),
    "max_sequence_length": (1, 8, 512, 513), "guidance_scale_2": (1.0, 3.0),
}  # fmt: skip


def requests(random: Random, base: Base, scratch: Path) -> Any:
    """Fields of a request: odd values, likely values, tensors of wrong shapes, dtypes, devices and numbers."""
    pipe = kinema.VideoPipeline.from_pretrained(base.t2v, device="cpu")
    asked: dict[str, Any] = {key: value for key, value in CLIP.items() if key != "progress"} | {"prompt": PROMPT}
    for name in random.sample(FIELDS, k=random.choice((1, 1, 2, 3))):
        draw = random.random()
        if draw < 0.6 and name in LIKELY:
            asked[name] = random.choice(LIKELY[name])
        elif draw < 0.85:
            asked[name] = odd_value(random)
        else:
            asked[name] = _array(random)
    if random.random() < 0.1:
        asked[random.choice(("num_frame", "guidance", "eta", ""))] = odd_value(random)
    state = pipe.prepare(parameters.request(asked))  # as `__call__` makes one, unknown names included
    if state.num_steps * state.latents.numel() > 50_000:  # a legitimate request that would take long
        return None
    while not state.done:
        pipe.step([state])
    return pipe.finish(state)


def _array(random: Random) -> Any:
    shapes = ((1, 4, 2, 4, 4), (1, 8, 24), (2, 8, 24), (1, 0, 24), (), (3,), (1, 3, 5, 32, 32), (32, 32, 3))
    shape = random.choice(shapes)
    kind = random.randrange(6)
    if kind == 0:
        return np.random.default_rng(0).random(shape).astype(random.choice(("f4", "f8", "u1", "i8", "c8", "O")))
    dtype = random.choice((torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.complex64))
    made = torch.zeros(shape, dtype=dtype, device="cpu")
    if dtype.is_floating_point:
        made = made + random.choice((0.0, 0.5, float("nan"), float("inf"), 1e30))
    return made.to("meta") if kind == 1 else made


def _segmentation_fault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _endless() -> None:
    while True:
        pass


def _large() -> None:
    np.ones(500 << 20, np.uint8).sum()


class _Unsafe(RequestError):
    """A message as a careless error would show it."""

    def __str__(self) -> str:
        return "a\x1b[31m"


def _refuse() -> None:
    raise _Unsafe


# what the run itself must notice: its own tests ask for them
PLANTED: dict[str, Callable[[], Any]] = {
    "crash": _segmentation_fault,
    "hang": _endless,
    "wait": lambda: time.sleep(3600),
    "memory": _large,
    "raise": lambda: 1 // 0,
    "message": _refuse,
    "nan": lambda: SimpleNamespace(frames=np.full(3, np.nan)),
}

# {name: (group, cases of a whole run)}
GROUPS: dict[str, tuple[Group, int]] = {
    "checkpoints": (checkpoints, 2500),
    "configs": (configs, 3000),
    "tokenizers": (tokenizers, 1500),
    "media": (media, 1500),
    "requests": (requests, 2000),
}
