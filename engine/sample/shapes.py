"""The outlines of the world's subjects, as signed distance fields.

A field is a float32 grid [GRID, GRID] over the square [-EXTENT, EXTENT]² around a subject's centre, in
units of its radius, y downwards: negative inside, zero on the outline. Sampling it between its points and
clamping to one pixel gives a clean edge at any size and any sub-pixel position.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from kinema.errors import RequestError

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")

GRID = 50
EXTENT = 1.35

Outline = list[tuple[float, float]]


def grid_points() -> tuple[torch.Tensor, torch.Tensor]:
    """(x, y) of the grid's cell centres, each [GRID, GRID], in units of the radius."""
    axis = ((torch.arange(GRID, dtype=torch.float64, device="cpu") + 0.5) / GRID * 2 - 1) * EXTENT
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


@lru_cache(maxsize=32)
def shape_field(name: str) -> torch.Tensor:
    """The field [GRID, GRID] of one of SHAPES. The sizes give all shapes about the same weight."""
    x, y = grid_points()
    radius = torch.hypot(x, y)
    if name == "circle":
        field = radius - 1.0
    elif name == "ring":
        field = (radius - 0.80).abs() - 0.25
    elif name == "square":
        field = polygon_distance(x, y, [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)])
    elif name == "diamond":
        field = polygon_distance(x, y, [(0.0, -1.25), (0.95, 0.0), (0.0, 1.25), (-0.95, 0.0)])
    elif name == "triangle":
        field = polygon_distance(x, y, _spokes([1.25] * 3))
    elif name == "star":
        field = polygon_distance(x, y, _spokes([1.27, 0.52] * 5))
    elif name == "cross":
        field = polygon_distance(x, y, _cross(arm=1.05, half_width=0.35))
    elif name == "heart":
        field = polygon_distance(x, y, _heart(96))
    else:
        raise RequestError(f"no outline for the shape {name!r}")
    return field.to(torch.float32)


def polygon_distance(x: torch.Tensor, y: torch.Tensor, outline: Outline) -> torch.Tensor:
    """Exact signed distance of the points (x, y) to a closed polygon, negative inside, of any shape [...].

    The distance is the least over the edges; the sign comes from counting the edges that a ray crosses.
    """
    nearest = torch.full_like(x, math.inf)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (ax, ay), (bx, by) in zip(outline, outline[1:] + outline[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = (((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.hypot(x - ax - along * ex, y - ay - along * ey))
        if ey != 0:
            crosses = ((y < ay) != (y < by)) & (x < ax + (y - ay) * (ex / ey))
            inside = inside ^ crosses
    return torch.where(inside, -nearest, nearest)


def _spokes(lengths: list[float]) -> Outline:
    """Corners at equal angles around the centre, clockwise from the top."""
    turn = 2 * math.pi / len(lengths)
    return [(r * math.sin(i * turn), -r * math.cos(i * turn)) for i, r in enumerate(lengths)]


def _cross(arm: float, half_width: float) -> Outline:
    corner = [(-half_width, -arm), (half_width, -arm), (half_width, -half_width)]
    outline = []
    for _ in range(4):
        outline += corner
        corner = [(-cy, cx) for cx, cy in corner]
    return list(dict.fromkeys(outline))


def _heart(corners: int) -> Outline:
    """The heart curve x = 16 sin³t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, scaled and centred."""
    outline = []
    for i in range(corners):
        t = 2 * math.pi * i / corners
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        outline.append((x / 14.5, -(y + 1.5) / 14.5))
    return outline
