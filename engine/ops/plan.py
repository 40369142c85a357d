"""Chooses one implementation per op when a model is loaded, and says why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import get_args

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
from kinema.ops.common import PRECISIONS, Implementation, Op, QuantKind, Storage, Target, fallback_for
from kinema.ops.table import Choice, Plan

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
    dtype = _attention_dtype(target, {choice.op: choice.backend for choice in choices})
    return Plan(target, tuple(choices), quantize_attention, dtype)


def _attention_dtype(target: Target, backends: Mapping[str, str]) -> torch.dtype | None:
    """Of queries and keys where it is another than between ops. backends: what runs each op."""
    given = [
        i.operands(target)
        for op in OPS
        for i in op.implementations
        if op.name == "attention" and i.backend == backends["attention"]
    ]
    return next((dtype for dtype in given if dtype != target.precision.activations), None)


def at_precision(plan: Plan, precision: str, backend: str) -> Plan:
    """The plan of the same device and attention in another precision; UnsupportedError as of `plan_ops`."""
    return plan_ops(target_for(plan.target.device, precision), backend, plan.quantize_attention)


def _choose_quantizing(op: Op, target: Target, backend: str, kind: QuantKind) -> Choice:
    """The choice among what has kernels for `kind`; the reference, which has every kind, where it is asked for."""

    def narrowed(i: Implementation) -> Implementation:
        if i.backend == "reference":
            return replace(i, not_preferred=lambda _: [f"{kind} is no faster in PyTorch"])
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
        elif not forced and (reluctance := implementation.not_preferred(target)):
            rejected.append((implementation.backend, "; ".join(reluctance)))
        elif chosen is None:
            chosen = implementation
        else:
            rejected.append((implementation.backend, f"{chosen.backend} is preferred"))
    if chosen is None:
        against = ", ".join(f"{name}: {reason}" for name, reason in rejected)
        raise UnsupportedError(f"nothing runs {op.name} here ({against})")
    rest = fallback_for(op, target).backend if chosen.partial else None
    return Choice(op.name, chosen.backend, tuple(rejected), rest)


def stored_bytes(plan: Plan, shape: Sequence[int], storage: Storage) -> int:
    """What a tensor takes in the memory of a model that is loaded by this plan."""
    count, precision = math.prod(shape), plan.target.precision
    if storage == "table":
        return 0
    if storage == "convolution":
        packed = getattr(implementation_of(plan, "conv3d").load(), "packed_bytes", None)  # if not as it is
        return 4 * count if packed is None else packed(shape)
    if storage in ("planned", "wide") and precision.weights.itemsize > 1:
        return precision.weights.itemsize * count
    if storage == "wide":
        return precision.activations.itemsize * count
    return count + 4 * shape[0] if storage == "planned" else 4 * count  # 8 bits, and a scale per row


def implementation_of(plan: Plan, op: str) -> Implementation:
    """What the plan has chosen for an op."""
    record = next(record for record in OPS if record.name == op)
    return next(i for i in record.implementations if i.backend == plan.backend(op))
