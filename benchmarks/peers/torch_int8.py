"""diffusers with torch's own dynamic int8: weights per channel, inputs rounded at each call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kinema.bench.model_parts import Inputs
from kinema.bench.peers.diffusers_eager import Diffusers


class DynamicInt8(Diffusers):
    settings = (
        "diffusers, eager, torch.ao.quantization.quantize_dynamic: the blocks' linear layers in int8, weights per "
        "channel; the rest in fp32"
    )

    devices: tuple[str, ...] = ("cpu",)

    def forward(
        self, folder: Path, part: str, inputs: Inputs, dtype: torch.dtype, threads: int
    ) -> Callable[[], Any] | None:
        if part != "transformer":
            return None  # the VAE is convolutions, which torch does not quantise dynamically
        return super().forward(folder, part, inputs, dtype, threads)

    def prepared(self, model: Any) -> Any:
        if not hasattr(model, "blocks"):  # a generation's decoder
            return model
        kind: Any = torch.ao.quantization
        with warnings.catch_warnings():  # torch announces that this will move to another package
            warnings.simplefilter("ignore")
            # only the blocks: the embeddings before them are asked for their parameters' dtype; int8 layers have none
            model.blocks = kind.quantize_dynamic(model.blocks, {torch.nn.Linear: kind.per_channel_dynamic_qconfig})
        return model


PEER = DynamicInt8()
