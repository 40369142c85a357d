"""What is decoded at most, so that a few kilobytes of file cannot ask for gigabytes of memory."""

from __future__ import annotations

from kinema.errors import RequestError

MAX_PICTURE_PIXELS = 7680 * 4320  # a still, 8K; reading holds it up to three times
MAX_STILL_PIXELS = 4096 * 4096  # a still that is a frame of a video; reading holds it up to five times
MAX_FRAME_PIXELS = 4096 * 2304  # a frame of a video or an animation, 4K; decoders hold up to twenty
MAX_SIDE = 65535
MAX_PICTURE_BYTES = 256 * 2**20  # the file of a picture or an animation
MAX_VIDEO_BYTES = 2**30  # a video's frames where they are read whole, in their own size


def check_size(width: int, height: int, most: int, what: str) -> None:
    """RequestError if a header announces a picture of more than `most` pixels, or of none."""
    if width < 1 or height < 1:
        raise RequestError(f"cannot read {what}: its size is {width}x{height}")
    if width * height > most or max(width, height) > MAX_SIDE:
        raise RequestError(
            f"cannot read {what}: its size is {width}x{height}, and the limit is "
            f"{most / 1e6:.1f} million pixels ({MAX_SIDE} a side): scale it down first"
        )
