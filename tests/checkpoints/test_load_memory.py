"""Loading holds one copy of the model in its target precision and one spare tensor, not the file as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kinema.checkpoints import ComponentFiles, save_component

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")

LOAD = """
import sys
import torch
from kinema.checkpoints import ComponentFiles, load_weights

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

files = ComponentFiles(sys.argv[1])
dtype = getattr(torch, sys.argv[2])
torch.ones(300, 300).to(dtype) @ torch.ones(300, 300).to(dtype)  # libraries allocate on first use
weights = load_weights(files, files.shapes())
before = peak()
names = list(files)
joined = int(sys.argv[3])
kept = [torch.cat([weights[n] for n in names[i : i + joined]]).to(dtype) for i in range(0, len(names), joined)]
print(before, peak(), sum(t.nbytes for t in kept))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 MB in fp32, in 4 shards, of tensors of 0.05 to 1.2 MB."""
    folder = tmp_path_factory.mktemp("big")
    rows = [(37 * i) % 281 + 12 for i in range(500)]
    tensors = {f"w{i}": torch.full((n, 1000), float(i)) for i, n in enumerate(rows)}
    save_component(folder, {"_class_name": "X"}, tensors, max_shard_bytes=80_000_000)
    assert ComponentFiles(folder).nbytes > 290_000_000
    assert len(ComponentFiles(folder).files) == 4
    return folder


@pytest.mark.parametrize(("dtype", "joined"), [("bfloat16", 3), ("float32", 1)])
def test_peak_memory(folder: Path, dtype: str, joined: int) -> None:
    """joined: how many tensors are packed into one, as q, k and v are."""
    command = [sys.executable, "-c", LOAD, str(folder), dtype, str(joined)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after, kept = map(int, run.stdout.split())
    assert kept > 140_000_000
    assert after - before >= 0.9 * kept, "the measurement sees what was kept"
    assert after - before <= 1.15 * kept, f"{(after - before) / kept:.3f} copies at the peak"
