"""Descriptors, by which a GPU's copy engine reads tiles of a tensor: made once per layout, then given each tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from triton.tools.tensor_descriptor import TensorDescriptor


def descriptor(
    shape: Sequence[int], strides: Sequence[int], block: Sequence[int], dtype: torch.dtype
) -> TensorDescriptor:
    """Of no tensor yet: what `described` copies. Triton checks it here, for a tenth of a launch."""
    nothing = torch.empty(0, dtype=dtype, device="cpu")
    return TensorDescriptor(nothing, list(shape), list(strides), list(block))


def described(t: torch.Tensor | None, made: TensorDescriptor | None) -> TensorDescriptor | torch.Tensor | None:
    """The descriptor of t, which begins at a multiple of 16 bytes; t itself where none was made."""
    if made is None or t is None:
        return t
    copy = object.__new__(TensorDescriptor)
    copy.__dict__.update(made.__dict__, base=t)
    return copy
