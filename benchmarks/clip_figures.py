"""How far clips are from those of the exact run: each by itself, and all together, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kinema.bench.image_distance import SAME, decibels, squared_error, ssim
from kinema.bench.intervals import interval
from kinema.bench.paired import mcnemar

if TYPE_CHECKING:
    from kinema.bench.prompt_sets import Asked

CLOSE = 30.0  # dB, from which on a clip counts as close to the exact one


@dataclass(frozen=True)
class Track:
    """One clip: frames uint8 [T, H, W, 3], and the latents after each step, fp32 [steps, C, t, h, w]."""

    frames: np.ndarray
    latents: np.ndarray


@dataclass(frozen=True)
class Figures:
    """One clip against the exact one. step_errors: relative, of the latents, None where the steps are not the same.

    right: whether colour, subject and motion are what the prompt says, None where nothing detects them.
    """

    squared_error: float
    ssim: float
    step_errors: list[float] | None
    right: bool | None

    @property
    def psnr(self) -> float:
        return decibels(self.squared_error)


def figures_of(found: Track, exact: Track, asked: Asked) -> Figures:
    """Of one clip."""
    from kinema.sample.adherence import judge

    errors = None
    if found.latents.shape == exact.latents.shape:
        pairs = zip(found.latents.astype(np.float64), exact.latents.astype(np.float64), strict=True)
        errors = [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]
    right = None if asked.wanted is None else judge(found.frames, asked.wanted).all_ok
    same = np.array_equal(found.frames, exact.frames)
    near = 1.0 if same else ssim(found.frames, exact.frames)
    return Figures(squared_error(found.frames, exact.frames), near, errors, right)


def summary(found: Sequence[Figures], exact: Sequence[Figures]) -> dict[str, Any]:
    """A row of all clips: PSNR per clip (mean, median, 5th percentile, share above CLOSE) and of all pixels together
    (pooled), SSIM, the latents' error, and adherence beside that of the exact run on the same clips."""
    from kinema.sample.adherence import wilson_interval

    levels = [clip.psnr for clip in found]
    row: dict[str, Any] = {
        "clips": len(found),
        "psnr": float(np.mean(levels)),
        "psnr_interval": interval(levels, np.mean),
        "psnr_median": float(np.median(levels)),
        "psnr_median_interval": interval(levels, np.median),
        "psnr_p5": float(np.percentile(levels, 5)),
        "psnr_close": float(np.mean([level >= CLOSE for level in levels])),
        "psnr_pooled": decibels(float(np.mean([clip.squared_error for clip in found]))),
        "psnr_clips": levels,
        "ssim": float(np.mean([clip.ssim for clip in found])),
    }
    errors = [clip.step_errors for clip in found if clip.step_errors is not None]
    if errors:
        row["step_errors"] = np.mean(errors, axis=0).tolist()
        row["last_step_error"] = row["step_errors"][-1]
    verdicts = [clip.right for clip in found if clip.right is not None]
    if verdicts:
        row["right"] = sum(verdicts)
        row["adherence"] = sum(verdicts) / len(verdicts)
        row["adherence_interval"] = list(wilson_interval(sum(verdicts), len(verdicts)))
        row["changed"] = mcnemar([clip.right for clip in exact if clip.right is not None], verdicts).as_dict()
    return row


def said(row: dict[str, Any]) -> str:
    """The row's distances as cells of a line; the exact run's own are empty."""
    cells = f"{'':56}"
    if row["psnr_pooled"] < SAME or row["ssim"] < 1:
        low, high = row["psnr_interval"]
        mean = f"{row['psnr']:.1f}" + (f" ({low:.1f} to {high:.1f})" if low is not None else "")
        cells = f"{mean:>20} {row['psnr_median']:7.1f} {row['psnr_p5']:6.1f} {row['psnr_close']:6.0%} "
        cells += f"{row['psnr_pooled']:7.1f} {row['ssim']:7.4f}"
    cells += f" {row['last_step_error']:9.1e}" if "last_step_error" in row else f" {'':9}"
    if "right" in row:
        low, high = row["adherence_interval"]
        cells += f" {row['right']:4} ({low:.0%} to {high:.0%})"
        if row["changed"]["lost"] or row["changed"]["won"]:
            cells += f", {row['changed']['lost']} lost, {row['changed']['won']} won (p {row['changed']['p']:.2g})"
    return cells


HEAD = (
    f"{'PSNR dB: mean':>20} {'median':>7} {'p5':>6} {f'>= {CLOSE:.0f}':>6} {'pooled':>7} {'SSIM':>7} {'last step':>9}"
    "  all three right"
)
