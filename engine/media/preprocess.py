"""From pictures and frames to the model's values in [-1, 1], bit for bit as diffusers' VideoProcessor does it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from kinema.errors import RequestError
from kinema.media.inputs import ImageInput, VideoInput, load_image, load_video, picture_of, values_of
from kinema.video import Video


def preprocess_image(image: ImageInput | Sequence[ImageInput], height: int, width: int) -> torch.Tensor:
    """An image as the model wants it: float32 [1, 3, height, width] in [-1, 1].

    A file, a PIL picture or a uint8 array is resized with Lanczos, as diffusers resizes PIL. A float array
    [H, W, 3] or tensor [3, H, W] is resized to the nearest pixel, as diffusers does, and is taken to be in
    0..1, or in [-1, 1] already if it holds negative values. Several images (a sequence, or a leading batch
    axis) give [B, 3, height, width]. Pictures are turned upright by their EXIF tag and converted to RGB.
    """
    if isinstance(image, (list, tuple)):
        if not image:
            raise RequestError("the list of images is empty")
        return torch.cat([preprocess_image(one, height, width) for one in image])
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4 and len(image) > 1:
        return torch.cat([preprocess_image(one, height, width) for one in image])
    loaded = load_image(cast("ImageInput", image))
    if isinstance(loaded, torch.Tensor):
        return _from_values(loaded, height, width)
    return _from_pictures([loaded], height, width)


def preprocess_video(video: VideoInput, height: int, width: int) -> torch.Tensor:
    """A video as the model wants it: float32 [1, 3, T, height, width] in [-1, 1].

    Takes a file or folder, a `Video`, a list of PIL pictures, an array [T, H, W, 3], a tensor [T, 3, H, W],
    or a list of frames as arrays [H, W, 3] or tensors [3, H, W]. A 5-D array or tensor, or a list of videos
    of one length, gives [B, 3, T, height, width]. Resizing and value ranges are as in `preprocess_image`.
    """
    if isinstance(video, (str, os.PathLike)):
        video = load_video(video)
    if isinstance(video, Video):
        video = video.frames
    if not isinstance(video, (list, tuple, np.ndarray, torch.Tensor)):
        raise RequestError(f"a video must be a path, a Video, frames, an array or a tensor, got {type(video).__name__}")
    if len(video) == 0:
        raise RequestError("the video has no frames")
    if _is_batch(video):
        clips = [preprocess_video(one, height, width) for one in video]
        lengths = [clip.shape[2] for clip in clips]
        if len(set(lengths)) > 1:
            raise RequestError(f"the videos of a batch must have one length, got {lengths} frames")
        return torch.cat(clips)
    return _frames(video, height, width).transpose(0, 1).unsqueeze(0).contiguous()


def _is_batch(video: Any) -> bool:
    if isinstance(video, (np.ndarray, torch.Tensor)):
        return video.ndim == 5
    first = video[0]
    return isinstance(first, (list, tuple)) or getattr(first, "ndim", 0) == 4


def _frames(video: Any, height: int, width: int) -> torch.Tensor:
    """One video, in any form but a file, as float32 [T, 3, height, width] in [-1, 1]."""
    if not isinstance(video, (np.ndarray, torch.Tensor)):
        kinds = {type(frame) for frame in video}
        if not all(isinstance(frame, (Image.Image, np.ndarray, torch.Tensor)) for frame in video):
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise RequestError(f"the frames of a video must be PIL pictures, arrays or tensors, got {names}")
        if isinstance(video[0], Image.Image):
            if not all(isinstance(frame, Image.Image) for frame in video):
                raise RequestError("the frames of a video must be all pictures, all arrays or all tensors")
            return _from_pictures(video, height, width)
        shapes = sorted({(type(frame).__name__, str(frame.dtype), tuple(frame.shape)) for frame in video})
        if len(shapes) > 1:
            raise RequestError(f"the frames of a video must have one type and shape, got {shapes}")
        video = np.stack(video) if isinstance(video[0], np.ndarray) else torch.stack(list(video))
    if video.ndim != 4:
        raise RequestError(f"a video must be an array [T, H, W, 3] or a tensor [T, 3, H, W], got {list(video.shape)}")
    if video.dtype in (np.uint8, torch.uint8):
        return _from_pictures([picture_of(frame) for frame in video], height, width)
    return _from_values(values_of(video), height, width)


def _from_pictures(pictures: Sequence[Image.Image], height: int, width: int) -> torch.Tensor:
    """Pictures of any size as float32 [T, 3, height, width] in [-1, 1]."""
    unit = np.empty((len(pictures), height, width, 3), np.float32)
    for frame, picture in zip(unit, pictures, strict=True):
        resized = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        np.divide(np.asarray(resized), np.float32(255), out=frame, dtype=np.float32)
    return 2.0 * torch.from_numpy(unit).permute(0, 3, 1, 2).contiguous() - 1.0


def _from_values(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Floats [T, 3, H, W] in 0..1 (or -1..1, told by a negative value) as float32 [T, 3, height, width] in -1..1."""
    low, high = float(values.min()), float(values.max())
    if not (low >= -1 and high <= 1):
        raise RequestError(
            f"float pixels must lie in 0..1 (or -1..1), got {low:g}..{high:g}: "
            "divide by 255, pass uint8, or clip them first"
        )
    resized = torch.nn.functional.interpolate(values, size=(height, width))
    if float(resized.min()) >= 0:  # of the resized values, as diffusers looks at them
        resized = 2.0 * resized - 1.0
    return resized.float()
