"""Handwritten digits: the 8×8 images that scikit-learn ships, made into clean outlines.

The data set has 1,797 images (UCI optical recognition of handwritten digits). Some are unreadable at any
size, and a caption must be true, so the world uses only the IMAGES_PER_DIGIT most readable of each digit:
the enlarged image is one piece with the right number of holes (a 4 may be open or closed), and it lies far
closer to images of its own digit than to any other's.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from kinema.errors import RequestError, UnsupportedError
from kinema.sample.shapes import EXTENT, GRID

DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
IMAGES_PER_DIGIT = 50

_MARGIN = 1  # empty source pixels around the 8×8 image
_CELLS = 8 + 2 * _MARGIN
_LEVEL = 0.5  # the grey level of the outline
_HOLES = {"0": (1,), "4": (0, 1), "6": (1,), "8": (2,), "9": (1,)}
_SMALLEST_HOLE = 12  # grid points: about 3 pixels of a 64×64 frame


@lru_cache(maxsize=16)
def images_of(digit: str) -> tuple[int, ...]:
    """Indices into scikit-learn's data set of the world's images of a digit, the most readable first.

    Readability is the mean distance to the five nearest images of other digits over that to the five
    nearest of its own. It depends on the data set alone.
    """
    images, labels = _data_set()
    if digit not in DIGITS:
        raise RequestError(f"digit: got {digit!r}, wanted one of {', '.join(DIGITS)}")
    candidates = np.flatnonzero(labels == int(digit))
    flat = images.reshape(len(images), -1)
    ours = flat[candidates]
    distance = np.sqrt(np.maximum((ours**2).sum(1)[:, None] + (flat**2).sum(1)[None] - 2 * ours @ flat.T, 0.0))
    is_own = labels == int(digit)
    own = np.sort(distance[:, is_own], axis=1)[:, 1:6].mean(1)  # the first is the image itself
    other = np.sort(distance[:, ~is_own], axis=1)[:, :5].mean(1)
    order = np.argsort(-other / own, kind="stable")
    found: list[int] = []
    for index in candidates[order].tolist():
        if len(found) == IMAGES_PER_DIGIT:
            break
        pieces, holes = _topology(_enlarged(images[index]).numpy() > _LEVEL)
        if pieces == 1 and holes in _HOLES.get(digit, (0,)):
            found.append(index)
    return tuple(found)


@cache  # bounded by the data set: 1,797 fields of 10 kB
def digit_field(image: int) -> torch.Tensor:
    """The distance field float32 [GRID, GRID] of one digit image, in units of the radius (see `shapes`).

    Near the outline, (level - grey) / |gradient| is the distance to it to first order, which is all that
    an edge of one pixel needs; the digit is as tall as a diamond.
    """
    images, _ = _data_set()
    if not 0 <= image < len(images):
        raise RequestError(f"digit_image: got {image}, wanted 0 to {len(images) - 1}")
    grey = _enlarged(images[image])
    down, right = torch.gradient(grey)
    steepness = torch.hypot(down, right).clamp_min(0.04)
    return (_LEVEL - grey) / steepness * (2 * EXTENT / GRID)


def _enlarged(image: np.ndarray) -> torch.Tensor:
    """One 8×8 image with a margin as grey levels float32 [GRID, GRID]: bicubic, then smoothed a little.

    The smoothing is a third of a source pixel wide: it takes away the bumps that bicubic edges have.
    """
    padded = F.pad(torch.from_numpy(image).to(torch.float32), (_MARGIN,) * 4)
    large = F.interpolate(padded[None, None], size=(GRID, GRID), mode="bicubic")
    sigma = GRID / _CELLS / 3
    reach = round(3 * sigma)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float32, device="cpu") / sigma) ** 2)
    bell = (bell / bell.sum()).view(1, 1, 1, -1)
    large = F.conv2d(F.conv2d(large, bell, padding=(0, reach)), bell.mT, padding=(reach, 0))
    return large[0, 0]


def _topology(inside: np.ndarray) -> tuple[int, int]:
    """The numbers of pieces and of holes of a mask; specks of background do not count as holes."""
    from scipy import ndimage  # type: ignore[import-untyped]  # comes with scikit-learn

    _, pieces = ndimage.label(inside, np.ones((3, 3)))
    outside, _ = ndimage.label(np.pad(~inside, 1, constant_values=True))
    areas = np.bincount(outside.ravel())[1:]
    return int(pieces), int((areas >= _SMALLEST_HOLE).sum()) - 1


@lru_cache(maxsize=1)
def _data_set() -> tuple[np.ndarray, np.ndarray]:
    """Images float64 [1797, 8, 8] in [0, 1] and labels int [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UnsupportedError(
            "the sample world's handwritten digits need scikit-learn, which is not installed: "
            "run `pip install scikit-learn` (in a checkout: `make tools`), or choose shapes only"
        ) from error
    data = load_digits()
    return data.images / 16.0, data.target
