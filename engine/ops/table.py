"""What models call: the functions of the ops, and the plan that says which implementation each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from kinema.ops.attention import Attention
from kinema.ops.common import PRECISIONS, QuantKind, Storage, Target
from kinema.ops.conv3d import Conv3d, Conv3dWeight
from kinema.ops.linear import Linear, LinearWeight
from kinema.ops.norm_modulate import NormModulate
from kinema.ops.patch_embed import PatchEmbed, PatchEmbedWeight
from kinema.ops.qk_norm_rope import QkNormRope
from kinema.ops.quantize import Quantize
from kinema.ops.scheduler_step import SchedulerStep
from kinema.ops.unpatchify import Unpatchify


@dataclass(frozen=True)
class Choice:
    """What runs one op, and why every other candidate does not.

    rest: the backend of the calls that the chosen one does not take; None if it takes them all.
    """

    op: str
    backend: str
    rejected: tuple[tuple[str, str], ...]
    rest: str | None = None


@dataclass(frozen=True)
class Plan:
    """quantize_attention: what a transformer asks of its self-attention. attention_dtype: of the queries and keys that
    it gives to attention; None: as everything else between ops.
    """

    target: Target
    choices: tuple[Choice, ...]
    quantize_attention: QuantKind | None = None
    attention_dtype: torch.dtype | None = None

    def backend(self, op: str) -> str:
        """What runs an op."""
        return next(choice.backend for choice in self.choices if choice.op == op)


@dataclass(frozen=True)
class Ops:
    """The functions models call; immutable. Signatures and semantics: `kinema.ops.<op>`."""

    plan: Plan
    patch_embed: PatchEmbed
    unpatchify: Unpatchify
    norm_modulate: NormModulate
    qk_norm_rope: QkNormRope
    attention: Attention
    linear: Linear
    quantize: Quantize
    scheduler_step: SchedulerStep
    conv3d: Conv3d
    _pack: dict[str, Any]
    _planned: dict[str, Any] = field(default_factory=dict)

    @property
    def is_planned(self) -> bool:
        """Whether every function is still the one that the plan chose, none a caller's own."""
        return bool(self._planned) and all(getattr(self, name) is chosen for name, chosen in self._planned.items())

    @property
    def device(self) -> torch.device:
        return self.plan.target.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that flows between ops."""
        return self.plan.target.precision.activations

    def pack_linear(
        self,
        weight: torch.Tensor | Sequence[torch.Tensor],
        bias: torch.Tensor | Sequence[torch.Tensor] | None = None,
        *,
        gate_weight: torch.Tensor | None = None,
        gate_bias: torch.Tensor | None = None,
        storage: Storage = "planned",
    ) -> LinearWeight:
        """`linear`'s pack for this plan's target.

        storage: of the matrix, see `kinema.ops.common.precision.Storage`.
        """
        packed: LinearWeight = self._pack["pack_linear"](
            weight,
            bias,
            gate_weight=gate_weight,
            gate_bias=gate_bias,
            target=self._stored(storage),
        )
        return packed

    def pack_patch_embed(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PatchEmbedWeight:
        packed: PatchEmbedWeight = self._pack["pack_patch_embed"](weight, bias, target=self.plan.target)
        return packed

    def pack_conv3d(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        stride: tuple[int, int, int] = (1, 1, 1),
        padding: tuple[int, int, int, int] | None = None,
    ) -> Conv3dWeight:
        pack = partial(self._pack["pack_conv3d"], stride=stride, padding=padding, target=self.plan.target)
        packed: Conv3dWeight = pack(weight, bias)
        return packed

    def _stored(self, storage: Storage) -> Target:
        precision, known = self.plan.target.precision, PRECISIONS[self.device.type]
        if storage == "exact":
            precision = known["fp32"]
        elif storage == "wide" and precision.weights.itemsize == 1:
            precision = next(p for p in known.values() if p.weights == precision.activations)
        return Target(self.device, precision)
