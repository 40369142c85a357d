"""Wan 2.1 T2V-1.3B at its real size, with random weights: memory of loading, one forward against diffusers, and the
whole way through the command line. Run with `make test-slow`; needs 15 GB of disk and 16 GB of memory."""

import json
import os
import subprocess
import sys
from math import prod

import pytest
import torch

from kinema.bench.random_model import write_random_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "wan2.1-t2v-1.3b"
    write_random_model(path, "wan2.1-t2v-1.3b", dtype=torch.float32, seed=0)
    return path


def run_python(code: str, *arguments: str) -> str:
    threads = {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, **threads}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


LOAD = """
import sys, torch
from kinema.buffers.peak import peak_bytes
from kinema.pipeline import VideoPipeline
pipe = VideoPipeline.from_pretrained(sys.argv[1], precision=sys.argv[2])
before = peak_bytes(torch.device("cpu"))
for name in ("text_encoder", "transformer", "vae"):
    pipe.components.part(name)
print(peak_bytes(torch.device("cpu")) - before)
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loading_peaks_near_one_copy(folder, precision):
    from kinema.families.registry import open_folder, open_model

    stored = {"fp32": 4, "bf16": 2}[precision]
    shapes = {name: tensors for name, _, tensors in open_model(open_folder(folder)).tensors()}
    size = sum(
        prod(shape) * (4 if name == "vae" else stored)
        for name, part in shapes.items()
        for tensor, shape in part.items()
        if "shared" not in tensor and "embed_tokens" not in tensor  # the embedding table stays in its file
    )
    peak = int(run_python(LOAD, str(folder), precision))
    print(f"{precision}: peak {peak / 2**30:.2f} GiB for weights of {size / 2**30:.2f} GiB, {peak / size:.3f}")
    assert 0.9 * size <= peak <= 1.15 * size  # less than the weights would mean that nothing was measured


FORWARD = """
import sys, torch
from pathlib import Path
folder = Path(sys.argv[1]) / "transformer"
generator = torch.Generator().manual_seed(0)
latents = torch.randn(1, 16, 5, 32, 32, generator=generator)  # 5 x 16 x 16 = 1280 tokens
text = torch.zeros(1, 512, 4096)
text[:, :77] = torch.randn(1, 77, 4096, generator=generator)
timestep = torch.tensor([637])
with torch.no_grad():
    if sys.argv[2] == "kinema":
        from kinema import load_transformer
        out = load_transformer(folder)(latents, timestep, text)
    else:
        from diffusers import WanTransformer3DModel
        model = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.float32)
        out = model(latents, timestep, text, return_dict=False)[0]
torch.save(out, sys.argv[3])
"""


def test_forward_at_1280_tokens_equals_diffusers(folder, tmp_path):
    outputs = []
    for who in ("kinema", "diffusers"):
        run_python(FORWARD + "\nprint('done')", str(folder), who, str(tmp_path / who))
        outputs.append(torch.load(tmp_path / who, weights_only=True))
    ours, theirs = outputs
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    print(f"forward at 1280 tokens: max error {error:.2e} of the output's scale")
    assert error <= 1e-4


def test_two_steps_through_the_command_line(folder, tmp_path):
    out = tmp_path / "real.mp4"
    command = [sys.executable, "-m", "kinema", "generate", "a cat on a boat", "--model", str(folder), "-o", str(out)]
    size = ["--height", "256", "--width", "256", "--num-frames", "17"]
    done = subprocess.run([*command, *size, "--steps", "2", "--seed", "1", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    print(json.dumps(report["seconds"]), f"peak {report['peak_bytes'] / 2**30:.2f} GiB")
    import av

    with av.open(str(out)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 17 and (frames[0].width, frames[0].height) == (256, 256)
    assert frames[8].to_ndarray(format="rgb24").std() > 1.0
