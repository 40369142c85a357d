"""How long each frame of an animated picture is shown, and how many frames at one rate that makes.

Encoders merge equal frames into a longer one, and files round times: to centiseconds in GIF, to milliseconds in WebP.
Reading an animation as a video has to undo both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import BinaryIO

import numpy as np

MAX_BLOCKS = 1_000_000  # of a file whose structure is walked
MAX_FRAMES = 4096  # more than that are no longer a video with pauses in it
MAX_NOTED_FRAMES = 100_000

_NOTE = "kinema: {} frames at {}/{} fps"
_NOTED = re.compile(_NOTE.format(r"(\d{1,9})", r"(\d{1,9})", r"([1-9]\d{0,8})"))


@dataclass(frozen=True)
class Timing:
    """rate: frames per second, None if the file does not say. repeats: of each stored frame, how many it stands for."""

    rate: Fraction | None
    repeats: Sequence[int] = ()


def note(count: int, fps: Fraction) -> str:
    """What our encoders write into a file's comment: after merging and rounding it could not be recovered."""
    return _NOTE.format(count, fps.numerator, fps.denominator)


def timing_of(durations: Sequence[Fraction], unit: int, comment: str = "") -> Timing:
    """durations: of the stored frames, in milliseconds; unit: what the format rounds them to. comment: see `note`."""
    noted = _NOTED.search(comment)
    if noted is not None:
        count, fps = int(noted[1]), Fraction(int(noted[2]), int(noted[3]))
        ends = [round(end * fps / 1000) for end in accumulate(durations)] or [count]
        repeats = [end - start for start, end in pairwise([0, *ends])]
        # otherwise another program has changed the file
        if ends[-1] == count <= MAX_NOTED_FRAMES and min(repeats) > 0 and fps > 0:
            return Timing(fps, repeats)
    shortest = min((duration for duration in durations if duration > 0), default=None)
    if shortest is None:
        return Timing(None)
    shown = [duration or shortest for duration in durations]  # a duration of 0 counts as one frame
    found = _repeats(shown, unit)
    return Timing(Fraction(1000 * sum(found)) / sum(shown, Fraction(0)), found)


def _repeats(durations: Sequence[Fraction], unit: int) -> list[int]:
    """The fewest frames at one rate with which each stored frame starts on time, exactly or rounded to `unit`.

    Where there is no such rate (a screen recording, say), each stored frame is one frame.
    """
    ends = np.cumsum(np.array([float(duration) for duration in durations]))
    # programs round or truncate to a unit; an exact rate that is too high only reflects the unit
    for slack, most in ((0.0, 50), (unit / 2, 100), (unit, 100)):
        for total in range(len(ends), MAX_FRAMES + 1):
            if total > len(ends) and total > most * ends[-1] / 1000:
                break
            counts = np.rint(ends * (total / ends[-1]))
            repeats = np.diff(counts, prepend=0)
            if repeats.min() < 1:
                continue
            longest, shortest = ((ends + slack) / counts).min(), ((ends - slack) / counts).max()
            if shortest <= longest * (1 + 1e-9):
                return [int(count) for count in repeats]
    return [1] * len(ends)


def stored_durations(file: BinaryIO) -> tuple[list[Fraction], int]:
    """Milliseconds of each frame of a GIF, an animated WebP or an animated PNG, and the unit that they are rounded to.

    Read from the structure of the file without decoding a pixel; none for other files. Durations that are missing
    because the file is damaged are left out: it will not decode either.
    """
    file.seek(0)
    start = file.read(12)
    file.seek(0)
    if start[:3] == b"GIF":
        return list(_gif(file)), 10
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return list(_webp(file)), 1
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return list(_png(file)), 1
    return [], 1


def _gif(file: BinaryIO) -> Iterator[Fraction]:
    """GIF89a: a graphic control extension before a picture holds its delay in centiseconds."""
    flags = file.read(13)[10:11]
    _skip_colours(file, flags)
    delay = 0
    for _ in range(MAX_BLOCKS):
        kind = file.read(1)
        if kind == b"!":
            label, block = file.read(1), _sub_blocks(file)
            if label == b"\xf9":
                delay = int.from_bytes(block[1:3], "little")
        elif kind == b",":
            _skip_colours(file, file.read(9)[8:])
            file.read(1)
            _sub_blocks(file)
            yield Fraction(10 * delay)
            delay = 0
        else:
            return


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 128:
        file.seek(3 << ((flags[0] & 7) + 1), 1)


def _sub_blocks(file: BinaryIO) -> bytes:
    """The first of the blocks that follow, each of which begins with its length; an empty one ends them."""
    first = b""
    while (size := file.read(1)) and size[0]:
        block = file.read(size[0])
        first = first or block
    return first


def _webp(file: BinaryIO) -> Iterator[Fraction]:
    """A RIFF file: each ANMF chunk holds its frame's duration in milliseconds, 24 bits."""
    file.seek(12)
    for _ in range(MAX_BLOCKS):
        head = file.read(8)
        if len(head) < 8:
            return
        size = int.from_bytes(head[4:], "little")
        after = file.tell() + size + size % 2
        if head[:4] == b"ANMF":
            yield Fraction(int.from_bytes(file.read(16)[12:15], "little"))
        file.seek(after)


def _png(file: BinaryIO) -> Iterator[Fraction]:
    """Each fcTL chunk holds its frame's delay as a fraction of seconds; a denominator of 0 means 100."""
    file.seek(8)
    for _ in range(MAX_BLOCKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return
        after = file.tell() + int.from_bytes(head[:4], "big") + 4
        if head[4:] == b"fcTL":
            delay = file.read(24)[20:]
            yield Fraction(1000 * int.from_bytes(delay[:2], "big"), int.from_bytes(delay[2:], "big") or 100)
        file.seek(after)
