"""The distance of a video from another of the same seed: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

SAME = 100.0  # dB for equal videos, whose ratio is infinite
WINDOW, SIGMA = 11, 1.5  # Wang, Bovik, Sheikh and Simoncelli 2004, section III.B


def psnr(frames: np.ndarray, exact: np.ndarray) -> float:
    """Decibels, over all values of two uint8 videos of one shape; at most `SAME`."""
    return decibels(squared_error(frames, exact))


def squared_error(frames: np.ndarray, exact: np.ndarray) -> float:
    """The mean of it, over all values of two uint8 videos of one shape."""
    return float(np.mean((frames.astype(np.float64) - exact.astype(np.float64)) ** 2))


def decibels(error: float) -> float:
    """PSNR of 8-bit values with this mean squared error; at most `SAME`."""
    return min(SAME, 10 * math.log10(255**2 / error)) if error else SAME


def ssim(frames: np.ndarray, exact: np.ndarray) -> float:
    """The mean structural similarity of two uint8 videos [..., H, W, 3], per frame and channel, in Gaussian windows."""
    height, width, channels = exact.shape[-3:]
    size = min(WINDOW, height, width)
    at = torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2
    line = torch.exp(-(at**2) / (2 * SIGMA**2))
    window = torch.outer(line, line)
    window = (window / window.sum())[None, None]

    def images(video: np.ndarray) -> torch.Tensor:
        planes = torch.from_numpy(video.reshape(-1, height, width, channels)).permute(0, 3, 1, 2)
        return planes.reshape(-1, 1, height, width).double()

    x, y = images(frames), images(exact)
    mean_x, mean_y = F.conv2d(x, window), F.conv2d(y, window)
    spread_x = F.conv2d(x * x, window) - mean_x**2
    spread_y = F.conv2d(y * y, window) - mean_y**2
    shared = F.conv2d(x * y, window) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    means = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((means * (2 * shared + c2) / (spread_x + spread_y + c2)).mean())
