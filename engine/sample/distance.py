"""How far generated clips are from real ones: a Fréchet distance on fixed random features.

With a world of its own no pretrained network is at hand, and none is needed: a random convolutional network keeps
enough of a clip (Saxe et al. 2011, "On random weights and unsupervised feature learning") to tell how two sets of clips
differ. The distance is that of Heusel et al. 2017, arXiv 1706.08500, between Gaussians fitted to the features:
|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½). 0 for equal sets. It has no unit, and grows smaller with larger sets, so only
figures of equally many clips compare. Features are scaled by their spread over real clips: colour would drown the rest.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from kinema.errors import RequestError

WIDTHS = (3, 16, 16)
FEATURES = 2 * sum(WIDTHS[1:])
_SEED = 20260101


def features(video: torch.Tensor) -> torch.Tensor:
    """[B, FEATURES] of clips [B, 3, T, H, W] in [−1, 1], T, H, W of 8 or more.

    Strided random 3×3×3 convolutions with |·| after each: then each channel's mean and standard deviation over
    space and time. The kernels sum to zero, so that edges and changes count and plain areas do not.
    """
    if video.ndim != 5 or video.shape[1] != 3 or min(video.shape[2:]) < 8:
        raise RequestError(f"got clips {tuple(video.shape)}: wanted [B, 3, T, H, W] with sizes of 8 or more")
    generator = torch.Generator().manual_seed(_SEED)
    h, pooled = video, []
    for into, out in pairwise(WIDTHS):
        weight = torch.randn(out, into, 3, 3, 3, generator=generator, dtype=torch.float32, device="cpu")
        weight = weight - weight.mean(dim=(2, 3, 4), keepdim=True)
        weight = weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
        h = F.conv3d(h, weight, stride=(1, 2, 2), padding=1).abs()
        pooled += [h.mean(dim=(2, 3, 4)), h.std(dim=(2, 3, 4))]
    return torch.cat(pooled, dim=1)


def distance_to_real(generated: torch.Tensor, real: torch.Tensor) -> float:
    """The Fréchet distance of features [n, F] from those of real clips [m, F], each in units of its spread there."""
    spread = real.std(dim=0).clamp(min=1e-6)
    return frechet_distance(generated / spread, real / spread)


def frechet_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of two sets of features [n, F] and [m, F], each of more clips than features."""
    if min(len(one), len(other)) <= one.shape[1]:
        raise RequestError(f"{len(one)} and {len(other)} clips: wanted more than the {one.shape[1]} features")
    mean_1, cov_1 = _gaussian(one)
    mean_2, cov_2 = _gaussian(other)
    # (Σ₁Σ₂)^½ has the trace of (Σ₁^½ Σ₂ Σ₁^½)^½, which is symmetric
    values, vectors = torch.linalg.eigh(cov_1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0).sqrt().sum()
    return float((mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * cross)


def _gaussian(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.double()
    return x.mean(dim=0), torch.cov(x.T)
