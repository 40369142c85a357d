"""diffusers in bf16 on a CPU, as model cards load it: kinema's activations are fp32 there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kinema.bench.model_parts import Inputs
from kinema.bench.peers.diffusers_eager import Diffusers


class InBf16(Diffusers):
    settings = "diffusers, eager, in bf16 but for the VAE"
    devices = ("cpu",)  # on a GPU kinema's activations are bf16 anyway

    def forward(
        self, folder: Path, part: str, inputs: Inputs, dtype: torch.dtype, threads: int
    ) -> Callable[[], Any] | None:
        if part == "vae":
            return None  # it stays in fp32, as in the peer diffusers
        return super().forward(folder, part, inputs, torch.bfloat16, threads)

    def generation(
        self, folder: Path, request: dict[str, Any], device: torch.device, dtype: torch.dtype
    ) -> Callable[[], Any] | None:
        return super().generation(folder, request, device, torch.bfloat16)


PEER = InBf16()
