"""The VAE's 3×3×3 convolutions as a decode at 480p has them: Triton in fp32 and bf16, cuDNN in fp32, tf32 and bf16."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kinema.bench.gpu_session.drawn import Drawn, flowing
from kinema.bench.gpu_session.kernels import tiles, time_kernel
from kinema.bench.gpu_session.question import Question, Session
from kinema.ops.conv3d import reference

# channels: frames, height and width that a latent frame has become there
SIZES = {96: (4, 480, 832), 192: (4, 240, 416), 384: (2, 120, 208)}
SMALL = {16: (1, 5, 4)}
PAST = 2  # frames that a chunk before has left
CHECKED = 8  # rows of a frame that are held against float64


def ask(session: Session) -> None:
    for channels, size in session.pick(SIZES, SMALL).items():
        _Convolution(session, channels, size).ask(tiled=channels == min(SIZES))


class _Convolution:
    """x: [1, C, T, H, W] after its past [1, C, PAST, H, W], channels innermost in memory."""

    def __init__(self, session: Session, channels: int, size: tuple[int, int, int]) -> None:
        new = Drawn(session.device)
        self.session, self.channels = session, channels
        self.past, self.x = new.video(channels, PAST, *size[1:]), new.video(channels, *size)
        self.weight, self.bias = new(channels, channels, 3, 3, 3), new(channels)
        self.gain, self.residual = new(channels), new.video(channels, *size)
        self.flops = 2 * 27 * channels * self.x.numel()
        self.rows = min(CHECKED, size[1] - 1)

    def ask(self, *, tiled: bool) -> None:
        from kinema.ops.conv3d import triton

        fp32, bf16 = torch.float32, torch.bfloat16
        for number, tile in tiles(self.session, triton.TABLES, "conv3d/fp32"):
            if number == 0 or tiled:
                self._time(f"Triton, fp32, tile {number}", self._kinema(triton, fp32), fp32, tile=str(tile))
        self._time("Triton, bf16", self._kinema(triton, bf16), bf16)
        self._time("Triton, fp32, norm, SiLU and residual", self._kinema(triton, fp32, fused=True), fp32, fused=True)
        self._time("cuDNN, fp32", self._cudnn(fp32), fp32)
        self._time("cuDNN, tf32", self._cudnn(fp32, tf32=True), fp32, rounded=bf16)
        self._time("cuDNN, bf16", self._cudnn(bf16), bf16)

    def _time(
        self,
        case: str,
        call: Callable[[], torch.Tensor],
        dtype: torch.dtype,
        *,
        fused: bool = False,
        rounded: torch.dtype | None = None,
        **fields: str,
    ) -> None:
        """rounded: what cuDNN rounds its inputs to, whatever their dtype."""
        exact, plain = (
            self._kinema(reference, kind, fused=fused, rows=self.rows + 1) for kind in (torch.float64, dtype)
        )
        time_kernel(
            self.session,
            f"{self.channels}, {case}",
            call,
            self._some(exact()),
            plain=self._some(plain()),
            quantized=rounded,
            read=self._some,
            flops=self.flops,
            **fields,
        )

    def _some(self, y: torch.Tensor) -> torch.Tensor:
        """Rows whose neighbours are all among the `rows` + 1 first."""
        return y[:, :, :, : self.rows]

    def _kinema(
        self, functions: Any, dtype: torch.dtype, *, fused: bool = False, rows: int | None = None
    ) -> Callable[[], torch.Tensor]:
        """A call of an implementation, on the first `rows` of every frame; it updates its past."""
        kept = torch.promote_types(dtype, torch.float32)  # of weights, whatever the activations
        weight = functions.pack_conv3d(self.weight.to(kept), self.bias.to(kept), target=flowing(self.session.device))
        x, past, residual = (t[:, :, :, :rows].to(dtype, copy=True) for t in (self.x, self.past, self.residual))
        call = partial(functions.conv3d, x, weight, cache=past)
        return partial(call, norm=self.gain.to(kept), activation="silu", residual=residual) if fused else call

    def _cudnn(self, dtype: torch.dtype, *, tf32: bool = False) -> Callable[[], torch.Tensor]:
        """The fastest of its algorithms, which the first call finds; the frames are concatenated already."""
        frames, bias = torch.cat((self.past, self.x), dim=2).to(dtype), self.bias.to(dtype)
        frames = frames.contiguous(memory_format=torch.channels_last_3d)
        weight = self.weight.to(dtype).contiguous(memory_format=torch.channels_last_3d)

        def call() -> torch.Tensor:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=tf32):
                return F.conv3d(frames, weight, bias, padding=(0, 1, 1))

        return call


QUESTION = Question(
    decides="how much faster a decode could be on tensor cores, and whether Triton or cuDNN should run it",
    serves="conv3d, the VAE",
    value=9,
    seconds=40,
    needs=("triton",),
    ask=ask,
)
