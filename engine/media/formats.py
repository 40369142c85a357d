"""The output formats: which paths select them, and what each can hold."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from kinema.errors import OutputError
from kinema.fields.values import named_path, number


@dataclass(frozen=True)
class Format:
    """`library`: the module that writes it, None for numpy. `max_side`: its limit on height and width, in pixels."""

    name: str
    suffixes: tuple[str, ...]
    library: str | None = "PIL"
    max_side: int | None = None
    one_frame: bool = False
    even_sizes: bool = False
    max_fps: int | None = None


FOLDER = Format("png folder", ("",))
FRAME_NAME = "frame_{:05d}.png"  # in a folder of pictures
FORMATS = (
    # H.264 in yuv420p stores one colour sample per 2x2 pixels, and libx264 stops at 16384.
    Format("mp4", (".mp4",), "av", max_side=16384, even_sizes=True),
    # GIF delays are whole centiseconds, and players slow down a delay of less than two.
    Format("gif", (".gif",), max_side=65535, max_fps=50),
    Format("webp", (".webp",), max_side=16383, max_fps=1000),
    Format("png", (".png",), one_frame=True),
    Format("jpeg", (".jpg", ".jpeg"), max_side=65500, one_frame=True),
    Format("npy", (".npy",), None),
    FOLDER,
)
KNOWN = "wanted .mp4, .gif, .webp, .npy, .png or .jpg (one frame), or a folder of PNG files ('name/')"

MIN_FPS, MAX_FPS = 0.01, 1000


@dataclass(frozen=True)
class Destination:
    """Where a result goes: `shown` is the path as the user wrote it, `path` the absolute one without links."""

    shown: str
    path: Path
    format: Format


def parse_destination(path: str | os.PathLike[str]) -> Destination:
    """The format follows from the suffix; no suffix, or a final '/', means a folder of PNG files."""
    shown = os.fspath(named_path("output path", path))
    if not shown or "\0" in shown:
        raise OutputError(f"output path {shown!r} is not a path: give a file such as out.mp4")
    place = Path(os.path.realpath(shown))
    if shown.endswith(("/", os.sep)):
        return Destination(shown, place, FOLDER)
    written = Path(shown)
    suffix = written.suffix.lower()
    found = next((f for f in FORMATS if suffix in f.suffixes), None)
    if found is None:
        raise OutputError(f"cannot write {shown}: unknown suffix {written.suffix!r}; {KNOWN}")
    if found is FOLDER and any(written.name.lower() in f.suffixes for f in FORMATS):
        raise OutputError(f"cannot write {shown}: there is no name before {written.name!r}")
    return Destination(shown, place, found)


def check_fits(
    destination: Destination,
    *,
    fps: float | Fraction | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> None:
    """Raise OutputError if the format cannot hold such a video. What is None is not checked.

    Nothing is rescaled or resampled to make it fit: the message names what would fit.
    """
    form, cannot = destination.format, f"cannot write {destination.shown}"
    if form.one_frame and num_frames is not None and num_frames != 1:
        raise OutputError(
            f"{cannot}: {form.name} holds one frame, got {num_frames}; "
            "use .mp4, .gif, .webp, .npy, or a folder of PNG files ('name/')"
        )
    sides = {"height": height, "width": width}
    known = {name: side for name, side in sides.items() if side is not None}
    odd = {name: side for name, side in known.items() if side % 2}
    if form.even_sizes and odd:
        got = " and ".join(f"{name} {side}" for name, side in odd.items())
        near = ", ".join(f"{name} {_even_neighbours(side)}" for name, side in odd.items())
        raise OutputError(
            f"{cannot}: {form.name} (yuv420p) needs even sizes, got {got}; nearest: {near}; "
            ".gif, .webp, .npy and a folder of PNG files take any size"
        )
    if form.max_side is not None and any(side > form.max_side for side in known.values()):
        got = " and ".join(f"{name} {side}" for name, side in known.items())
        raise OutputError(
            f"{cannot}: {form.name} takes {form.max_side} pixels a side at most, got {got}; use .npy or PNG"
        )
    if fps is not None and form.max_fps is not None and fps > form.max_fps:
        raise OutputError(
            f"{cannot}: {form.name} can show at most {form.max_fps} frames per second, got {float(fps):g}; use .mp4"
        )


def _even_neighbours(side: int) -> str:
    return f"{side - 1} or {side + 1}" if side > 1 else f"{side + 1}"


def frame_rate(fps: float | Fraction) -> Fraction:
    """Frames per second as a fraction that fits a container's 32-bit time base.

    23.976 is 2997/125 and 24000 / 1001 is 24000/1001: the nearest fraction with a denominator up to 100000,
    which is exact for decimals of five digits and for the NTSC rates.
    """
    value = number("fps", fps, MIN_FPS, MAX_FPS)
    return (fps if isinstance(fps, Fraction) else Fraction(value)).limit_denominator(100_000)
