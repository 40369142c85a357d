"""A transformer of Wan 1.3B's shape with a few layers, and its inputs, all drawn on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from kinema.bench.gpu_session.drawn import Drawn, drawn_weights, flowing
from kinema.bench.gpu_session.question import Session
from kinema.bench.published_configs import TRANSFORMER_1_3B
from kinema.checkpoints.weights import Weights
from kinema.families.wan.config import WanConfig, tensor_shapes
from kinema.families.wan.transformer import WanTransformer
from kinema.ops import build_ops, plan_ops
from kinema.ops.common import Precision, Target

LAYERS = 4
GRID = (21, 30, 52)  # tokens of 81 frames of 480×832: 32,760
FEW = (5, 10, 12)  # few enough for attention in float64; also 8 more than a multiple of 16, so the kernels are the same
TEXT = 512
TIMESTEP = 500.0
SMALL = WanConfig(
    num_attention_heads=1, attention_head_dim=32, ffn_dim=32, num_layers=1, text_dim=16, in_channels=4, out_channels=4,
    freq_dim=16,
)  # fmt: skip
EXACT = Precision("float64", torch.float64, torch.float64)


@dataclass(frozen=True)
class Inputs:
    """latents [1, C, T, H, W] fp32, timestep [1], text [1, L, text_dim] fp32, none of it padding."""

    latents: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor


def config_for(session: Session) -> WanConfig:
    return session.pick(WanConfig.from_dict({**TRANSFORMER_1_3B, "num_layers": LAYERS}), SMALL)


def weights_for(session: Session, config: WanConfig) -> Weights:
    return drawn_weights(tensor_shapes(config), session.device, dtype=torch.bfloat16)


def inputs_for(session: Session, config: WanConfig, grid: tuple[int, int, int], small: tuple[int, int, int]) -> Inputs:
    """grid: tokens along T, H, W; small: of a dry run."""
    new = Drawn(session.device)
    size = [n * p for n, p in zip(session.pick(grid, small), config.patch_size, strict=True)]
    text = new(1, session.pick(TEXT, 3), config.text_dim)
    return Inputs(
        new(1, config.in_channels, *size), torch.tensor([TIMESTEP], dtype=torch.float32, device=session.device), text
    )


def forward(
    session: Session, config: WanConfig, weights: Weights, backend: str, precision: Precision | None = None
) -> Callable[[Inputs], torch.Tensor]:
    """kinema's forward, with the prompt's keys and values, as `kinema bench peers` times it. backend: as of a plan."""
    target = flowing(session.device) if precision is None else Target(session.device, precision)
    model = WanTransformer(config, weights, build_ops(plan_ops(target, backend)))

    def call(given: Inputs) -> torch.Tensor:
        return model(given.latents, given.timestep, model.encode_context(given.text, folded=0))

    return call
