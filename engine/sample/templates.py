"""Which subject a mask shows: nearest neighbours among the rendered outlines of the world.

A mask is brought to a standard pose (its centre in the middle, its second moment to one size, bilinear), so
neither place nor size matters, and compared with every shape and every digit image of the world in that pose,
sharp and blurred.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from kinema.sample.digits import DIGITS, images_of
from kinema.sample.render import render
from kinema.sample.shapes import SHAPES
from kinema.sample.world import COLOURS, SUBJECT_RADIUS, Scene, Subject

POSE = 20  # points a side of the standard pose
_REACH = 2.1  # its half-width in root-mean-square radii: a star's tip lies at 2.0
_BLURS = (0.0, 1.2)  # pixels
_SHAPE_RADII = (0.18, 0.20, 0.22)
_NEIGHBOURS = 5
_LEAST_LIKENESS = 0.80  # cosine to the best template, below which it is no subject of this world


def classify(opacity: np.ndarray, centre: np.ndarray) -> str | None:
    """The subject that an opacity mask float [H, W] around a centre (x, y) in [0, 1) shows, or None.

    The five most similar templates vote by their similarity. Every shape has at least as many templates as voters.
    """
    pose = standard_pose(opacity, centre)
    poses, names = templates()
    likeness = poses @ pose
    best = np.argpartition(-likeness, _NEIGHBOURS)[:_NEIGHBOURS]
    if likeness[best].max() < _LEAST_LIKENESS:
        return None
    votes: dict[str, float] = {}
    for i in best:
        votes[names[i]] = votes.get(names[i], 0.0) + float(likeness[i])
    return max(votes, key=votes.__getitem__)


def standard_pose(opacity: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """A mask [H, W] on the torus, moved and scaled to the standard pose: float32 [POSE·POSE] of norm 1."""
    height, width = opacity.shape
    x0, y0 = centre[0] * width - 0.5, centre[1] * height - 0.5
    from_x = (np.arange(width) - x0 + width / 2) % width - width / 2
    from_y = (np.arange(height) - y0 + height / 2) % height - height / 2
    total = opacity.sum()
    moment = (opacity.sum(0) @ from_x**2 + opacity.sum(1) @ from_y**2) / total
    reach = _REACH * np.sqrt(moment)
    points = ((np.arange(POSE) + 0.5) / POSE * 2 - 1) * reach
    # Hat functions around each point: bilinear interpolation as a product of two matrices.
    pick_x = _hats(x0 + points, width)
    pick_y = _hats(y0 + points, height)
    pose: np.ndarray = (pick_y @ opacity @ pick_x.T).ravel()
    unit: np.ndarray = (pose / np.linalg.norm(pose)).astype(np.float32)
    return unit


def _hats(at: np.ndarray, length: int) -> np.ndarray:
    """Interpolation weights [len(at), length] at places along a ring of pixels."""
    apart = (at[:, None] - np.arange(length) + length / 2) % length - length / 2
    weights: np.ndarray = np.maximum(0.0, 1.0 - np.abs(apart))
    return weights


@lru_cache(maxsize=1)
def templates() -> tuple[np.ndarray, tuple[str, ...]]:
    """Standard poses float32 [templates, POSE·POSE] and the subject of each: all of them at every blur."""
    subjects = [_subject(shape, radius=radius) for shape in SHAPES for radius in _SHAPE_RADII]
    subjects += [_subject(digit, image=image) for digit in DIGITS for image in images_of(digit)]
    white = COLOURS["white"][0] / 127.5
    masks = (render([Scene((it,)) for it in subjects], 1)[:, 0, 0].numpy() + 1) / white
    poses = []
    for sigma in _BLURS:
        soft = blurred(masks, sigma)
        poses += [standard_pose(mask, centre) for mask, centre in zip(soft, centroids(soft), strict=True)]
    return np.stack(poses), tuple(it.name for it in subjects) * len(_BLURS)


def _subject(name: str, *, radius: float = SUBJECT_RADIUS, image: int | None = None) -> Subject:
    return Subject(name, "white", "still", None, 0.5, 0.5, radius, image)


def centroids(opacity: np.ndarray) -> np.ndarray:
    """Centres of masks [T, H, W] as (x, y) in [0, 1) on the torus, float64 [T, 2].

    The centre along an axis is the angle of the mask's first Fourier coefficient along it.
    """
    found = []
    for profile in (opacity.sum(1), opacity.sum(2)):  # summed over rows: a profile along x, and so on
        length = profile.shape[1]
        turn = np.exp(2j * np.pi * (np.arange(length) + 0.5) / length)
        found.append(np.angle(profile @ turn) / (2 * np.pi) % 1.0)
    return np.stack(found, axis=1)


def blurred(images: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of [..., H, W] on the torus, `sigma` in pixels; 0 leaves them as they are."""
    if sigma == 0:
        return images
    rows, columns = (_gaussian(length, sigma) for length in images.shape[-2:])
    soft: np.ndarray = rows @ images @ columns
    return soft


def _gaussian(length: int, sigma: float) -> np.ndarray:
    """A circulant, symmetric blur matrix float32 [length, length] whose rows sum to 1."""
    apart = np.arange(length)
    apart = np.minimum(apart, length - apart)
    row = np.exp(-0.5 * (apart / sigma) ** 2)
    row /= row.sum()
    return np.stack([np.roll(row, i) for i in range(length)]).astype(np.float32)
