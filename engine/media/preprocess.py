"""From pictures and frames to the model's values in [-1, 1], bit for bit as diffusers' VideoProcessor does it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kinema.errors import RequestError
from kinema.media.inputs import ImageInput, VideoInput
from kinema.media.pixels import is_batch, read_image, read_video


def preprocess_image(image: ImageInput | Sequence[ImageInput], height: int, width: int) -> torch.Tensor:
    """An image as the model wants it: float32 [1, 3, height, width] in [-1, 1].

    A file, a PIL picture or a uint8 array is resized with Lanczos, as diffusers resizes PIL. A float array
    [H, W, 3] or tensor [3, H, W] is resized to the nearest pixel, as diffusers does, and is taken to be in
    0..1, or in [-1, 1] already if it holds negative values. Several images (a sequence, or a leading batch
    axis) give [B, 3, height, width]. Pictures are turned upright by their EXIF tag and converted to RGB.
    """
    if isinstance(image, (list, tuple)) and not image:
        raise RequestError("the list of images is empty")
    several = isinstance(image, (list, tuple)) or (isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4)
    images = list(image) if several else [image]  # type: ignore[arg-type]
    return torch.cat([read_image(one).values(height, width) for one in images])


def preprocess_video(video: VideoInput, height: int, width: int) -> torch.Tensor:
    """A video as the model wants it: float32 [1, 3, T, height, width] in [-1, 1].

    Takes a file or folder, a `Video`, a list of PIL pictures, an array [T, H, W, 3], a tensor [T, 3, H, W],
    or a list of frames as arrays [H, W, 3] or tensors [3, H, W]. A 5-D array or tensor, or a list of videos
    of one length, gives [B, 3, T, height, width]. Resizing and value ranges are as in `preprocess_image`.
    """
    videos = list(video) if is_batch(video) else [video]  # type: ignore[arg-type]
    clips = [read_video(one, height, width).values(height, width).transpose(0, 1) for one in videos]
    lengths = [clip.shape[1] for clip in clips]
    if len(set(lengths)) > 1:
        raise RequestError(f"the videos of a batch must have one length, got {lengths} frames")
    return torch.stack(clips)
