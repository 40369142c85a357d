"""Pictures and videos as the engine takes them: read once, on entry, and of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kinema.errors import RequestError
from kinema.media.inputs import frames_of, is_picture, load_image

if TYPE_CHECKING:
    from PIL import Image

# Of a video, where num_frames is not given.
MAX_FRAMES = 1024


@dataclass(frozen=True, eq=False, repr=False)
class Pixels:
    """Frames: RGB pictures, each of any size, or values [T, 3, H, W] in 0..1 (in -1..1 if some are negative)."""

    frames: Sequence[Image.Image] | torch.Tensor

    def __post_init__(self) -> None:
        if isinstance(self.frames, torch.Tensor):
            _check_range(self.frames)

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    def values(self, height: int, width: int) -> torch.Tensor:
        """float32 [T, 3, height, width] in [-1, 1], bit for bit as diffusers' VideoProcessor makes them.

        Pictures are resized with Lanczos, values to the nearest pixel.
        """
        if isinstance(self.frames, torch.Tensor):
            resized = torch.nn.functional.interpolate(self.frames, size=(height, width))
            if float(resized.min()) >= 0:  # of the resized values, as diffusers looks at them
                resized = 2.0 * resized - 1.0
            return resized.float()
        unit = np.empty((self.num_frames, height, width, 3), np.float32)
        for frame, picture in zip(unit, self.frames, strict=True):
            np.divide(np.asarray(_resized(picture, height, width)), np.float32(255), out=frame, dtype=np.float32)
        return 2.0 * torch.from_numpy(unit).permute(0, 3, 1, 2).contiguous() - 1.0

    def picture(self) -> Image.Image:
        """The first frame as the 8-bit picture that CLIP was trained on, in its own size."""
        if not isinstance(self.frames, torch.Tensor):
            return self.frames[0]
        unit = self.frames[0].float()
        if float(unit.min()) < 0:
            unit = unit / 2 + 0.5
        loaded = load_image(unit.mul(255).round().to(torch.uint8))
        assert is_picture(loaded)
        return loaded


def read_image(image: Any, name: str = "image") -> Pixels:
    """One image, or a list or batch of one. RequestError if it cannot be read; name: the parameter, for the message."""
    if isinstance(image, Pixels):
        return image
    several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
    if several and len(image) != 1:
        raise _not_one(name, len(image))
    loaded = load_image(image[0] if several else image)
    return Pixels(loaded if isinstance(loaded, torch.Tensor) else [loaded])


def read_video(
    video: Any,
    height: int,
    width: int,
    num_frames: int | None = None,
    fits: Callable[[int], object] = lambda num_frames: None,
) -> Pixels:
    """The first `num_frames` frames of one video in any form, or all of it; pictures come in the size of the clip.

    Memory is that of the clip and one frame of the file: frames are read one by one, each is resized before the next is
    read, and reading stops after the last. fits: raises if a clip of this many frames is too large; it is called before
    frames are read, each time their number doubles, because the length that a file declares need not be true.
    """
    if is_batch(video):
        if len(video) != 1:
            raise _not_one("video", len(video))
        video = video[0]
    fits(num_frames or 1)
    frames = video.frames if isinstance(video, Pixels) else frames_of(video)
    if not isinstance(frames, torch.Tensor):
        pictures: list[Image.Image] = []
        for picture in frames:
            if num_frames is None:
                _check_length(len(pictures) + 1, fits)
            pictures.append(_resized(picture, height, width))
            if len(pictures) == num_frames:
                break
        frames = pictures
    elif num_frames is None:
        _check_length(len(frames), fits)
    if num_frames is not None and len(frames) < num_frames:
        raise RequestError(
            f"num_frames is {num_frames}, the video has {len(frames)}: ask for fewer, or leave num_frames out"
        )
    return Pixels(frames[:num_frames])


def is_batch(video: Any) -> bool:
    """Whether these are several videos: a 5-D array or tensor, or a list of videos."""
    if isinstance(video, (np.ndarray, torch.Tensor)):
        return video.ndim == 5
    if not isinstance(video, (list, tuple)) or not video:
        return False
    return isinstance(video[0], (list, tuple)) or getattr(video[0], "ndim", 0) == 4


def _not_one(name: str, count: int) -> RequestError:
    return RequestError(f"{name} holds {count} of them: wanted one, from which every sample of a request starts")


def _check_length(count: int, fits: Callable[[int], object]) -> None:
    if count > MAX_FRAMES:
        raise RequestError(
            f"the video has more than {MAX_FRAMES} frames: say with num_frames how many of its first frames to take"
        )
    if count & (count - 1) == 0:
        fits(count)


def _resized(picture: Image.Image, height: int, width: int) -> Image.Image:
    if picture.size == (width, height):
        return picture
    from PIL import Image

    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _check_range(values: torch.Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise RequestError("float pixels hold NaN or infinite values: they must lie in 0..1 (or -1..1)")
    low, high = float(values.min()), float(values.max())
    if not (low >= -1 and high <= 1):
        raise RequestError(
            f"float pixels must lie in 0..1 (or -1..1), got {low:g}..{high:g}: "
            "divide by 255, pass uint8, or clip them first"
        )
