"""Rotary position embedding as a table, made from explicit positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kinema.ops.common.arguments import check_floats


@dataclass(frozen=True)
class Rope:
    """The rotation of tokens `start` to `start + R`; other tokens are left as they are.

    cos, sin: [R, D/2], or [B, R, D/2] where samples sit at different positions.
    Pair j of a head is (x[2j], x[2j+1]) if `interleaved` (Wan, CogVideoX, HunyuanVideo, LTX), else
    (x[j], x[j + D/2]): (a, b) → (a·cos − b·sin, a·sin + b·cos). Su et al. 2021, arXiv 2104.09864.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    interleaved: bool = True
    start: int = 0

    @staticmethod
    def from_positions(
        positions: torch.Tensor,
        axis_dims: Sequence[int],
        *,
        theta: float = 10000.0,
        interleaved: bool = True,
        start: int = 0,
        angle_dtype: torch.dtype = torch.float64,
    ) -> Rope:
        """Angle of pair j on an axis of `dim` channels: position · theta^(−2j/dim).

        positions: [R, A] or [B, R, A], one column per axis (t, h, w), whole or fractional.
        axis_dims: channels of a head that each axis rotates, even, summing to D.
        The table is fp32; angles are computed in `angle_dtype` (Wan publishes fp64 tables).
        """
        if positions.shape[-1] != len(axis_dims) or any(dim % 2 for dim in axis_dims):
            raise ValueError(
                f"positions have {positions.shape[-1]} axes for axis_dims {list(axis_dims)}: "
                "wanted one even number of channels per axis"
            )
        angles = []
        for axis, dim in enumerate(axis_dims):
            exponent = torch.arange(0, dim, 2, dtype=angle_dtype, device=positions.device) / dim
            angles.append(positions[..., axis, None].to(angle_dtype) * (1.0 / theta**exponent))
        angle = torch.cat(angles, dim=-1)
        return Rope(angle.cos().float(), angle.sin().float(), interleaved, start)

    def to(self, device: torch.device) -> Rope:
        return Rope(self.cos.to(device), self.sin.to(device), self.interleaved, self.start)

    def check(self, batch: int, tokens: int, head_dim: int, device: torch.device) -> None:
        """ValueError unless the tables rotate [B, N, S, D] of these sizes on this device."""
        cos, sin = self.cos, self.sin
        shape = cos.shape
        if len(shape) not in (2, 3) or sin.shape != shape or (len(shape) == 3 and shape[0] not in (1, batch)):
            raise ValueError(
                f"the tables are {tuple(shape)} and {tuple(sin.shape)}, wanted both [R, D/2] or [{batch}, R, D/2]"
            )
        length, pairs = shape[-2:]
        if self.start < 0 or self.start + length > tokens or 2 * pairs != head_dim:
            raise ValueError(
                f"the rotation covers tokens {self.start} to {self.start + length} of head dim {2 * pairs}, "
                f"there are {tokens} of head dim {head_dim}"
            )
        check_floats("the table of cosines", cos, shape, device)
        check_floats("the table of sines", sin, shape, device)

    def rotate(self, x: torch.Tensor) -> torch.Tensor:
        """The reference, in plain PyTorch. x: [B, N, S, D] → the same in x's dtype, computed in fp32 (fp64 if x is)."""
        length = self.cos.shape[-2]
        part = x[:, :, self.start : self.start + length]
        part = part if part.dtype == torch.float64 else part.float()
        # [R, D/2] → [1, 1, R, D/2]; [B, R, D/2] → [B, 1, R, D/2]
        cos, sin = (t.to(part.dtype).unsqueeze(-3) for t in (self.cos, self.sin))
        if self.interleaved:
            a, b = part.reshape(*part.shape[:-1], self.cos.shape[-1], 2).unbind(-1)
            rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
        else:
            a, b = part.chunk(2, dim=-1)
            rotated = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
        rotated = rotated.to(x.dtype)
        if length == x.shape[2]:
            return rotated
        return torch.cat((x[:, :, : self.start], rotated, x[:, :, self.start + length :]), dim=2)
