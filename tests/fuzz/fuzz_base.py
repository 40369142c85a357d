"""The originals that the cases spoil: two tiny models and one file of every medium, made once for a run."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# one step of a small clip: a case takes milliseconds where nothing is wrong
CLIP = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "seed": 0, "progress": False}
PROMPT = "a red circle moving left"


@dataclass(frozen=True)
class Base:
    """Folders of the originals, read only: `t2v` and `i2v` are models, `media` holds pictures and videos."""

    folder: Path

    @property
    def t2v(self) -> Path:
        return self.folder / "t2v"

    @property
    def i2v(self) -> Path:
        return self.folder / "i2v"

    @property
    def media(self) -> Path:
        return self.folder / "media"

    @staticmethod
    def make(folder: Path) -> Base:
        from kinema.bench.published_configs import TRANSFORMER_1_3B, UMT5_XXL, VAE_21, Published, unipc
        from kinema.bench.random_model import write_random_model

        transformer = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4}
        transformer |= {"num_layers": 2, "text_dim": 24, "freq_dim": 32, "ffn_dim": 64}
        vae = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
        vae |= {"latents_mean": [0.1, 0.2, -0.1, 0.3], "latents_std": [1.0, 2.0, 0.5, 1.5]}
        text = {"vocab_size": 400, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
        parts = ({**VAE_21, **vae}, unipc(3.0), {**UMT5_XXL, **text})
        base = Base(folder)
        for name, pipeline, channels in (("t2v", "WanPipeline", 4), ("i2v", "WanImageToVideoPipeline", 12)):
            config = {**TRANSFORMER_1_3B, **transformer, "in_channels": channels}
            write_random_model(folder / name, Published(pipeline, config, *parts))
        _write_media(base.media)
        return base

    def copy(self, model: Path, place: Path) -> Path:
        """The model at `place`, of links: a case replaces the file that it spoils."""
        return Path(shutil.copytree(model, place, copy_function=os.link))


def _write_media(folder: Path) -> None:
    from PIL import Image

    from kinema.media.video import Video

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (9, 6, 6, 3), np.uint8)
    frames = coarse.repeat(8, axis=1).repeat(8, axis=2)
    video = Video(frames, 12.0)
    for suffix in ("mp4", "gif", "webp", "npy"):
        video.save(folder / f"video.{suffix}")
    video.save(folder / "frames/")
    picture = Image.fromarray(frames[0])
    for suffix in ("png", "jpg", "webp", "bmp", "tiff", "ppm", "gif"):
        picture.save(folder / f"picture.{suffix}")
    Image.fromarray(frames[0][..., 0].astype(np.uint16) * 257).save(folder / "grey16.png")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.save(folder / "animated.png", save_all=True, append_images=[Image.fromarray(f) for f in frames[1:]])
