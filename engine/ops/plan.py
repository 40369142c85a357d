"""Chooses one implementation per op when a model is loaded, and says why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from kinema.errors import UnsupportedError
from kinema.ops import (
    attention,
    conv3d,
    linear,
    norm_modulate,
    patch_embed,
    qk_norm_rope,
    quantize,
    scheduler_step,
    unpatchify,
)
from kinema.ops.common import PRECISIONS, Implementation, Op, QuantKind, Target, takes_the_rest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kinema.ops.attention import Attention
    from kinema.ops.conv3d import Conv3d, Conv3dWeight
    from kinema.ops.linear import Linear, LinearWeight
    from kinema.ops.norm_modulate import NormModulate
    from kinema.ops.patch_embed import PatchEmbed, PatchEmbedWeight
    from kinema.ops.qk_norm_rope import QkNormRope
    from kinema.ops.quantize import Quantize
    from kinema.ops.scheduler_step import SchedulerStep
    from kinema.ops.unpatchify import Unpatchify

OPS: tuple[Op, ...] = (
    patch_embed.OP,
    unpatchify.OP,
    norm_modulate.OP,
    qk_norm_rope.OP,
    attention.OP,
    linear.OP,
    quantize.OP,
    scheduler_step.OP,
    conv3d.OP,
)


Storage = Literal["planned", "wide", "exact"]  # of a weight: see `Ops.pack_linear`


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
    """quantize_attention: what a transformer asks of its self-attention."""

    target: Target
    choices: tuple[Choice, ...]
    quantize_attention: QuantKind | None = None

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

        storage: "planned" as the precision says, "wide" in more than 8 bits, "exact" in fp32.
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


def target_for(device: str | torch.device = "auto", precision: str = "auto") -> Target:
    """Resolve `auto`: a GPU if torch sees one; fp32, since lower precision is never on unless asked for."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
    except RuntimeError:
        resolved = None
    if resolved is None or resolved.type not in PRECISIONS:
        raise UnsupportedError(f"device {str(device)!r} is not supported: wanted one of {sorted(PRECISIONS)} or 'auto'")
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("device 'cuda' was asked for, but torch sees no GPU here; use device='cpu'")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(f"device {str(device)!r} is not here: torch sees {torch.cuda.device_count()} GPUs")
    known = PRECISIONS[resolved.type]
    name = "fp32" if precision == "auto" else precision
    if name not in known:
        raise UnsupportedError(f"precision {precision!r} is not known: wanted one of {sorted(known)} or 'auto'")
    return Target(resolved, known[name])


def plan_ops(target: Target, backend: str = "auto", quantize_attention: QuantKind | None = None) -> Plan:
    """For each op the first implementation that can run on `target`, with the reasons against the others.

    A forced `backend` runs every op that it implements, or raises UnsupportedError with its reasons; ops that
    it does not implement at all go to the best of the rest, which the plan says. Where attention is to be quantized,
    only what has kernels for it can run it.
    """
    if quantize_attention not in (None, *get_args(QuantKind)):
        wanted = " or ".join(map(repr, get_args(QuantKind)))
        raise UnsupportedError(f"quantize_attention {quantize_attention!r} is not known: wanted {wanted}, or None")
    known = {i.backend for op in OPS for i in op.implementations}
    if backend != "auto" and backend not in known:
        raise UnsupportedError(f"backend {backend!r} has no op in this build: wanted one of {sorted(known)} or 'auto'")
    choices = []
    for op in OPS:
        if op.name == "attention" and quantize_attention is not None:
            choices.append(_choose_quantizing(op, target, backend, quantize_attention))
        else:
            choices.append(_choose(op, target, backend))
    return Plan(target, tuple(choices), quantize_attention)


def _choose_quantizing(op: Op, target: Target, backend: str, kind: QuantKind) -> Choice:
    """The choice among what has kernels for `kind`; the reference, which has every kind, where it is asked for."""

    def narrowed(i: Implementation) -> Implementation:
        if i.backend == "reference":
            return replace(i, reluctant=lambda _: [f"{kind} is no faster in PyTorch"])
        return replace(i, unsupported=lambda target: i.unsupported(target) or i.quantizes(target, kind))

    try:
        return _choose(replace(op, implementations=tuple(map(narrowed, op.implementations))), target, backend)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"quantize_attention={kind!r}: {error}; wanted a kind that a backend has here, None, or backend='reference'"
        ) from None


def _choose(op: Op, target: Target, backend: str) -> Choice:
    chosen: Implementation | None = None
    rejected: list[tuple[str, str]] = []
    forced = backend != "auto" and any(i.backend == backend for i in op.implementations)
    for implementation in op.implementations:
        reasons = implementation.unsupported(target)
        if forced and implementation.backend != backend:
            rejected.append((implementation.backend, f"backend={backend!r} was asked for"))
        elif forced and reasons:
            raise UnsupportedError(f"backend {backend!r} cannot run {op.name} here: {'; '.join(reasons)}")
        elif reasons:
            rejected.append((implementation.backend, "; ".join(reasons)))
        elif not forced and (reluctance := implementation.reluctant(target)):
            rejected.append((implementation.backend, "; ".join(reluctance)))
        elif chosen is None:
            chosen = implementation
        else:
            rejected.append((implementation.backend, f"{chosen.backend} is preferred"))
    if chosen is None:
        against = ", ".join(f"{name}: {reason}" for name, reason in rejected)
        raise UnsupportedError(f"nothing runs {op.name} here ({against})")
    rest = takes_the_rest(op, target).backend if chosen.partial else None
    return Choice(op.name, chosen.backend, tuple(rejected), rest)


def build_ops(plan: Plan) -> Ops:
    """Import the chosen implementations and bind their functions."""
    functions: dict[str, Any] = {}
    for op, choice in zip(OPS, plan.choices, strict=True):
        implementation = next(i for i in op.implementations if i.backend == choice.backend)
        module = implementation.load()
        functions.update({name: getattr(module, name) for name in op.functions})
    packs = {name: functions.pop(name) for name in list(functions) if name.startswith("pack_")}
    ops = Ops(plan=plan, _pack=packs, **functions)
    if plan.target.device.type != "cuda":
        return ops
    from kinema.ops.compiled import compilable

    return compilable(ops)
