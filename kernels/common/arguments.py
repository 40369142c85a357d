"""What a call's tensors must be before a kernel reads their memory; each op's check.py is built of these checks.

Only metadata is read: nothing is computed, and no GPU is waited for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from kinema.ops.common.overlap import alike, has_internal_overlap, outside, share, span

FLOATS = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
INTEGERS = frozenset((torch.int32, torch.int64))


def misfit(name: str, t: torch.Tensor, wanted: object) -> ValueError:
    """The error for a tensor that does not fit the contract."""
    return ValueError(f"{name} is {t.dtype} of shape {tuple(t.shape)} on {t.device}, wanted {wanted}")


def check_floats(name: str, t: torch.Tensor, shape: Sequence[int], device: torch.device) -> None:
    """ValueError unless t holds floats of more than 8 bits, in this shape, on this device."""
    if t.shape != shape or t.dtype not in FLOATS or t.device != device:
        raise misfit(name, t, f"floats of shape {tuple(shape)} on {device}")


def check_channels_dense(name: str, t: torch.Tensor) -> None:
    """ValueError unless t's last axis is contiguous."""
    if t.stride()[-1] != 1 and t.shape[-1] != 1:
        raise ValueError(f"{name} has strides {t.stride()}, wanted its channels dense")


def check_modulation(name: str, t: torch.Tensor, shape: tuple[int, int, int], device: torch.device) -> None:
    """ValueError unless t is a modulation of tokens of this shape, [B, S, C]: see `by_group`."""
    batch, tokens, channels = shape
    if t.ndim == 3 and t.dtype in FLOATS and t.device == device:
        samples, groups, width = t.shape
        divides = groups == tokens or (groups > 0 and tokens % groups == 0)
        if (samples == batch or samples == 1) and width == channels and divides:
            return
    raise misfit(name, t, f"floats [{batch} or 1, G, {channels}] on {device} with a G that divides the {tokens} tokens")


def check_out(
    out: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *,
    apart: Iterable[torch.Tensor | None],
    onto: Iterable[torch.Tensor | None] = (),
) -> None:
    """ValueError unless out can take the result.

    apart: what is still read while out is written, so out must not overlap it. onto: what out may alias exactly,
    element by element, and must not overlap otherwise.
    """
    if out.shape != shape or out.dtype != dtype or out.device != device:
        raise ValueError(
            f"out is {out.dtype} of shape {tuple(out.shape)} on {out.device}, "
            f"the op writes {dtype} {tuple(shape)} on {device}"
        )
    if out.is_meta:
        return
    if out.is_contiguous():
        first = out.data_ptr()
        end = first + out.nbytes
    elif has_internal_overlap(out):
        raise ValueError(f"out has strides {out.stride()}, wanted a place of its own for each value")
    else:
        first, end = span(out)
    # most inputs lie wholly after out or before it, and this runs at every call
    for t in apart:
        if t is not None and t.data_ptr() < end and not outside(first, end, t) and share(out, t):
            raise ValueError("out shares memory with an input that is still read, wanted memory of its own")
    for t in onto:
        if t is not None and t.data_ptr() < end and not (alike(out, t) or outside(first, end, t)) and share(out, t):
            raise ValueError("out shares memory with an input but is not that input itself, wanted one or the other")


def unchecked(op: Callable[..., Any]) -> Callable[..., Any]:
    """The implementation behind an op's check, for arguments that are checked already."""
    run: Callable[..., Any] = inspect.unwrap(op)
    return run
