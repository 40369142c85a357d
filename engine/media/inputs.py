"""Reading pictures and videos: from files, from PIL, from arrays."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias, cast

import av
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, ImageSequence

from kinema.errors import RequestError
from kinema.video import DEFAULT_FPS, Video

ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | npt.NDArray[np.generic] | torch.Tensor
Frames: TypeAlias = Sequence[Image.Image] | Sequence[npt.NDArray[np.generic]] | Sequence[torch.Tensor]
VideoInput: TypeAlias = (
    str | os.PathLike[str] | Video | npt.NDArray[np.generic] | torch.Tensor | Frames | Sequence["Frames"]
)

# Only what pillow decodes itself: some of its other formats start programs.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
PICTURE_SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"})
# Containers that hold the video themselves, and only from files: playlists could name other files and addresses.
CONTAINER_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,ivf,h264,hevc",
}
# What pillow raises on damaged files.
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)


def load_image(image: ImageInput) -> Image.Image | torch.Tensor:
    """A file, a PIL picture or a uint8 array [H, W, 3] (tensor [3, H, W]) as an upright RGB picture.

    Float arrays [H, W, 3] and float tensors [3, H, W] come back as a tensor [1, 3, H, W] in their dtype. A
    leading batch axis of one is accepted for all of them (floats may have any). Upright means turned by the
    EXIF orientation tag, as diffusers' `load_image` does.
    """
    if isinstance(image, (str, os.PathLike)):
        path = _existing(image, "image")
        if path.is_dir():
            raise RequestError(f"cannot read image {path}: it is a folder, wanted a picture file")
        try:
            with Image.open(path, formats=PICTURE_FORMATS) as opened:
                return _upright(opened)
        except _PICTURE_ERRORS as error:
            raise _unreadable("image", path, error) from error
    if isinstance(image, Image.Image):
        return _upright(image)
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise RequestError(f"an image must be a path, a PIL picture, an array or a tensor, got {type(image).__name__}")
    batch = image if image.ndim == 4 else image[None]
    if batch.ndim != 4:
        raise RequestError(f"an image must be an array [H, W, 3] or a tensor [3, H, W], got {list(image.shape)}")
    if batch.dtype in (np.uint8, torch.uint8):
        if len(batch) != 1:
            raise RequestError(f"wanted one image, got {len(batch)}")
        return picture_of(batch[0])
    return values_of(batch)


def load_video(
    path: str | os.PathLike[str], *, fps: float | Fraction | None = None, max_frames: int | None = None
) -> Video:
    """Read a video file, an animated picture, a .npy of uint8 [T, H, W, 3], or a folder of pictures.

    Frames come as they are stored, upright and in RGB. The rate is that of the file (its mean, if it varies)
    unless `fps` is given; folders, stills and .npy have none, and get 16. A folder is read in the order of
    the numbers in its file names. At most `max_frames` frames are read.
    """
    place = _existing(path, "video")
    if max_frames is not None and max_frames < 1:
        raise RequestError(f"max_frames must be at least 1, got {max_frames}")
    suffix = place.suffix.lower()
    if place.is_dir():
        frames, rate = _read_folder(place, max_frames), None
    elif suffix == ".npy":
        frames, rate = _read_npy(place, max_frames), None
    elif suffix in PICTURE_SUFFIXES:
        frames, rate = _read_animation(place, max_frames)
    else:
        frames, rate = _read_container(place, max_frames)
    return Video(frames, fps if fps is not None else rate or DEFAULT_FPS)


def picture_of(pixels: npt.NDArray[np.generic] | torch.Tensor) -> Image.Image:
    """A uint8 array [H, W, 3] or tensor [3, H, W] as a picture."""
    if isinstance(pixels, torch.Tensor):
        _check_channels(pixels.shape, axis=0, wanted="a tensor [3, H, W]")
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    _check_channels(pixels.shape, axis=2, wanted="an array [H, W, 3]")
    return Image.fromarray(np.ascontiguousarray(pixels))


def values_of(pixels: npt.NDArray[np.generic] | torch.Tensor) -> torch.Tensor:
    """A float array [T, H, W, 3] or tensor [T, 3, H, W] as a tensor [T, 3, H, W]."""
    if isinstance(pixels, torch.Tensor):
        _check_channels(pixels.shape, axis=1, wanted="a tensor [3, H, W]")
        values = pixels
    else:
        _check_channels(pixels.shape, axis=3, wanted="an array [H, W, 3]")
        values = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    if not values.is_floating_point():
        raise RequestError(f"pixels must be uint8 (0..255) or floats (0..1), got {values.dtype}")
    return values


def _check_channels(shape: Sequence[int], axis: int, wanted: str) -> None:
    if shape[axis] != 3:
        raise RequestError(f"wanted RGB frames, each {wanted}, got {list(shape)}")


def _existing(path: str | os.PathLike[str], kind: str) -> Path:
    text = os.fspath(path)
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        raise RequestError(f"cannot read {kind} {text}: kinema does not download; save it to a file and give its path")
    place = Path(text)
    if "\0" in text or not place.exists():
        raise RequestError(f"cannot read {kind} {text!r}: there is no such file")
    return place


def _upright(picture: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(picture).convert("RGB")


def _unreadable(kind: str, path: Path, error: Exception) -> RequestError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return RequestError(f"cannot read {kind} {path}: {' '.join(reason.split())}")


def _stack(frames: Sequence[npt.NDArray[np.uint8]], path: Path) -> npt.NDArray[np.uint8]:
    if not frames:
        raise RequestError(f"cannot read video {path}: it has no frames")
    sizes = {frame.shape for frame in frames}
    if len(sizes) > 1:
        shown = ", ".join(f"{h}x{w}" for h, w, _ in sorted(sizes))
        raise RequestError(f"cannot read video {path}: its frames have several sizes ({shown}, height x width)")
    return np.stack(frames)


def _read_folder(folder: Path, max_frames: int | None) -> npt.NDArray[np.uint8]:
    files = sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES), key=_by_number)
    if not files:
        raise RequestError(f"cannot read video {folder}: the folder holds no pictures")
    pictures = [cast("Image.Image", load_image(file)) for file in files[:max_frames]]
    return _stack([np.asarray(picture) for picture in pictures], folder)


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    """frame_2 before frame_10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _read_npy(path: Path, max_frames: int | None) -> npt.NDArray[np.uint8]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _unreadable("video", path, error) from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
        raise RequestError(
            f"cannot read video {path}: wanted uint8 [T, H, W, 3], got {array.dtype} {list(array.shape)}"
        )
    return np.array(array[:max_frames])


def _read_animation(path: Path, max_frames: int | None) -> tuple[npt.NDArray[np.uint8], Fraction | None]:
    frames: list[npt.NDArray[np.uint8]] = []
    milliseconds = 0.0
    try:
        with Image.open(path, formats=PICTURE_FORMATS) as opened:
            for picture in ImageSequence.Iterator(opened):
                if len(frames) == max_frames:
                    break
                frames.append(np.asarray(_upright(picture)))
                milliseconds += picture.info.get("duration", 0)
    except _PICTURE_ERRORS as error:
        raise _unreadable("video", path, error) from error
    rate = Fraction(1000 * len(frames)) / Fraction(milliseconds) if milliseconds else None
    return _stack(frames, path), rate


def _read_container(path: Path, max_frames: int | None) -> tuple[npt.NDArray[np.uint8], Fraction | None]:
    frames: list[npt.NDArray[np.uint8]] = []
    try:
        with av.open(str(path.resolve()), "r", container_options=CONTAINER_OPTIONS) as container:
            if not container.streams.video:
                raise RequestError(f"cannot read video {path}: the file has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate
            for frame in container.decode(stream):
                pixels = frame.to_ndarray(format="rgb24")
                # Phones store the sensor's frame and the turn (degrees, counterclockwise) that makes it upright.
                frames.append(np.rot90(pixels, round(frame.rotation / 90)))
                if len(frames) == max_frames:
                    break
    except av.FFmpegError as error:
        raise RequestError(f"cannot read video {path}: {error.strerror or error}") from error
    return _stack(frames, path), rate
