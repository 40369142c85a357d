"""The same generation by diffusers and by kinema: python examples/diffusers_twin.py [frames.npz]

Needs diffusers and transformers (`make tools`). Exits with 1 if any pixel in [0, 1] differs by more than 1e-3."""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline  # no such module: run `make tools` first

import kinema

FOLDER = Path(kinema.__file__).parent / "sample" / "model"  # what "sample" stands for
CALL = {"prompt": "a red circle moving left", "height": 64, "width": 64, "num_frames": 17}
CALL |= {"num_inference_steps": 20, "guidance_scale": 3.0}
TOLERANCE = 1e-3


def main(path: str) -> int:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 5, 8, 8, generator=generator, dtype=torch.float32)  # [B, C, T, h, w]

    theirs = WanPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)  # else the text encoder stays in fp16
    theirs.set_progress_bar_config(disable=True)
    torch.manual_seed(1)  # diffusers draws a stochastic scheduler's noise from the default generator
    wanted = theirs(**CALL, latents=latents.clone()).frames

    ours = kinema.VideoPipeline.from_pretrained(FOLDER)
    got = ours(**CALL, latents=latents.clone(), seed=1).frames

    largest = float(np.abs(got - wanted).max())
    np.savez_compressed(path, diffusers=wanted, kinema=got)
    print(f"largest difference of the frames {wanted.shape}: {largest:.1e}, at most {TOLERANCE:.0e} allowed")
    return int(not largest <= TOLERANCE)  # NaN fails


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "diffusers_twin.npz"))
