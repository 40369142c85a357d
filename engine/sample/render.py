"""Scenes to pixels: a whole batch of clips at once, exact to the sub-pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from kinema.errors import RequestError
from kinema.sample.digits import digit_field
from kinema.sample.shapes import EXTENT, GRID, shape_field
from kinema.sample.world import BACKGROUNDS, COLOURS, Scene, Subject

NUM_FRAMES = 17
SIZE = 64


def render(
    scenes: Sequence[Scene],
    num_frames: int = NUM_FRAMES,
    size: int | tuple[int, int] = SIZE,
    *,
    first_frame: int = 0,
    device: str = "cpu",
) -> torch.Tensor:
    """The clips float32 [B, 3, T, H, W] in [-1, 1] of a batch of scenes, drawn on `device`.

    `size` is the side of a square frame or (H, W); frames `first_frame` to `first_frame + num_frames - 1` are
    rendered, each bit for bit what any longer clip of the scene shows there. Subjects that cross an edge
    enter on the other side. Every subject is drawn in a patch around its centre, and its distance field
    clamped to one pixel is the opacity of its edge.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 16 or num_frames < 1 or not scenes:
        raise RequestError(
            f"got {len(scenes)} scenes, {num_frames} frames of {height}x{width} (height by width); "
            "wanted at least one scene, one frame and 16x16"
        )
    base = torch.tensor([BACKGROUNDS[it.background] for it in scenes], dtype=torch.float32, device=device) / 127.5 - 1
    video = base[:, :, None].expand(-1, -1, num_frames * height * width).contiguous()
    for layer in range(max(len(scene.subjects) for scene in scenes)):
        rows = [i for i, scene in enumerate(scenes) if len(scene.subjects) > layer]
        subjects = [scenes[i].subjects[layer] for i in rows]
        where, opacity = _patches(subjects, range(first_frame, first_frame + num_frames), height, width, device)
        colour = torch.tensor([COLOURS[it.colour] for it in subjects], dtype=torch.float32, device=device) / 127.5 - 1
        under = video if len(rows) == len(scenes) else video[rows]
        where = where[:, None].expand(-1, 3, -1)
        behind = under.gather(2, where)
        under.scatter_(2, where, behind + opacity[:, None] * (colour[:, :, None] - behind))
        if under is not video:
            video[rows] = under
    return video.view(len(scenes), 3, num_frames, height, width)


def to_frames(video: torch.Tensor) -> torch.Tensor:
    """uint8 frames [B, T, H, W, 3] of a video [B, 3, T, H, W] in [-1, 1]; what lies beyond is clipped."""
    levels = (video.float().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def _patches(
    subjects: list[Subject], frames: range, height: int, width: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat pixel indices int64 [B, T·P·P] into T·H·W, and opacities float32 there; P×P pixels a subject."""
    side = min(height, width)
    radius = torch.tensor([it.radius * side for it in subjects], dtype=torch.float64, device="cpu")
    half = math.ceil(float(radius.max()) * EXTENT) + 1
    if 2 * half + 1 > side:
        raise RequestError(f"a subject of radius {float(radius.max()):.1f} pixels does not fit a side of {side}")
    radius = radius.to(device)
    places = [[it.position(t) for t in frames] for it in subjects]
    centre = torch.tensor(places, dtype=torch.float64, device=device)
    offsets = torch.arange(-half, half + 1, dtype=torch.int64, device=device)
    columns, at_x = _axis(centre[:, :, 0] * width, offsets, radius)
    rows, at_y = _axis(centre[:, :, 1] * height, offsets, radius)

    fields = torch.stack([_field(it) for it in subjects]).to(device)
    distance = _between(fields, at_y, at_x) * radius[:, None, None, None].float()
    opacity = (0.5 - distance).clamp(0, 1)

    frame = torch.arange(len(frames), dtype=torch.int64, device=device)[:, None, None] * (height * width)
    where = frame + rows.remainder(height)[..., :, None] * width + columns.remainder(width)[..., None, :]
    return where.flatten(1), opacity.flatten(1)


def _axis(centre: torch.Tensor, offsets: torch.Tensor, radius: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Along one axis: pixel numbers [B, T, P] around the centre [B, T], and their places on the field's grid."""
    pixels = centre.floor().long()[..., None] + offsets
    local = (pixels.to(centre.dtype) + 0.5 - centre[..., None]) / radius[:, None, None]
    return pixels, ((local / EXTENT + 1) * (GRID / 2) - 0.5).clamp(0, GRID - 1.001).float()


def _between(fields: torch.Tensor, at_y: torch.Tensor, at_x: torch.Tensor) -> torch.Tensor:
    """Fields [B, GRID, GRID] sampled bilinearly at rows [B, T, P] and columns [B, T, P] → [B, T, P, P]."""
    row, column = at_y.long(), at_x.long()
    down, right = (at_y - row)[..., :, None], (at_x - column)[..., None, :]
    start = torch.arange(len(fields), dtype=torch.int64, device=fields.device)[:, None, None, None] * GRID * GRID
    corner = start + row[..., :, None] * GRID + column[..., None, :]
    flat = fields.flatten()
    top = flat[corner] * (1 - right) + flat[corner + 1] * right
    bottom = flat[corner + GRID] * (1 - right) + flat[corner + GRID + 1] * right
    return top * (1 - down) + bottom * down


def _field(subject: Subject) -> torch.Tensor:
    return shape_field(subject.name) if subject.digit_image is None else digit_field(subject.digit_image)
