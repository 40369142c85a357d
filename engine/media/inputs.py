"""Reads pictures and videos in every form that is accepted: files, PIL, arrays, tensors."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch

from kinema.errors import RequestError
from kinema.media.files import StrPath, damage_is_refused, existing
from kinema.media.formats import MAX_FPS, MIN_FPS
from kinema.media.libraries import needed
from kinema.media.limits import MAX_STILL_PIXELS, MAX_VIDEO_BYTES
from kinema.media.npy import NpyReader
from kinema.media.video import DEFAULT_FPS, Video

if TYPE_CHECKING:
    from PIL import Image

ImageInput: TypeAlias = "StrPath | Image.Image | npt.NDArray[np.generic] | torch.Tensor"
Frames: TypeAlias = "Sequence[Image.Image] | Sequence[npt.NDArray[np.generic]] | Sequence[torch.Tensor]"
VideoInput: TypeAlias = "StrPath | Video | npt.NDArray[np.generic] | torch.Tensor | Frames | Sequence[Frames]"

PICTURE_SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"})
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Reader(Protocol):
    """A video file: iterating gives its frames, uint8 [H, W, 3]; `rate` is known from the first of them on."""

    rate: Fraction | None

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]: ...


def load_image(image: ImageInput) -> Image.Image | torch.Tensor:
    """A file, a PIL picture or a uint8 array [H, W, 3] (tensor [3, H, W]) as an upright RGB picture.

    Float arrays [H, W, 3] and float tensors [3, H, W] come back as a tensor [1, 3, H, W] in their dtype. A
    leading batch axis of one is accepted for all of them (floats may have any). Upright means turned by the
    EXIF orientation tag, as diffusers' `load_image` does. 16-bit pictures are reduced to 8 bits.
    """
    if isinstance(image, (str, os.PathLike)):
        path = existing(image, "image")
        return _picture(path, f"reading {path.name}")
    if is_picture(image):
        return _picture(image, "reading pictures")
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise RequestError(f"an image must be a path, a PIL picture, an array or a tensor, got {type(image).__name__}")
    batch = image if image.ndim == 4 else image[None]
    if batch.ndim != 4:
        raise RequestError(f"an image must be an array [H, W, 3] or a tensor [3, H, W], got {list(image.shape)}")
    if batch.dtype in (np.uint8, torch.uint8):
        if len(batch) != 1:
            raise RequestError(f"wanted one image, got {len(batch)}")
        return next(iter(_pictures(batch)))
    return _values(batch)


def load_video(path: StrPath, *, fps: float | Fraction | None = None, max_frames: int | None = None) -> Video:
    """Read a video file, an animated picture, a .npy of uint8 [T, H, W, 3], or a folder of pictures.

    Frames come as they are stored, upright and in RGB; those of an animated picture as they are shown, at one rate, a
    pause being repeated frames. The rate is that of the file (its mean, if it varies) unless `fps` is given;
    folders, stills and .npy have none, and get 16. A folder is read in the order of the numbers in its file names. At
    most `max_frames` frames are read. RequestError if the file cannot be read, or if its frames take more than 1 GiB.
    """
    if max_frames is not None and max_frames < 1:
        raise RequestError(f"max_frames must be at least 1, got {max_frames}")
    reader = open_video(path)
    pixels, shape = bytearray(), (0, 0, 3)
    with closing(_of_one_size(reader, path)) as frames:
        for frame in islice(frames, max_frames):
            if len(pixels) + frame.nbytes > MAX_VIDEO_BYTES:
                raise RequestError(
                    f"cannot read video {os.fsdecode(path)}: it takes more than {MAX_VIDEO_BYTES >> 20} MiB; "
                    f"read its first {len(pixels) // frame.nbytes} frames with max_frames"
                )
            pixels += frame.tobytes()
            shape = frame.shape
    rate = reader.rate if reader.rate is not None and MIN_FPS <= reader.rate <= MAX_FPS else DEFAULT_FPS
    return Video(np.frombuffer(pixels, np.uint8).reshape(-1, *shape), rate if fps is None else fps)


def open_video(path: StrPath) -> Reader:
    """A reader of a video file, frame by frame; nothing is read yet."""
    place = existing(path, "video")
    suffix = place.suffix.lower()
    if suffix == ".npy" and not place.is_dir():
        return NpyReader(place)
    if place.is_dir():
        return FolderReader(place)
    if suffix in PICTURE_SUFFIXES:
        with needed("PIL", f"reading {place.name}"):
            from kinema.media.picture_files import AnimationReader
        return AnimationReader(place)
    with needed("av", f"reading {place.name}"):
        from kinema.media.container_files import ContainerReader
    return ContainerReader(place)


class FolderReader:
    """A folder's pictures in the order of the numbers in their names. Iterating gives uint8 [H, W, 3]."""

    rate: Fraction | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        with needed("PIL", "reading pictures"):
            from kinema.media.picture_files import read_still
        with damage_is_refused("video", self.folder):
            files = sorted((p for p in self.folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES), key=_by_number)
        if not files:
            raise RequestError(f"cannot read video {self.folder}: the folder holds no pictures")
        for file in files:
            yield np.asarray(read_still(file, MAX_STILL_PIXELS))


def frames_of(video: VideoInput) -> Iterable[Image.Image] | torch.Tensor:
    """One video in any form: its frames as RGB pictures, made one by one, or floats as a tensor [T, 3, H, W]."""
    if isinstance(video, (str, os.PathLike)):
        return _pictures(_of_one_size(open_video(video), video))
    if isinstance(video, Video):
        return _pictures(video.frames)
    if not isinstance(video, (list, tuple, np.ndarray, torch.Tensor)):
        raise RequestError(f"a video must be a path, a Video, frames, an array or a tensor, got {type(video).__name__}")
    if isinstance(video, (np.ndarray, torch.Tensor)) and video.ndim != 4:
        raise RequestError(f"a video must be an array [T, H, W, 3] or a tensor [T, 3, H, W], got {list(video.shape)}")
    if len(video) == 0:
        raise RequestError("the video has no frames")
    if isinstance(video, (list, tuple)):
        return _of_list(video)
    return _pictures(video) if video.dtype in (np.uint8, torch.uint8) else _values(video)


def is_picture(value: object) -> TypeGuard[Image.Image]:
    """Whether it is a PIL picture; nothing is while pillow has not been imported."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _of_list(video: Sequence[Any]) -> Iterable[Image.Image] | torch.Tensor:
    if not all(is_picture(frame) or isinstance(frame, (np.ndarray, torch.Tensor)) for frame in video):
        names = ", ".join(sorted({type(frame).__name__ for frame in video}))
        raise RequestError(f"the frames of a video must be PIL pictures, arrays or tensors, got {names}")
    if is_picture(video[0]):
        if not all(is_picture(frame) for frame in video):
            raise RequestError("the frames of a video must be all pictures, all arrays or all tensors")
        return _in_rgb(video)
    shapes = sorted({(type(frame).__name__, str(frame.dtype), tuple(frame.shape)) for frame in video})
    if len(shapes) > 1:
        raise RequestError(f"the frames of a video must have one type and shape, got {shapes}")
    if video[0].dtype in (np.uint8, torch.uint8):
        return _pictures(video)
    for frame in video:
        if isinstance(frame, torch.Tensor):
            _check_tensor(frame)
    return _values(np.stack(video) if isinstance(video[0], np.ndarray) else torch.stack(list(video)))


def _in_rgb(pictures: Sequence[Image.Image]) -> Iterator[Image.Image]:
    from kinema.media.picture_files import as_rgb

    for picture in pictures:
        with damage_is_refused("a frame of the video"):
            yield as_rgb(picture)


def _picture(image: Path | Image.Image | npt.NDArray[np.generic], use: str) -> Image.Image:
    with needed("PIL", use):
        from kinema.media.picture_files import picture_of
    return picture_of(image)


def _pictures(frames: Iterable[npt.NDArray[np.generic]] | Iterable[torch.Tensor]) -> Iterator[Image.Image]:
    """uint8 frames, arrays [H, W, 3] or tensors [3, H, W], as pictures."""
    for frame in frames:
        if isinstance(frame, torch.Tensor):
            _check_tensor(frame)
            _check_channels(frame.shape, axis=0, wanted="a tensor [3, H, W]")
            frame = frame.permute(1, 2, 0).cpu().numpy()
        else:
            _check_channels(frame.shape, axis=2, wanted="an array [H, W, 3]")
        yield _picture(frame, "resizing pictures")


def _values(pixels: npt.NDArray[np.generic] | torch.Tensor) -> torch.Tensor:
    """A float array [T, H, W, 3] or tensor [T, 3, H, W] as a tensor [T, 3, H, W]."""
    if isinstance(pixels, torch.Tensor):
        _check_tensor(pixels)
        _check_channels(pixels.shape, axis=1, wanted="a tensor [3, H, W]")
        values = pixels.detach()
    else:
        _check_channels(pixels.shape, axis=3, wanted="an array [H, W, 3]")
        if pixels.dtype.kind != "f" or pixels.dtype.itemsize > 8:
            raise RequestError(f"pixels must be uint8 (0..255) or floats (0..1), got {pixels.dtype}")
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        values = torch.from_numpy(np.ascontiguousarray(native.transpose(0, 3, 1, 2)))
    if values.dtype not in _FLOATS:
        raise RequestError(f"pixels must be uint8 (0..255) or floats (0..1), got {values.dtype}")
    return values


def _check_tensor(pixels: torch.Tensor) -> None:
    if pixels.layout is not torch.strided or pixels.is_meta:
        raise RequestError(f"pixels must be a dense tensor that holds values, got {pixels.layout} on {pixels.device}")


def _check_channels(shape: Sequence[int], axis: int, wanted: str) -> None:
    if len(shape) <= axis or shape[axis] != 3 or 0 in shape:
        raise RequestError(f"wanted RGB frames, each {wanted}, got {list(shape)}")


def _of_one_size(reader: Reader, path: StrPath) -> Generator[npt.NDArray[np.uint8], None, None]:
    """The frames of a file; RequestError if there are none, or if their sizes differ."""
    first: tuple[int, ...] | None = None
    for frame in reader:
        first = first or frame.shape
        if frame.shape != first:
            sizes = ", ".join(f"{height}x{width}" for height, width, _ in sorted((first, frame.shape)))
            raise RequestError(
                f"cannot read video {os.fsdecode(path)}: its frames have several sizes ({sizes}, height x width)"
            )
        yield frame
    if first is None:
        raise RequestError(f"cannot read video {os.fsdecode(path)}: it has no frames")


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
